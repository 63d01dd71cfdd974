"""Which parameters learn from which step on, and the optimizer of those alone.

A parameter that rests is not differentiated and has no optimizer state and no weight decay; the batch norms and
drop-outs of frozen parts run as in evaluation. Names are paths, such as 'layer4_2/conv1/kernel'.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from input_pipeline.errors import InputError, printable
from resnet.model.network import ResNet
from resnet.model.spec import HEAD
from resnet.train.optimizer import OptimizerSettings, alike, make_optimizer
from resnet.train.transfer import Transfer
from resnet.weights.names import variable_shapes

Names = frozenset[str]
Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Stage:
    """What learns from step `start` on. learning: the parameters' names; None: all. network: with its resting parts
    frozen. optimizer: of the learning parameters."""

    start: int
    learning: Names | None
    network: ResNet
    optimizer: optax.GradientTransformation


def partition(params: Tree, learning: Names | None) -> tuple[Tree, Tree]:
    """(the parameters that learn, the others), each a tree of its own; `merge` is the inverse."""
    if learning is None:
        return params, {}
    flat = flatten_dict(params, sep="/")
    chosen = {name: leaf for name, leaf in flat.items() if name in learning}
    rest = {name: leaf for name, leaf in flat.items() if name not in learning}
    return unflatten_dict(chosen, sep="/"), unflatten_dict(rest, sep="/")


def merge(learning: Tree, resting: Tree) -> Tree:
    """One tree of two that share no leaf."""
    if not resting:
        return learning
    return unflatten_dict(flatten_dict(learning, sep="/") | flatten_dict(resting, sep="/"), sep="/")


def moving_statistics(batch_stats: Tree, frozen: Names) -> Names | None:
    """The names of the running statistics that a network with these `frozen` parts updates; None: all."""
    if not frozen:
        return None
    return frozenset(name for name in flatten_dict(batch_stats, sep="/") if not rests(name, frozen))


def rests(name: str, frozen: Names) -> bool:
    """Whether a variable, such as 'layer1_0/bn1/mean', lies in one of the frozen parts."""
    parts = name.split("/")
    return any("/".join(parts[:length]) in frozen for length in range(1, len(parts)))


def make_stages(
    transfer: Transfer, network: ResNet, settings: OptimizerSettings, schedule: optax.Schedule, steps_per_epoch: float
) -> tuple[Stage, ...]:
    """The stages of a run, by their first step; the first starts at 0. Raises InputError naming config.transfer's key.

    At the start of a later stage the parameters that join get a fresh optimizer state of their own (momentum and
    moments at zero, Adam's correction of them from the start); those that learn already keep theirs, and all follow
    one schedule.
    """
    whole = transfer.mode != "probe" and not transfer.unfreeze
    if whole and transfer.norms == "train" and not transfer.multipliers:
        # A run from scratch looks up no names: tracing a deep network for them takes seconds.
        return (Stage(0, None, network, make_optimizer(settings, schedule)),)
    params, norms = variable_names(network)
    groups = [(0, frozenset(params))] if whole else joining(transfer, params, steps_per_epoch)
    factors = multipliers(transfer, params, frozenset().union(*(names for _, names in groups)))
    stages, learning = [], frozenset[str]()
    for number, (start, joined) in enumerate(groups):
        learning |= joined
        optimizer = grouped([names for _, names in groups[: number + 1]], settings, schedule, factors, len(groups) > 1)
        frozen = frozen_parts(params, norms, learning, norms_learn=transfer.norms == "train")
        stages.append(Stage(start, None if whole else learning, network.clone(frozen=frozen), optimizer))
    if norms and transfer.norms == "train" and norms <= stages[-1].network.frozen:
        raise InputError(
            f"config.transfer.bn='train', but config.transfer.unfreeze={transfer.unfreeze_text} leaves every norm of "
            "the backbone frozen, and its statistics must not change; use bn=frozen or recalibrate"
        )
    return tuple(stages)


def variable_names(network: ResNet) -> tuple[list[str], Names]:
    """(names of the parameters, names of the batch norms) in the order stem, stages, head."""
    paths = list(variable_shapes(network.spec))
    params = ["/".join(path[1:]) for path in paths if path[0] == "params"]
    return params, frozenset("/".join(path[1:-1]) for path in paths if path[0] == "batch_stats")


def is_head(name: str) -> bool:
    """Whether a parameter belongs to the layers behind the pooling."""
    return name.split("/")[0] in HEAD


def joining(transfer: Transfer, params: Sequence[str], steps_per_epoch: float) -> list[tuple[int, Names]]:
    """(first step, names that begin to learn there), ascending; the head from step 0 on.

    Raises InputError for a line by which nothing begins to learn.
    """
    head = {name for name in params if is_head(name)}
    groups: dict[int, set[str]] = {0: set(head)}
    learning = set(head)
    for pattern, epoch in transfer.unfreeze:
        matched = {name for name in params if pattern.search(name)}
        if not matched:
            raise no_match("unfreeze", pattern)
        # 1e-9: step 30 of epoch 3 at ten steps an epoch is not the 31st for a rounding error's sake.
        start = math.ceil(epoch * steps_per_epoch - 1e-9)
        # 'fc@0' says what is so, and alone it is how the rest is kept frozen.
        if matched <= learning and not (start == 0 and matched <= head):
            text, remedy = f"{pattern.pattern}@{epoch:g}", "because of earlier lines; omit it"
            if matched <= head:
                remedy = f"the head always is, from the first step; write {printable(pattern.pattern + '@0')!r}"
            raise InputError(
                f"config.transfer.unfreeze: {printable(text)!r} adds nothing: what it matches is already learning, "
                f"{remedy}"
            )
        groups.setdefault(start, set()).update(matched - learning)
        learning |= matched
    return [(start, frozenset(names)) for start, names in sorted(groups.items()) if names]


def frozen_parts(params: Sequence[str], norms: Names, learning: Names, *, norms_learn: bool) -> Names:
    """The parts of the network that run as in evaluation: blocks without a learning parameter, and single norms."""
    modules = {name.rpartition("/")[0] for name in learning}
    blocks = {name.split("/")[0] for name in params if name.startswith("layer")}
    resting = {block for block in blocks if not any(module.split("/")[0] == block for module in modules)}
    return frozenset(resting | {norm for norm in norms if not (norms_learn and norm in modules)})


def multipliers(transfer: Transfer, params: Sequence[str], ever: Names) -> Mapping[str, float]:
    """Name -> factor on the learning rate, for those whose factor is not 1. ever: the names that learn at any step.

    Raises InputError for a pattern that decides the rate of none of these.
    """
    factors: dict[str, float] = {}
    for pattern, factor in transfer.multipliers:
        matched = {name for name in params if pattern.search(name)}
        if not matched:
            raise no_match("lr_multipliers", pattern)
        first = matched - factors.keys()
        if first.isdisjoint(ever):
            raise idle_multiplier(transfer, f"{pattern.pattern}={factor:g}", shadowed=not matched.isdisjoint(ever))
        factors |= dict.fromkeys(first, factor)
    return {name: factor for name, factor in factors.items() if factor != 1.0}


def idle_multiplier(transfer: Transfer, text: str, *, shadowed: bool) -> InputError:
    """For a multiplier by which nothing learns. shadowed: of what it matches, some learns by an earlier one."""
    if shadowed:
        why = "an earlier pattern already matches everything it could act on; put it before that one, or omit it"
    elif transfer.mode == "probe":
        why = "a probe trains only the head, and it matches nothing in it; omit it"
    else:
        why = (
            f"config.transfer.unfreeze={transfer.unfreeze_text} keeps everything it matches frozen; omit it, "
            "or unfreeze that"
        )
    return InputError(f"config.transfer.lr_multipliers: {printable(text)!r} has no effect: {why}")


def no_match(key: str, pattern: re.Pattern[str]) -> InputError:
    return InputError(
        f"config.transfer.{key}: {printable(pattern.pattern)!r} matches no parameter; their paths look like "
        "conv1/kernel, bn1/scale, layer4_2/conv1/kernel, fc/bias"
    )


def grouped(
    groups: Sequence[Names],
    settings: OptimizerSettings,
    schedule: optax.Schedule,
    factors: Mapping[str, float],
    staged: bool,
) -> optax.GradientTransformation:
    """The optimizer of the learning parameters; with `staged`, each group of names has a state of its own.

    The norm of clipping is that of all groups together. A learning-rate multiplier acts on the finished update, weight
    decay included, as a parameter group's `lr` does in torch.optim.
    """
    if not staged:
        whole = make_optimizer(settings, schedule)
        return alike(optax.chain(whole, scale_by_name(factors)), whole)
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm > 0 else optax.identity()
    inner = make_optimizer(dataclasses.replace(settings, clip_norm=0.0), schedule)
    scale = scale_by_name(factors)

    def init(params: Tree) -> tuple[Any, ...]:
        return tuple(inner.init(partition(params, names)[0]) for names in groups)

    def update(gradient: Tree, states: Any, params: Any = None) -> tuple[Tree, tuple[Any, ...]]:
        gradient, _ = clip.update(gradient, optax.EmptyState())
        updates: Tree = {}
        new = []
        for names, state in zip(groups, states, strict=True):
            part, state = inner.update(partition(gradient, names)[0], state, partition(params, names)[0])
            updates = merge(part, updates)
            new.append(state)
        return scale.update(updates, optax.EmptyState())[0], tuple(new)

    return alike(optax.GradientTransformation(init, update), inner)


def scale_by_name(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Updates times the factor of their name, 1 where there is none."""

    def scale(updates: Tree, params: Any) -> Tree:
        del params
        flat = flatten_dict(updates, sep="/")
        return unflatten_dict({name: u * factors[name] if name in factors else u for name, u in flat.items()}, sep="/")

    return optax.stateless(scale) if factors else optax.identity()


def joined_state(stage: Stage, opt_state: Any, params: Tree) -> Any:
    """The optimizer's state at the start of `stage`: `opt_state`, and a fresh one for the group that joins.

    The schedule counts updates; the fresh state's count is that of the others.
    """
    fresh = stage.optimizer.init(partition(params, stage.learning)[0])
    counts = [node.count for node in jax.tree.leaves(opt_state, is_leaf=counts_schedule) if counts_schedule(node)]
    follow = lambda node: node._replace(count=counts[0]) if counts_schedule(node) else node  # noqa: E731
    later = tuple(jax.tree.map(follow, state, is_leaf=counts_schedule) for state in fresh[len(opt_state) :])
    return (*opt_state, *later)


def counts_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)
