"""Convolutions by oneDNN in training one behind the other, with the norms between them, and the ends of blocks.

Of all that lies between two convolutions only the first one's output is kept (see onednn_training). The end of a block,
ReLU(norm(y) + addend), may be left to the convolution that comes next (`End`): it computes what it takes in a few
images at a time, and on the way back begins the end's gradient while it writes its own, so that nothing goes over these
maps, the largest of a network, for its own sake. What both are worth is told in docs/speed.md.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from resnet.model.onednn_training import (
    BEHIND_RELU,
    BLOCK,
    NOTHING,
    PROJECTED,
    RELU,
    SUMS_GIVEN,
    SUMS_SOUGHT,
    Ending,
    Trained,
    backward,
    forward,
    normalised,
    sums_of,
)


@flax.struct.dataclass
class End:
    """ReLU(norm(y) + addend), float32[N, H, W, C], which is not computed yet; or norm(y), of a projecting shortcut.

    y: what is normalised; statistics: float32[2, C], its means and biased variances; scale, bias: float32[C];
    addend: as y, or None; or what is left open of a projection. relu: with one, or of a projection.

    Between this file's functions, which alone read it, the gradient by `y` is that by what the norm gives, and the one
    by `statistics` the norm's sums, [Σ g, Σ g·y], with `relu`: what the next convolution finds of the end's gradient.
    The rest of it belongs to the call that y comes from, which adds those by scale and bias, too.
    """

    y: Array
    statistics: Array
    scale: Array
    bias: Array
    addend: "Array | End | None"
    relu: bool = flax.struct.field(pytree_node=False)
    epsilon: float = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.y.shape

    @property
    def dtype(self) -> Any:
        return self.y.dtype


@jax.custom_vjp
def close(end: End) -> Array:
    """What the end gives."""
    y = normalised(end.y, (end.statistics, end.scale, end.bias), end.epsilon)
    y = y if end.addend is None else y + closed(end.addend)
    return jax.nn.relu(y) if end.relu else y


def closed(x: Array | End) -> Array:
    """x itself, or what the `End` that it is gives."""
    return close(x) if isinstance(x, End) else x


def _close(end: End) -> tuple[Array, tuple[Array, End]]:
    z = close(end)
    return z, (z, end)


def _open(kept: tuple[Array, End], g: Array) -> tuple[End]:
    z, end = kept
    if not end.relu:
        return (end_gradient(end, g, None),)
    g = jnp.where(z > 0, g, 0)
    return (end_gradient(end, g, sums_of(g, end.y)),)


def end_gradient(end: End, g: Array, sums: Array | None) -> End:
    """From g, that by what the end's norm gives, which is that by the addend."""
    addend: Any = end_gradient(end.addend, g, None) if isinstance(end.addend, End) else g
    rest: Any = {"scale": None, "bias": None, "addend": None if end.addend is None else addend}
    return end.replace(y=g, statistics=sums, **rest)  # type: ignore[attr-defined]


close.defvjp(_close, _open)


def before(x: Array | End) -> int:
    """What comes before a convolution of x."""
    if not isinstance(x, End):
        return NOTHING
    return RELU if x.addend is None else PROJECTED if isinstance(x.addend, End) else BLOCK


class Chain(NamedTuple):
    """Convolutions one behind the other, each with a norm behind it but maybe for the last.

    relu: whether one is behind the last norm and what is added to it. residual: what is added is the chain's input.
    left_open: the last norm, the addition and the ReLU are left to what comes next. Without a ReLU nothing is added.
    """

    forms: tuple[Trained, ...]
    relu: bool
    residual: bool
    left_open: bool


def trained(
    chain: Chain,
    x: Array | End,
    kernels: Sequence[Array],
    scales: Sequence[Array],
    biases: Sequence[Array],
    addend: Array | End | None,
) -> tuple[Array | End, Array | None, list[Array]]:
    """x float32[N, H, W, I] through all convolutions, norms and ReLUs, then + `addend`, and a ReLU with `relu`.

    scales, biases: float32[O] of the norm behind each convolution; the last may have none. Gives float32[N, H', W', O];
    x, closed where it is the end of a block with something added (without, None); and of each norm the statistics
    float32[2, O], means and biased variances, which count as given.
    """
    if chain.residual and len(chain.forms) == 1:
        # What is to be added to the gradient by x is what the only call finds.
        x = closed(x)
        chain, addend = chain._replace(forms=(chain.forms[0]._replace(before=NOTHING),), residual=False), x
    inside = None if chain.left_open or addend is None else closed(addend)
    y, taken, statistics = _trained(chain, x, kernels, scales, biases, inside)
    # What `follow`s them wants no gradient, and has none to give: `End` has its own meaning for it.
    given = [lax.stop_gradient(found) for found in statistics]
    if not chain.left_open:
        return y, taken, given
    scale, bias = (lax.stop_gradient(of[-1]) for of in (scales, biases))
    added = taken if chain.residual else addend
    return End(y, statistics[-1], scale, bias, added, chain.relu, chain.forms[-1].epsilon), taken, given


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _trained(
    chain: Chain, x: Array | End, kernels: Any, scales: Any, biases: Any, addend: Array | None
) -> tuple[Array, Array | None, list[Array]]:
    return _forward(chain, x, kernels, scales, biases, addend)[0]


def _before(x: Array | End | None) -> tuple[Array, ...]:
    """What `forward` takes with x."""
    if not isinstance(x, End):
        return ()
    norm, added = (x.statistics, x.scale, x.bias), x.addend
    return norm if added is None else (*norm, added.y, *_before(added)) if isinstance(added, End) else (*norm, added)


def _forward(
    chain: Chain, x: Array | End, kernels: Any, scales: Any, biases: Any, addend: Array | None
) -> tuple[tuple[Array, Array | None, list[Array]], tuple[Any, ...]]:
    forms, taken = chain.forms, None if isinstance(x, End) else x
    maps, statistics = [x.y if isinstance(x, End) else x], []
    norm: Any = _before(x)
    for number, (form, kernel) in enumerate(zip(forms, kernels, strict=True)):
        y, *found = forward(maps[-1], kernel, *norm, form=form)
        taken = found.pop() if form.before > RELU else taken
        maps.append(y)
        statistics += found
        norm = (*found, scales[number], biases[number]) if form.behind else ()
    y = maps[-1]
    if not chain.left_open:
        y = normalised(y, norm, forms[-1].epsilon) if norm else y
        added = taken if chain.residual else addend
        y = y if added is None else y + added
        y = jax.nn.relu(y) if chain.relu else y
    rectified = y if chain.relu and not chain.left_open else None
    kept = (x, taken, maps, statistics, kernels, scales, biases, () if addend is not None else None, rectified)
    return (y, taken, statistics), kept


def _forward_of_primals(chain: Chain, *operands: Any) -> tuple[Any, tuple[Any, ...]]:
    """`_forward`, and of what it keeps whether a gradient by x is asked for: () or, where x is given, None."""
    values = jax.tree.map(lambda primal: primal.value, operands)
    result, kept = _forward(chain, *values)
    asked = any(primal.perturbed for primal in jax.tree.leaves(operands[0]))
    return result, (*kept, () if asked else None)


def _begin_backward(chain: Chain, kept: tuple[Any, ...], given: Any) -> tuple[Array, int, list[Array], Array | None]:
    """The gradient by what is behind the last convolution, what that is, what is known of it; the one by the end."""
    _, _, maps, *_, rectified, _ = kept
    g, _, statistics = given
    g = jnp.zeros_like(maps[-1]) if isinstance(g, SymbolicZero) else g
    if chain.left_open and chain.relu:
        sums = statistics[-1]
        none = isinstance(sums, SymbolicZero)
        return g, SUMS_GIVEN, [jnp.zeros(sums.shape, sums.dtype) if none else sums], None
    if not chain.forms[-1].behind:
        g = jnp.where(rectified > 0, g, 0) if chain.relu else g
        return g, 0, [], g
    return (g, BEHIND_RELU, [rectified], None) if chain.relu else (g, SUMS_SOUGHT, [], g)


def _backward(chain: Chain, kept: tuple[Any, ...], given: Any) -> Any:
    x, taken, maps, statistics, kernels, scales, biases, has_addend, _, asked = kept
    forms, last = chain.forms, len(chain.forms) - 1
    g, behind, known, by_end = _begin_backward(chain, kept, given)
    by_taken = None if given[1] is None or isinstance(given[1], SymbolicZero) else given[1]
    by_kernels, by_scales, by_biases, sums_before = [], [], [], []
    for number in range(last, -1, -1):
        form, operands, image = forms[number], [], maps[number]
        if number:
            operands = [statistics[number - 1], scales[number - 1], biases[number - 1]]
        elif form.before == RELU:
            operands = list(_before(x))
        elif form.before > RELU:
            operands, image = [x.y], taken
        if behind:
            operands += [maps[number + 1], statistics[number], scales[number], *known]
        by_image = number > 0 or asked is not None
        added = _sum(by_end if chain.residual else None, by_taken) if number == 0 and by_image else None
        ending = Ending(by_image, behind, added=added is not None)
        operands += [added] if ending.added else []
        by_kernel, *found = backward(image, kernels[number], g, *operands, form=form, ending=ending)
        by_kernels.append(by_kernel)
        g = found.pop(0) if ending.by_image else None  # type: ignore[assignment]
        sums_before = [found.pop(0)] if ending.by_image and form.before else []
        if behind:
            by_scales.append(found.pop(0))
            by_biases.append(found.pop(0))
        by_end = found.pop() if behind == BEHIND_RELU else by_end
        known, behind = sums_before, SUMS_GIVEN
    by_x: Any = g
    if isinstance(x, End) and g is not None:
        by_x = end_gradient(x, g, sums_before[0])
    return by_x, by_kernels[::-1], by_scales[::-1], by_biases[::-1], None if has_addend is None else by_end


def _sum(one: Array | None, other: Array | None) -> Array | None:
    return one if other is None else other if one is None else one + other


_trained.defvjp(_forward_of_primals, _backward, symbolic_zeros=True)
