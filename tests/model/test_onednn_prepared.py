"""Kernels laid out before any call: the same values as without, for any number of images, threads and layers."""

import os
import subprocess
import sys
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet.model import onednn, onednn_library, onednn_prepared
from resnet.model.convolution import with_kernels_ahead
from resnet.model.folding import fold
from resnet.model.network import ResNet, evaluate
from resnet.model.onednn_prepared import Prepared
from tests.model.test_convolution import arrays, assert_near
from tests.model.test_onednn import needs_onednn, square
from tests.model.test_onednn_evaluated import in_parts, several, spec, variables_of

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def both(steps, parameters, x, added):
    """What is prepared and what one part after the other gives; added: none, an operand of x' size, or x itself."""
    (other,) = arrays(in_parts(steps, x, parameters).shape)

    def result(form, parameters, x):
        addend = {"none": None, "operand": other * x[0, 0, 0, 0], "residual": x}[added]
        # What is added is read again behind the call, so that it cannot have been written over.
        return form(steps, x, parameters, addend), x if addend is None else addend * 2

    ours = Prepared(partial(result, onednn.evaluated), parameters)
    return ours(x), jax.jit(partial(result, in_parts))(parameters, x)


@needs_onednn
@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 5),
    # From 32 × 40 up an image is shared by threads, see LEAST_IN_SLAB in onednn_rows.h.
    st.sampled_from([(5, 8), (32, 40), (65, 80)]),
    st.lists(
        st.tuples(
            st.sampled_from([1, 3]), st.sampled_from([8, 24, 72]), st.sampled_from([1, 2]), st.sampled_from([1, 4])
        ),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.sampled_from(["none", "operand", "residual"]),
)
def test_convolutions_give_what_they_do_without(images, sides, kernels, relus, added):
    if added == "residual":
        kernels = [(size, features, 1, groups) for size, features, _, groups in kernels]
        kernels[-1] = (*kernels[-1][:1], 24, *kernels[-1][2:])
    steps, x, parameters = several((images, *sides, 24), kernels, relus[: len(kernels)])
    assert_near(*both(steps, parameters, x, added), 1e-4)


@needs_onednn
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"stem": "imagenet", "block": "basic"},
        {"stem": "deep", "shortcut": "D", "squeeze_excitation": 4},
        {"shortcut": "none"},
        {"base_width": 32, "groups": 2},
        {"order": "full_preactivation"},
        {"activation": "silu", "order": "bn_after_addition"},
        {"norm": "group", "norm_groups": 4},
        {"norm": "none"},
    ],
)
def test_networks_give_what_they_do_without(more):
    network = ResNet(spec(**more))
    variables = variables_of(network)
    folded, reduced = fold(network, jax.device_get(variables))
    ask = Prepared(partial(evaluate, folded.clone(backend=with_kernels_ahead)), reduced)
    for count in (1, 3):
        (images,) = arrays((count, 40, 36, 3))
        assert_near(ask(images), jax.jit(partial(evaluate, network))(variables, images), 2e-5)


@needs_onednn
def test_networks_answer_where_numbers_are_of_64_bits_unless_told():
    network, (images,) = ResNet(spec()), arrays((1, 32, 32, 3))
    variables = variables_of(network)
    folded, reduced = fold(network, jax.device_get(variables))
    expected = evaluate(network, variables, images)
    with jax.enable_x64(True):
        answer = Prepared(partial(evaluate, folded.clone(backend=with_kernels_ahead)), reduced)(images)
    assert_near(answer, expected, 2e-5)


def targets(function, *operands):
    """The names of all calls of onednn.c in the program."""
    text = jax.jit(function).lower(*operands).as_text()
    names = (*onednn_library.TARGETS, onednn_library.PREPARED, onednn_library.KERNELS)
    return {name: count for name in names if (count := text.count(f"@{onednn_library.target(name)}("))}


@needs_onednn
def test_no_kernel_is_laid_out_in_a_call_and_numbers_of_images_share_them():
    network = ResNet(spec())
    folded, reduced = fold(network, jax.device_get(variables_of(network)))
    ask = Prepared(partial(evaluate, folded.clone(backend=with_kernels_ahead)), reduced)
    for count in (1, 2, 4):
        (images,) = arrays((count, 32, 32, 3))
        ask(images)
        program = ask._programs[images.shape, images.dtype]
        assert targets(program.func, *program.args, images) == {onednn_library.PREPARED: 6}
        assert sum(kernels.size for kernels in program.args[2]) > 10_000
    assert len(ask._programs) == 3
    # Twelve convolutions; for one image and for parts of two and more some are laid out otherwise, not each anew.
    assert len(ask._kernels) <= 2


@needs_onednn
def test_what_depends_on_the_number_of_images_is_computed_for_each():
    steps, x, parameters = several((6, 16, 16, 24), [(3, 24, 1, 1), (1, 8, 1, 1)], [True, False])

    def scaled(form, parameters, x):
        (w, scale, shift), second = parameters
        return form(steps, x, [(w * x.shape[0], scale + x.shape[0], shift), second])

    ask = Prepared(partial(scaled, onednn.evaluated), parameters)
    for count in (6, 4, 1, 6):
        assert_near(ask(x[:count]), scaled(in_parts, parameters, x[:count]), 1e-4)


@needs_onednn
@pytest.mark.parametrize(
    "choose",
    [
        lambda v, x: v["a"] if x.shape[0] == 1 else v["b"],
        lambda v, x: v["a"] * (2 if x.shape[0] == 1 else 1),
        lambda v, x: v["a"] * (2 if x.dtype == jnp.uint8 else 1),
    ],
    ids=["which variable", "computed by shape", "computed by type"],
)
def test_kernels_that_depend_on_what_comes_are_not_shared(choose):
    a, b, scale, shift = arrays((3, 3, 4, 8), (3, 3, 4, 8), (8,), (8,))
    step = onednn.Step(square(1, 1))

    def function(form, v, x):
        return form([step], x.astype(jnp.float32), [(choose(v, x), scale, shift)])

    ask = Prepared(partial(function, onednn.evaluated), {"a": a, "b": b})
    x = np.arange(3 * 9 * 9 * 4).reshape(3, 9, 9, 4) % 7
    for batch in (x[:1].astype(np.float32), x[:1].astype(np.uint8), x.astype(np.float32), x.astype(np.uint8)):
        assert_near(ask(batch), function(in_parts, {"a": a, "b": b}, batch), 1e-5)


@needs_onednn
def test_a_kernel_that_is_added_too_and_an_image_without_rows():
    x, w, scale, shift = arrays((3, 3, 8, 8), (3, 3, 8, 8), (8,), (8,))
    steps = [onednn.Step(square(1, 1))]
    ask = Prepared(lambda v, x: onednn.evaluated(steps, x, [(v, scale, shift)], v), w)
    assert_near(ask(x), in_parts(steps, x, [(w, scale, shift)], w), 1e-5)
    empty, padded = jnp.zeros((1, 0, 5, 8)), [onednn.Step(square(1, 2))]
    assert_near(onednn.evaluated(padded, empty, [(w, scale, shift)]), jnp.broadcast_to(shift, (1, 2, 7, 8)))


@needs_onednn
def test_inside_another_program_it_is_the_function():
    steps, x, parameters = several((1, 16, 16, 24), [(3, 24, 1, 1)], [True])
    ask = Prepared(lambda parameters, x: onednn.evaluated(steps, x, parameters), parameters)
    expected = in_parts(steps, x, parameters)
    assert_near((jax.jit(ask)(x), ask(x), jax.vmap(ask)(x[None])[0]), (expected,) * 3, 1e-4)
    assert_near(jax.grad(lambda x: ask(x).sum())(x), jax.grad(lambda x: in_parts(steps, x, parameters).sum())(x), 1e-4)


@needs_onednn
def test_what_was_traced_under_a_setting_is_computed_under_it():
    def function(key, x):
        with jax.threefry_partitionable(False):
            return jax.random.bits(jax.random.wrap_key_data(key), x.shape)

    key = jax.random.key_data(jax.random.key(1))
    x = np.zeros((3, 5), np.float32)
    np.testing.assert_array_equal(Prepared(function, key)(x), jax.jit(function)(key, x))


@needs_onednn
def test_a_function_of_several_results_some_of_which_are_no_arrays_of_the_images():
    def function(variables, x):
        return {"sum": x.sum() + variables["a"], "same": variables["a"], "constant": jnp.float32(3), "x": x}

    got = Prepared(function, {"a": np.float32(2), "unused": np.zeros(3)})(np.ones((2, 2), np.float32))
    np.testing.assert_array_equal(got.pop("x"), np.ones((2, 2)))
    assert {name: float(value) for name, value in got.items()} == {"sum": 6, "same": 2, "constant": 3}


@needs_onednn
def test_threads_that_ask_at_once_all_get_their_answer():
    steps, x, parameters = several((1, 40, 40, 24), [(3, 72, 1, 1), (3, 72, 2, 1), (1, 24, 1, 1)], [True] * 3)
    wrong: list[int] = []
    ask = Prepared(lambda parameters, x: onednn.evaluated(steps, x, parameters), parameters)
    expected = np.asarray(ask(x))

    def repeat() -> None:
        wrong.extend(number for number in range(30) if not np.array_equal(ask(x), expected))

    threads = [threading.Thread(target=repeat) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


ON_MANY_CORES = """
import jax
from resnet.model import onednn
from resnet.model.onednn_prepared import _threads
from tests.model.test_convolution import assert_near
from tests.model.test_onednn_evaluated import several
from tests.model.test_onednn_prepared import both, padded

assert _threads() == {threads}
for images in (1, 2, 3, 8):
    steps, x, parameters = several((images, 65, 40, 24), [(3, 72, 2, 1), (3, 64, 1, 4), (1, 24, 1, 1)], [True] * 3)
    assert_near(*both(steps, parameters, x, "operand"), 1e-4)
assert_near(*both(*padded(), "none"), 1e-4)
"""


def padded():
    """A convolution of which some rows see padding alone: (steps, parameters, x)."""
    w, scale, shift = arrays((1, 1, 256, 256), (256,), (256,))
    return [onednn.Step(square(1, 3))], [(w, scale, shift)], arrays((1, 4, 4, 256))[0]


@needs_onednn
@pytest.mark.parametrize("threads", [1, 3, 16])
def test_any_number_of_threads(threads):
    """XLA makes as many as NPROC says; this machine may have few."""
    done = subprocess.run(
        [sys.executable, "-c", ON_MANY_CORES.format(threads=threads)],
        env=os.environ | {"NPROC": str(threads)}, cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert not done.returncode, done.stderr


@needs_onednn
def test_what_it_cannot_do_is_an_error_of_the_program():
    (x,) = arrays((1, 9, 9, 3))
    window = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0])
    shape = jax.ShapeDtypeStruct((1, 9, 9, 5), jnp.float32)
    call = jax.ffi.ffi_call(onednn_library.target(onednn_library.PREPARED), shape)
    w, scale, shift = arrays((3, 3, 3, 5), (5,), (5,))
    (size,), _ = onednn_prepared._layouts((1, 9, 9, 3, 0), [(3, 3, 3, 5)], [onednn.Step(square(1, 1))])
    for kernel, kernels, said in (
        (jnp.zeros(size), [3, 3, 3, 5], "laid out for others"),
        (jnp.zeros(size - 1), [3, 3, 3, 5], "laid out for others"),
        (w, [3, 3, 3, 5], "kernels that are laid out"),
        (jnp.zeros(0), [3, 3, 3, 5], "kernels that are laid out"),
        (jnp.zeros(size), [3, 3, 3], "shapes in four int64"),
        (jnp.zeros(size), [3, 3, 2, 5], "channels"),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=said):
            jax.block_until_ready(call(x, kernel, scale, shift, kernels=np.array(kernels), window=window))
    lay_out = jax.ffi.ffi_call(
        onednn_library.target(onednn_library.KERNELS), [jax.ShapeDtypeStruct((size + 16,), jnp.float32)]
    )
    for image, said in (([1, 9, 9, 3, 0], "laid out for others"), ([1, 9, 9, 3], "five int64")):
        with pytest.raises(jax.errors.JaxRuntimeError, match=said):
            jax.block_until_ready(lay_out(w, image=np.array(image), window=window))
    with pytest.raises(ValueError, match="steps of one or more"):
        onednn_prepared._layouts((1, 9, 9, 3, 0), [(3, 3, 3, 5)], [onednn.Step(square(0, 1))])
