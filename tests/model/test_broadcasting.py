"""In bfloat16 the gradients of biases, scales and gates are float32's, up to rounding: their sums do not stall."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.model.broadcasting import scaled, shifted
from resnet.model.layers import convolution
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from tests.networks import by_name, random_variables

SPEC = {"block": "basic", "stage_sizes": (1,), "width": 8, "num_classes": 4, "stem": "cifar"}
# What is drawn is positive on average, so that sums grow: 16 images of 24 px are 9,216 addends a channel.
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.normal(0.3, 1, (16, 24, 24, 3)).astype(np.float32)
LABELS = GENERATOR.integers(0, 4, 16)


def gradients(spec: ResNetSpec, dtype) -> dict[str, np.ndarray]:
    """Those of the cross-entropy by all parameters; with running statistics, which take no bias away again."""
    variables = random_variables(spec)
    network = ResNet(spec, dtype=dtype, backend=jax.lax.conv_general_dilated)

    def loss(params):
        logits = network.apply({**variables, "params": params}, IMAGES, train=False)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(LABELS)), LABELS].mean()

    return by_name(jax.jit(jax.grad(loss))(variables["params"]))


@pytest.mark.parametrize(
    "choices",
    [
        {"norm": "none"},
        {"conv_bias": True},
        {"norm": "group", "norm_groups": 4, "conv_bias": True},
        {"squeeze_excitation": 4},
        {"shortcut_transform": "exclusive_gate"},
        {"shortcut_transform": "shortcut_gate", "norm": "none"},
    ],
    ids=lambda choices: "-".join(map(str, choices.values())),
)
def test_a_networks_vectors_and_scalars_learn_as_in_float32(choices):
    spec = ResNetSpec(**SPEC, **choices)
    expected, found = gradients(spec, jnp.float32), gradients(spec, jnp.bfloat16)
    broadcast = [name for name in expected if not name.endswith("kernel")]
    off = {name: np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name]) for name in broadcast}
    assert max(off.values()) < 0.05, off


@pytest.mark.parametrize("function", [shifted, scaled])
@pytest.mark.parametrize("shape", [(), (8,), (16, 1, 1, 8)])
def test_the_result_is_bfloat16s_own_and_the_gradient_float32s(function, shape):
    x = jnp.asarray(GENERATOR.normal(1, 1, (16, 24, 24, 8)), jnp.bfloat16)
    by = jnp.asarray(GENERATOR.normal(1, 1, shape), jnp.float32)
    plain = {shifted: jnp.add, scaled: jnp.multiply}[function]
    value, back = jax.vjp(function, x, by)
    np.testing.assert_array_equal(value, plain(x, by.astype(x.dtype)))
    assert value.dtype == x.dtype
    # Kept for the gradient: the map as it is, if at all.
    assert {leaf.dtype for leaf in jax.tree.leaves(back) if leaf.size > by.size} <= {x.dtype}
    given = jnp.asarray(GENERATOR.normal(1, 1, x.shape), x.dtype)
    found, expected = back(given), jax.vjp(plain, x.astype(jnp.float32), by)[1](given.astype(jnp.float32))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.float32(one), other, rtol=0.01)


def test_the_stem_by_blocks_sums_its_biases_gradient_in_float32():
    spec = ResNetSpec(conv_bias=True)
    layer = convolution(spec, 8, 7, stride=2, name="conv1", dtype=jnp.bfloat16, backend=jax.lax.conv_general_dilated)
    kernel = jnp.zeros((7, 7, 3, 8), jnp.float32)

    def total(bias):
        variables = {"params": {"kernel": kernel, "bias": bias}}
        return layer.apply(variables, IMAGES, method="by_blocks").astype(jnp.float32).sum()

    by_bias = jax.grad(total)(jnp.zeros(8, jnp.float32))
    np.testing.assert_array_equal(by_bias, np.full(8, 16 * 12 * 12, np.float32))
