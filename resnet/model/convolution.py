"""The convolution that every network here runs on: `jax.lax.conv_general_dilated`, made faster on a CPU.

What is slow in XLA on a CPU (jax 0.10.2, float32, two cores), and what stands here instead:

* A 1×1 kernel is a matrix product, and XLA does not see it. 32×16×16×64 → 256 channels, ms for output / input
  gradient / weight gradient: convolution 3.4 / 5.3 / 10.8, product 2.0 / 2.0 / 2.9.
* On maps smaller than the 3×3 kernel XLA swaps the operands and falls to a naive emitter: 32×2×2×512, output 462 ms.
  One product for each element of the kernel, over the outputs that see it inside the map, takes 4.6 ms: nothing is
  multiplied by padding. That also wins at 32×4×4×256 (3.1 ms, not 4.1) and 8×7×7×512 (13, not 22), but no longer at
  32×8×8×128 (4.2, not 3.9).
* With few outputs in all, each of those nine products is too small for two threads and reads its part of the kernel
  for a few rows: one image of 7×7×512, ms: XLA 4.4, nine products 1.7 alone and 2.7 in a program, one im2col product
  1.1; two of 7 px the same way. A folded ResNet-50 answers one image of 224 px in 26 ms, not 38.
* XLA brings the dimensions of a convolution into the order that its library wants only in a program's outermost
  computation. Inside a loop lax' gradients, whose dimensions are not in that order, get naive code (JAX issue 12868),
  ms for input / weight gradient: 128×32×32×16, 3×3, 76 / 966 and not 3.3 / 8.7; 32×56×56×64 175 / 12,170 and not
  36 / 86. Here the operands are transposed beforehand, which is what XLA does outside loops: there it takes as long.

Measured and left out: im2col of the whole batch (forward 1.2 to 2.7 times slower than XLA at 3×3, stride 1, from
32×8×8×128 to 128×32×32×16), a loop over images (breaks a sharded batch), Winograd's F(2×2, 3×3) and F(4×4, 3×3) (with
its kernel transformed beforehand it saves 0.2 ms of 1.1 at one image of 56, 28 and 14 px, but its transforms cost more
than that in a whole ResNet-50: 59 ms an image, not 26, and 0.98 to 1.10 s for 32 images in eights, as without). Of the
weight gradient, each against XLA's own: a loop over rows of the output, each an im2col product (half the time alone at
32×56×56×64; in whole steps ResNet-50 is 3 % faster at 224 px and 7 % slower at 64 px, CIFAR ResNet-20 5 % faster, and
CIFAR ResNet-110 compiles 3.5 s longer); one product for each element of the kernel (CIFAR ResNet-20 1.7 times as slow);
strips of 2, 4 and 8 outputs as products with banded kernels (1.3 times as slow alone); operands transposed ahead of the
product (0.6 to 0.9 of the time alone, but ResNet-50's step takes 1.1 times as long).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

_NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))

# Largest output, and kernel, that is computed element by element of the kernel (see the module's docstring).
_SMALL_MAP = 7
_SMALL_KERNEL = 3
# Fewest outputs, over the batch, for which that is better than one im2col product; and the smallest map for which the
# latter is worth its products with padding.
_FEW_OUTPUTS = 128
_NOT_ALL_BORDER = 4


class _Window(NamedTuple):
    """What is static about one convolution. Hashable: custom_vjp takes it as an argument that is not differentiated."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    precision: Any


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
    more, no groups and no dilation, take this module's way: products for 1×1 kernels and for kernels up to 3×3 with
    outputs up to 7×7, and elsewhere lax' convolution with gradients that are fast inside loops as well. Anything else
    (bfloat16, 'SAME', NCHW, groups, one or three dimensions, …) is handed to lax unchanged, and so are its errors. The
    result, float[N, H', W', O], and its gradients equal lax's up to rounding.

    The form is chosen when the program is lowered, for the platform it is lowered for: CPU ours, any other lax's. So
    one traced function serves every device. jit, grad, grad of grad, vmap, scan, checkpoint and export work. A batch
    that is sharded over a mesh stays sharded: only weight gradients are summed across devices. Forward mode (`jax.jvp`,
    `jax.jacfwd`, `jax.linearize`) of the result raises TypeError, because this is a `jax.custom_vjp`; forward over
    reverse works.

    To count multiply-adds, trace the network with `jax.lax.conv_general_dilated` in this function's place: a jaxpr of
    this one holds the forms for both platforms, and ours leaves out multiplications by padding.
    """
    window = _window(lhs, rhs, window_strides, padding, precision)
    ordinary = (
        all(dilation is None or set(dilation) <= {1} for dilation in (lhs_dilation, rhs_dilation))
        and feature_group_count == batch_group_count == 1
        and preferred_element_type in (None, lhs.dtype)
    )
    nhwc = ordinary and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == _NHWC
    if window and nhwc:
        return _convolve(window, lhs, rhs)
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


def _window(x: Array, w: Array, strides: Sequence[int], padding: Any, precision: Any) -> _Window | None:
    """The window, or None where shapes, types or padding are not of the kind that this module computes itself."""
    if isinstance(padding, str) or not (x.ndim == w.ndim == 4) or x.dtype != w.dtype:
        return None
    if x.dtype not in (jnp.float32, jnp.float64) or x.shape[3] != w.shape[2] or not (x.size and w.size):
        return None
    if len(strides) != 2 or len(padding) != 2 or any(side < 0 for pair in padding for side in pair):
        return None
    (top, bottom), (left, right) = padding
    window = _Window((strides[0], strides[1]), ((top, bottom), (left, right)), precision)
    return window if min(_extent(window, x, w)) > 0 else None


def _extent(window: _Window, x: Array, w: Array) -> tuple[int, int]:
    """Height and width of the output."""
    (down, across), ((top, bottom), (left, right)) = window.strides, window.padding
    return (x.shape[1] + top + bottom - w.shape[0]) // down + 1, (x.shape[2] + left + right - w.shape[1]) // across + 1


def _by_lax(window: _Window, x: Array, w: Array) -> Array:
    """The convolution as XLA's."""
    return lax.conv_general_dilated(
        x, w, window.strides, window.padding, dimension_numbers=_NHWC, precision=window.precision
    )


def _product(window: _Window, x: Array, w: Array) -> Array:
    """`x` float[..., I] times `w` float[I, O].

    On two dimensions: with more, XLA transposes both operands of the weight gradient (8×56×56×64 → 256: 29 ms, not 10).
    """
    flat = lax.dot(x.reshape(-1, x.shape[-1]), w, precision=window.precision)
    return flat.reshape(*x.shape[:-1], w.shape[-1])


def _touched(window: _Window, axis: int, size: int, outputs: int, tap: int) -> tuple[int, int]:
    """First and past-last output whose element `tap` of the kernel lies inside the map, not in its padding."""
    stride, before = window.strides[axis], window.padding[axis][0]
    first = max(0, -((tap - before) // stride))
    last = min(outputs, (size - 1 + before - tap) // stride + 1)
    return first, max(first, last)


def _by_taps(window: _Window, x: Array, w: Array) -> Array:
    """The convolution as one matrix product for each element of the kernel, over the outputs that see it inside."""
    high, wide = _extent(window, x, w)
    (down, across), ((top, _), (left, _)) = window.strides, window.padding
    total = jnp.zeros((x.shape[0], high, wide, w.shape[3]), x.dtype)
    for i in range(w.shape[0]):
        first, last = _touched(window, 0, x.shape[1], high, i)
        for j in range(w.shape[1]):
            start, stop = _touched(window, 1, x.shape[2], wide, j)
            if first == last or start == stop:
                continue
            row, column = first * down + i - top, start * across + j - left
            # lax.slice, not indexing: that becomes a gather where the batch is symbolic, as in exports.
            ends = (row + (last - first - 1) * down + 1, column + (stop - start - 1) * across + 1)
            seen = lax.slice(x, (0, row, column, 0), (x.shape[0], *ends, x.shape[3]), (1, down, across, 1))
            edges = ((0, 0), (first, high - last), (start, wide - stop), (0, 0))
            total += jnp.pad(_product(window, seen, w[i, j]), edges)
    return total


def _by_im2col(window: _Window, x: Array, w: Array) -> Array:
    """The convolution as one matrix product of all elements of the kernel."""
    high, wide = _extent(window, x, w)
    down, across = window.strides
    padded = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    taps = [
        padded[:, i : i + (high - 1) * down + 1 : down, j : j + (wide - 1) * across + 1 : across]
        for i in range(w.shape[0])
        for j in range(w.shape[1])
    ]
    return _product(window, jnp.concatenate(taps, -1), w.reshape(-1, w.shape[3]))


def _has_own_form(window: _Window, x: Array, w: Array) -> bool:
    """Whether there is a form here that is faster on a CPU than XLA's."""
    small = max(_extent(window, x, w)) <= _SMALL_MAP and max(w.shape[:2]) <= _SMALL_KERNEL
    return small or w.shape[:2] == (1, 1)


def _forward_on_cpu(window: _Window, x: Array, w: Array) -> Array:
    extent = _extent(window, x, w)
    # A symbolic batch, as in exports, may be of any size.
    few = isinstance(x.shape[0], int) and x.shape[0] * extent[0] * extent[1] < _FEW_OUTPUTS
    im2col = few and w.shape[:2] != (1, 1) and min(extent) >= _NOT_ALL_BORDER
    return _by_im2col(window, x, w) if im2col else _by_taps(window, x, w)


def _input_gradient(form: Any, window: _Window, x: Array, w: Array, g: Array) -> Array:
    """The gradient by `x` of a form of the convolution, float[N, H, W, I]."""
    return jax.vjp(lambda x: form(window, x, w), x)[1](g)[0]


def _weight_gradient(form: Any, window: _Window, x: Array, w: Array, g: Array) -> Array:
    """The gradient by `w` of a form of the convolution, float[kh, kw, I, O]."""
    return jax.vjp(lambda w: form(window, x, w), w)[1](g)[0]


def _input_gradient_in_order(window: _Window, x: Array, w: Array, g: Array) -> Array:
    """What `_input_gradient` of `_by_lax` is, as a convolution whose dimensions are in the library's order.

    g float[N, H', W', O], its elements set apart by the strides, with the kernel turned round.
    """
    padding = []
    for axis, (before, _) in enumerate(window.padding):
        reach = (g.shape[axis + 1] - 1) * window.strides[axis] + 1
        first = w.shape[axis] - 1 - before
        padding.append((first, x.shape[axis + 1] + w.shape[axis] - 1 - reach - first))
    turned = lax.rev(w, (0, 1)).transpose(0, 1, 3, 2)
    return lax.conv_general_dilated(
        g,
        turned,
        (1, 1),
        padding,
        lhs_dilation=window.strides,
        dimension_numbers=_NHWC,
        precision=window.precision,
    )


def _weight_gradient_in_order(window: _Window, x: Array, w: Array, g: Array) -> Array:
    """What `_weight_gradient` of `_by_lax` is, as a convolution whose dimensions are in the library's order.

    Batch and channels change places: x as [I, H, W, N], and g as a kernel [H', W', N, O].
    """
    padding = []
    for axis, (before, _) in enumerate(window.padding):
        reach = (g.shape[axis + 1] - 1) * window.strides[axis] + 1
        padding.append((before, w.shape[axis] - 1 + reach - x.shape[axis + 1] - before))
    turned = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        (1, 1),
        padding,
        rhs_dilation=window.strides,
        dimension_numbers=_NHWC,
        precision=window.precision,
    )
    return turned.transpose(1, 2, 0, 3)


# The choice of platform stands inside the custom_vjp: outside, differentiating it would save what either branch needs.
def _either(window: _Window, x: Array, w: Array) -> Array:
    if not _has_own_form(window, x, w):
        return _by_lax(window, x, w)
    return lax.platform_dependent(x, w, cpu=partial(_forward_on_cpu, window), default=partial(_by_lax, window))


def _save(window: _Window, x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _either(window, x, w), (x, w)


def _differentiate(window: _Window, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    by_input: Any = _input_gradient_in_order
    by_weight: Any = _weight_gradient_in_order
    if _has_own_form(window, *saved):
        by_input, by_weight = (partial(f, _forward_on_cpu) for f in (_input_gradient, _weight_gradient))
    # Two choices, not one: the stem's input gradient is never used and falls away.
    return (
        lax.platform_dependent(
            *saved, g, cpu=partial(by_input, window), default=partial(_input_gradient, _by_lax, window)
        ),
        lax.platform_dependent(
            *saved, g, cpu=partial(by_weight, window), default=partial(_weight_gradient, _by_lax, window)
        ),
    )


_convolve = jax.custom_vjp(_either, nondiff_argnums=(0,))
_convolve.defvjp(_save, _differentiate)
