"""The convolution that every network here runs on: `jax.lax.conv_general_dilated`, made faster on a CPU.

There large batches in float32 are computed by oneDNN, where it can be had (see onednn). For all else, what is slow, the
forms that are taken in its place and the evidence for each are in convolution_forms.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from resnet.model import blocked, onednn, onednn_library
from resnet.model.convolution_forms import (
    NHWC,
    Window,
    by_im2col,
    by_lax,
    by_taps,
    extent,
    input_gradient_in_order,
    weight_gradient_by_parts,
)

# Largest output, and kernel, that is computed element by element of the kernel (see convolution_forms).
_SMALL_MAP = 7
_SMALL_KERNEL = 3
# Fewest outputs, over the batch, for which that is better than one im2col product; and the smallest map for which the
# latter is worth its products with padding.
_FEW_OUTPUTS = 128
_NOT_ALL_BORDER = 4
# Fewest outputs, over the batch, for which oneDNN's convolutions are faster: in each call they lay the whole kernel out
# anew. A step of ResNet-50 at 64 px, batch 32: 212 ms, with 600 for 1×1 kernels 222, with 100 252 (2026-11-26).
_MANY_OUTPUTS = 300


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """Drop-in for `jax.lax.conv_general_dilated`, for `linen.Conv(..., conv_general_dilated=conv_general_dilated)`.

    `lhs` float[N, H, W, I] and `rhs` float[kh, kw, I, O], both float32 or both float64, with explicit padding of 0 or
    more and no dilation, take this module's way: products for 1×1 kernels and for kernels up to 3×3 with outputs up to
    7×7, and elsewhere (in groups always) lax' convolution with gradients of our own. Anything else (bfloat16, 'SAME',
    NCHW, groups of the batch, one or three dimensions, …) is handed to lax unchanged, and so are its errors. The
    result, float[N, H', W', O], and its gradients equal lax's up to rounding.

    The form is chosen when the program is lowered, for the platform it is lowered for: CPU ours, any other lax's. So
    one traced function serves every device. But 3×3 kernels of few channels in 16 bits, traced where a GPU is the
    default, are lax' convolution by blocks of pixels (see `blocked`). jit, grad, grad of grad, vmap, scan, checkpoint
    and export work. A batch that is sharded over a mesh stays sharded: only weight gradients are summed across devices.
    Forward over reverse mode works; forward mode (`jax.jvp`, `jax.jacfwd`, `jax.linearize`) of a result that oneDNN
    does not compute raises TypeError, because that is a `jax.custom_vjp`.

    To count multiply-adds, trace the network with `jax.lax.conv_general_dilated` in this function's place: a jaxpr of
    this one holds the forms for both platforms, and ours leaves out multiplications by padding.
    """
    window = _window(lhs, rhs, window_strides, padding, feature_group_count, precision)
    ordinary = (
        all(dilation is None or set(dilation) <= {1} for dilation in (lhs_dilation, rhs_dilation))
        and batch_group_count == 1
        and preferred_element_type in (None, lhs.dtype)
    )
    nhwc = ordinary and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == NHWC
    if nhwc and blocked.convolution_pays(lhs, rhs, window_strides, padding, feature_group_count):
        return blocked.convolution(lhs, rhs)
    if window and nhwc:
        by_onednn = _is_possible_by_onednn(lhs) and _pays_by_onednn(window, lhs, rhs)
        return onednn.output(window, lhs, rhs) if by_onednn else _convolve(window, lhs, rhs)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


def with_kernels_ahead(*operands: Any, **how: Any) -> Array:
    """`conv_general_dilated` for networks that are prepared for many calls (onednn_prepared).

    With kernels laid out beforehand oneDNN is faster for small batches and maps too. So in evaluation it computes these
    as well, together with their norms, activations and shortcuts.
    """
    return conv_general_dilated(*operands, **how)


def _window(x: Array, w: Array, strides: Sequence[int], padding: Any, groups: int, precision: Any) -> Window | None:
    """The window, or None where shapes, types or padding are not of the kind that this module computes itself."""
    if isinstance(padding, str) or not (x.ndim == w.ndim == 4) or x.dtype != w.dtype:
        return None
    if x.dtype not in (jnp.float32, jnp.float64) or not (x.size and w.size):
        return None
    if groups < 1 or x.shape[3] != w.shape[2] * groups or w.shape[3] % groups:
        return None
    if len(strides) != 2 or len(padding) != 2 or any(side < 0 for pair in padding for side in pair):
        return None
    (top, bottom), (left, right) = padding
    window = Window((strides[0], strides[1]), ((top, bottom), (left, right)), groups, precision)
    return window if min(extent(window, x, w)) > 0 else None


def window_for_onednn(
    backend: Any, x: Any, w: Any, strides: Sequence[int], padding: Sequence[tuple[int, int]], groups: int
) -> Window | None:
    """The window of a convolution that `backend` would have oneDNN compute; None of any other."""
    if backend not in (conv_general_dilated, with_kernels_ahead):
        return None
    window = _window(x, w, strides, padding, groups, None)
    possible = window and _is_possible_by_onednn(x)
    return window if window and possible and (backend is with_kernels_ahead or _pays_by_onednn(window, x, w)) else None


def _is_possible_by_onednn(x: Array) -> bool:
    """Whether oneDNN can compute convolutions of x here: float32 on one CPU device, for XLA cannot cut its calls up."""
    if x.dtype != jnp.float32 or not all(isinstance(size, int) for size in x.shape):
        return False
    return jax.default_backend() == "cpu" and jax.device_count() == 1 and not onednn_library.missing()


def _pays_by_onednn(window: Window, x: Array, w: Array) -> bool:
    """Whether oneDNN is faster: by products, or by convolutions, whose threads divide a batch, never one image."""
    high, wide = extent(window, x, w)
    outputs = x.shape[0] * high * wide
    if onednn.takes_products(outputs, w.shape, window.groups):
        return True
    return outputs >= _MANY_OUTPUTS and x.shape[0] >= len(os.sched_getaffinity(0))


def _has_own_form(window: Window, x: Array, w: Array) -> bool:
    """Whether there is a form here that is faster on a CPU than XLA's."""
    small = max(extent(window, x, w)) <= _SMALL_MAP and max(w.shape[:2]) <= _SMALL_KERNEL
    return window.groups == 1 and (small or w.shape[:2] == (1, 1))


def _forward_on_cpu(window: Window, x: Array, w: Array) -> Array:
    high, wide = extent(window, x, w)
    # A symbolic batch, as in exports, may be of any size.
    few = isinstance(x.shape[0], int) and x.shape[0] * high * wide < _FEW_OUTPUTS
    im2col = few and w.shape[:2] != (1, 1) and min(high, wide) >= _NOT_ALL_BORDER
    return by_im2col(window, x, w) if im2col else by_taps(window, x, w)


def _input_gradient(form: Any, window: Window, x: Array, w: Array, g: Array) -> Array:
    """The gradient by `x` of a form of the convolution, float[N, H, W, I]."""
    return jax.vjp(lambda x: form(window, x, w), x)[1](g)[0]


def _weight_gradient(form: Any, window: Window, x: Array, w: Array, g: Array) -> Array:
    """The gradient by `w` of a form of the convolution, float[kh, kw, I, O]."""
    return jax.vjp(lambda w: form(window, x, w), w)[1](g)[0]


# The choice of platform stands inside the custom_vjp: outside, differentiating it would save what either branch needs.
def _either(window: Window, x: Array, w: Array) -> Array:
    if not _has_own_form(window, x, w):
        return by_lax(window, x, w)
    return lax.platform_dependent(x, w, cpu=partial(_forward_on_cpu, window), default=partial(by_lax, window))


def _save(window: Window, x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _either(window, x, w), (x, w)


def _differentiate(window: Window, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    by_input: Any = input_gradient_in_order
    by_weight: Any = weight_gradient_by_parts
    if _has_own_form(window, *saved):
        by_input, by_weight = (partial(f, _forward_on_cpu) for f in (_input_gradient, _weight_gradient))
    # Two choices, not one: the stem's input gradient is never used and falls away.
    return (
        lax.platform_dependent(
            *saved, g, cpu=partial(by_input, window), default=partial(_input_gradient, by_lax, window)
        ),
        lax.platform_dependent(
            *saved, g, cpu=partial(by_weight, window), default=partial(_weight_gradient, by_lax, window)
        ),
    )


# Under jit each of its shapes is traced once: ResNet-50's step in 1.2 s, not 1.8.
_convolve = jax.custom_vjp(jax.jit(_either, static_argnums=0), nondiff_argnums=(0,))
_convolve.defvjp(jax.jit(_save, static_argnums=0), jax.jit(_differentiate, static_argnums=0))
