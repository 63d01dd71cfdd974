"""Convolutions of few channels by blocks of pixels, for a GPU's matrix units: the same sums, better shaped.

A matrix unit takes 64 and more channels at once, and ImageNet's stem has three, a CIFAR network's first stage sixteen.
So the pixels of a block become channels (space to depth), and the kernel is laid out for all outputs of a block at
once, with zeros between. Nothing is approximated.

The stem of ResNet-50 (7×7, stride 2, norm, ReLU, max pooling; H100, 256 images of 224 px, bfloat16, forward and
backward, 2026-11-26, milliseconds of its kernels): 7.2 by pixels, 4.1 by 2×2 cells (a 4×4 kernel, as in MLPerf's
ResNets), 2.9 by 4×4 blocks with the pooling on blocks as well. CIFAR ResNet-20's step of 128 images: 1.73 ms, with its
first stage by 2×2 blocks 1.50. benchmarks/gpu_notes.md has the rest.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from resnet.model.broadcasting import shifted
from resnet.model.errors import SpecError
from resnet.model.pooling import WINDOW, kept_first_of_largest

_NHWC = ("NHWC", "HWIO", "NHWC")
# Sides of a stem's blocks, in pixels, and of what it computes of each, in outputs.
STEM_BLOCK, STEM_OUTPUTS = 4, 2
# Most channels, in and out, of a 3×3 convolution that is better done by blocks, and the sides of these.
FEW_CHANNELS, SIDE = 16, 2


def stem_pays(images: Array) -> bool:
    """Whether a 7×7 stem is better done by blocks: on a GPU, in 16 bits, where blocks divide the images."""
    return _suits(images) and not any(side % STEM_BLOCK for side in images.shape[1:3])


def convolution_pays(
    x: Array, kernel: Array, strides: Sequence[int], padding: str | Sequence[tuple[int, int]], groups: int
) -> bool:
    """Whether `convolution` is the better way: on a GPU, in 16 bits, 3×3 of few channels, even sides."""
    plain = kernel.shape[:2] == (3, 3) and tuple(strides) == (1, 1) and groups == 1
    around = not isinstance(padding, str) and [tuple(pair) for pair in padding] == [(1, 1), (1, 1)]
    few = max(kernel.shape[2:]) <= FEW_CHANNELS
    return plain and around and few and _suits(x) and not any(side % SIDE for side in x.shape[1:3])


def _suits(x: Array) -> bool:
    return jax.default_backend() == "gpu" and x.dtype.itemsize == 2


def into_blocks(x: Array, side: int) -> Array:
    """Space to depth: float[B, H, W, C] -> float[B, H / side, W / side, side · side · C], rows of a block outermost.

    Raises SpecError unless side divides H and W.
    """
    batch, high, wide, channels = x.shape
    if high % side or wide % side:
        raise SpecError(f"blocks of {side} pixels do not divide maps of {high}×{wide}")
    cut = x.reshape(batch, high // side, side, wide // side, side, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, high // side, wide // side, side * side * channels)


def out_of_blocks(x: Array, side: int) -> Array:
    """Depth to space, the inverse of `into_blocks`."""
    batch, high, wide, channels = x.shape
    cut = x.reshape(batch, high, wide, side, side, channels // side**2)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, high * side, wide * side, channels // side**2)


def blocked_kernel(kernel: Array, block: int, stride: int) -> Array:
    """float[k, k, I, O] of that stride and padding k // 2, for blocks: float[3, 3, block² · I, (block / stride)² · O].

    Output (u, v) of a block sees rows stride·u - k//2 and on; in the rows of three blocks the kernel begins at row
    block + stride·u - k//2. Of a kernel that reaches further than the blocks beside its own nothing is cut off: it is
    refused by a negative padding.
    """
    size, _, inputs, outputs = kernel.shape
    places = range(block // stride)

    def placed(u: int, v: int) -> Array:
        begins = [block + stride * place - size // 2 for place in (u, v)]
        around = [(begin, 3 * block - size - begin) for begin in begins]
        whole = jnp.pad(kernel, (*around, (0, 0), (0, 0))).reshape(3, block, 3, block, inputs, outputs)
        return whole.transpose(0, 2, 1, 3, 4, 5).reshape(3, 3, block**2 * inputs, outputs)

    return jnp.concatenate([placed(u, v) for u in places for v in places], axis=-1)


def stem(images: Array, kernel: Array, bias: Array | None = None) -> Array:
    """A 7×7 convolution of stride 2, padding 3, in blocks: float[B, H, W, I] -> float[B, H/4, W/4, 4, O].

    The last axis but one has a block's outputs: (0, 0), (0, 1), (1, 0), (1, 1). bias: float[O], added before they are
    told apart, where a compiler knows it for a convolution's.
    """
    y = _over_blocks(into_blocks(images, STEM_BLOCK), blocked_kernel(kernel, STEM_BLOCK, 2))
    y = y if bias is None else shifted(y, jnp.tile(bias, STEM_OUTPUTS**2))
    return y.reshape(*y.shape[:3], STEM_OUTPUTS**2, kernel.shape[-1])


def convolution(x: Array, kernel: Array, side: int = SIDE) -> Array:
    """A 3×3 convolution of stride 1, padding 1, by blocks of so many pixels a side: float[B, H, W, I] -> [B, H, W, O].

    Channels of a block are filled up with zeros to a multiple of eight, as matrix units want them.
    """
    cut, taps = into_blocks(x, side), blocked_kernel(kernel, side, 1)
    fill = -cut.shape[-1] % 8
    if fill:
        cut = jnp.pad(cut, ((0, 0), (0, 0), (0, 0), (0, fill)))
        taps = jnp.pad(taps, ((0, 0), (0, 0), (0, fill), (0, 0)))
    return out_of_blocks(_over_blocks(cut, taps), side)


def _over_blocks(cut: Array, taps: Array) -> Array:
    return lax.conv_general_dilated(cut, taps, (1, 1), [(1, 1), (1, 1)], dimension_numbers=_NHWC)


def max_pool(x: Array, *, fill: float) -> Array:
    """3×3 max pooling of stride 2, padding 1, of what `stem` gives: float[B, H, W, 4, C] -> float[B, H, W, C].

    fill: what padding holds, minus infinity or, where a ReLU comes behind the pooling, 0. The gradient goes to the
    first of a window's largest, as in `pooling`. Reverse mode alone: a `jax.custom_vjp`.
    """
    return _pool(x, fill)


def _elements(x: Array, fill: float) -> list[Array]:
    """The nine elements of each window; its row 0 is row 1 of the block above, rows 1 and 2 are the block's own."""
    high, wide = x.shape[1:3]
    around = jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0), (0, 0)), constant_values=fill)
    elements = []
    for row in range(WINDOW):
        for column in range(WINDOW):
            top, left = min(row, 1), min(column, 1)
            inside = STEM_OUTPUTS * ((row + 1) % 2) + (column + 1) % 2
            elements.append(around[:, top : top + high, left : left + wide, inside])
    return elements


def _largest(x: Array, fill: float) -> Array:
    return jax.tree.reduce(jnp.maximum, _elements(x, fill))


def _note(x: Array, fill: float) -> tuple[Array, Array]:
    return kept_first_of_largest(_elements(x, fill))


def _spread(fill: float, first: Array, g: Array) -> tuple[Array]:
    """Row 0 of a block is row 1 of its own window; its row 1 is row 2 of that, and row 0 of the window below."""
    high, wide = g.shape[1:3]
    ends = ((0, 0), (0, 1), (0, 1), (0, 0))
    g, first = jnp.pad(g, ends), jnp.pad(first, ends, constant_values=WINDOW**2)
    windows = {0: ((0, 1),), 1: ((0, 2), (1, 0))}

    def of(u: int, v: int) -> Array:
        taken = []
        for down, row in windows[u]:
            for right, column in windows[v]:
                chosen, own = (a[:, down : down + high, right : right + wide] for a in (first, g))
                taken.append(jnp.where(chosen == WINDOW * row + column, own, jnp.zeros((), g.dtype)))
        return jax.tree.reduce(jnp.add, taken)

    return (jnp.stack([of(u, v) for u in (0, 1) for v in (0, 1)], axis=3),)


_pool = jax.custom_vjp(_largest, nondiff_argnums=(1,))
_pool.defvjp(_note, _spread)
