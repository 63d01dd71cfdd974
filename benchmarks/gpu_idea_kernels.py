"""A 1×1 convolution as a Pallas kernel that normalises what it reads and sums up what it writes, forward and backward.

Training with batch norm reads and writes each convolution's output again and again: for its statistics, to normalise
it, and twice more on the way back. A 1×1 convolution is a matrix product, whose tiles pass through registers: there the
norm and ReLU before it, and the sums for the norm behind it, cost no bytes. `product` is that, with a gradient that
does the same: the norm behind is differentiated as dY is read, the ReLU and the norm's sums before as dX is written.

Written for Pallas' Triton back end (GPU); `interpret=True` runs anywhere, slowly. Not used by resnet/ until it has won
on a GPU: benchmarks/gpu_notes.md.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

# Programs of the weight gradient that a GPU of 132 multiprocessors is kept busy by.
_PROGRAMS = 528


class Tiles(NamedTuple):
    """Rows, columns and depth of a tile, each a power of two, at most; warps and stages that Triton takes for one."""

    rows: int = 128
    columns: int = 128
    depth: int = 32
    warps: int = 8
    stages: int = 3
    interpret: bool = False


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(tiles: Tiles, normed: bool, x: Array, scale: Array, shift: Array, w: Array) -> tuple[Array, Array, Array]:
    """(y, sums, squares) of x float[M, K] and w float[K, N]: y float[M, N] = a @ w, Σ y and Σ y² float32[N] over rows.

    a is relu(x · scale + shift) with scale and shift float32[K] where `normed`, else x itself, and they are not read.
    y has x' dtype and is accumulated in float32 (float64 for float64); sums are of y as it is stored. M, K and N have
    to be multiples of the tile's sides, or of a power of two that then is its side.
    """
    return _forward(tiles, normed, x, scale, shift, w)


def _save(tiles: Tiles, normed: bool, x: Array, scale: Array, shift: Array, w: Array) -> Any:
    found = _forward(tiles, normed, x, scale, shift, w)
    return found, (x, scale, shift, w, found[0])


def _differentiate(tiles: Tiles, normed: bool, saved: Any, gradients: Any) -> tuple[Array, Array, Array, Array]:
    x, scale, shift, w, y = saved
    by_x, by_scale, by_shift = _input_gradient(tiles, normed, x, scale, shift, w, y, *gradients)
    by_w = _weight_gradient(tiles, normed, x, scale, shift, w, y, *gradients)
    return by_x, by_scale, by_shift, by_w


product.defvjp(_save, _differentiate)


def side(wanted: int, size: int) -> int:
    """The largest power of two that divides `size` and is at most `wanted`."""
    return math.gcd(wanted, size)


def _wide(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _call(kernel: Any, tiles: Tiles, **options: Any) -> Any:
    """pallas_call for Triton, or interpreted."""
    if tiles.interpret:
        return pl.pallas_call(kernel, interpret=True, **options)
    from jax.experimental.pallas import triton

    parameters = triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages)
    return pl.pallas_call(kernel, compiler_params=parameters, **options)


def _activated(normed: bool, x: Array, scale: Array, shift: Array) -> Array:
    """relu(x · scale + shift) in x' dtype, as the convolution reads it."""
    if not normed:
        return x
    return jnp.maximum(x.astype(scale.dtype) * scale[None, :] + shift[None, :], 0).astype(x.dtype)


def _total_gradient(dy: Array, y: Array, by_sums: Array, by_squares: Array) -> Array:
    """The gradient by y of everything that is made of it: of y itself, its sum and its squares' sum."""
    wide = by_sums.dtype
    total = dy.astype(wide) + by_sums[None, :] + 2 * y.astype(wide) * by_squares[None, :]
    return total.astype(dy.dtype)


def _dot(left: Array, right: Array, contracted: tuple[int, int], wide: Any) -> Array:
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return lax.dot_general(left, right, dimensions, preferred_element_type=wide)


def _forward(tiles: Tiles, normed: bool, x: Array, scale: Array, shift: Array, w: Array) -> tuple[Array, Array, Array]:
    (m, k), n, wide = x.shape, w.shape[1], _wide(x)
    rows, columns, depth = side(tiles.rows, m), side(tiles.columns, n), side(tiles.depth, k)

    def kernel(x: Any, scale: Any, shift: Any, w: Any, y: Any, sums: Any, squares: Any) -> None:
        def add(step: Array, total: Array) -> Array:
            at = pl.ds(step * depth, depth)
            return total + _dot(_activated(normed, x[:, at], scale[at], shift[at]), w[at, :], (1, 0), wide)

        total = lax.fori_loop(0, k // depth, add, jnp.zeros((rows, columns), wide))
        stored = total.astype(y.dtype)
        y[...] = stored
        sums[0, :] = stored.astype(wide).sum(0)
        squares[0, :] = jnp.square(stored.astype(wide)).sum(0)

    partial_sums = jax.ShapeDtypeStruct((m // rows, n), wide)
    vector = pl.BlockSpec((k,), lambda i, j: (0,))
    y, sums, squares = _call(
        kernel,
        tiles,
        grid=(m // rows, n // columns),
        in_specs=[
            pl.BlockSpec((rows, k), lambda i, j: (i, 0)),
            vector,
            vector,
            pl.BlockSpec((k, columns), lambda i, j: (0, j)),
        ],
        out_specs=[
            pl.BlockSpec((rows, columns), lambda i, j: (i, j)),
            *[pl.BlockSpec((1, columns), lambda i, j: (i, j))] * 2,
        ],
        out_shape=[jax.ShapeDtypeStruct((m, n), x.dtype), partial_sums, partial_sums],
    )(x, scale, shift, w)
    return y, sums.sum(0), squares.sum(0)


def _input_gradient(
    tiles: Tiles,
    normed: bool,
    x: Array,
    scale: Array,
    shift: Array,
    w: Array,
    y: Array,
    dy: Array,
    by_sums: Array,
    by_squares: Array,
) -> tuple[Array, Array, Array]:
    """The gradients by x, scale and shift: one product, whose tiles are masked and summed as they are written."""
    (m, k), n, wide = x.shape, w.shape[1], _wide(x)
    rows, columns, depth = side(tiles.rows, m), side(tiles.columns, k), side(tiles.depth, n)

    def kernel(
        x: Any, scale: Any, shift: Any, w: Any, y: Any, dy: Any, by_sums: Any, by_squares: Any,
        dx: Any, by_scale: Any, by_shift: Any,
    ) -> None:  # fmt: skip
        def add(step: Array, total: Array) -> Array:
            at = pl.ds(step * depth, depth)
            gradient = _total_gradient(dy[:, at], y[:, at], by_sums[at], by_squares[at])
            return total + _dot(gradient, w[:, at], (1, 1), wide)

        total = lax.fori_loop(0, n // depth, add, jnp.zeros((rows, columns), wide))
        if normed:
            pixels, factor = x[...].astype(wide), scale[...]
            total = jnp.where(pixels * factor[None, :] + shift[...][None, :] > 0, total, 0)
            by_scale[0, :] = (total * pixels).sum(0)
            by_shift[0, :] = total.sum(0)
            total = total * factor[None, :]
        else:
            by_scale[0, :] = by_shift[0, :] = jnp.zeros((columns,), wide)
        dx[...] = total.astype(dx.dtype)

    own = pl.BlockSpec((rows, columns), lambda i, j: (i, j))
    of_rows, of_outputs = pl.BlockSpec((rows, n), lambda i, j: (i, 0)), pl.BlockSpec((n,), lambda i, j: (0,))
    of_inputs, sums = pl.BlockSpec((columns,), lambda i, j: (j,)), pl.BlockSpec((1, columns), lambda i, j: (i, j))
    partial_sums = jax.ShapeDtypeStruct((m // rows, k), wide)
    dx, by_scale, by_shift = _call(
        kernel,
        tiles,
        grid=(m // rows, k // columns),
        in_specs=[
            own,
            of_inputs,
            of_inputs,
            pl.BlockSpec((columns, n), lambda i, j: (j, 0)),
            of_rows,
            of_rows,
            of_outputs,
            of_outputs,
        ],
        out_specs=[own, sums, sums],
        out_shape=[jax.ShapeDtypeStruct((m, k), x.dtype), partial_sums, partial_sums],
    )(x, scale, shift, w, y, dy, by_sums, by_squares)
    return dx, by_scale.sum(0), by_shift.sum(0)


def _weight_gradient(
    tiles: Tiles,
    normed: bool,
    x: Array,
    scale: Array,
    shift: Array,
    w: Array,
    y: Array,
    dy: Array,
    by_sums: Array,
    by_squares: Array,
) -> Array:
    """The gradient by w: products over pieces of the rows, added up outside."""
    (m, k), n, wide = x.shape, w.shape[1], _wide(x)
    rows, columns, depth = side(tiles.rows, k), side(tiles.columns, n), side(tiles.depth, m)
    tiles_of_w = (k // rows) * (n // columns)
    pieces = side(1 << max(0, (_PROGRAMS // tiles_of_w).bit_length() - 1), m // depth)

    def kernel(
        x: Any, scale: Any, shift: Any, y: Any, dy: Any, by_sums: Any, by_squares: Any, dw: Any
    ) -> None:  # fmt: skip
        factor, offset, by_sum, by_square = scale[...], shift[...], by_sums[...], by_squares[...]

        def add(step: Array, total: Array) -> Array:
            at = pl.ds(step * depth, depth)
            read = _activated(normed, x[at, :], factor, offset)
            return total + _dot(read, _total_gradient(dy[at, :], y[at, :], by_sum, by_square), (0, 0), wide)

        dw[0, :, :] = lax.fori_loop(0, m // pieces // depth, add, jnp.zeros((rows, columns), wide))

    of_inputs = pl.BlockSpec((rows,), lambda i, j, piece: (i,))
    of_outputs = pl.BlockSpec((columns,), lambda i, j, piece: (j,))
    outputs = pl.BlockSpec((m // pieces, columns), lambda i, j, piece: (piece, j))
    parts = _call(
        kernel,
        tiles,
        grid=(k // rows, n // columns, pieces),
        in_specs=[
            pl.BlockSpec((m // pieces, rows), lambda i, j, piece: (piece, i)),
            of_inputs,
            of_inputs,
            outputs,
            outputs,
            of_outputs,
            of_outputs,
        ],
        out_specs=pl.BlockSpec((1, rows, columns), lambda i, j, piece: (piece, i, j)),
        out_shape=jax.ShapeDtypeStruct((pieces, k, n), wide),
    )(x, scale, shift, y, dy, by_sums, by_squares)
    return parts.sum(0).astype(w.dtype)
