"""Convolutions by oneDNN with the batch norms around them: values, gradients, transformations, in networks."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from jax import export

from resnet.model import links, onednn_library, onednn_training
from resnet.model.inspection import recorded_outputs
from resnet.model.network import ResNet, initialise
from resnet.model.onednn_training import BLOCK, NOTHING, PROJECTED, RELU, Ending, Trained
from resnet.model.spec import ResNetSpec
from resnet.model.variants import variant
from tests.model.test_convolution import arrays, assert_near
from tests.model.test_onednn import convolutions, needs_onednn, square

FORWARD, BACKWARD = (onednn_library.target(name) for name in ("convolution_trained", "convolution_trained_gradient"))
EPSILON = 1e-3


def halves(*shape):
    """Multiples of a half that are no whole numbers: what is rectified lies far enough from 0 for any rounding."""
    return jnp.asarray(np.random.default_rng(sum(shape)).integers(-3, 3, shape) + 0.5, jnp.float32)


def norm(channels):
    """(statistics, scale, bias) that leave multiples of a half nearly what they are, or turn them round."""
    signs = jnp.where(jnp.arange(channels) % 3 == 0, -1.0, 1.0)
    return jnp.stack([jnp.ones(channels), jnp.ones(channels)]), signs, jnp.zeros(channels)


def operands(shapes, before, behind, added):
    """Of the gradients' call: x, w, g and what is needed of both norms."""
    x_shape, w_shape, window = shapes
    x = halves(*x_shape)
    (w,) = arrays(w_shape)
    relu = before == RELU
    y, *_ = onednn_training._in_parts(x, w, *(norm(x_shape[3]) if relu else ()), form=Trained(window, relu, False, 1))
    g, sums, source = *arrays(y.shape, (2, y.shape[3])), (halves(*x_shape[::-1]).T,)
    given = [x, w, g, *{NOTHING: (), RELU: norm(x_shape[3]), BLOCK: source, PROJECTED: source}[before]]
    if behind:
        mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
        given += [y, jnp.stack([mean, var]), arrays((y.shape[3],))[0]]
    given += {1: [sums], 3: [halves(*y.shape)]}.get(behind, [])
    return given + ([halves(*x_shape)] if added else [])


def assert_parts_agree(primitive, parts, given, tolerance=2e-5, **how):
    ours, theirs = (jax.jit(partial(form, **how))(*given) for form in (primitive.bind, parts))
    assert_near(ours, theirs, tolerance)


@needs_onednn
@settings(max_examples=8, deadline=None)
@given(convolutions(), st.sampled_from([NOTHING, RELU, BLOCK, PROJECTED]), st.booleans())
@example(((5, 30, 30, 3), (7, 7, 3, 64), square(2, 3)), NOTHING, True)
@example(((4, 9, 9, 128), (3, 3, 4, 128), square(2, 1, groups=32)), RELU, True)
@example(((9, 14, 14, 64), (1, 1, 64, 16), square(1)), BLOCK, True)
@example(((9, 14, 14, 64), (1, 1, 64, 16), square(1)), PROJECTED, True)
def test_value_and_statistics_are_those_of_the_parts(shapes, before, behind):
    x_shape, w_shape, window = shapes
    given = [halves(*x_shape), *arrays(w_shape), *(norm(x_shape[3]) if before else ())]
    given += [2 * halves(*x_shape[::-1]).T] if before > RELU else []
    given += norm(x_shape[3]) if before == PROJECTED else []
    form = Trained(window, before, behind, EPSILON)
    assert_parts_agree(onednn_training._TRAINED, onednn_training._in_parts, given, form=form)


@needs_onednn
@settings(max_examples=15, deadline=None)
@given(
    convolutions(),
    st.sampled_from([NOTHING, RELU, BLOCK, PROJECTED]),
    st.booleans(),
    st.sampled_from([0, 1, 2, 3]),
    st.booleans(),
)
@example(((3, 14, 14, 64), (1, 1, 64, 128), square(2)), RELU, True, 1, False)
@example(((7, 8, 8, 64), (3, 3, 64, 64), square(1, 1)), RELU, True, 3, False)
@example(((8, 48, 49, 5), (1, 1, 5, 7), square(1)), NOTHING, True, 3, True)
@example(((9, 14, 14, 64), (1, 1, 64, 16), square(1)), BLOCK, True, 1, True)
@example(((9, 14, 14, 64), (1, 1, 64, 16), square(2)), BLOCK, True, 1, False)
def test_gradients_are_those_of_the_parts(shapes, before, by_image, behind, added):
    added = added and by_image and before != RELU
    form = Trained(shapes[2], before, behind > 0, EPSILON)
    given = operands(shapes, before, behind, added)
    # Of one value, or two, the gradient through a norm is 0, or all but that: what is left to compare is rounding.
    assume(behind < 2 or given[2].size > 2 * given[2].shape[3])
    ending = Ending(by_image, behind, added)
    parts = onednn_training._gradient_in_parts
    assert_parts_agree(onednn_training._GRADIENT, parts, given, 5e-5, form=form, ending=ending)


@needs_onednn
def test_results_that_go_past_the_caches():
    """More than LARGE_RESULT of onednn_training.h: the output of the first, the gradient by the image of the other."""
    form = Trained(square(1), True, True, EPSILON)
    given = [halves(3, 256, 257, 3), *arrays((1, 1, 3, 67)), *norm(3)]
    assert_parts_agree(onednn_training._TRAINED, onednn_training._in_parts, given, form=form)
    shapes = ((3, 256, 257, 67), (1, 1, 67, 3), square(1))
    given, ending = operands(shapes, False, 2, True), Ending(True, 2, True)
    parts, form = onednn_training._gradient_in_parts, form._replace(before=False)
    assert_parts_agree(onednn_training._GRADIENT, parts, given, 1e-4, form=form, ending=ending)


@needs_onednn
def test_statistics_hold_where_the_mean_is_far_from_zero():
    """In single precision nothing would be left of E[y²] - E[y]² of 1000 ± 0.01."""
    y = 1000 + 0.01 * np.random.default_rng(0).normal(size=(8, 16, 16, 4)).astype(np.float32)
    form = Trained(square(1), False, True, EPSILON)
    _, (mean, var) = onednn_training._TRAINED.bind(jnp.asarray(y), jnp.eye(4)[None, None], form=form)
    np.testing.assert_allclose(mean, y.mean((0, 1, 2), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(var, y.var((0, 1, 2), dtype=np.float64), rtol=1e-3)


ON_MANY_CORES = """
from tests.model import test_onednn_training as tests
tests.test_gradients_are_those_of_the_parts.hypothesis.inner_test(
    ((13, 14, 14, 64), (3, 3, 64, 64), tests.square(1, 1)), True, True, 3, False)
tests.test_gradients_are_those_of_the_parts.hypothesis.inner_test(
    ((125, 7, 7, 24), (5, 5, 24, 64), tests.square(1, 2)), False, True, 1, True)
tests.test_gradients_are_those_of_the_parts.hypothesis.inner_test(
    ((13, 14, 14, 64), (1, 1, 64, 48), tests.square(1)), 2, True, 1, True)
for before in (1, 2, 3):
    tests.test_value_and_statistics_are_those_of_the_parts.hypothesis.inner_test(
        ((125, 7, 7, 24), (5, 5, 24, 64), tests.square(1, 2)), before, True)
"""


def run_on(threads, program):
    """Run a program on so many threads: XLA makes as many as NPROC says, and this machine may have few."""
    environment = os.environ | {"NPROC": str(threads)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=240)
    assert not done.returncode, done.stderr


@needs_onednn
@pytest.mark.parametrize("threads", [7, 16])
def test_any_number_of_threads(threads):
    run_on(threads, ON_MANY_CORES)


def network(**changes):
    """(network, its variables, images) of which oneDNN computes every convolution."""
    spec = ResNetSpec(stage_sizes=(2, 1), width=8, stem="cifar", num_classes=3, **changes)
    net = ResNet(spec)
    images, *_ = arrays((max(8, len(os.sched_getaffinity(0))), 32, 32, 3))
    return net, initialise(net, jax.random.key(0), 32), images


def train(net, variables, images):
    """The loss, gradients and moved statistics of a step."""

    def loss(params):
        given = variables | {"params": params}
        rngs = {"dropout": jax.random.key(1)}
        logits, moved = net.apply(given, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return jnp.mean(jnp.square(logits - jnp.arange(3))), moved

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


def calls(net, variables, images):
    program = str(jax.make_jaxpr(partial(train, net))(variables, images))
    return program.count(f"{FORWARD}["), program.count(f"{BACKWARD}[")


@needs_onednn
@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({"block": "bottleneck"}, 12),
        ({"block": "basic"}, 8),
        ({"block": "basic", "shortcut": "none"}, 7),
        # The last convolution of a branch has no norm, the stem's is the first block's.
        ({"block": "basic", "order": "full_preactivation"}, 7),
        ({"block": "basic", "stochastic_depth": 0.2}, 8),
        ({"block": "basic", "squeeze_excitation": 4}, 8),
        ({"block": "basic", "norm": "group", "norm_groups": 4}, 0),
        ({"block": "basic", "ghost_batch_size": 4}, 0),
        ({"block": "basic", "activation": "gelu"}, 8),
        ({"block": "basic", "conv_bias": True}, 0),
    ],
)
def test_networks_train_as_without_it(changes, own, monkeypatch):
    net, variables, images = network(**changes)
    assert calls(net, variables, images) == (own, own)
    ours = jax.jit(partial(train, net))(variables, images)
    monkeypatch.setattr(links, "_windows_with_norms", lambda *links: [])
    theirs = jax.jit(partial(train, net))(variables, images)
    assert_near((ours[0]), (theirs[0]), 1e-4)
    # A ReLU's input so near to 0 that roundings decide is met by chance: of all gradients, not of each element.
    for mine, other in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(theirs[1]), strict=True):
        assert np.linalg.norm(mine - other) <= 1e-3 * np.linalg.norm(other) + 1e-6


@needs_onednn
@pytest.mark.parametrize("frozen", ["layer1_1", "layer1_1/bn1", "layer2_0/bn2"])
def test_networks_partly_frozen_train_as_without_it(frozen, monkeypatch):
    """What comes behind a block whose end is left open may not be one that closes it."""
    net, variables, images = network(block="basic")
    net = net.clone(frozen=frozenset({frozen}))
    ours = jax.jit(partial(train, net))(variables, images)
    monkeypatch.setattr(links, "_windows_with_norms", lambda *links: [])
    theirs = jax.jit(partial(train, net))(variables, images)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.linalg.norm(mine - other) <= 1e-3 * np.linalg.norm(other) + 1e-6


@needs_onednn
def test_what_blocks_leave_open_is_seen_when_it_is_looked_at():
    net, variables, images = network(block="basic")
    train = partial(net.apply, variables, images, train=True, mutable=["batch_stats"])
    with recorded_outputs() as outputs:
        logits, _ = train()
    seen = dict(outputs)
    (again, features), _ = train(return_features=True)
    assert_near(logits, again, 1e-5)
    for name in ("layer1_0", "layer1_1", "layer2_0"):
        assert_near(seen[name], features[name], 1e-5)


@needs_onednn
def test_frozen_norms_keep_their_statistics():
    net, variables, images = network(block="basic")
    frozen = net.clone(frozen=frozenset({"bn1", "layer1_0"}))
    (_, moved), _ = jax.jit(partial(train, frozen))(variables, images)
    same = jax.tree.map(lambda new, old: bool(jnp.all(new == old)), moved["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves((same["bn1"], same["layer1_0"])))
    assert not any(jax.tree.leaves((same["layer1_1"], same["layer2_0"])))


@needs_onednn
def test_an_exported_step_does_not_need_it():
    net, variables, images = network(block="basic")
    step = jax.jit(partial(train, net))
    assert "custom_call" in step.lower(variables, images).as_text()
    for platform in ("cpu", "cuda"):
        assert FORWARD not in export.export(step, platforms=[platform])(variables, images).mlir_module()


@needs_onednn
def test_a_bottleneck_of_the_published_network_is_all_of_oneDNN():
    net = ResNet(variant("resnet50").spec)
    images = jax.ShapeDtypeStruct((32, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(lambda: initialise(net, jax.random.key(0), 224))
    of = lambda variables, images: net.apply(variables, images, train=True, mutable=["batch_stats"])  # noqa: E731
    assert str(jax.make_jaxpr(of)(variables, images)).count(f"{FORWARD}[") == 53


@needs_onednn
@pytest.mark.parametrize("name", [FORWARD, BACKWARD])
def test_what_it_does_not_take_is_an_error_of_the_program(name):
    x, w, g, y, sums = arrays((2, 4, 4, 3), (3, 3, 3, 5), (2, 4, 4, 5), (2, 4, 4, 5), (2, 5))
    window, epsilon = np.array([1, 1, 1, 1, 1, 1, 1, 0, 1]), np.float32(1e-5)
    of = lambda *arrays: [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]  # noqa: E731
    given, results = [x, w], of(y, sums)
    if name == BACKWARD:
        given, results = [x, w, g, y, sums, sums[0], sums], of(w, x, sums[0], sums[0])

    def call(given, results, **attributes):
        return jax.block_until_ready(jax.ffi.ffi_call(name, results)(*given, **attributes))

    call(given, results, window=window, epsilon=epsilon)
    for expected, changed in (
        ("other operands", {"given": [*given, sums]}),
        ("other operands", {"given": given[:-1] if name == BACKWARD else [x, w, sums]}),
        ("other results", {"results": results + of(sums)}),
        ("nine int64", {"window": window[:8]}),
        ("epsilon of float32", {"epsilon": np.float64(1)}),
        ("one or more", {"window": window * 0}),
        # Products of matrices would write beyond such a kernel's gradient.
        ("channels", {"given": [x[..., :2], *given[1:]]}),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=expected):
            call(**({"given": given, "results": results, "window": window, "epsilon": epsilon} | changed))
