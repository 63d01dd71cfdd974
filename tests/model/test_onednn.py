"""The convolution by oneDNN against lax': values, gradients, transformations; and what is done where it is missing."""

import os
import subprocess
import sys
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import export, lax

from resnet.model import convolution, onednn, onednn_library
from resnet.model.convolution_forms import Window, by_lax
from tests.model.test_convolution import arrays, assert_near, outputs_and_gradients, window

needs_onednn = pytest.mark.skipif(bool(onednn_library.missing()), reason=f"no oneDNN: {onednn_library.missing()}")


def square(stride=1, pad=0, groups=1):
    return Window((stride, stride), ((pad, pad), (pad, pad)), groups, None)


def both(function, *operands):
    """`function` of our convolution and of lax', compiled."""
    return tuple(jax.jit(partial(function, convolve))(*operands) for convolve in (onednn.output, by_lax))


def all_three(convolve, window, x, w):
    return outputs_and_gradients(lambda x, w: convolve(window, x, w))(x, w)


@st.composite
def convolutions(draw):
    """(x shape, w shape, window) of any convolution with an output, in batches that the threads share unevenly too."""
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    kernel = draw(st.tuples(st.integers(1, 5), st.sampled_from((1, 3, 7))))
    pads = st.sampled_from((0, 1, 3))
    # Less than the kernel: from there on XLA's own gradient by x, which ours is held against, reads beyond its operands
    # (jax 0.10.2; x 2×1×1×2, w 2×1×2×4, padding 3 above: others at each call, up to 1e21, where ours are right).
    padding = tuple(tuple(min(draw(pads), k - 1) for _ in range(2)) for k in kernel)
    # For maps of 1 XLA aborts over some of them (x 1×4×1×40, w 2×2×40×50, strides 2, padding 1).
    size = [draw(st.integers(max(2, k - sum(p)), 14)) for k, p in zip(kernel, padding, strict=True)]
    batch, inputs, outputs = draw(st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 20)))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    w = (*kernel, inputs, outputs * groups)
    return (batch, *size, inputs * groups), w, Window(strides, padding, groups, None)


@needs_onednn
@settings(max_examples=12, deadline=None)
@given(convolutions())
@example(((5, 30, 30, 3), (7, 7, 3, 64), square(2, 3)))  # the stem
@example(((3, 14, 14, 64), (1, 1, 64, 128), square(2)))  # the shortcut of a stage
@example(((7, 8, 8, 64), (3, 3, 64, 64), square(1, 1)))
@example(((4, 9, 9, 128), (3, 3, 4, 128), square(2, 1, groups=32)))  # ResNeXt's
def test_value_and_gradients_are_those_of_lax(shapes):
    x_shape, w_shape, window = shapes
    x, w = arrays(x_shape, w_shape)
    ours, theirs = both(lambda convolve, x, w: all_three(convolve, window, x, w), x, w)
    assert_near(ours, theirs, 2e-5)


@needs_onednn
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_derivatives_of_derivatives(stride, groups):
    """Forward mode, gradient of a gradient by either operand, and forward over reverse."""
    x, w, dx, dw = arrays((4, 9, 7, 4), (3, 3, 4 // groups, 6), (4, 9, 7, 4), (3, 3, 4 // groups, 6))
    window = Window((stride, stride), ((1, 0), (2, 1)), groups, None)

    def derivatives(convolve, x, w):
        def loss(x, w):
            return jnp.sum(jnp.sin(convolve(window, x, w)))

        def slopes(x, w):
            return sum(jnp.sum(slope**2) for slope in jax.grad(loss, (0, 1))(x, w))

        forward = jax.jvp(partial(convolve, window), (x, w), (dx, dw))[1]
        return forward, jax.grad(slopes, (0, 1))(x, w), jax.jvp(jax.grad(loss, (0, 1)), (x, w), (dx, dw))[1]

    assert_near(*both(derivatives, x, w), 2e-5)


@needs_onednn
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (3, 2)])
def test_mapped(axes):
    """Over seeds (kernels), over images, over both, on any axis; with gradients and under checkpoint."""
    x, w = arrays((4, 9, 9, 3), (3, 3, 3, 6))
    x, w = (
        operand if axis is None else jnp.stack([operand, -2 * operand], axis)
        for operand, axis in zip((x, w), axes, strict=True)
    )

    def mapped(convolve, x, w):
        return jax.vmap(jax.checkpoint(partial(all_three, convolve, square(1, 1))), axes)(x, w)

    assert_near(*both(mapped, x, w), 2e-5)


@needs_onednn
def test_in_a_loop_each_pass_is_that_of_the_step_alone():
    x, w = arrays((8, 12, 12, 16), (3, 3, 16, 16))
    step = jax.jit(partial(all_three, onednn.output, square(1, 1)))
    together = jax.jit(lambda x, w: lax.map(lambda scale: step(scale * x, w), jnp.arange(1.0, 4.0)))(x, w)
    alone = [step(scale * x, w) for scale in (1.0, 2.0, 3.0)]
    for results, expected in zip(zip(*together, strict=True), alone, strict=True):
        for ours, theirs in zip(results, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@needs_onednn
def test_threads_that_run_programs_at_once_get_the_bits_of_one_alone():
    """What is compiled, laid out anew and added up is each call's own."""
    programs = []
    for size, channels in ((12, 16), (9, 40), (20, 8)):
        x, w = arrays((7, size, size, channels), (3, 3, channels, channels))
        step = jax.jit(partial(all_three, onednn.output, square(1, 1)))
        programs.append((step, x, w, step(x, w)))
    wrong = []

    def repeat(step, x, w, expected):
        for _ in range(30):
            same = [np.array_equal(a, b) for a, b in zip(step(x, w), expected, strict=True)]
            wrong.extend([x.shape] * same.count(False))

    threads = [threading.Thread(target=repeat, args=program) for program in programs * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


ON_MANY_CORES = """
import sys
import jax
from resnet.model import onednn, onednn_library
from resnet.model.convolution_forms import by_lax
from tests.model.test_convolution import arrays, assert_near
from tests.model.test_onednn import all_three, both, square

assert not onednn_library.missing()
images, size, inputs, kernel, outputs, stride, pad = map(int, sys.argv[1:])
x, w = arrays((images, size, size, inputs), (kernel, kernel, inputs, outputs))
assert_near(*both(lambda convolve, x, w: all_three(convolve, square(stride, pad), x, w), x, w), 2e-5)
"""


@needs_onednn
@pytest.mark.parametrize(
    ("threads", "convolution"),
    [
        # Of these oneDNN wants the kernel laid out otherwise for the last, smaller part of the batch.
        (10, (125, 7, 24, 5, 64, 1, 2)),
        (16, (100, 14, 32, 1, 320, 1, 0)),
        (7, (9, 11, 8, 3, 8, 2, 1)),
        (1, (9, 11, 8, 3, 8, 1, 1)),
    ],
)
def test_any_number_of_threads(threads, convolution):
    """XLA makes as many as NPROC says; this machine may have few."""
    command = [sys.executable, "-c", ON_MANY_CORES, *map(str, convolution)]
    done = subprocess.run(
        command, env=os.environ | {"NPROC": str(threads)}, capture_output=True, text=True, timeout=120
    )
    assert not done.returncode, done.stderr


FIRST_AT_ONCE = """
import threading
import jax
from resnet.model import onednn, onednn_library
from tests.model.test_convolution import arrays
from tests.model.test_onednn import square

slow, failed = onednn_library._load, []

def load():
    library = slow()
    threading.Event().wait(0.5)
    return library

def first(channels):
    try:
        assert not onednn_library.missing()
        x, w = arrays((4, 9, 9, channels), (3, 3, channels, 4))
        jax.block_until_ready(onednn.output(square(1, 1), x, w))
    except BaseException as error:
        failed.append(error)

onednn_library._load = load
threads = [threading.Thread(target=first, args=(channels,)) for channels in (1, 2, 3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
first(4)
assert not failed, failed
"""


@needs_onednn
def test_threads_that_come_first_at_once_load_it_once():
    done = subprocess.run([sys.executable, "-c", FIRST_AT_ONCE], capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr


@needs_onednn
def test_outside_jit_and_donated():
    x, w = arrays((4, 12, 12, 8), (3, 3, 8, 8))
    expected = by_lax(square(1, 1), x, w)
    assert_near(onednn.output(square(1, 1), x, w), expected)
    ours = jax.jit(partial(onednn.output, square(1, 1)), donate_argnums=0)(jnp.array(x), w)
    assert_near(ours, expected)


@needs_onednn
def test_which_convolutions_are_its_own():
    """In float32 large batches, an image for each thread at least, and few outputs; all else keeps what it had."""

    def program(x_shape, w_shape, dtype=jnp.float32, **changes):
        x, w = (jax.ShapeDtypeStruct(shape, dtype) for shape in (x_shape, w_shape))
        return str(jax.make_jaxpr(partial(convolution.conv_general_dilated, **(window(1, 1) | changes)))(x, w))

    images = max(8, len(os.sched_getaffinity(0)))
    mine = onednn_library.target("convolution_output")
    assert mine in program((images, 32, 32, 16), (3, 3, 16, 16))
    assert mine in program((images, 32, 32, 16), (3, 3, 4, 16), feature_group_count=4)
    assert mine in program((1, 2, 2, 16), (3, 3, 16, 16))
    assert mine not in program((1, 16, 16, 16), (3, 3, 16, 16))
    assert mine not in program((1, 2, 2, 16), (3, 3, 4, 16), feature_group_count=4)
    assert mine not in program((1, 2, 2, 16), (5, 5, 16, 16), padding=((2, 2), (2, 2)))
    assert mine not in program((images, 32, 32, 16), (3, 3, 16, 16), jnp.bfloat16)
    assert mine not in program((images, 32, 32, 16), (3, 3, 16, 16), padding="SAME")
    if images > 1:
        assert mine not in program((len(os.sched_getaffinity(0)) - 1, 64, 64, 16), (3, 3, 16, 16))


@needs_onednn
def test_an_exported_program_does_not_need_it():
    x, w = arrays((64, 12, 12, 4), (3, 3, 4, 4))
    step = jax.jit(outputs_and_gradients(convolution.conv_general_dilated, **window(1, 1)))
    assert "custom_call" in step.lower(x, w).as_text()
    for platform in ("cpu", "cuda"):
        module = export.export(step, platforms=[platform])(x, w).mlir_module()
        assert (module.count("stablehlo.convolution"), module.count("custom_call")) == (3, 0)


@needs_onednn
def test_what_it_cannot_do_is_an_error_of_the_program():
    call = jax.ffi.ffi_call(
        onednn_library.target("convolution_output"), jax.ShapeDtypeStruct((2, 9, 9, 5), jnp.float32)
    )
    x, w = arrays((2, 4, 4, 3), (3, 3, 3, 5))
    with pytest.raises(jax.errors.JaxRuntimeError, match="oneDNN ended with its status"):
        jax.block_until_ready(call(x, w, window=np.array([1, 1, 1, 1, 1, 1, 1, 0, 0])))
    with pytest.raises(jax.errors.JaxRuntimeError, match="nine int64"):
        jax.block_until_ready(call(x, w, window=np.array([1, 1])))
    # Products of matrices would write beyond such a kernel's gradient.
    gradient = jax.ffi.ffi_call(
        onednn_library.target("convolution_weight_gradient"), jax.ShapeDtypeStruct((1, 1, 2, 5), jnp.float32)
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="channels"):
        jax.block_until_ready(gradient(x, *arrays((2, 4, 4, 5)), window=np.array([1, 1, 0, 0, 0, 0, 1, 0, 0])))


def described(tmp_path, **environment):
    """What a process with another environment says of it."""
    inherited = {name: value for name, value in os.environ.items() if name != onednn_library.SWITCH}
    given = inherited | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path), **environment}
    command = [sys.executable, "-m", "resnet.model.onednn_library"]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=120, check=True)
    assert not done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="oneDNN is for Linux")
def test_what_is_missing_is_named_in_one_line(tmp_path):
    assert described(tmp_path, RESNET_ONEDNN="0") == "XLA, without oneDNN: RESNET_ONEDNN=0 is set"
    if onednn_library.missing():
        return
    assert described(tmp_path, PATH="/nowhere").endswith("there is no C compiler (Debian: apt install gcc libc6-dev)")
    broken = tmp_path / "broken-compiler"
    broken.write_text("#!/bin/sh\necho onednn.c:1: error: no such thing >&2\nexit 1\n")
    broken.chmod(0o755)
    said = described(tmp_path, CC=str(broken))
    assert said.endswith("could not compile onednn.c (exit code 1) onednn.c:1: error: no such thing")
    full = tmp_path / "a file"
    full.write_text("")
    assert "a file" in described(tmp_path, XDG_CACHE_HOME=str(full))


@needs_onednn
def test_processes_that_compile_it_at_once_leave_one_library(tmp_path):
    command = [sys.executable, "-m", "resnet.model.onednn_library"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)}
    several = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert all(process.communicate(timeout=120)[0].startswith("oneDNN") for process in several)
    left = list((tmp_path / "resnet-jax" / "onednn").iterdir())
    assert len(left) == 1
    # A damaged one is made anew.
    left[0].write_bytes(b"not a library")
    assert described(tmp_path).startswith("oneDNN")


def test_without_it_convolutions_are_xlas_own(monkeypatch):
    monkeypatch.setattr(onednn_library, "missing", lambda: "left out by this test")
    x, w = arrays((64, 16, 16, 4), (3, 3, 4, 4))
    traced = jax.make_jaxpr(partial(convolution.conv_general_dilated, **window(1, 1)))(x, w)
    assert onednn_library.target("convolution_output") not in str(traced)


@needs_onednn
@pytest.mark.parametrize(
    ("x", "w", "window"),
    [
        # More than the 1,024 positions of one product of matrices in each thread's part, with and without a step.
        ((8, 48, 49, 5), (1, 1, 5, 7), square(1)),
        ((8, 48, 49, 5), (1, 1, 5, 7), square(2)),
        # A kernel of more than 256 KiB, in three slices that threads share.
        ((4, 6, 6, 128), (3, 3, 128, 192), square(1, 1)),
    ],
)
def test_maps_and_kernels_too_large_for_one_piece(x, w, window):
    given = arrays(x, w)

    def slopes(convolve, x, w):
        y, back = jax.vjp(lambda x, w: convolve(window, x, w), x, w)
        # Not of y: its roundings would count twice.
        return y, back(arrays(y.shape)[0])

    assert_near(*both(slopes, *given), 2e-5)
