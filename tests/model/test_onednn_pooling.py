"""The stem's end in one call: values, gradients, transformations, in networks."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import export

from resnet.model import links, onednn_library, onednn_pooling
from resnet.model.network import ResNet, initialise
from resnet.model.onednn_chain import End, close
from resnet.model.pooling import max_pool
from resnet.model.spec import ResNetSpec
from tests.model.test_convolution import arrays, assert_near
from tests.model.test_onednn import needs_onednn
from tests.model.test_onednn_training import halves, norm, run_on, train

POOLED, GRADIENT = (onednn_library.target(name) for name in ("pooled", "pooled_gradient"))
EPSILON = 1e-3
shapes = st.tuples(*(st.integers(1, most) for most in (5, 12, 12, 19)))


def assert_parts_agree(shape):
    """Many values are equal, and of many windows no value is above 0."""
    y, (statistics, scale, bias) = halves(*shape), norm(shape[3])
    # To the bit in both: 1/sqrt(1) · (y - 1).
    given = (y, statistics, scale, bias)
    call = jax.jit(partial(onednn_pooling._POOLED.bind, epsilon=0.0))
    for ours, theirs in zip(call(*given), jax.jit(partial(onednn_pooling._in_parts, epsilon=0.0))(*given), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    largest, first = call(*given)
    back = (y, arrays(largest.shape)[0], first)
    ours = jax.jit(partial(onednn_pooling._GRADIENT.bind, epsilon=0.0))(*back)
    theirs = jax.jit(partial(onednn_pooling._gradient_in_parts, epsilon=0.0))(*back)
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert_near(ours[1], theirs[1], 2e-5)


@needs_onednn
@settings(max_examples=25, deadline=None)
@given(shapes)
@example((3, 9, 8, 64))
@example((2, 1, 1, 1))
@example((1, 2, 5, 7))
def test_values_and_gradients_are_those_of_the_parts(shape):
    assert_parts_agree(shape)


@needs_onednn
def test_a_gradient_that_goes_past_the_caches():
    """More than LARGE_RESULT of onednn_training.h."""
    assert_parts_agree((3, 257, 255, 67))


ON_MANY_CORES = """
from tests.model import test_onednn_pooling as tests
for images in (3, 16, 37):
    tests.assert_parts_agree((images, 9, 8, 5))
"""


@needs_onednn
@pytest.mark.parametrize("threads", [7, 16])
def test_any_number_of_threads(threads):
    run_on(threads, ON_MANY_CORES)


def end(y, scale, bias):
    statistics = jnp.stack([y.mean((0, 1, 2)), y.var((0, 1, 2))])
    return End(y, jax.lax.stop_gradient(statistics), scale, bias, None, True, EPSILON)


@needs_onednn
def test_it_is_the_pooling_of_what_the_end_gives():
    """To the caller as to the norm before, which is left the rest of the gradient (see End)."""
    y, scale, bias = arrays((4, 9, 10, 16), (16,), (16,))

    def loss(pool, y):
        return (pool(end(y, scale, bias)) ** 3).sum()

    ours, theirs = (
        jax.jit(jax.value_and_grad(partial(loss, pool)))(y)
        for pool in (onednn_pooling.max_pool, lambda end: max_pool(close(end)))
    )
    assert_near(ours, theirs, 2e-5)


@needs_onednn
def test_a_value_that_is_no_number_stays_none():
    y, scale, bias = jnp.zeros((1, 6, 6, 3)).at[0, 3, 2, 1].set(jnp.nan), jnp.ones(3), jnp.zeros(3)
    statistics = jnp.stack([jnp.zeros(3), jnp.ones(3)])
    pooled = onednn_pooling.max_pool(End(y, statistics, scale, bias, None, True, EPSILON))
    np.testing.assert_array_equal(np.isnan(pooled[0, :, :, 1]), [[0, 0, 0], [0, 1, 0], [0, 1, 0]])
    assert np.isfinite(pooled[..., (0, 2)]).all()


@needs_onednn
@pytest.mark.parametrize("back", [False, True])
def test_forward_mode_and_maps_over_it(back):
    y, direction, (statistics, scale, bias) = *arrays((2, 3, 7, 8, 5), (2, 3, 7, 8, 5)), norm(5)
    call, parts, given = onednn_pooling._POOLED.bind, onednn_pooling._in_parts, (statistics, scale, bias)
    if back:
        first = parts(y[0], *given, epsilon=EPSILON)[1]
        call, parts = onednn_pooling._GRADIENT.bind, onednn_pooling._gradient_in_parts
        given = (arrays(first.shape)[0], first)

    def moved(form):
        # Whole numbers have no tangent.
        floats = lambda y: [x for x in form(y, *given, epsilon=EPSILON) if x.dtype == y.dtype]  # noqa: E731
        return jax.vmap(lambda y, tangent: jax.jvp(floats, [y], [tangent]))(y, direction)

    assert_near(moved(call), moved(parts), 2e-5)


@needs_onednn
@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 1),
        ({"stem": "deep"}, 1),
        ({"stem": "cifar"}, 0),
        ({"stem_norm": False, "order": "full_preactivation"}, 0),
        ({"activation": "gelu"}, 0),
    ],
)
def test_networks_train_as_without_it(changes, count, monkeypatch):
    spec = ResNetSpec(
        **{"stage_sizes": (1, 1), "width": 8, "stem": "imagenet", "num_classes": 3, "block": "basic"} | changes
    )
    net = ResNet(spec)
    images, *_ = arrays((max(8, len(os.sched_getaffinity(0))), 33, 34, 3))
    variables = initialise(net, jax.random.key(0), 33)
    program = str(jax.make_jaxpr(partial(train, net))(variables, images))
    assert (program.count(f"{POOLED}["), program.count(f"{GRADIENT}[")) == (count, count)
    ours = jax.jit(partial(train, net))(variables, images)
    monkeypatch.setattr(links, "_windows_with_norms", lambda *links: [])
    theirs = jax.jit(partial(train, net))(variables, images)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.linalg.norm(mine - other) <= 1e-3 * np.linalg.norm(other) + 1e-6


@needs_onednn
def test_an_exported_step_does_not_need_it():
    y, scale, bias = arrays((4, 8, 8, 16), (16,), (16,))
    step = jax.jit(jax.grad(lambda y: onednn_pooling.max_pool(end(y, scale, bias)).sum()))
    assert f"@{GRADIENT}" in step.lower(y).as_text()
    for platform in ("cpu", "cuda"):
        assert f"@{GRADIENT}" not in export.export(step, platforms=[platform])(y).mlir_module()


@needs_onednn
@pytest.mark.parametrize("name", [POOLED, GRADIENT])
def test_what_it_does_not_take_is_an_error_of_the_program(name):
    y, largest, pair = arrays((2, 5, 4, 3), (2, 3, 2, 3), (2, 3))
    first = jnp.zeros(largest.shape, jnp.uint8)
    of = lambda *arrays: [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]  # noqa: E731
    given, results = [y, pair, pair[0], pair[0]], of(largest, first)
    if name == GRADIENT:
        given, results = [y, largest, first], of(y, pair)

    def call(given, results, **attributes):
        return jax.block_until_ready(jax.ffi.ffi_call(name, results)(*given, **attributes))

    call(given, results, epsilon=np.float32(1e-5))
    for expected, changed in (
        ("other operands", {"given": [*given, pair]}),
        ("other operands", {"given": given[:-1]}),
        ("other operands", {"given": [y[:, :2], *given[1:]] if name == GRADIENT else [y, pair[:, :2], *given[2:]]}),
        ("other operands", {"given": [*given[:-1], given[-1].astype(jnp.int32)]}),
        ("other results", {"results": results + of(pair)}),
        ("other results", {"results": results[::-1]}),
        ("four dimensions", {"given": [y[0], *given[1:]]}),
        ("epsilon of float32", {"epsilon": np.float64(1)}),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=expected):
            call(**({"given": given, "results": results, "epsilon": np.float32(1e-5)} | changed))
