"""The convolution against `jax.lax.conv_general_dilated`: values, gradients, transformations, sharding."""

import json
import os
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
from jax import lax

from resnet.model.convolution import conv_general_dilated

NHWC = ("NHWC", "HWIO", "NHWC")


def arrays(*shapes, dtype=jnp.float32):
    generator = np.random.default_rng(sum(map(sum, shapes)))
    return [jnp.asarray(generator.standard_normal(shape), dtype) for shape in shapes]


def loss(convolve, x, w, **settings):
    """A scalar whose cotangents differ from place to place, and the output itself."""
    y = convolve(x, w, dimension_numbers=NHWC, **settings)
    return jnp.sum(jnp.sin(y) + y), y


def value_and_gradients(convolve, **settings):
    return jax.value_and_grad(partial(loss, convolve, **settings), (0, 1), has_aux=True)


def assert_near(ours, theirs, tolerance=1e-5):
    """Each leaf to `tolerance` of its own largest element (of the sum's terms, for the scalar)."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        scale = max(1.0, float(jnp.abs(b).max())) if b.size else 1.0
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=0, atol=tolerance * scale)


def assert_same_as_lax(x, w, tolerance=1e-5, **settings):
    """Outputs and both gradients."""
    (_, *ours), (_, *theirs) = (
        (lambda result: (result[0][0], result[0][1], result[1]))(jax.jit(value_and_gradients(c, **settings))(x, w))
        for c in (conv_general_dilated, lax.conv_general_dilated)
    )
    assert_near(ours, theirs, tolerance)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad"),
    [
        (8, 1, 1, 0),  # 1×1
        (9, 1, 2, 0),  # the projection of a downsampling block, odd size
        (1, 1, 2, 1),  # no output sees the input
        (2, 3, 1, 1),  # map smaller than the kernel
        (1, 3, 1, 1),
        (4, 3, 2, 1),
        (7, 3, 1, 1),  # the largest small map
        (8, 3, 1, 1),  # the least large one
        (15, 3, 2, 1),  # 8 outputs
        (13, 3, 1, 0),
        (5, 3, 2, 3),  # outputs that see padding only
        (15, 7, 2, 3),  # the stem
        (9, 7, 2, 3),  # the stem on a small map
        (3, 7, 1, 3),  # map smaller than the stem's kernel
    ],
)
def test_value_and_gradients_are_those_of_lax(size, kernel, stride, pad):
    x, w = arrays((2, size, size, 3), (kernel, kernel, 3, 5))
    assert_same_as_lax(x, w, window_strides=(stride, stride), padding=((pad, pad), (pad, pad)))


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_value_and_gradients_on_any_shape(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    pair = st.tuples(st.integers(1, 15), st.integers(1, 15))
    (high, wide), kernel = data.draw(pair), (draw(1, 2, 3, 7), draw(1, 3, 7))
    padding = tuple((draw(0, 1, 3), draw(0, 1, 3)) for _ in range(2))
    reach = [size + sum(pads) - k for size, pads, k in zip((high, wide), padding, kernel, strict=True)]
    if min(reach) < 0:
        padding = tuple((k - 1, k - 1) for k in kernel)
    x, w = arrays((draw(1, 3), high, wide, draw(1, 4)), (*kernel, 0, draw(1, 6))[:2] + (1, 1))
    w = arrays((*kernel, x.shape[3], draw(1, 6)))[0]
    assert_same_as_lax(x, w, window_strides=(draw(1, 2), draw(1, 2, 3)), padding=padding)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(4, 3, 1), (9, 3, 1), (4, 1, 2)])
def test_under_vmap_over_weights_and_scan_and_checkpoint(size, kernel, stride):
    pad = kernel // 2
    x, w = arrays((2, size, size, 3), (4, kernel, kernel, 3, 3))
    window = {"window_strides": (stride, stride), "padding": ((pad, pad), (pad, pad))}

    def gradients(convolve, transform):
        gradient = value_and_gradients(jax.checkpoint(partial(convolve, dimension_numbers=NHWC, **window)))
        gradient = jax.grad(
            lambda x, w: jnp.sum(
                jnp.sin(jax.checkpoint(partial(convolve, dimension_numbers=NHWC, **window))(x, w))
            ),
            (0, 1),
        )
        if transform == "vmap":
            return jax.jit(jax.vmap(gradient, (None, 0)))(x, w)
        return jax.jit(lambda x, w: lax.scan(lambda c, w: (c, gradient(x, w)), 0, w)[1])(x, w)

    for transform in ("vmap", "scan"):
        assert_near(gradients(conv_general_dilated, transform), gradients(lax.conv_general_dilated, transform))
