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


def in_parts(steps, x, parameters, addend=None):
    for step, (w, scale, shift) in zip(steps, parameters, strict=True):
        x = by_lax(step.window, x, w) * scale + shift
        x = x if addend is None or step is not steps[-1] else x + addend
        x = jnp.maximum(x, 0) if step.relu else x
    return x


def one(form, window, relu, x, w, scale, shift, *addend):
    """Of one convolution alone."""
    return form([onednn.Step(window, relu)], x, [(w, scale, shift)], *addend)


BOTH = (onednn.evaluated, in_parts)


@needs_onednn
@settings(max_examples=15, deadline=None)
@given(convolutions(), st.booleans(), st.booleans())
def test_the_value_is_that_of_its_parts(shapes, add, relu):
    *shapes, window = shapes
    given = operands(*shapes, window, add)
    assert_near(*(jax.jit(partial(one, form, window, relu))(*given) for form in BOTH), 2e-5)


def several(x_shape, kernels, relus):
    """(steps, x, parameters): square kernels of (size, channels, stride, groups)."""
    steps, parameters, channels = [], [], x_shape[-1]
    for (size, features, stride, groups), relu in zip(kernels, relus, strict=True):
        steps.append(onednn.Step(square(stride, size // 2, groups), relu))
        w, shift, scale = arrays((size, size, channels // groups, features), (features,), (features,))
        parameters.append((w / (size * (channels // groups) ** 0.5), scale, shift))
        channels = features
    return steps, arrays(x_shape)[0], parameters


@needs_onednn
@settings(max_examples=15, deadline=None)
@given(
    # From 8 × 32 up an image goes through by itself, see LARGE in onednn_call.h.
    st.integers(1, 9),
    st.sampled_from([(5, 8), (19, 40), (64, 80)]),
    st.lists(
        st.tuples(
            st.sampled_from([1, 3]), st.sampled_from([8, 24, 72]), st.sampled_from([1, 2]), st.sampled_from([1, 4])
        ),
        min_size=2,
        max_size=4,
    ),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.sampled_from(["none", "operand", "residual"]),
)
def test_several_convolutions_at_once_give_what_one_after_the_other_does(images, sides, kernels, relus, added):
    if added == "residual":
        kernels = [(size, features, 1, groups) for size, features, _, groups in kernels]
        kernels[-1] = (*kernels[-1][:1], 24, *kernels[-1][2:])
    steps, x, parameters = several((images, *sides, 24), kernels, relus[: len(kernels)])

    def result(form, x, other):
        # What is added is read again behind the call, so that it cannot have been written over.
        addend = {"none": None, "operand": other, "residual": x}[added]
        return form(steps, x, parameters, addend), x + other[..., :1].mean() if addend is None else addend * 2

    (other,) = arrays(in_parts(steps, x, parameters).shape)
    ours, theirs = (jax.jit(partial(result, form))(x, other) for form in BOTH)
    assert_near(ours, theirs, 1e-4)


@needs_onednn
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_no_number_is_not_hidden(number, kernel):
    """No ReLU makes a 0 of it, so that an evaluation shows that a network has diverged."""
    steps, x, parameters = several((4, 8, 8, 16), [(kernel, 8, 1, 1), (3, 16, 1, 1)], [True, True])
    evaluate_both = jax.jit(partial(onednn.evaluated, steps))
    assert (evaluate_both(x, parameters) >= 0).all()
    assert (evaluate_both(x, parameters) == 0).any()
    (w, scale, shift), second = parameters
    for bad in ((w.at[0, 0, 3].set(number), scale, shift), (w, scale, jnp.full_like(shift, number))):
        assert jnp.isnan(evaluate_both(x, [bad, second])).any()
    with_shortcut = jax.jit(lambda x, addend: onednn.evaluated(steps, x, parameters, addend))
    assert not jnp.isfinite(with_shortcut(x, x.at[1, 1, 1, 1].set(number))[1, 1, 1, 1])


@needs_onednn
@pytest.mark.parametrize("added", ["operand", "residual"])
def test_the_output_goes_where_the_addend_was_if_nothing_else_needs_it(added):
    steps, x, parameters = several((4, 8, 8, 16), [(1, 8, 1, 1), (3, 16, 1, 1)], [True, True])
    given, number = (x, 1 - x), ["residual", "operand"].index(added)

    def call(form, *given):
        return form(steps, given[0], parameters, given[number])

    expected, ours = call(in_parts, *given), partial(call, onednn.evaluated)
    before = np.array(given[number])
    assert_near(jax.jit(ours)(*given), expected)
    np.testing.assert_array_equal(given[number], before)
    program = jax.jit(ours, donate_argnums=number).lower(*given).compile()
    assert program.as_text().count("output_to_operand_aliasing") == 1
    assert " copy(" not in program.as_text()
    assert_near(program(*given), expected)


@needs_onednn
@pytest.mark.parametrize("add", [False, True])
def test_derivatives_by_every_operand_and_mapped_over_any(add):
    window = square(1, 1)
    given = operands((4, 7, 7, 4), (3, 3, 4, 6), window, add)
    every = range(len(given))

    def slopes(form, *given):
        return jax.grad(lambda *of: jnp.sum(jnp.sin(one(form, window, True, *of))), tuple(every))(*given)

    assert_near(*(jax.jit(partial(slopes, form))(*given) for form in BOTH), 5e-5)
    # Forward mode, by the image alone.
    forward = [
        jax.jvp(lambda x, form=form: one(form, window, True, x, *given[1:]), given[:1], given[:1])[1] for form in BOTH
    ]
    assert_near(*forward, 5e-5)
    for mapped in every:
        axes = [0 if operand == mapped else None for operand in every]
        several = [jnp.stack([one, -one]) if axis == 0 else one for one, axis in zip(given, axes, strict=True)]
        both = [jax.jit(jax.vmap(partial(one, form, window, True), axes))(*several) for form in BOTH]
        assert_near(*both, 5e-5)


@needs_onednn
def test_derivatives_of_several_with_what_they_are_added_to():
    steps, x, parameters = several((2, 6, 6, 8), [(1, 4, 1, 1), (3, 4, 1, 1), (1, 8, 1, 1)], [True, True, False])

    def slopes(form, x, parameters):
        return jax.grad(lambda x, p: jnp.sum(jnp.sin(form(steps, x, p, x))), (0, 1))(x, parameters)

    assert_near(*(jax.tree.leaves(jax.jit(partial(slopes, form))(x, parameters)) for form in BOTH), 5e-5)


@needs_onednn
def test_wrong_operands_are_an_error_of_the_program():
    x, w, scale, shift = operands((2, 4, 4, 3), (3, 3, 3, 5), square(1, 1), False)
    call = jax.ffi.ffi_call(ONE_CALL, jax.ShapeDtypeStruct((2, 4, 4, 5), jnp.float32))
    window = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0])
    for wrong, numbers, said in (
        ((x, w, scale), window, "two operands or, for each of several"),
        ((x, w, scale[1:], shift), window, "scale and a shift of each channel"),
        ((x, w, scale, shift, x), window, "addend of the output's shape"),
        ((x, w, scale, shift), window[:8], "window of nine"),
        ((x, w, scale, shift), np.array([0, *window[1:]]), "steps of one or more"),
        ((x, w, scale, shift), np.array([2, *window[1:]]), "output of another shape"),
        ((x, w, scale, shift), np.array([*window[:8], 1]), "or the image if there are several"),
        ((x, *[w, scale, shift] * 9), np.tile(window, 9), "eight at once"),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=said):
            jax.block_until_ready(call(*wrong, window=numbers))
    with pytest.raises(ValueError, match="1 to 8 convolutions"):
        onednn.evaluated([], x, [])


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
    """How many, and of how many convolutions."""
    program = str(jax.make_jaxpr(partial(evaluate, network))(variables, images))
    return program.count(f"{ONE_CALL}["), program.count("Step(")


@needs_onednn
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        # Calls, and convolutions in them: the stem, three blocks of three, and two projections.
        ({}, (6, 12)),
        ({"shortcut": "A"}, (4, 10)),
        ({"shortcut": "none"}, (4, 10)),
        ({"block": "basic"}, (5, 8)),
        ({"stem": "deep", "stage_sizes": (2,)}, (4, 10)),
        ({"conv_bias": True}, (6, 12)),
        ({"order": "bn_after_addition"}, (6, 12)),
        ({"order": "relu_before_addition"}, (6, 12)),
        ({"order": "full_preactivation"}, (4, 10)),
        ({"squeeze_excitation": 4}, (6, 12)),
        ({"shortcut_transform": "scale", "shortcut_scale": 0.5}, (6, 12)),
        ({"activation": "silu"}, (12, 12)),
        ({"norm": "group", "norm_groups": 4}, (0, 0)),
        ({"norm": "none"}, (6, 12)),
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
    assert calls(network, variables, images) == (0, 0)
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
    assert calls(network, variables, images[:1]) == (0, 0)
    assert calls(network.clone(dtype=jnp.bfloat16), variables, images) == (0, 0)
    module = export.export(jax.jit(partial(evaluate, network)))(variables, images).mlir_module()
    assert "custom_call" not in module
