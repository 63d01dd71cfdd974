"""The convolution of every network here: `jax.lax.conv_general_dilated`, faster on a CPU.

work in progress: right, thresholds still being measured.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

_NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


class _Window(NamedTuple):
    """What is static about one convolution; hashable, because custom_vjp takes it as a non-differentiated argument."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    precision: Any
    result: Any  # preferred_element_type


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
    """Drop-in for `jax.lax.conv_general_dilated`."""
    undilated = all(d in (None, 1) for dilation in (lhs_dilation, rhs_dilation) for d in (dilation or (1,)))
    known = (
        lhs.ndim == 4
        and rhs.ndim == 4
        and undilated
        and feature_group_count == batch_group_count == 1
        and not isinstance(padding, str)
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == _NHWC
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and lhs.size > 0
        and rhs.size > 0
        and all(p >= 0 for pair in padding for p in pair)
    )
    if known:
        strides = (int(window_strides[0]), int(window_strides[1]))
        pads = ((int(padding[0][0]), int(padding[0][1])), (int(padding[1][0]), int(padding[1][1])))
        return _convolve(_Window(strides, pads, precision, preferred_element_type), lhs, rhs)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision,
        preferred_element_type,
    )


def _lax(window: _Window, x: Array, w: Array) -> Array:
    return lax.conv_general_dilated(
        x,
        w,
        window.strides,
        window.padding,
        dimension_numbers=_NHWC,
        precision=window.precision,
        preferred_element_type=window.result,
    )


def _extent(window: _Window, x: Array, w: Array) -> tuple[int, int]:
    """Height and width of the output."""
    high, wide = (
        (x.shape[1 + a] + sum(window.padding[a]) - w.shape[a]) // window.strides[a] + 1 for a in (0, 1)
    )
    return high, wide


def _product(window: _Window, x: Array, w: Array) -> Array:
    """`x` float[..., I] times `w` float[I, O]. Two dimensions, because XLA transposes operands of more."""
    flat = lax.dot_general(
        x.reshape(-1, x.shape[-1]),
        w,
        (((1,), (0,)), ((), ())),
        precision=window.precision,
        preferred_element_type=window.result,
    )
    return flat.reshape(*x.shape[:-1], w.shape[-1])


def _touched(window: _Window, axis: int, size: int, outputs: int, tap: int) -> tuple[int, int]:
    """First and past-last output whose `tap` of the kernel lies inside the input (not in the padding)."""
    inside = [o for o in range(outputs) if 0 <= o * window.strides[axis] + tap - window.padding[axis][0] < size]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _by_taps(window: _Window, x: Array, w: Array) -> Array:
    """One matrix product for each element of the kernel, over the outputs that see it inside the input only."""
    high, wide = _extent(window, x, w)
    (down, across), ((top, _), (left, _)) = window.strides, window.padding
    total = None
    for i in range(w.shape[0]):
        a, b = _touched(window, 0, x.shape[1], high, i)
        for j in range(w.shape[1]):
            c, d = _touched(window, 1, x.shape[2], wide, j)
            if a == b or c == d:
                continue
            row, column = a * down + i - top, c * across + j - left
            seen = x[:, row : row + (b - a - 1) * down + 1 : down, column : column + (d - c - 1) * across + 1 : across]
            part = jnp.pad(_product(window, seen, w[i, j]), ((0, 0), (a, high - b), (c, wide - d), (0, 0)))
            total = part if total is None else total + part
    assert total is not None
    return total


def _by_rows(window: _Window, x: Array, g: Array, w: Array, rows: int) -> Array:
    """Weight gradient as a loop over strips of output rows, each an im2col product that stays in the cache."""
    kh, kw, _, co = w.shape
    _, high, wide, _ = g.shape
    down, across = window.strides
    padded = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))

    def strip(r: Array, total: Array) -> Array:
        seen = lax.dynamic_slice_in_dim(padded, r * rows * down, (rows - 1) * down + kh, 1)
        columns = jnp.concatenate(
            [
                seen[:, i : i + (rows - 1) * down + 1 : down, j : j + (wide - 1) * across + 1 : across]
                for i in range(kh)
                for j in range(kw)
            ],
            -1,
        )
        error = lax.dynamic_slice_in_dim(g, r * rows, rows, 1)
        return total + lax.dot_general(
            columns.reshape(-1, columns.shape[-1]),
            error.reshape(-1, co),
            (((0,), (0,)), ((), ())),
            precision=window.precision,
            preferred_element_type=total.dtype,
        )

    start = jnp.zeros((kh * kw * x.shape[-1], co), jnp.promote_types(w.dtype, jnp.float32))
    return lax.fori_loop(0, high // rows, strip, start).reshape(w.shape).astype(w.dtype)


def _small(window: _Window, x: Array, w: Array) -> bool:
    high, wide = _extent(window, x, w)
    return w.shape[:2] == (1, 1) or max(high, wide) <= 7


def _forward_cpu(window: _Window, x: Array, w: Array) -> Array:
    return _by_taps(window, x, w) if _small(window, x, w) else _lax(window, x, w)


def _input_gradient_cpu(window: _Window, x: Array, w: Array, g: Array) -> Array:
    return jax.vjp(lambda x_: _forward_cpu(window, x_, w), x)[1](g)[0]


def _weight_gradient_cpu(window: _Window, x: Array, w: Array, g: Array) -> Array:
    high, wide = _extent(window, x, w)
    if w.shape[:2] == (1, 1) or max(high, wide) <= 8:
        return jax.vjp(lambda w_: _by_taps(window, x, w_), w)[1](g)[0]
    if x.shape[-1] == 16:
        return jax.vjp(lambda w_: _lax(window, x, w_), w)[1](g)[0]
    return _by_rows(window, x, g, w, 2 if high % 2 == 0 else 1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(window: _Window, x: Array, w: Array) -> Array:
    return lax.platform_dependent(x, w, cpu=partial(_forward_cpu, window), default=partial(_lax, window))


def _convolve_forward(window: _Window, x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return lax.platform_dependent(x, w, cpu=partial(_forward_cpu, window), default=partial(_lax, window)), (x, w)


def _convolve_backward(window: _Window, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, w = saved

    def lax_input(x: Array, w: Array, g: Array) -> Array:
        return jax.vjp(lambda x_: _lax(window, x_, w), x)[1](g)[0]

    def lax_weight(x: Array, w: Array, g: Array) -> Array:
        return jax.vjp(lambda w_: _lax(window, x, w_), w)[1](g)[0]

    return (
        lax.platform_dependent(x, w, g, cpu=partial(_input_gradient_cpu, window), default=lax_input),
        lax.platform_dependent(x, w, g, cpu=partial(_weight_gradient_cpu, window), default=lax_weight),
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)
