"""Convolutions by oneDNN in training, each with the batch norms and ReLUs around it, and their gradients.

A norm's statistics, and in the backward pass its sums, are found by the call that computes its input. The normalising
itself is done by the call that takes its output in, to a few images at a time, while the cache holds them
(onednn_training.h). `onednn_chain` puts convolutions one behind the other.
"""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from resnet.model.convolution_forms import Window, extent
from resnet.model.onednn import computed, differentiate_parts, input_gradient, numbers, output, weight_gradient
from resnet.model.onednn_library import TARGETS, target

# What comes before a Trained: nothing; a norm and a ReLU; the end of a block, which is a norm, an addition and a ReLU;
# the same where the addend, of a projecting shortcut, has a norm of its own.
NOTHING, RELU, BLOCK, PROJECTED = 0, 1, 2, 3

# What is behind the convolution of an Ending, where it is not nothing (0).
SUMS_GIVEN, SUMS_SOUGHT, BEHIND_RELU = 1, 2, 3


class Trained(NamedTuple):
    """A convolution, what comes before it, and whether a norm is behind it."""

    window: Window
    before: int
    behind: bool
    epsilon: float


# Of a norm, (statistics float32[2, C], which are means and biased variances, scale float32[C], bias float32[C]).
Norm = tuple[Array, Array, Array]

_TRAINED, _GRADIENT = (Primitive(target(name)) for name in TARGETS[4:])
_TRAINED.multiple_results = _GRADIENT.multiple_results = True


def forward(x: Array, w: Array, *before: Array, form: Trained) -> list[Array]:
    """The convolution y of x, or of the image that `form.before` makes of x, and what is found along with it.

    before: for RELU the statistics, scale and bias of the norm; for BLOCK these and the addend, float32 of x's shape;
    for PROJECTED also the statistics, scale and bias of the addend's norm. Gives [y]; then, with a norm behind it, the
    statistics of y; then, for BLOCK and PROJECTED, the image.
    """
    return cast(list[Array], _TRAINED.bind(x, w, *before, form=form))


def normalised(x: Array, norm: Norm, epsilon: float) -> Array:
    """The norm of float32[N, H, W, C] with its statistics as given."""
    (mean, var), scale, bias = norm
    return (x - mean) * (lax.rsqrt(var + epsilon) * scale) + bias


def sums_of(g: Array, x: Array) -> Array:
    """float32[2, C], of g and of g·x."""
    axes = tuple(range(x.ndim - 1))
    return jnp.stack([g.sum(axes), (g * x).sum(axes)])


def _by_norm(g: Array, x: Array, norm: Norm, sums: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """The gradients by a norm's input x, scale and bias, from g, the one by what it gives; see normalisation."""
    (mean, var), scale, _ = norm
    count, inverse = x.size // x.shape[-1], lax.rsqrt(var + epsilon)
    by_scale = (sums[1] - mean * sums[0]) * inverse
    by_x = scale * inverse * (g - sums[0] / count - (x - mean) * (inverse * by_scale / count))
    return by_x, by_scale, sums[0]


def _in_parts(x: Array, w: Array, *before: Array, form: Trained) -> list[Array]:
    """The definition of `forward`."""
    norm: Any = before[:3]
    z = normalised(x, norm, form.epsilon) if form.before else x
    added: Any = before[3:]
    z = z + (normalised(added[0], added[1:], form.epsilon) if len(added) > 1 else added[0]) if added else z
    z = jax.nn.relu(z) if form.before else z
    y = output(form.window, z, w)
    found = [z] if form.before > RELU else []
    if not form.behind:
        return [y, *found]
    mean, square = y.mean((0, 1, 2)), jnp.square(y).mean((0, 1, 2))
    return [y, jnp.stack([mean, jnp.maximum(0.0, square - jnp.square(mean))]), *found]


class Ending(NamedTuple):
    """Which gradients of a `Trained` are asked for, and what is given for them.

    by_image: whether the gradient by x, or by the output of the norm before, is asked for. behind: 0, no norm is behind
    the convolution; 1, one whose sums are given; 2, one whose sums are to be found; 3, the same with a ReLU behind it.
    added: whether something is added to the gradient by the convolution's image.
    """

    by_image: bool
    behind: int
    added: bool


def backward(x: Array, w: Array, g: Array, *operands: Array, form: Trained, ending: Ending) -> list[Array]:
    """The gradients of `forward`, from g, the gradient by y or by the output of the norm or the ReLU behind it.

    x: what `forward` was given or, for blocks, the image that it found.
    operands, one after the other: for RELU the norm before, for blocks the input of that norm; of the norm behind y,
    its statistics and its scale, then `sums_of` g (behind 1) or the ReLU's output (3); what is added to the gradient by
    the image, not for RELU. Gives the gradient by w; with `by_image` the one by x, or by the output of the norm before
    and its sums; of the norm behind the gradients by its scale and bias and, for 3, by its output. At the end of a
    block the gradient by the addend is that by the norm's output.
    """
    return cast(list[Array], _GRADIENT.bind(x, w, g, *operands, form=form, ending=ending))


def _gradient_in_parts(x: Array, w: Array, g: Array, *operands: Array, form: Trained, ending: Ending) -> list[Array]:
    """The definition of `backward`."""
    rest = iter(operands)
    before: Any = tuple(next(rest) for _ in range((0, 3, 1, 1)[form.before]))
    z = jax.nn.relu(normalised(x, before, form.epsilon)) if form.before == RELU else x
    found: list[Array] = []
    if ending.behind:
        y, statistics, scale = next(rest), next(rest), next(rest)
        known = next(rest) if ending.behind != SUMS_SOUGHT else None
        g = jnp.where(known > 0, g, 0) if known is not None and ending.behind == BEHIND_RELU else g
        sums = known if known is not None and ending.behind == SUMS_GIVEN else sums_of(g, y)
        by_norm = [g] if ending.behind == BEHIND_RELU else []
        g, *found = _by_norm(g, y, (statistics, scale, scale), sums, form.epsilon)
        found += by_norm
    by_kernel = weight_gradient(form.window, w.shape, z, g)
    if not ending.by_image:
        return [by_kernel, *found]
    by_image = input_gradient(form.window, x.shape, g, w)
    by_image = by_image + next(rest) if ending.added else by_image
    if not form.before:
        return [by_kernel, by_image, *found]
    by_image = jnp.where(z > 0, by_image, 0)
    return [by_kernel, by_image, sums_of(by_image, before[0] if form.before > RELU else x), *found]


def _shapes(x: Any, w: Any, *before: Any, form: Trained) -> list[Any]:
    y = x.update(shape=(x.shape[0], *extent(form.window, x, w), w.shape[3]))
    statistics = [x.update(shape=(2, w.shape[3]))] if form.behind else []
    return [y, *statistics, *([x] if form.before > RELU else [])]


def _gradient_shapes(x: Any, w: Any, g: Any, *operands: Any, form: Trained, ending: Ending) -> list[Any]:
    sums = lambda of: of.update(shape=(2, of.shape[3]))  # noqa: E731
    by_image = [x, *([sums(x)] if form.before else [])] if ending.by_image else []
    vector = w.update(shape=w.shape[3:])
    return [w, *by_image, *([vector, vector] if ending.behind else []), *([g] if ending.behind == BEHIND_RELU else [])]


def map_over(primitive: Primitive, operands: Any, axes: Any, **how: Any) -> tuple[Any, Any]:
    """vmap: one after the other."""
    mapped = [jnp.moveaxis(operand, axis, 0) for operand, axis in zip(operands, axes, strict=True) if axis is not None]

    def one(given: list[Array]) -> list[Array]:
        rest = iter(given)
        all_of_one = [operand if axis is None else next(rest) for operand, axis in zip(operands, axes, strict=True)]
        return primitive.bind(*all_of_one, **how)

    results = lax.map(one, mapped)
    return results, [0] * len(results)


def _lower_for_cpu(name: str, by_lax: Any, ctx: Any, *operands: Any, form: Trained, **how: Any) -> Any:
    """A call of onednn.c; in an exported program, which may run where there is none, lax' operations."""
    if ctx.module_context.lowering_parameters.for_export:
        return by_lax(ctx, *operands, form=form, **how)
    ending = how.get("ending")
    behind = ending.behind if ending else form.behind
    # The gradient by what a norm gives goes where that by what its ReLU gives was.
    in_place: Any = {"operand_output_aliases": {2: len(ctx.avals_out) - 1}} if behind == BEHIND_RELU else {}
    return jax.ffi.ffi_lowering(target(name), **in_place)(
        ctx,
        *operands,
        window=np.array(numbers(form.window, form.before, behind), np.int64),
        epsilon=np.float32(form.epsilon),
    )


for _primitive, _name, _form, _abstract, *_static in (
    (_TRAINED, TARGETS[4], _in_parts, _shapes, "form"),
    (_GRADIENT, TARGETS[5], _gradient_in_parts, _gradient_shapes, "form", "ending"),
):
    _by_lax = mlir.lower_fun(_form, multiple_results=True)
    computed(_primitive, _form, *_static)
    _primitive.def_abstract_eval(_abstract)
    ad.primitive_jvps[_primitive] = partial(differentiate_parts, _form)
    batching.primitive_batchers[_primitive] = partial(map_over, _primitive)
    mlir.register_lowering(_primitive, _by_lax)
    mlir.register_lowering(_primitive, partial(_lower_for_cpu, _name, _by_lax), platform="cpu")
