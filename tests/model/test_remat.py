"""What the backward pass computes again: less is kept, and everything else stays as it is."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.model.errors import SpecError
from resnet.model.network import REMAT, ResNet
from resnet.model.spec import ResNetSpec
from resnet.model.traced_program import operations
from tests.networks import by_name, random_variables, variable_shapes

LAX = jax.lax.conv_general_dilated
# Random draws inside the blocks, and before the head.
SPEC = ResNetSpec(
    block="basic", stage_sizes=(2, 2), width=8, stem="cifar", num_classes=4, stochastic_depth=0.5, dropout=0.3
)
IMAGES = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)


def loss(remat: str, spec: ResNetSpec = SPEC, frozen: frozenset[str] = frozenset()):
    network = ResNet(spec, backend=LAX, remat=remat, frozen=frozen)

    def of_params(params, statistics):
        variables = {"params": params, "batch_stats": statistics}
        rngs = {"dropout": jax.random.key(1)}
        logits, new = network.apply(variables, IMAGES, train=True, mutable=["batch_stats"], rngs=rngs)
        return jnp.sum(jnp.square(logits)), new["batch_stats"]

    return of_params


def gradient(remat: str, frozen: frozenset[str] = frozenset()) -> dict[str, np.ndarray]:
    variables = random_variables(SPEC)
    run = jax.jit(jax.value_and_grad(loss(remat, frozen=frozen), has_aux=True))
    (value, statistics), found = run(variables["params"], variables["batch_stats"])
    return by_name({"loss": value, "statistics": statistics, "gradient": found})


@pytest.fixture(scope="module")
def plain() -> dict[str, np.ndarray]:
    return gradient("none")


@pytest.mark.parametrize("remat", [kind for kind in REMAT if kind != "none"])
def test_loss_statistics_and_gradient_are_those_of_keeping_everything(remat, plain):
    """Dropped branches and units included: another draw would be far off."""
    for name, value in gradient(remat).items():
        scale = float(np.abs(plain[name]).max())
        np.testing.assert_allclose(value, plain[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name)


def kept(remat: str) -> int:
    """Numbers that the forward pass hands to the backward pass."""
    shapes = variable_shapes(SPEC)
    residuals = jax.eval_shape(
        lambda params, statistics: jax.vjp(lambda p: loss(remat)(p, statistics)[0], params)[1],
        shapes["params"],
        shapes["batch_stats"],
    )
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(residuals))


def test_less_is_kept_by_the_block_and_least_by_the_stage():
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(SPEC)["params"]))
    none, block, stage = (kept(remat) - parameters for remat in REMAT)
    assert stage < block < none / 3


@pytest.mark.parametrize("remat", REMAT)
def test_variables_features_and_evaluation_are_the_same_network(remat):
    network = ResNet(SPEC, backend=LAX, remat=remat)
    names = jax.eval_shape(
        lambda: network.init(
            {"params": jax.random.key(0), "dropout": jax.random.key(1)},
            IMAGES,
            train=True,
            mutable=["params", "batch_stats"],
        )
    )
    assert names == variable_shapes(SPEC)
    evaluation = lambda n: jax.make_jaxpr(lambda v: n.apply(v, IMAGES))(random_variables(SPEC))  # noqa: E731
    assert str(evaluation(network)) == str(evaluation(ResNet(SPEC, backend=LAX)))

    def features(n):
        rngs = {"dropout": jax.random.key(1)}
        training = lambda v: n.apply(  # noqa: E731
            v, IMAGES, train=True, return_features=True, mutable=["batch_stats", "diagnostics"], rngs=rngs
        )
        return jax.eval_shape(training, random_variables(SPEC))

    assert features(network) == features(ResNet(SPEC, backend=LAX))


def test_what_is_computed_again_is_the_inside_of_the_blocks():
    """Each convolution of a block once more on the way back, the stem's and the head's not."""
    shapes = variable_shapes(SPEC)
    found = {}
    for remat in REMAT:
        program = jax.make_jaxpr(jax.grad(loss(remat), has_aux=True))(shapes["params"], shapes["batch_stats"])
        found[remat] = sum(bool(operation.kernel) for operation in operations(program))
    # 4 blocks of 2 convolutions and one projection.
    inside = 4 * 2 + 1
    stem_and_blocks = 1 + inside
    assert found["none"] == 3 * stem_and_blocks - 1
    assert found["block"] == found["stage"] == found["none"] + inside


def test_frozen_parts_stay_frozen(plain):
    frozen = frozenset({"layer1_0", "layer2_1/bn1"})
    expected, got = gradient("none", frozen), gradient("block", frozen)
    before = by_name({"statistics": random_variables(SPEC)["batch_stats"]})
    for name, value in before.items():
        if "layer1_0/" in name or "layer2_1/bn1/" in name:
            np.testing.assert_array_equal(got[name], value)
    for name, value in expected.items():
        scale = float(np.abs(value).max())
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-5 * scale, err_msg=name)


def test_another_word_is_refused():
    with pytest.raises(SpecError, match="remat='all' is not one of none, block, stage"):
        ResNet(SPEC, remat="all").apply(random_variables(SPEC), IMAGES)
