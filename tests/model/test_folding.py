"""A folded network computes what it was folded from, keeps the names, and has only the norms that cannot be folded."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import HealthCheck, example, given, settings

from resnet.model.folding import fold, folded_norms
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from resnet.model.traced_program import scope_of
from resnet.model.variants import VARIANTS
from tests.model.test_counting import network_orders, specs
from tests.networks import random_variables, variable_shapes

BASIC = ResNetSpec(block="basic", stage_sizes=(2, 1), width=8, stem="cifar", num_classes=5)
BOTTLENECK = dataclasses.replace(BASIC, block="bottleneck")


def families() -> dict[ResNetSpec, str]:
    """Every named network made small, {spec: a name}: those that differ in depth and width alone are one."""
    small = {}
    for name, named in VARIANTS.items():
        # Wide enough for a ResNeXt to keep its groups.
        width = 16 if named.spec.groups > 1 else 8
        small.setdefault(dataclasses.replace(named.spec, stage_sizes=(1, 2), width=width, num_classes=5), name)
    return small


def assert_same_function(spec: ResNetSpec, size: int) -> None:
    """Logits and features of the folded network to 1e-4 of their spread, on drawn statistics.

    Or to four roundings of the largest: a single class' logits may be spread over less than that (its bias is all).
    """
    network, variables = ResNet(spec, backend=jax.lax.conv_general_dilated), random_variables(spec)
    folded, new = fold(network, variables)
    images = np.random.default_rng(1).normal(size=(3, size, size + 1, spec.in_channels)).astype(np.float32)

    @jax.jit
    def both(variables, new, images):
        return network.apply(variables, images, return_features=True), folded.apply(new, images, return_features=True)

    (logits, features), (ours, same) = jax.device_get(both(variables, new, images))
    for name, value in {**features, "logits": logits}.items():
        found = {**same, "logits": ours}[name]
        spread = value.std() or 1.0
        rounding = np.spacing(np.abs(value).max())
        np.testing.assert_allclose(found, value, rtol=0, atol=max(1e-4 * spread, 4 * rounding), err_msg=name)


@pytest.mark.parametrize(("spec", "size"), [pytest.param(spec, 16, id=name) for spec, name in families().items()])
def test_every_named_network_is_the_same_function(spec, size):
    assert_same_function(spec, size)
    assert len(folded_norms(spec, variable_shapes(spec))) > 0


@pytest.mark.parametrize("order", network_orders())
@pytest.mark.parametrize("spec", [BASIC, BOTTLENECK], ids=["basic", "bottleneck"])
def test_every_order_is_the_same_function_and_keeps_only_norms_behind_additions(spec, order):
    spec = dataclasses.replace(spec, order=order, conv_bias=order == "relu_before_addition")
    assert_same_function(spec, 9)
    blocks = {"layer1_0", "layer1_1", "layer2_0"}
    last = "bn3" if spec.block == "bottleneck" else "bn2"
    left = {
        "bn_after_addition": {f"{block}/{last}" for block in blocks},
        # The first block finds its input activated by the stem; the others' first norm stands behind an addition.
        "full_preactivation": {f"{block}/bn1" for block in blocks - {"layer1_0"}} | {"bn_last"},
    }.get(order, set())
    assert norms_in_program(spec) == left


def norms_in_program(spec: ResNetSpec) -> set[str]:
    """Names of the norms that the folded network's traced program still computes: each takes one reciprocal root."""
    folded, new = fold(ResNet(spec), random_variables(spec))
    images = jax.ShapeDtypeStruct((2, 8, 8, spec.in_channels), np.float32)
    program = jax.make_jaxpr(lambda x: folded.apply(new, x))(images)
    scopes = [scope_of(eqn) for eqn in program.jaxpr.eqns if eqn.primitive.name == "rsqrt"]
    # Methods of a module stand among the names as Module.method.
    return {"/".join(part for part in scope if "." not in part and part != "ResNet") for scope in scopes}


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@example(
    (
        ResNetSpec(
            block="basic",
            stage_sizes=(2,),
            width=8,
            in_channels=1,
            num_classes=1,
            shortcut="none",
            squeeze_excitation=16,
        ),
        4,
    )
)
@given(specs())
def test_any_network_is_the_same_function(drawn):
    assert_same_function(*drawn)


def test_names_stay_and_what_was_given_is_left_alone():
    spec = dataclasses.replace(BOTTLENECK, shortcut="C", squeeze_excitation=4)
    variables = random_variables(spec)
    before = {name: np.array(leaf) for name, leaf in flatten_dict(variables, sep="/").items()}
    network, (folded, new) = ResNet(spec), fold(ResNet(spec), variables)
    pairs = folded_norms(spec, variables)
    assert folded == network.clone(folded=frozenset(pairs.values()))
    assert pairs["conv1"] == "bn1"
    assert pairs["layer2_0/downsample_conv"] == "layer2_0/downsample_bn"
    found = set(flatten_dict(new["params"], sep="/"))
    gone = {f"{norm}/{name}" for norm in pairs.values() for name in ("scale", "bias")}
    params = set(flatten_dict(variables["params"], sep="/"))
    assert found == (params - gone) | {f"{layer}/bias" for layer in pairs}
    assert new["batch_stats"] == {}
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {np.dtype(np.float32)}
    for name, leaf in flatten_dict(variables, sep="/").items():
        np.testing.assert_array_equal(leaf, before[name])


@pytest.mark.parametrize("norm", ["group", "none"])
def test_without_batch_norm_there_is_nothing_to_fold(norm):
    spec = dataclasses.replace(BASIC, norm=norm, norm_groups=2)
    variables = random_variables(spec)
    folded, new = fold(ResNet(spec), variables)
    assert folded == ResNet(spec)
    jax.tree.map(np.testing.assert_array_equal, new, variables)


def test_a_folded_network_refuses_to_train():
    folded, new = fold(ResNet(BASIC), random_variables(BASIC))
    with pytest.raises(ValueError, match="only evaluates"):
        folded.apply(new, np.zeros((1, 8, 8, 3), np.float32), train=True, mutable=["batch_stats"])
