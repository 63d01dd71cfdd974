"""A convolution and what is behind it in evaluation in one call: values and derivatives of its parts, in networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

from resnet.model import layers, onednn, onednn_library
from resnet.model.convolution_forms import by_lax
from resnet.model.folding import fold
from resnet.model.network import ResNet, evaluate, initialise
from resnet.model.spec import ResNetSpec
from tests.model.test_convolution import arrays, assert_near
from tests.model.test_onednn import convolutions, needs_onednn, square

ONE_CALL = onednn_library.target("convolution_evaluated")


def operands(x_shape, w_shape, window, add):
    x, w, scale, shift = arrays(x_shape, w_shape, w_shape[3:], w_shape[3:])
    addend = arrays(by_lax(window, x, w).shape) if add else []
    return (x, w, scale, shift, *addend)


def in_parts(window, relu, x, w, scale, shift, *addend):
    y = sum(addend, by_lax(window, x, w) * scale + shift)
    return jnp.maximum(y, 0) if relu else y


def in_one(window, relu, *given):
    return onednn.evaluated(window, *given, relu=relu)


@needs_onednn
@settings(max_examples=15, deadline=None)
@given(convolutions(), st.booleans(), st.booleans())
def test_the_value_is_that_of_its_parts(shapes, add, relu):
    *shapes, window = shapes
    given = operands(*shapes, window, add)
    ours, theirs = (jax.jit(partial(form, window, relu))(*given) for form in (in_one, in_parts))
    assert_near(ours, theirs, 2e-5)


@needs_onednn
@pytest.mark.parametrize("add", [False, True])
def test_derivatives_by_every_operand_and_mapped_over_any(add):
    window = square(1, 1)
    given = operands((4, 7, 7, 4), (3, 3, 4, 6), window, add)
    every = range(len(given))

    def slopes(form, *given):
        return jax.grad(lambda *of: jnp.sum(jnp.sin(form(window, True, *of))), tuple(every))(*given)

    assert_near(*(jax.jit(partial(slopes, form))(*given) for form in (in_one, in_parts)), 5e-5)
    # Forward mode, by the image alone.
    forward = [
        jax.jvp(lambda x, form=form: form(window, True, x, *given[1:]), given[:1], given[:1])[1]
        for form in (in_one, in_parts)
    ]
    assert_near(*forward, 5e-5)
    for mapped in every:
        axes = [0 if operand == mapped else None for operand in every]
        several = [jnp.stack([one, -one]) if axis == 0 else one for one, axis in zip(given, axes, strict=True)]
        both = [jax.jit(jax.vmap(partial(form, window, True), axes))(*several) for form in (in_one, in_parts)]
        assert_near(*both, 5e-5)


@needs_onednn
def test_wrong_operands_are_an_error_of_the_program():
    x, w, scale, shift = operands((2, 4, 4, 3), (3, 3, 3, 5), square(1, 1), False)
    call = jax.ffi.ffi_call(ONE_CALL, jax.ShapeDtypeStruct((2, 4, 4, 5), jnp.float32))
    window = np.array([1, 1, 1, 1, 1, 1, 1, 0])
    for wrong, said in (
        ((x, w, scale), "two, four or five operands"),
        ((x, w, scale[1:], shift), "scale and a shift of each channel"),
        ((x, w, scale, shift, x), "addend of the output's shape"),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=said):
            jax.block_until_ready(call(*wrong, window=window))


def spec(**more):
    return ResNetSpec(
        **{"block": "bottleneck", "stage_sizes": (2, 1), "width": 8, "stem": "cifar", "num_classes": 5} | more
    )


def variables_of(network):
    """Fresh ones, with running statistics, scales and shifts that differ from channel to channel."""
    fresh = initialise(network, jax.random.key(0), 16)
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + random.uniform(0, 0.2, leaf.shape).astype(np.float32), fresh)


def calls(network, variables, images):
    return str(jax.make_jaxpr(partial(evaluate, network))(variables, images)).count(f"{ONE_CALL}[")


@needs_onednn
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        # The stem, two blocks of three convolutions and one, and two projections.
        ({}, 12),
        ({"shortcut": "A"}, 10),
        ({"shortcut": "none"}, 10),
        ({"block": "basic"}, 8),
        ({"stem": "deep", "stage_sizes": (2,)}, 10),
        ({"conv_bias": True}, 12),
        ({"order": "bn_after_addition"}, 9),
        ({"order": "relu_before_addition"}, 12),
        ({"order": "full_preactivation"}, 7),
        ({"squeeze_excitation": 4}, 12),
        ({"shortcut_transform": "scale", "shortcut_scale": 0.5}, 12),
        ({"activation": "silu"}, 12),
        ({"norm": "group", "norm_groups": 4}, 0),
        ({"norm": "none"}, 7),
    ],
)
def test_networks_evaluate_to_the_same_whatever_is_behind_their_convolutions(more, expected, monkeypatch):
    network = ResNet(spec(**more))
    variables, (images,) = variables_of(network), arrays((32, 32, 32, 3))
    assert calls(network, variables, images) == expected
    ours = jax.jit(partial(evaluate, network))(variables, images)
    folded = fold(network, variables)
    also = jax.jit(partial(evaluate, folded[0]))(folded[1], images)
    monkeypatch.setattr(layers.Conv, "window", lambda self, x: None)
    assert calls(network, variables, images) == 0
    theirs = jax.jit(lambda *given: evaluate(network, *given))(variables, images)
    assert_near((ours, also), (theirs, theirs), 2e-5)


@needs_onednn
def test_what_trains_is_not_in_one_call_and_what_is_sought_within_a_block_is_there():
    network = ResNet(spec())
    variables, (images,) = variables_of(network), arrays((32, 32, 32, 3))
    trained = jax.make_jaxpr(lambda v, x: network.apply(v, x, train=True, mutable="batch_stats"))(variables, images)
    assert ONE_CALL not in str(trained)
    _, found = network.apply(variables, images, train=False, mutable="diagnostics")
    assert len(jax.tree.leaves(found)) == 3
    # Grad-CAM's: by an offset of a feature.
    offset = {"layer1_0": jnp.zeros((32, 32, 32, 32))}

    def score(offset, **how):
        return network.apply(variables, images, train=False, offsets=offset)[:, 0].sum()

    slope = jax.jit(jax.grad(score))(offset)["layer1_0"]
    step = 1e-2 * slope / jnp.linalg.norm(slope)
    more = score({"layer1_0": step}) - score({"layer1_0": -step})
    np.testing.assert_allclose(more, 2 * jnp.vdot(slope, step), rtol=0.02)


@needs_onednn
def test_few_outputs_bfloat16_and_exports_have_no_such_call():
    network = ResNet(spec())
    variables, (images,) = variables_of(network), arrays((32, 32, 32, 3))
    assert calls(network, variables, images[:1]) == 0
    assert calls(network.clone(dtype=jnp.bfloat16), variables, images) == 0
    module = export.export(jax.jit(partial(evaluate, network)))(variables, images).mlir_module()
    assert "custom_call" not in module
