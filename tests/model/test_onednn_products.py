"""Convolutions of few outputs as products of matrices (onednn_taps.h): values, gradients, with norms, in networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from resnet.model import onednn, onednn_library, onednn_training
from resnet.model.convolution_forms import Window, extent
from resnet.model.network import ResNet, evaluate, initialise
from resnet.model.onednn_training import BLOCK, NOTHING, PROJECTED, RELU, Trained
from resnet.model.variants import variant
from tests.model import test_onednn as alone
from tests.model import test_onednn_training as training
from tests.model.test_convolution import arrays, assert_near
from tests.model.test_onednn import needs_onednn, square
from tests.model.test_onednn_evaluated import in_parts, several


def are_products(shapes):
    x_shape, w_shape, window = shapes
    high, wide = extent(window, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x_shape, w_shape)))
    return onednn.takes_products(x_shape[0] * high * wide, w_shape, window.groups)


@st.composite
def few(draw):
    """(x shape, w shape, window) of kernels up to 3×3 on small maps, which some of their elements may never meet."""
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple((draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))) for k in kernel)
    # From 2 on: for maps of 1 XLA aborts over some of its own gradients, which ours are held against (jax 0.10.2, x
    # 1×4×1×40, w 2×2×40×50, strides 2, padding 1).
    size = [draw(st.integers(max(2, k - sum(p)), 5)) for k, p in zip(kernel, padding, strict=True)]
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    channels = draw(st.tuples(st.sampled_from((7, 16, 40, 96)), st.sampled_from((5, 32, 50, 130))))
    window = Window(strides, padding, 1, None)
    # As many images as are few: of nearly all that is drawn at least one is.
    batches = [n for n in range(1, 10) if are_products(((n, *size, channels[0]), (*kernel, *channels), window))]
    assume(batches)
    return (draw(st.sampled_from(batches)), *size, channels[0]), (*kernel, *channels), window


LAST_STAGE = [
    ((32, 2, 2, 64), (3, 3, 64, 64), square(1, 1)),
    ((32, 4, 4, 64), (3, 3, 64, 64), square(2, 1)),
    ((32, 4, 4, 64), (1, 1, 64, 128), square(2)),
    ((32, 2, 2, 512), (1, 1, 512, 300), square(1)),
    ((8, 1, 1, 48), (3, 3, 48, 40), square(1, 1)),
]


def with_examples(*more):
    """Shapes like those of ResNet-50's last stage at 64 and 32 px."""

    def added(test):
        for shapes in LAST_STAGE:
            assert onednn_library.missing() or are_products(shapes)
            test = example(shapes, *more)(test)
        return test

    return added


@needs_onednn
@settings(max_examples=15, deadline=None)
@given(few())
@with_examples()
def test_value_and_gradients_are_those_of_lax(shapes):
    alone.test_value_and_gradients_are_those_of_lax.hypothesis.inner_test(shapes)


@needs_onednn
def test_a_part_of_the_kernel_that_sees_padding_alone_has_no_gradient():
    x, w, g = arrays((2, 1, 1, 8), (3, 3, 8, 8), (2, 1, 1, 8))
    by_w = np.asarray(onednn.weight_gradient(square(1, 1), w.shape, x, g))
    centre = np.zeros((3, 3, 1, 1), bool)
    centre[1, 1] = True
    assert np.all((by_w != 0) == centre)


@needs_onednn
@settings(max_examples=10, deadline=None)
@given(few(), st.sampled_from([NOTHING, RELU, BLOCK, PROJECTED]), st.booleans())
@with_examples(PROJECTED, True)
def test_value_and_statistics_are_those_of_the_parts(shapes, before, behind):
    training.test_value_and_statistics_are_those_of_the_parts.hypothesis.inner_test(shapes, before, behind)


@needs_onednn
@settings(max_examples=20, deadline=None)
@given(
    few(),
    st.sampled_from([NOTHING, RELU, BLOCK, PROJECTED]),
    st.booleans(),
    st.sampled_from([0, 1, 2, 3]),
    st.booleans(),
)
@with_examples(RELU, True, 1, False)
@with_examples(BLOCK, True, 3, True)
def test_gradients_are_those_of_the_parts(shapes, before, by_image, behind, added):
    training.test_gradients_are_those_of_the_parts.hypothesis.inner_test(shapes, before, by_image, behind, added)


@needs_onednn
@pytest.mark.parametrize("added", ["none", "operand", "residual"])
@pytest.mark.parametrize(
    ("images", "kernels"),
    [
        # (size, features, stride, groups); of 144 outputs those are few that 400 features make or take in.
        (9, [(1, 24, 1, 1), (3, 400, 2, 1), (1, 24, 1, 1)]),
        (9, [(1, 400, 1, 1), (1, 24, 1, 1), (3, 24, 1, 1), (1, 24, 1, 1)]),
        (2, [(1, 24, 1, 1), (1, 24, 1, 4), (1, 24, 1, 1), (1, 24, 1, 1)]),
        (1, [(1, 48, 1, 1), (3, 24, 1, 1)]),
    ],
)
def test_in_evaluation_they_stand_between_others(images, kernels, added):
    if added == "residual":
        kernels = [(size, features, 1, groups) for size, features, _, groups in kernels]
    steps, x, parameters = several((images, 4, 4, 24), kernels, [True, False, True, True][: len(kernels)])
    assert any(are_products((x.shape, w.shape, step.window)) for step, (w, *_) in zip(steps, parameters, strict=True))
    (other,) = arrays(in_parts(steps, x, parameters).shape)

    def result(form, x, other):
        addend = {"none": None, "operand": other, "residual": x}[added]
        # What is added is read again behind the call, so that it cannot have been written over.
        return form(steps, x, parameters, addend), x * 2, other * 2

    ours, theirs = (jax.jit(partial(result, form))(x, other) for form in (onednn.evaluated, in_parts))
    assert_near(ours, theirs, 1e-4)


@needs_onednn
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_no_number_is_not_hidden(number):
    x, w, scale, shift = arrays((2, 2, 2, 16), (3, 3, 16, 16), (16,), (16,))
    x = x.at[1, 0, 1, 3].set(number)
    y = onednn.evaluated([onednn.Step(square(1, 1), relu=True)], x, [(w, scale, shift)])
    assert np.all(np.isfinite(y[0]))
    assert not np.all(np.isfinite(y[1]))
    form = Trained(square(1, 1), NOTHING, behind=True, epsilon=1e-5)
    y, statistics = onednn_training.forward(x, w, form=form)
    assert np.all(np.isfinite(y[0]))
    assert not np.any(np.isfinite(statistics))


ON_MANY_CORES = """
from tests.model import test_onednn_products as tests
for shapes in tests.LAST_STAGE:
    tests.test_value_and_gradients_are_those_of_lax.hypothesis.inner_test(shapes)
    tests.test_value_and_statistics_are_those_of_the_parts.hypothesis.inner_test(shapes, 3, True)
    tests.test_gradients_are_those_of_the_parts.hypothesis.inner_test(shapes, 1, True, 3, False)
    tests.test_gradients_are_those_of_the_parts.hypothesis.inner_test(shapes, 2, True, 2, True)
tests.test_in_evaluation_they_stand_between_others(9, [(1, 24, 1, 1), (3, 400, 2, 1), (1, 24, 1, 1)], "none")
"""


@needs_onednn
@pytest.mark.parametrize("threads", [1, 7, 16])
def test_any_number_of_threads(threads):
    training.run_on(threads, ON_MANY_CORES)


@needs_onednn
def test_of_the_published_network_on_small_images_nothing_is_left_to_xla():
    net = ResNet(variant("resnet50").spec)
    x = jax.ShapeDtypeStruct((32, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(lambda: initialise(net, jax.random.key(0), 64))
    trained = jax.make_jaxpr(lambda v, x: net.apply(v, x, train=True, mutable=["batch_stats"]))(variables, x)
    evaluated = jax.make_jaxpr(partial(evaluate, net))(variables, x)
    assert str(trained).count(f"{training.FORWARD}[") == str(evaluated).count("Step(") == 53
