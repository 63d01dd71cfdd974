"""Forms of a convolution that are fast on a CPU where XLA's own is slow; `convolution` chooses among them.

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
* A weight gradient needs both operands transposed, images innermost. XLA reads the whole batch once a channel for it,
  and computes what it transposes again from further back, in a residual network from ever further the deeper it is: in
  CIFAR ResNet-56 up to ten activations are read for one. In chunks of 8 images, one after the other in a loop, the
  operands stay in the cache and are what was computed before. ms alone: 32×56×56×64 115 / 56, 128×16×16×32 7.2 / 4.4,
  128×8×8×64 4.9 / 3.3; whole steps, batch 128: CIFAR ResNet-20 292 / 239, -56 1,480 / 783, -110 5,426 / 1,625.
* The weight gradient of groups XLA computes as one of all channels by all, in naive code: 16×16×16, 128 channels in 32
  groups, takes 838 ms; as one of 32 by 32 channels after the other it takes 3.3 (64 by 64: 5.4). ResNeXt-50's step of
  16 images of 64 px: 5.8 s, 0.27 s.

Measured and left out: im2col of the whole batch (forward 1.2 to 2.7 times slower than XLA at 3×3, stride 1, from
32×8×8×128 to 128×32×32×16), a loop over images (breaks a sharded batch), Winograd's F(2×2, 3×3) and F(4×4, 3×3) (with
its kernel transformed beforehand it saves 0.2 ms of 1.1 at one image of 56, 28 and 14 px, but its transforms cost more
than that in a whole ResNet-50: 59 ms an image, not 26, and 0.98 to 1.10 s for 32 images in eights, as without). Of the
weight gradient, each against XLA's own: a loop over rows of the output, each an im2col product (half the time alone at
32×56×56×64; in whole steps ResNet-50 is 3 % faster at 224 px and 7 % slower at 64 px, CIFAR ResNet-20 5 % faster, and
CIFAR ResNet-110 compiles 3.5 s longer); one product for each element of the kernel (CIFAR ResNet-20 1.7 times as slow);
strips of 2, 4 and 8 outputs as products with banded kernels (1.3 times as slow alone); operands transposed ahead of the
product (0.6 to 0.9 of the time alone, but ResNet-50's step takes 1.1 times as long). Inside a chunk, against the
convolution: one im2col product 0.9 to 2.2 times as long, nine products 0.9 to 2.9, three of three columns each 0.8 (at
32×56×56×64) to 2.6; chunks of 4 images 0.9 to 1.4 times, of 16 and more 1 to 1.6.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))

# Of a weight gradient that is computed in chunks of the batch: most chunks, a power of 2, and fewest images in one.
_MOST_CHUNKS = 16
_FEWEST_IMAGES = 8
# Most inputs of groups that are computed together.
_WIDE = 32


class Window(NamedTuple):
    """What is static about one convolution. Hashable: custom_vjp takes it as an argument that is not differentiated."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    groups: int
    precision: Any


def extent(window: Window, x: Array, w: Array) -> tuple[int, int]:
    """Height and width of the output."""
    (down, across), ((top, bottom), (left, right)) = window.strides, window.padding
    return (x.shape[1] + top + bottom - w.shape[0]) // down + 1, (x.shape[2] + left + right - w.shape[1]) // across + 1


def by_lax(window: Window, x: Array, w: Array) -> Array:
    """The convolution as XLA's."""
    return lax.conv_general_dilated(
        x,
        w,
        window.strides,
        window.padding,
        dimension_numbers=NHWC,
        feature_group_count=window.groups,
        precision=window.precision,
    )


def _product(window: Window, x: Array, w: Array) -> Array:
    """`x` float[..., I] times `w` float[I, O].

    On two dimensions: with more, XLA transposes both operands of the weight gradient (8×56×56×64 → 256: 29 ms, not 10).
    """
    flat = lax.dot(x.reshape(-1, x.shape[-1]), w, precision=window.precision)
    return flat.reshape(*x.shape[:-1], w.shape[-1])


def _touched(window: Window, axis: int, size: int, outputs: int, tap: int) -> tuple[int, int]:
    """First and past-last output whose element `tap` of the kernel lies inside the map, not in its padding."""
    stride, before = window.strides[axis], window.padding[axis][0]
    first = max(0, -((tap - before) // stride))
    last = min(outputs, (size - 1 + before - tap) // stride + 1)
    return first, max(first, last)


def by_taps(window: Window, x: Array, w: Array) -> Array:
    """The convolution as one matrix product for each element of the kernel, over the outputs that see it inside."""
    high, wide = extent(window, x, w)
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


def by_im2col(window: Window, x: Array, w: Array) -> Array:
    """The convolution as one matrix product of all elements of the kernel."""
    high, wide = extent(window, x, w)
    down, across = window.strides
    padded = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    taps = [
        padded[:, i : i + (high - 1) * down + 1 : down, j : j + (wide - 1) * across + 1 : across]
        for i in range(w.shape[0])
        for j in range(w.shape[1])
    ]
    return _product(window, jnp.concatenate(taps, -1), w.reshape(-1, w.shape[3]))


def input_gradient_in_order(window: Window, x: Array, w: Array, g: Array) -> Array:
    """What the input gradient of `by_lax` is, as a convolution whose dimensions are in the library's order.

    g float[N, H', W', O], its elements set apart by the strides, with the kernel turned round.
    """
    padding = []
    for axis, (before, _) in enumerate(window.padding):
        reach = (g.shape[axis + 1] - 1) * window.strides[axis] + 1
        first = w.shape[axis] - 1 - before
        padding.append((first, x.shape[axis + 1] + w.shape[axis] - 1 - reach - first))
    high, wide, channels, _ = w.shape
    turned = lax.rev(w, (0, 1)).reshape(high, wide, channels, window.groups, -1).transpose(0, 1, 4, 3, 2)
    return lax.conv_general_dilated(
        g,
        turned.reshape(high, wide, -1, window.groups * channels),
        (1, 1),
        padding,
        lhs_dilation=window.strides,
        dimension_numbers=NHWC,
        feature_group_count=window.groups,
        precision=window.precision,
    )


def weight_gradient_by_parts(window: Window, x: Array, w: Array, g: Array) -> Array:
    """What the weight gradient of `by_lax` is, group by group and chunk by chunk (see the module's docstring).

    Narrow groups go together: the gradient of all their inputs by all their outputs, of which each group takes its own.
    """
    if window.groups == 1:
        return _weight_gradient_in_chunks(window, x, w, g)
    high, wide, inputs, outputs = *w.shape[:3], w.shape[3] // window.groups
    together = max(n for n in range(1, window.groups + 1) if n == 1 or (window.groups % n == 0 and n * inputs <= _WIDE))
    dense = window._replace(groups=1)
    shape = jnp.zeros((high, wide, together * inputs, together * outputs), w.dtype)

    def gradient(_: None, number: Array) -> tuple[None, Array]:
        ours = lax.dynamic_slice_in_dim(x, number * together * inputs, together * inputs, 3)
        theirs = lax.dynamic_slice_in_dim(g, number * together * outputs, together * outputs, 3)
        all_by_all = _weight_gradient_in_chunks(dense, ours, shape, theirs)
        square = all_by_all.reshape(high, wide, together, inputs, together, outputs)
        return None, jnp.diagonal(square, axis1=2, axis2=4)

    _, parts = lax.scan(gradient, None, jnp.arange(window.groups // together))
    return parts.transpose(1, 2, 3, 0, 5, 4).reshape(w.shape)


def _weight_gradient_in_chunks(window: Window, x: Array, w: Array, g: Array) -> Array:
    """`_weight_gradient_in_order`, a few images at a time; of `w` the shape counts."""
    chunks = _chunks(x.shape[0])
    if chunks == 1:
        return _weight_gradient_in_order(window, x, w, g)
    inputs, cotangents = (rows.reshape(chunks, -1, *rows.shape[1:]) for rows in (x, g))

    def add(number: Array, total: Array) -> Array:
        chunk = (lax.dynamic_index_in_dim(rows, number, keepdims=False) for rows in (inputs, cotangents))
        return total + _weight_gradient_in_order(window, next(chunk), w, next(chunk))

    return lax.fori_loop(0, chunks, add, jnp.zeros_like(w))


def _chunks(images: Any) -> int:
    """How many equal chunks of at least _FEWEST_IMAGES a batch is cut into; 1 where it is small, odd or symbolic.

    Also 1 in a process of several devices: of a batch that is sharded over them each chunk would be sent on its own.
    """
    if not isinstance(images, int) or jax.device_count() > 1:
        return 1
    chunks = math.gcd(images, _MOST_CHUNKS)
    while chunks > 1 and images // chunks < _FEWEST_IMAGES:
        chunks //= 2
    return chunks


def _weight_gradient_in_order(window: Window, x: Array, w: Array, g: Array) -> Array:
    """What the weight gradient of `by_lax` is, as a convolution whose dimensions are in the library's order.

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
        dimension_numbers=NHWC,
        precision=window.precision,
    )
    return turned.transpose(1, 2, 0, 3)
