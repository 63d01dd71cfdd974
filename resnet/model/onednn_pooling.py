"""The end of the stem in training: batch norm, ReLU and max pooling in one call of onednn.c, and its gradient in one.

XLA goes over the stem's map, the largest of a network, once for each of what it makes of it, and keeps what the ReLU
gave besides. Here the map is read once and, on the way back, read and written once; the latter's sums are what the
convolution before it wants of its norm (`onednn_chain.End`). docs/speed-notes.md says what it is worth.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from resnet.model import pooling
from resnet.model.onednn import computed, differentiate_parts
from resnet.model.onednn_chain import End, end_gradient
from resnet.model.onednn_library import POOLED, POOLED_GRADIENT, target
from resnet.model.onednn_training import map_over, normalised, sums_of

_PADDING = 1
# In place of one of a window's elements: the largest is the 0 of a ReLU, and none of them takes a gradient.
_NONE = pooling.WINDOW**2

_POOLED, _GRADIENT = (Primitive(target(name)) for name in (POOLED, POOLED_GRADIENT))
_POOLED.multiple_results = _GRADIENT.multiple_results = True


@jax.custom_vjp
def max_pool(end: End) -> Array:
    """`pooling.max_pool` of what an `End` with a ReLU and without an addend gives: float32[N, H', W', C].

    Reverse mode alone. The output is `pooling.max_pool`'s, and of the gradient all but the order of the norm's sums.
    """
    return _keep(end)[0]


def _keep(end: End) -> tuple[Array, tuple[Array, End]]:
    largest, first = _POOLED.bind(end.y, end.statistics, end.scale, end.bias, epsilon=end.epsilon)
    return largest, (first, end)


def _give_back(kept: tuple[Array, End], g: Array) -> tuple[End]:
    first, end = kept
    by_norm, sums = _GRADIENT.bind(end.y, g, first, epsilon=end.epsilon)
    return (end_gradient(end, by_norm, sums),)


max_pool.defvjp(_keep, _give_back)


def _in_parts(y: Array, statistics: Array, scale: Array, bias: Array, *, epsilon: float) -> list[Array]:
    """The definition of the call: the largest of each window, and uint8, which element it is, or _NONE."""
    z = jax.nn.relu(normalised(y, (statistics, scale, bias), epsilon))
    largest, first = pooling.first_of_largest(pooling.elements(z, _PADDING))
    return [largest, jnp.where(largest > 0, first, jnp.uint8(_NONE))]


def _gradient_in_parts(y: Array, g: Array, first: Array, *, epsilon: float) -> list[Array]:
    """The definition of its gradient: the one by what the norm gives, and the norm's sums."""
    by_norm = pooling.gather(_PADDING, (first, y), g)
    return [by_norm, sums_of(by_norm, y)]


def _shapes(y: Any, *norm: Any, epsilon: float) -> list[Any]:
    sides = (side // 2 for side in (y.shape[1] + 1, y.shape[2] + 1))
    largest = y.update(shape=(y.shape[0], *sides, y.shape[3]))
    return [largest, largest.update(dtype=np.dtype(np.uint8))]


def _gradient_shapes(y: Any, g: Any, first: Any, *, epsilon: float) -> list[Any]:
    return [y, y.update(shape=(2, y.shape[3]))]


def _differentiate(form: Any, primals: Any, tangents: Any, **how: Any) -> tuple[Any, Any]:
    """Forward mode, in which whole numbers have no tangent."""
    given, moved = differentiate_parts(form, primals, tangents, **how)
    whole = lambda value: not jnp.issubdtype(value.dtype, jnp.floating)  # noqa: E731
    none = [ad.Zero(jax.typeof(value).to_tangent_aval()) if whole(value) else None for value in given]
    return given, [tangent if zero is None else zero for tangent, zero in zip(moved, none, strict=True)]


def _lower_for_cpu(name: str, by_lax: Any, ctx: Any, *operands: Any, epsilon: float) -> Any:
    """A call of onednn.c, but in an exported program, which runs where that is not."""
    if ctx.module_context.lowering_parameters.for_export:
        return by_lax(ctx, *operands, epsilon=epsilon)
    return jax.ffi.ffi_lowering(target(name))(ctx, *operands, epsilon=np.float32(epsilon))


for _primitive, _name, _form, _abstract in (
    (_POOLED, POOLED, _in_parts, _shapes),
    (_GRADIENT, POOLED_GRADIENT, _gradient_in_parts, _gradient_shapes),
):
    _by_lax = mlir.lower_fun(_form, multiple_results=True)
    computed(_primitive, _form, "epsilon")
    _primitive.def_abstract_eval(_abstract)
    ad.primitive_jvps[_primitive] = partial(_differentiate, _form)
    batching.primitive_batchers[_primitive] = partial(map_over, _primitive)
    mlir.register_lowering(_primitive, _by_lax)
    mlir.register_lowering(_primitive, partial(_lower_for_cpu, _name, _by_lax), platform="cpu")
