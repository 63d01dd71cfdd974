"""The convolution by oneDNN: three bilinear maps, each a derivative of the others, and one with what is behind it.

They are JAX primitives, and so can be differentiated any number of times, in forward and in reverse mode, mapped and
looped over. Lowered for a CPU they are calls of onednn.c; for other platforms, and in exported programs, they are lax'
convolutions. Call them only where `onednn_library.missing()` is empty.

The fourth, `evaluated`, scales, shifts, adds and rectifies each output before it is written, where XLA would go over
all of them once more: what an evaluated batch norm, a shortcut and a ReLU do. And it computes several convolutions one
after the other, for a few images at a time, so that what lies between them stays in the cache. Its derivatives are
those of its parts.

Measured on 2 cores with AVX-512 (jax 0.10.2, 2026-11-26), steps in ms without and with oneDNN, in turns in one process:
CIFAR ResNet-20, batch 128, 242 / 106; ResNet-18 at 64 px, batch 32, 127 / 87; ResNet-50 266 / 228. With no more than
AVX2 CIFAR ResNet-20 287 / 206. Where outputs are too few to lay the kernel out anew in each call, products of matrices
take the convolution's place (`takes_products`; docs/speed-notes.md).
"""

import ctypes
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from resnet.model import onednn_library
from resnet.model.convolution_forms import Window, by_lax, extent
from resnet.model.onednn_library import TARGETS, target

_OUTPUT, _INPUT_GRADIENT, _WEIGHT_GRADIENT, EVALUATED = (Primitive(target(name)) for name in TARGETS[:4])


def takes_products(outputs: int, kernel: Sequence[int], groups: int) -> bool:
    """Whether so few outputs, over the batch, of a kernel [kh, kw, I / groups, O] are computed by products of matrices.

    Then the kernel is not laid out anew, and threads share channels, not images (onednn_taps.h).
    """
    ask = onednn_library.function("takes_products")
    return bool(ask(ctypes.c_int64(outputs), (ctypes.c_int64 * 4)(*kernel), ctypes.c_int64(groups)))


def output(window: Window, x: Array, w: Array) -> Array:
    """The convolution of float32[N, H, W, I] with float32[kh, kw, I / groups, O], float32[N, H', W', O]."""
    return _OUTPUT.bind(x, w, window=window, shape=(x.shape[0], *extent(window, x, w), w.shape[3]))


def input_gradient(window: Window, shape: tuple[int, ...], g: Array, w: Array) -> Array:
    """The gradient by x, float32[`shape`], of `output`, from the one by the output, float32[N, H', W', O]."""
    return _INPUT_GRADIENT.bind(g, w, window=window, shape=shape)


def weight_gradient(window: Window, shape: tuple[int, ...], x: Array, g: Array) -> Array:
    """The gradient by w, float32[`shape`], of `output`, from the one by the output, float32[N, H', W', O]."""
    return _WEIGHT_GRADIENT.bind(x, g, window=window, shape=shape)


class Step(NamedTuple):
    """A convolution of `evaluated`, whether negative outputs become 0, and whether its x is added before that."""

    window: Window
    relu: bool = False
    residual: bool = False


# (kernel float32[kh, kw, I / groups, O], scale float32[O], shift float32[O])
Parameters = tuple[Array, Array, Array]
# Of one call, as onednn_call.h has it.
MOST_STEPS = 8


def evaluated(steps: Sequence[Step], x: Array, parameters: Sequence[Parameters], addend: Array | None = None) -> Array:
    """float32[N, H, W, I] step by step through ReLU(`output` · scale + shift), float32[N, H', W', O] of the last.

    `addend`, of that shape, is added to the last one's before its ReLU. Raises ValueError for more than MOST_STEPS.
    """
    if not 1 <= len(steps) == len(parameters) <= MOST_STEPS:
        raise ValueError(f"1 to {MOST_STEPS} convolutions at once, not {len(steps)}")
    rest = () if addend is None else (addend,)
    if addend is x and len(steps) > 1:
        # Not as one more operand: x could not be where the output goes, and would be copied.
        steps, rest = [*steps[:-1], steps[-1]._replace(residual=True)], ()
    return EVALUATED.bind(x, *itertools.chain.from_iterable(parameters), *rest, steps=tuple(steps))


def _in_parts(x: Array, *operands: Array, steps: tuple[Step, ...]) -> Array:
    """`evaluated`, one after the other."""
    addend = (x,) if steps[-1].residual else operands[3 * len(steps) :]
    for number, step in enumerate(steps):
        w, scale, shift = operands[3 * number : 3 * number + 3]
        added = addend if number == len(steps) - 1 else ()
        x = sum(added, output(step.window, x, w) * scale + shift)
        x = jax.nn.relu(x) if step.relu else x
    return x


def differentiate_parts(in_parts: Callable[..., Any], primals: Any, tangents: Any, **how: Any) -> tuple[Any, Any]:
    """Forward mode of what `in_parts` defines, by those operands alone that have a tangent."""
    varied = [number for number, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

    def of(*values: Array) -> Any:
        given = dict(zip(varied, values, strict=True))
        return in_parts(*(given.get(number, primal) for number, primal in enumerate(primals)), **how)

    return jax.jvp(of, [primals[number] for number in varied], [tangents[number] for number in varied])


def _map_parts(operands: Any, axes: Any, **how: Any) -> tuple[Array, int]:
    return jax.vmap(partial(_in_parts, **how), in_axes=axes)(*operands), 0


def _output_by_lax(x: Array, w: Array, *, window: Window, shape: tuple[int, ...]) -> Array:
    return by_lax(window, x, w)


def _input_gradient_by_lax(g: Array, w: Array, *, window: Window, shape: tuple[int, ...]) -> Array:
    return jax.linear_transpose(lambda x: by_lax(window, x, w), jax.ShapeDtypeStruct(shape, g.dtype))(g)[0]


def _weight_gradient_by_lax(x: Array, g: Array, *, window: Window, shape: tuple[int, ...]) -> Array:
    return jax.linear_transpose(lambda w: by_lax(window, x, w), jax.ShapeDtypeStruct(shape, g.dtype))(g)[0]


# Transposes by the first and by the second operand; c is the cotangent, and what is sought knows its shape.
def _output_by_x(c: Array, x: Any, w: Array, *, window: Window, shape: tuple[int, ...]) -> Array:
    return input_gradient(window, x.aval.shape, c, w)


def _output_by_w(c: Array, x: Array, w: Any, *, window: Window, shape: tuple[int, ...]) -> Array:
    return weight_gradient(window, w.aval.shape, x, c)


def _input_gradient_by_g(c: Array, g: Any, w: Array, *, window: Window, shape: tuple[int, ...]) -> Array:
    return output(window, c, w)


def _input_gradient_by_w(c: Array, g: Array, w: Any, *, window: Window, shape: tuple[int, ...]) -> Array:
    return weight_gradient(window, w.aval.shape, c, g)


def _weight_gradient_by_x(c: Array, x: Any, g: Array, *, window: Window, shape: tuple[int, ...]) -> Array:
    return input_gradient(window, x.aval.shape, g, c)


def _weight_gradient_by_g(c: Array, x: Array, g: Any, *, window: Window, shape: tuple[int, ...]) -> Array:
    return output(window, x, c)


def _map_over(
    primitive: Primitive,
    operands: tuple[Array, ...],
    axes: tuple[int | None, ...],
    *,
    window: Window,
    shape: tuple[int, ...],
) -> tuple[Array, int]:
    """vmap. Several batches with one kernel are one large batch; whatever else is mapped goes one after the other."""
    operands = tuple(
        operand if axis is None else jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands, axes, strict=True)
    )
    if primitive is not _WEIGHT_GRADIENT and axes[1] is None:
        rows, kernel = operands
        merged = (rows.shape[0] * shape[0], *shape[1:])
        result = primitive.bind(rows.reshape(-1, *rows.shape[2:]), kernel, window=window, shape=merged)
        return result.reshape(-1, *shape), 0

    def one(mapped: list[Array]) -> Array:
        rest = iter(mapped)
        pair = [operand if axis is None else next(rest) for operand, axis in zip(operands, axes, strict=True)]
        return primitive.bind(*pair, window=window, shape=shape)

    return lax.map(one, [operand for operand, axis in zip(operands, axes, strict=True) if axis is not None]), 0


def _lower_for_cpu(name: str, by_lax: Any, ctx: Any, *operands: Any, **how: Any) -> Any:
    """A call of onednn.c; in an exported program, which may run where there is none, lax' operations."""
    if ctx.module_context.lowering_parameters.for_export:
        return by_lax(ctx, *operands, **how)
    steps = how.get("steps") or (Step(how["window"]),)
    windows = np.array([numbers(*step) for step in steps], np.int64).reshape(-1)
    return jax.ffi.ffi_lowering(target(name), **in_place(steps, operands))(ctx, *operands, window=windows)


def in_place(steps: Sequence[Step], operands: Sequence[Any]) -> dict[str, Any]:
    """The output is written where the addend lies, so that this memory is read once, not again for the output."""
    own = 3 * len(steps) + 1
    addend = 0 if steps[-1].residual else own if len(operands) > own else None
    return {} if addend is None else {"operand_output_aliases": {addend: 0}}


def numbers(window: Window, *more: int) -> list[int]:
    """A window and what else is told of its convolution, as onednn.c reads it."""
    (top, bottom), (left, right) = window.padding
    return [*window.strides, top, bottom, left, right, window.groups, *more]


def computed(primitive: Primitive, form: Callable[..., Any], *static: str) -> None:
    """What the primitive does outside of any jit: its call compiled or, under `jax.disable_jit`, its definition."""
    compiled, config = jax.jit(primitive.bind, static_argnames=static), cast(Any, jax.config)
    primitive.def_impl(lambda *operands, **how: (form if config.jax_disable_jit else compiled)(*operands, **how))


def _lower(primitive: Primitive, name: str, form: Callable[..., Array]) -> None:
    by_lax = mlir.lower_fun(form, multiple_results=False)
    mlir.register_lowering(primitive, by_lax)
    mlir.register_lowering(primitive, partial(_lower_for_cpu, name, by_lax), platform="cpu")


def _define(primitive: Primitive, name: str, form: Callable[..., Array], *transposes: Callable[..., Array]) -> None:
    computed(primitive, form, "window", "shape")
    primitive.def_abstract_eval(lambda first, second, window, shape: first.update(shape=shape))
    ad.defbilinear(primitive, *transposes)
    batching.primitive_batchers[primitive] = partial(_map_over, primitive)
    _lower(primitive, name, form)


def _shape_evaluated(x: Any, *operands: Any, steps: tuple[Step, ...]) -> Any:
    for step, w in zip(steps, operands[::3], strict=False):
        x = x.update(shape=(x.shape[0], *extent(step.window, x, w), w.shape[3]))
    return x


_define(_OUTPUT, TARGETS[0], _output_by_lax, _output_by_x, _output_by_w)
_define(_INPUT_GRADIENT, TARGETS[1], _input_gradient_by_lax, _input_gradient_by_g, _input_gradient_by_w)
_define(_WEIGHT_GRADIENT, TARGETS[2], _weight_gradient_by_lax, _weight_gradient_by_x, _weight_gradient_by_g)
computed(EVALUATED, _in_parts, "steps")
EVALUATED.def_abstract_eval(_shape_evaluated)
ad.primitive_jvps[EVALUATED] = partial(differentiate_parts, _in_parts)
batching.primitive_batchers[EVALUATED] = _map_parts
_lower(EVALUATED, TARGETS[3], _in_parts)
