"""The stem's max pooling, 3×3 with stride 2, whose gradient needs no search.

XLA's gradient of a max pooling is a select-and-scatter. On a CPU it becomes a window reduction that carries four index
arrays of the padded input, and a scatter: 16 ms for 32×32×32×64, more than any convolution of that ResNet-50. Here the
forward pass notes in one byte which element of each window was the largest, and the backward pass gathers: 1.0 ms. The
output and the gradient are XLA's to the last bit, ties included (the first of a window's equals takes the gradient).

A GPU's compiler would rather keep the eight comparisons that the byte is made of. Told to keep the byte, it takes 0.5
to 0.8 ms, and 1.1 for the gradient, of 256×112×112×64 (H100, bfloat16, norm and ReLU with it, 2026-11-26); untold 0.9
and 2.3, XLA's own 0.6 to 1.4 and 2.3.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

WINDOW = 3
_STRIDE = 2
# For rows (and columns) 2a and 2a + 1 of the padded input: which elements of which windows they are, counted from
# window a.
_SEEN_BY = (((0, 0), (2, -1)), ((1, 0),))


def max_pool(x: Array, *, padding: int = 1) -> Array:
    """3×3 max pooling with stride 2: float[B, H, W, C] -> float[B, H', W', C], H' = (H + 2·padding - 3) // 2 + 1.

    Padding is of minus infinity, as in torch.nn.MaxPool2d(3, 2, padding). Reverse mode alone: a `jax.custom_vjp`.
    """
    return _pool(x, padding)


def max_pool_by_xla(x: Array, *, padding: int = 1) -> Array:
    """`max_pool` as XLA's own operation, for what reads programs: an export knows it for a pooling."""
    return nn.max_pool(x, (WINDOW, WINDOW), strides=(_STRIDE, _STRIDE), padding=[(padding, padding)] * 2)


def _largest(x: Array, padding: int) -> Array:
    return lax.platform_dependent(
        x, cpu=partial(_largest_by_axes, padding=padding), default=partial(_largest_of_elements, padding=padding)
    )


def _largest_by_axes(x: Array, padding: int) -> Array:
    return _largest_along(_largest_along(x, 1, padding), 2, padding)


def _largest_of_elements(x: Array, padding: int) -> Array:
    return jax.tree.reduce(jnp.maximum, elements(x, padding))


def _padded(x: Array, padding: int) -> Array:
    side = (padding, padding)
    return jnp.pad(x, ((0, 0), side, side, (0, 0)), constant_values=-jnp.inf)


def elements(x: Array, padding: int) -> list[Array]:
    """The nine elements of every window, row by row, each an array of the output's shape."""
    return [column for row in _places(_padded(x, padding), 1) for column in _places(row, 2)]


def first_of_largest(elements: list[Array], largest: Array | None = None) -> tuple[Array, Array]:
    """(the largest of arrays of one shape, uint8: which of them is the first of the largest)."""
    output = jax.tree.reduce(jnp.maximum, elements) if largest is None else largest
    first = jnp.full(output.shape, len(elements) - 1, jnp.uint8)
    for place, element in reversed(list(enumerate(elements[:-1]))):
        first = jnp.where(element == output, jnp.uint8(place), first)
    return output, first


def kept_first_of_largest(elements: list[Array]) -> tuple[Array, Array]:
    """`first_of_largest`, with a barrier by which a compiler keeps the byte and not what it is made of."""
    output, first = lax.optimization_barrier(first_of_largest(elements))
    return output, first


def _largest_along(x: Array, axis: int, padding: int) -> Array:
    """Of the windows along `axis`, those at its ends that reach into the padding by themselves.

    So x is not copied into a padded array, the largest of a network: 9.8 -> 3.8 ms (32×112×112×64, 2026-11-26).
    """
    size = x.shape[axis]
    count = (size + 2 * padding - WINDOW) // _STRIDE + 1
    starts = [_STRIDE * window - padding for window in range(count)]
    whole = [start for start in starts if 0 <= start <= size - WINDOW]

    def at_end(start: int) -> Array:
        ends = max(start, 0), min(start + WINDOW, size)
        return lax.slice_in_dim(x, *ends, axis=axis).max(axis, keepdims=True)

    pieces = [at_end(start) for start in starts if start < 0]
    if whole:
        places = [lax.slice_in_dim(x, whole[0] + k, whole[-1] + k + 1, _STRIDE, axis) for k in range(WINDOW)]
        pieces.append(jnp.maximum(jnp.maximum(places[0], places[1]), places[2]))
    pieces += [at_end(start) for start in starts if start >= 0 and start > size - WINDOW]
    return lax.concatenate(pieces, axis)


def _places(x: Array, axis: int) -> list[Array]:
    """For each of a window's three places along `axis` what stands there in every window."""
    count = (x.shape[axis] - WINDOW) // _STRIDE + 1
    return [lax.slice_in_dim(x, k, k + _STRIDE * (count - 1) + 1, _STRIDE, axis) for k in range(WINDOW)]


def _note(x: Array, padding: int) -> tuple[Array, tuple[Array, Array]]:
    """The output, and uint8 of its shape: which of a window's nine elements is the first of the largest."""
    output, first = lax.platform_dependent(
        x,
        cpu=lambda x: first_of_largest(elements(x, padding), _largest_by_axes(_padded(x, padding), 0)),
        default=lambda x: kept_first_of_largest(elements(x, padding)),
    )
    # An array without elements, that tells the gradient the input's height and width.
    return output, (first, x[:0])


def gather(padding: int, noted: tuple[Array, Array], g: Array) -> Array:
    """The gradient by the input: of each window the element that is noted, uint8 of the output's shape, takes g.

    noted: that, and an array of the input's height and width, which is not read.
    """
    first, like = noted
    batch, high, wide, channels = g.shape
    around = ((0, 0), (1, 1), (1, 1), (0, 0))
    g, first = jnp.pad(g, around), jnp.pad(first, around, constant_values=WINDOW**2)

    def of(row: tuple[int, int], column: tuple[int, int]) -> Array:
        (i, down), (j, right) = row, column
        ends = (batch, 2 + down + high, 2 + right + wide, channels)
        took, chosen = (lax.slice(x, (0, 1 + down, 1 + right, 0), ends) for x in (g, first))
        return jnp.where(chosen == WINDOW * i + j, took, jnp.zeros((), g.dtype))

    lines = [
        jnp.stack([sum(of(row, column) for row in rows for column in columns) for columns in _SEEN_BY], axis=3)
        for rows in _SEEN_BY
    ]
    whole = jnp.stack(lines, axis=2).reshape(batch, 2 * (high + 1), 2 * (wide + 1), channels)
    return whole[:, padding : padding + like.shape[1], padding : padding + like.shape[2]]


_pool = jax.custom_vjp(_largest, nondiff_argnums=(1,))
_pool.defvjp(_note, lambda padding, noted, g: (gather(padding, noted, g),))
