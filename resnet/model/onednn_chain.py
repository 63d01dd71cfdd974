"""Convolutions by oneDNN in training one behind the other, with the norms between them, and the ends of blocks.

Of all that lies between two convolutions only the first one's output is kept (see onednn_training). The end of a block,
ReLU(norm(y) + addend), may be left to the convolution that comes next (`End`): it computes what it takes in a few
images at a time, and on the way back begins the end's gradient while it writes its own, so that nothing goes over these
maps, the largest of a network, for its own sake. docs/speed-notes.md says what both are worth.
"""

from collections.abc import Callable, Sequence
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

    Only this file reads the gradients of an End, and they mean something else here: the one by `y` is that by the
    norm's output, and the one by `statistics` is, with `relu`, the norm's sums [Σ g, Σ g·y], as the next convolution
    finds them. The call that y comes from makes the true gradient of them, and those by scale and bias. So a function
    of an End is a custom_vjp whose rules call none of its kind with what they are given (see `_of_one_level`).
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


def close(end: End) -> Array:
    """What the end gives."""
    return _summed(end, norm_of)


def closed(x: Array | End) -> Array:
    """x itself, or what the `End` that it is gives."""
    return close(x) if isinstance(x, End) else x


def _summed(end: End, *ways: Callable[[End], Array]) -> Array:
    """What the end gives, its norm, and that of an addend that has one, by the first and by the last of `ways`."""
    y, added = ways[0](end), end.addend
    added = ways[-1](added) if isinstance(added, End) else added
    y = y if added is None else y + added
    return _rectified(y) if end.relu else y


# What it gives is kept anyway: no mask beside that.
_rectified = jax.custom_vjp(jax.nn.relu)
_rectified.defvjp(lambda x: (jax.nn.relu(x),) * 2, lambda z, g: (jnp.where(z > 0, g, 0),))


def norm_of(end: End) -> Array:
    """What the end's norm gives. Its gradient reaches the end in the form that `End` describes."""
    return _norm_of(end.replace(addend=None))  # type: ignore[attr-defined]


def _norm_in_parts(end: End) -> Array:
    return normalised(end.y, (end.statistics, end.scale, end.bias), end.epsilon)


def _keep(end: End) -> tuple[Array, End]:
    return _norm_in_parts(end), end


def _give_back(end: End, g: Array) -> tuple[End]:
    return (_with_sums(end, g),)


_norm_of = jax.custom_vjp(_norm_in_parts)
_norm_of.defvjp(_keep, _give_back)


def _of_one_level(primals: Any) -> Array | End:
    """An End, given as the primals of a custom_vjp; what it gives, where one of its norms is not differentiated there.

    Of nested differentiations each goes, as definitions, through the gradients of those inside it, in which `y` is no
    more than y. What is not differentiated in this one, but maybe in one around it, still wants its gradient as `End`
    tells; so it gets it from `norm_of`, and the sum of both is an array as any.
    """
    end: End = jax.tree.map(lambda primal: primal.value, primals)
    parts: list[Any] = [part for part in (primals, primals.addend) if isinstance(part, End)]
    ways = [_norm_in_parts if part.y.perturbed else norm_of for part in parts]
    return _summed(end, *ways) if norm_of in ways else end


def end_gradient(end: End, g: Array, sums: Array | None) -> End:
    """From g, that by what the end's norm gives, which is that by the addend."""
    addend: Any = end_gradient(end.addend, g, None) if isinstance(end.addend, End) else g
    rest: Any = {"scale": None, "bias": None, "addend": None if end.addend is None else addend}
    return end.replace(y=g, statistics=sums, **rest)  # type: ignore[attr-defined]


def _with_sums(end: End, g: Array) -> End:
    """`end_gradient`, with the sums where they are asked for."""
    return end_gradient(end, g, sums_of(g, end.y) if end.relu else None)


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
    added = taken if chain.residual else addend
    return End(y, statistics[-1], scales[-1], biases[-1], added, chain.relu, chain.forms[-1].epsilon), taken, given


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
    """`_forward`; kept are also x as it was given, and whether a gradient by it is asked for: () or, if not, None."""
    given, *rest = jax.tree.map(lambda primal: primal.value, operands)
    asked = any(primal.perturbed for primal in jax.tree.leaves(operands[0]))
    x = _of_one_level(operands[0]) if isinstance(given, End) else given
    (y, taken, statistics), kept = _forward(_taking(chain, x), x, *rest)
    taken = None if chain.forms[0].before == RELU else taken
    return (y, taken, statistics), (*kept, given, () if asked else None)


def _taking(chain: Chain, x: Array | End) -> Chain:
    """The chain for an x that may have been closed."""
    return chain._replace(forms=(chain.forms[0]._replace(before=before(x)), *chain.forms[1:]))


def _begin_backward(chain: Chain, kept: tuple[Any, ...], given: Any) -> tuple[Array, int, list[Array], Array | None]:
    """The gradient by what is behind the last convolution, what that is, what is known of it; the one by the end."""
    _, _, maps, *_, rectified, _, _ = kept
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
    x, taken, maps, statistics, kernels, scales, biases, has_addend, _, given_x, asked = kept
    forms, last = _taking(chain, x).forms, len(chain.forms) - 1
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
    elif isinstance(given_x, End) and g is not None:
        g = jnp.where(x > 0, g, 0) if given_x.relu else g
        by_x = _with_sums(given_x, g)
    return by_x, by_kernels[::-1], by_scales[::-1], by_biases[::-1], None if has_addend is None else by_end


def _sum(one: Array | None, other: Array | None) -> Array | None:
    return one if other is None else other if one is None else one + other


_trained.defvjp(_forward_of_primals, _backward, symbolic_zeros=True)
