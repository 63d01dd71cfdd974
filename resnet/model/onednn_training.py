"""Convolutions by oneDNN in training, one after the other, with the batch norms and ReLUs between and behind them.

What a norm is made of, its statistics and, on the way back, its sums, is found by the calls that compute what it is of;
and what it does is done by those that take it in, to a few images at a time, while the cache holds them
(onednn_training.h). So XLA goes over no map of these but the last, and of all that lies between two convolutions only
the first one's output is kept. A step of ResNet-50 at 224 px takes 13 % less (docs/speed.md).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from resnet.model.convolution_forms import Window, extent
from resnet.model.onednn import differentiate_parts, input_gradient, numbers, output, weight_gradient
from resnet.model.onednn_library import TARGETS, target


class Trained(NamedTuple):
    """A convolution, and whether a norm and a ReLU come before it, and a norm behind it."""

    window: Window
    before: bool
    behind: bool
    epsilon: float


# Of a norm, (statistics float32[2, C], which are means and biased variances, scale float32[C], bias float32[C]).
Norm = tuple[Array, Array, Array]

# Of an Ending: what is behind.
_SUMS_GIVEN, _SUMS_SOUGHT, _BEHIND_RELU = 1, 2, 3

_TRAINED, _GRADIENT = (Primitive(target(name)) for name in TARGETS[4:])
_TRAINED.multiple_results = _GRADIENT.multiple_results = True


def _normalised(x: Array, norm: Norm, epsilon: float) -> Array:
    (mean, var), scale, bias = norm
    return (x - mean) * (lax.rsqrt(var + epsilon) * scale) + bias


def _sums(g: Array, x: Array) -> Array:
    """float32[2, C], of g and of g·x."""
    axes = tuple(range(x.ndim - 1))
    return jnp.stack([g.sum(axes), (g * x).sum(axes)])


def _by_input(g: Array, x: Array, norm: Norm, sums: Array, epsilon: float) -> Array:
    """The gradient by a norm's input x, from g, the one by what it gives; see normalisation."""
    (mean, var), scale, _ = norm
    count, inverse = x.size // x.shape[-1], lax.rsqrt(var + epsilon)
    by_scale = (sums[1] - mean * sums[0]) * inverse
    return scale * inverse * (g - sums[0] / count - (x - mean) * (inverse * by_scale / count))


def _in_parts(x: Array, w: Array, *before: Array, form: Trained) -> list[Array]:
    """[the convolution y of x, or of what `before` and a ReLU make of it, and its statistics with a norm behind]."""
    y = output(form.window, jax.nn.relu(_normalised(x, before, form.epsilon)) if form.before else x, w)  # type: ignore[arg-type]
    if not form.behind:
        return [y]
    mean, square = y.mean((0, 1, 2)), jnp.square(y).mean((0, 1, 2))
    return [y, jnp.stack([mean, jnp.maximum(0.0, square - jnp.square(mean))])]


class Ending(NamedTuple):
    """What of the gradients of a `Trained` is asked for, and what of them is given.

    by_image: whether that by x, or by what the norm before gives, is. behind: 0, no norm is behind the convolution; 1,
    one whose sums are given; 2, one whose sums are to be found; 3, the same with a ReLU behind it. added: whether
    something is added to the gradient by x.
    """

    by_image: bool
    behind: int
    added: bool


def _gradient_in_parts(x: Array, w: Array, g: Array, *operands: Array, form: Trained, ending: Ending) -> list[Array]:
    """The gradients of `_in_parts` from g, that by y or by what the norm or the ReLU behind it gives.

    operands: the norm before; of that behind y, statistics and scale; `_sums` of g (1) or what the ReLU gave (3); what
    is added to the gradient by x. Gives the gradient by w; with `by_image` that by x or by what the norm before gives,
    then with the latter's sums; and what is found of the norm behind: the sums (2, 3) and the gradient by what it gives
    (3).
    """
    rest = iter(operands)
    before: Any = tuple(next(rest) for _ in range(3)) if form.before else ()
    z = jax.nn.relu(_normalised(x, before, form.epsilon)) if form.before else x
    found = []
    if ending.behind:
        y, statistics, scale = next(rest), next(rest), next(rest)
        known = next(rest) if ending.behind != _SUMS_SOUGHT else None
        g = jnp.where(known > 0, g, 0) if known is not None and ending.behind == _BEHIND_RELU else g
        sums = known if known is not None and ending.behind == _SUMS_GIVEN else _sums(g, y)
        found = [sums, g][: ending.behind - 1]
        g = _by_input(g, y, (statistics, scale, scale), sums, form.epsilon)
    by_kernel = weight_gradient(form.window, w.shape, z, g)
    if not ending.by_image:
        return [by_kernel, *found]
    by_image = input_gradient(form.window, x.shape, g, w)
    if form.before:
        by_image = jnp.where(z > 0, by_image, 0)
        return [by_kernel, by_image, _sums(by_image, x), *found]
    return [by_kernel, by_image + next(rest) if ending.added else by_image, *found]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def trained(
    forms: Sequence[Trained],
    relu: bool,
    residual: bool,
    x: Array,
    kernels: Sequence[Array],
    scales: Sequence[Array],
    biases: Sequence[Array],
    addend: Array | None,
) -> tuple[Array, list[Array]]:
    """float32[N, H, W, I] through all convolutions, norms and ReLUs, then + `addend`, and a ReLU with `relu`.

    residual: the addend is x. scales, biases: float32[O] of the norm behind each convolution; the last may have none.
    Gives float32[N, H', W', O], and of each norm the statistics float32[2, O], means and biased variances, which count
    as given.
    """
    return _forward(forms, relu, residual, x, kernels, scales, biases, addend)[0]


def _forward(
    forms: Sequence[Trained], relu: bool, residual: bool, x: Array, kernels: Any, scales: Any, biases: Any, addend: Any
) -> tuple[tuple[Array, list[Array]], tuple[Any, ...]]:
    maps, statistics = [x], []
    norm: Any = ()
    for number, (form, kernel) in enumerate(zip(forms, kernels, strict=True)):
        y, *found = _TRAINED.bind(maps[-1], kernel, *norm, form=form)
        maps.append(y)
        statistics += found
        norm = (*found, scales[number], biases[number]) if form.behind else ()
    y = _normalised(maps[-1], norm, forms[-1].epsilon) if norm else maps[-1]
    added = x if residual else addend
    y = y if added is None else y + added
    y = jax.nn.relu(y) if relu else y
    kept = (maps, statistics, kernels, scales, biases, () if addend is not None else None, y if relu else None)
    return (y, statistics), kept


def _forward_of_primals(
    forms: Sequence[Trained], relu: bool, residual: bool, *operands: Any
) -> tuple[Any, tuple[Any, ...]]:
    """`_forward`, and of what it keeps whether a gradient by x is asked for: () or, where x is given, None."""
    values = jax.tree.map(lambda primal: primal.value, operands)
    result, kept = _forward(forms, relu, residual, *values)
    return result, (*kept, () if operands[0].perturbed else None)


def _backward(forms: Sequence[Trained], relu: bool, residual: bool, kept: tuple[Any, ...], given: Any) -> Any:
    maps, statistics, kernels, scales, biases, has_addend, rectified, asked = kept
    g, last = given[0], len(forms) - 1
    g = jnp.zeros_like(maps[-1]) if isinstance(g, SymbolicZero) else g
    behind = (_BEHIND_RELU if relu else _SUMS_SOUGHT) if forms[-1].behind else 0
    known = [rectified] if behind == _BEHIND_RELU else []
    by_end = g = jnp.where(rectified > 0, g, 0) if relu and not behind else g
    by_kernels, by_scales, by_biases = [], [], []
    for number in range(last, -1, -1):
        form, operands = forms[number], []
        if form.before:
            operands += [statistics[number - 1], scales[number - 1], biases[number - 1]]
        if behind:
            operands += [maps[number + 1], statistics[number], scales[number], *known]
        # Not of one convolution alone: what is to be added is what its own call finds.
        ending = Ending(number > 0 or asked is not None, behind, added=residual and number == 0 < last)
        operands += [by_end] if ending.added else []
        by_kernel, *found = _GRADIENT.bind(maps[number], kernels[number], g, *operands, form=form, ending=ending)
        by_kernels.append(by_kernel)
        g = found.pop(0) if ending.by_image else None
        sums_before = [found.pop(0)] if ending.by_image and form.before else []
        if behind:
            (mean, var), sums = statistics[number], found[0] if found else known[0]
            by_scales.append((sums[1] - mean * sums[0]) * lax.rsqrt(var + form.epsilon))
            by_biases.append(sums[0])
        by_end = found[1] if behind == _BEHIND_RELU else by_end
        known, behind = sums_before, _SUMS_GIVEN
    if residual and last == 0 and g is not None:
        g = g + by_end
    return g, by_kernels[::-1], by_scales[::-1], by_biases[::-1], None if has_addend is None else by_end


trained.defvjp(_forward_of_primals, _backward, symbolic_zeros=True)


def _shapes(x: Any, w: Any, *before: Any, form: Trained) -> list[Any]:
    y = x.update(shape=(x.shape[0], *extent(form.window, x, w), w.shape[3]))
    return [y, x.update(shape=(2, w.shape[3]))] if form.behind else [y]


def _gradient_shapes(x: Any, w: Any, g: Any, *operands: Any, form: Trained, ending: Ending) -> list[Any]:
    sums = lambda of: of.update(shape=(2, of.shape[3]))  # noqa: E731
    by_image = [x, *([sums(x)] if form.before else [])] if ending.by_image else []
    return [w, *by_image, *[sums(g), g][: max(ending.behind - 1, 0)]]


def _map_over(primitive: Primitive, operands: Any, axes: Any, **how: Any) -> tuple[Any, Any]:
    """vmap: one after the other."""
    mapped = [jnp.moveaxis(operand, axis, 0) for operand, axis in zip(operands, axes, strict=True) if axis is not None]

    def one(given: list[Array]) -> list[Array]:
        rest = iter(given)
        all_of_one = [operand if axis is None else next(rest) for operand, axis in zip(operands, axes, strict=True)]
        return primitive.bind(*all_of_one, **how)

    results = lax.map(one, mapped)
    return results, [0] * len(results)


def _lower_for_cpu(name: str, by_lax: Any, ctx: Any, *operands: Any, form: Trained, **how: Any) -> Any:
    """A call of onednn.c, but in an exported program, which runs where that is not."""
    if ctx.module_context.lowering_parameters.for_export:
        return by_lax(ctx, *operands, form=form, **how)
    ending = how.get("ending")
    behind = ending.behind if ending else form.behind
    # The gradient by what a norm gives goes where that by what its ReLU gives was.
    in_place: Any = {"operand_output_aliases": {2: len(ctx.avals_out) - 1}} if behind == _BEHIND_RELU else {}
    return jax.ffi.ffi_lowering(target(name), **in_place)(
        ctx,
        *operands,
        window=np.array(numbers(form.window, form.before, behind), np.int64),
        epsilon=np.float32(form.epsilon),
    )


for _primitive, _name, _form, _abstract in (
    (_TRAINED, TARGETS[4], _in_parts, _shapes),
    (_GRADIENT, TARGETS[5], _gradient_in_parts, _gradient_shapes),
):
    _by_lax = mlir.lower_fun(_form, multiple_results=True)
    _primitive.def_impl(jax.jit(_primitive.bind, static_argnames=("form", "ending")))
    _primitive.def_abstract_eval(_abstract)
    ad.primitive_jvps[_primitive] = partial(differentiate_parts, _form)
    batching.primitive_batchers[_primitive] = partial(_map_over, _primitive)
    mlir.register_lowering(_primitive, _by_lax)
    mlir.register_lowering(_primitive, partial(_lower_for_cpu, _name, _by_lax), platform="cpu")
