"""The convolution against `jax.lax.conv_general_dilated`: values, gradients, transformations, platforms, sharding."""

import json
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export, lax

from resnet.model import convolution_forms, onednn_library
from resnet.model.convolution import conv_general_dilated
from tests.commands import with_eight_devices

NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(scope="module", autouse=True)
def forms_alone():
    """What is computed where oneDNN is missing or not for: test_onednn has the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn_library, "missing", lambda: "left out by this test")
        yield


def arrays(*shapes, dtype=jnp.float32):
    generator = np.random.default_rng(sum(map(sum, shapes)))
    return [jnp.asarray(generator.standard_normal(shape), dtype) for shape in shapes]


def window(stride=1, pad=0):
    """What both functions take, for a square window."""
    return {"window_strides": (stride,) * 2, "padding": ((pad, pad),) * 2, "dimension_numbers": NHWC}


def outputs_and_gradients(convolve, **settings):
    """A function of (x, w) that gives the convolution and both gradients; the cotangents differ from place to place."""

    def loss(x, w):
        y = convolve(x, w, **settings)
        return jnp.sum(jnp.sin(y) + y), y

    def function(x, w):
        (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, w)
        return y, *gradients

    return function


def assert_near(ours, theirs, tolerance=1e-5):
    """Each leaf to `tolerance` of its own largest element."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(initial=0))


def assert_same_as_lax(x, w, tolerance=1e-5, **settings):
    ours, theirs = (
        jax.jit(outputs_and_gradients(convolve, **settings))(x, w)
        for convolve in (conv_general_dilated, lax.conv_general_dilated)
    )
    assert_near(ours, theirs, tolerance)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad"),
    [
        (8, 1, 1, 0),  # 1×1
        (9, 1, 2, 0),  # the projection of a downsampling block, odd size
        (1, 1, 2, 1),  # no output sees the input
        (2, 3, 1, 1),  # map smaller than the kernel
        (4, 3, 2, 1),
        (4, 3, 1, 1),  # the smallest map that two images of are computed by im2col, values and gradients
        (7, 3, 1, 1),  # the largest
        (13, 3, 2, 1),
        (8, 3, 1, 1),  # the smallest that is not
        (15, 3, 2, 1),
        (5, 3, 2, 3),  # outputs that see padding only
        (15, 7, 2, 3),  # the stem
        (3, 7, 1, 3),  # map smaller than the stem's kernel
    ],
)
@pytest.mark.parametrize("images", [2, 9])
def test_value_and_gradients_are_those_of_lax(images, size, kernel, stride, pad):
    x, w = arrays((images, size, size, 3), (kernel, kernel, 3, 5))
    assert_same_as_lax(x, w, **window(stride, pad))


@st.composite
def convolutions(draw):
    """(x shape, w shape, strides, padding) of any convolution with an output."""
    kernel = draw(st.tuples(st.sampled_from((1, 2, 3, 7)), st.sampled_from((1, 3, 7))))
    pads = st.sampled_from((0, 1, 3))
    padding = draw(st.tuples(st.tuples(pads, pads), st.tuples(pads, pads)))
    size = [draw(st.integers(max(1, k - sum(p)), 15)) for k, p in zip(kernel, padding, strict=True)]
    batch, channels, features = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)))
    # XLA (jaxlib 0.10.2) aborts the process in lax' own gradient of some 2×n kernels that stride by 2: of images
    # (1, 14, 4, 2) by (2, 3, 2, 3), padded by 1.
    strides = draw(st.tuples(st.integers(1, 2) if kernel[0] != 2 else st.just(1), st.integers(1, 3)))
    return (batch, *size, channels), (*kernel, channels, features), strides, padding


@settings(max_examples=8, deadline=None)
@given(convolutions())
def test_value_and_gradients_on_any_shape(convolution):
    x_shape, w_shape, strides, padding = convolution
    x, w = arrays(x_shape, w_shape)
    assert_same_as_lax(x, w, window_strides=strides, padding=padding, dimension_numbers=NHWC)


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "stride", "size"),
    [
        (4, 4, 4, 1, 9),  # depthwise
        (6, 12, 3, 2, 9),
        (64, 128, 32, 1, 9),  # 16 groups together, twice
        (80, 40, 2, 1, 9),  # groups that are wide enough alone
        (8, 8, 2, 1, 3),  # a small map
    ],
)
def test_groups(inputs, outputs, groups, stride, size):
    x, w = arrays((16, size, size, inputs), (3, 3, inputs // groups, outputs))
    assert_same_as_lax(x, w, feature_group_count=groups, **window(stride, 1))


def test_groups_inside_a_loop():
    x, w = arrays((2, 9, 9, 6), (3, 3, 2, 6))
    step = outputs_and_gradients(conv_general_dilated, feature_group_count=3, **window(1, 1))
    compiled = jax.jit(lambda x, w: lax.map(lambda x: step(x, w), jnp.stack([x, x]))).lower(x, w).compile()
    orders = re.findall(r" convolution\(.*dim_labels=(\S+?),", compiled.as_text())
    assert orders == ["b01f_01io->b01f"] * 3


def test_float64():
    with jax.enable_x64(True):
        x, w = arrays((2, 9, 9, 3), (3, 3, 3, 4), dtype=jnp.float64)
        assert_same_as_lax(x, w, tolerance=1e-13, **window(1, 1))


@pytest.mark.parametrize("transform", ["vmap", "scan"])
@pytest.mark.parametrize(("size", "kernel", "stride"), [(4, 3, 1), (9, 3, 1), (4, 1, 2)])
def test_over_a_stack_of_weights_with_checkpoint(size, kernel, stride, transform):
    """What an ablation does: one step mapped over seeds."""
    x, w = arrays((2, size, size, 3), (3, kernel, kernel, 3, 3))

    def gradients(convolve):
        checkpointed = jax.checkpoint(partial(convolve, **window(stride, kernel // 2)))
        step = outputs_and_gradients(lambda x, w: checkpointed(x, w))
        if transform == "vmap":
            return jax.jit(jax.vmap(step, (None, 0)))(x, w)
        return jax.jit(lambda x, w: lax.scan(lambda carry, w: (carry, step(x, w)), 0, w)[1])(x, w)

    assert_near(gradients(conv_general_dilated), gradients(lax.conv_general_dilated))


@pytest.mark.parametrize(("size", "kernel"), [(4, 3), (9, 3), (4, 1)])
def test_second_derivatives(size, kernel):
    """Gradient of a gradient, and forward over reverse."""
    x, w = arrays((1, size, size, 2), (kernel, kernel, 2, 2))

    def second(convolve):
        def slope(w):
            return jax.grad(lambda w: jnp.sum(jnp.sin(convolve(x, w, **window(1, kernel // 2)))))(w)

        reverse = jax.grad(lambda w: jnp.sum(slope(w) ** 2))
        return jax.jit(lambda w: (reverse(w), jax.jvp(slope, (w,), (jnp.ones_like(w),))[1]))(w)

    assert_near(second(conv_general_dilated), second(lax.conv_general_dilated))


def test_forward_mode_is_refused():
    x, w = arrays((1, 4, 4, 2), (3, 3, 2, 2))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: conv_general_dilated(x, w, **window(1, 1)), (x,), (x,))


def test_inside_linen():
    """linen passes lists, its own dimension numbers and dilations of 1; these still take this module's way."""
    ours, theirs = (
        nn.Conv(4, (3, 3), (2, 2), padding=((1, 1), (1, 1)), use_bias=False, conv_general_dilated=convolve)
        for convolve in (conv_general_dilated, None)
    )
    (x,) = arrays((2, 6, 6, 3))
    variables = theirs.init(jax.random.key(0), x)
    assert_near(ours.apply(variables, x), theirs.apply(variables, x))
    assert "custom_vjp" in str(jax.make_jaxpr(ours.apply)(variables, x))


FALLS_THROUGH = {
    "SAME": ((2, 6, 6, 4), (3, 3, 4, 4), {"padding": "SAME"}),
    "VALID": ((2, 6, 6, 4), (3, 3, 4, 4), {"padding": "VALID"}),
    "batch groups": ((2, 6, 6, 4), (3, 3, 4, 4), {"batch_group_count": 2}),
    "dilated kernel": ((2, 6, 6, 4), (3, 3, 4, 4), {"rhs_dilation": (2, 2)}),
    "dilated input": ((2, 6, 6, 4), (3, 3, 4, 4), {"lhs_dilation": (2, 1)}),
    "negative padding": ((2, 6, 6, 4), (3, 3, 4, 4), {"padding": ((-1, 0), (0, 0))}),
    "NCHW": ((2, 4, 6, 6), (4, 4, 3, 3), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
    "one dimension": (
        (2, 6, 4),
        (3, 4, 4),
        {"window_strides": (1,), "padding": ((1, 1),), "dimension_numbers": ("NWC", "WIO", "NWC")},
    ),
    "no batch": ((0, 6, 6, 4), (3, 3, 4, 4), {}),
}


@pytest.mark.parametrize("case", FALLS_THROUGH)
def test_every_other_convolution_is_that_of_lax(case):
    x_shape, w_shape, changes = FALLS_THROUGH[case]
    x, w = arrays(x_shape, w_shape)
    traced, expected = (
        jax.make_jaxpr(partial(convolve, **(window(1, 1) | changes)))(x, w)
        for convolve in (conv_general_dilated, lax.conv_general_dilated)
    )
    assert str(traced) == str(expected)


def test_errors_are_those_of_lax():
    x, w = arrays((2, 6, 6, 4), (3, 3, 5, 4))
    with pytest.raises((TypeError, ValueError), match="feature"):
        conv_general_dilated(x, w, **window(1, 1))


@pytest.mark.parametrize("size", [2, 9])
def test_bfloat16_and_preferred_element_type(size):
    x, w = arrays((2, size, size, 4), (3, 3, 4, 4), dtype=jnp.bfloat16)
    assert_same_as_lax(x, w, **window(1, 1))
    wide = jax.jit(partial(conv_general_dilated, preferred_element_type=jnp.float32, **window(1, 1)))(x, w)
    exact = lax.conv_general_dilated(x.astype(jnp.float32), w.astype(jnp.float32), **window(1, 1))
    assert_near(wide, exact)


@pytest.mark.parametrize(("size", "kernel"), [(4, 3), (9, 3), (4, 1)])
def test_platform_is_chosen_at_lowering(size, kernel):
    """Lowered for a GPU a program holds lax's three convolutions and nothing of ours; for a CPU, ours if any."""
    x, w = arrays((2, size, size, 3), (kernel, kernel, 3, 4))
    step = jax.jit(outputs_and_gradients(conv_general_dilated, **window(1, kernel // 2)))
    cuda, cpu = (export.export(step, platforms=[p])(x, w).mlir_module() for p in ("cuda", "cpu"))
    assert (cuda.count("stablehlo.convolution"), cuda.count("stablehlo.dot_general")) == (3, 0)
    assert cpu.count("stablehlo.convolution") == (3 if size == 9 else 0)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad"), [(9, 3, 1, 1), (18, 3, 2, 1), (18, 7, 2, 3), (27, 2, 3, 0)]
)
def test_inside_a_loop_each_convolution_has_the_order_of_the_cpu_library(size, kernel, stride, pad):
    """XLA brings only a program's outermost computation into it; in any other order a loop runs naive code."""
    x, w = arrays((2, size, size, 3), (kernel, kernel, 3, 4))
    all_three = outputs_and_gradients(conv_general_dilated, **window(stride, pad))

    def summed(x, w):
        add = lambda number, total: jax.tree.map(jnp.add, total, all_three(x + number, w))  # noqa: E731
        return lax.fori_loop(0, 3, add, jax.tree.map(jnp.zeros_like, all_three(x, w)))

    compiled = jax.jit(summed).lower(x, w).compile()
    orders = re.findall(r" convolution\(.*dim_labels=(\S+?),", compiled.as_text())
    assert orders == ["b01f_01io->b01f"] * 3
    outside = [all_three(x + number, w) for number in range(3)]
    assert_near(compiled(x, w), jax.tree.map(lambda *each: sum(each), *outside))


@pytest.mark.parametrize("images", [16, 24, 36, 100])
def test_a_weight_gradient_in_chunks_of_the_batch_is_that_of_the_whole(images):
    x, w = arrays((images, 9, 9, 3), (3, 3, 3, 4))
    assert convolution_forms._chunks(images) > 1
    assert_same_as_lax(x, w, **window(1, 1))


def test_chunks_are_equal_and_hold_eight_images_at_least():
    assert [convolution_forms._chunks(images) for images in (1, 8, 15, 16, 32, 50, 100, 128, 1024)] == [
        *(1, 1, 1, 2, 4, 2, 4, 16, 16)
    ]


SHARDED = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from resnet.model.convolution import conv_general_dilated

mesh = jax.make_mesh((8,), ('batch',), axis_types=(AxisType.Auto,))
rows, everywhere = NamedSharding(mesh, PartitionSpec('batch')), NamedSharding(mesh, PartitionSpec())
window = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}

def gradients(convolve, stride, pad):
    def loss(x, w):
        return jnp.sum(jnp.sin(convolve(x, w, (stride,) * 2, ((pad, pad),) * 2, **window)))
    return jax.grad(loss, (0, 1))

results = []
for size, kernel, stride, pad in json.loads(sys.argv[1]):
    x = jax.random.normal(jax.random.key(0), (16, size, size, 4))
    w = jax.random.normal(jax.random.key(1), (kernel, kernel, 4, 8))
    sharded = jax.jit(gradients(conv_general_dilated, stride, pad), in_shardings=(rows, everywhere))
    compiled = sharded.lower(x, w).compile()
    ours = compiled(jax.device_put(x, rows), jax.device_put(w, everywhere))
    theirs = jax.jit(gradients(jax.lax.conv_general_dilated, stride, pad))(x, w)
    text = compiled.as_text()
    results.append({
        'errors': [float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(ours, theirs)],
        'moved': [name for name in ('all-gather', 'all-to-all', 'collective-permute') if name in text],
        'summed': 'all-reduce' in text,
        'sharded': ours[0].sharding.is_equivalent_to(rows, 4),
    })
print(json.dumps(results))
"""


def test_a_sharded_batch_stays_sharded():
    """On 8 devices: gradients equal, the input's stays sharded, the weight's is summed, and no activation moves."""
    cases = [(9, 3, 1, 1), (4, 3, 2, 1), (9, 1, 2, 0), (18, 7, 2, 3)]
    command = [sys.executable, "-c", SHARDED, json.dumps(cases)]
    finished = subprocess.run(command, env=with_eight_devices(), capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    for case, result in zip(cases, json.loads(finished.stdout), strict=True):
        assert max(result.pop("errors")) < 1e-5, case
        assert result == {"moved": [], "summed": True, "sharded": True}, case
