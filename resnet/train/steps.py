"""One pure train step and one pure evaluation step."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from input_pipeline.augment import ALTERNATING, AUGMENT, Augmentation, alternately_mirrored, augment, prepare
from input_pipeline.contract import Contract
from input_pipeline.order import dealt
from resnet.model.network import ResNet, evaluate
from resnet.model.spec import ResNetSpec
from resnet.train.advancing import advanced_if, all_finite, averaged, norm_of
from resnet.train.freezing import Names, merge, moving_statistics, partition
from resnet.train.losses import Loss, probabilities
from resnet.train.metrics import eval_sums, train_sums
from resnet.train.optimizer import OfAnyShape
from resnet.train.state import TrainState, Variables

Batch = dict[str, jax.Array]
# (network, recipe, params, batch_stats, batch, key) -> (sum of losses, (weight, new statistics, metric sums)).
LossSum = Callable[..., tuple[jax.Array, tuple[jax.Array, Variables, dict[str, jax.Array]]]]
Pulse = dict[str, jax.Array]
# Beside AUGMENT the stream of randomness that a step draws from its key.
DROPOUT = 1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a step does besides the network and the optimizer; static under jit.

    class_weights: one positive weight per class, or () for none. accumulation: parts a batch is cut into. ema: decay of
    the weight averages, 0 for none. num_examples: of the training split, by which flip='alternating' knows the epoch.
    loss: what is minimised.
    """

    seed: int
    contract: Contract
    augmentation: Augmentation
    class_weights: tuple[float, ...] = ()
    accumulation: int = 1
    ema: float = 0.0
    num_examples: int = 0
    loss: Loss = dataclasses.field(default_factory=Loss)


def sum_names(num_classes: int) -> tuple[str, ...]:
    """The names in TrainState.sums: those of metrics.train_sums and the gradient's norm and the number of steps."""
    return ("count", "loss", "top1", *(("top5",) if num_classes > 5 else ()), "gradient_norm", "steps")


def make_train_step(
    network: ResNet,
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    *,
    learning: Names | None = None,
    loss: LossSum | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Pulse]]:
    """The train step: (state, {'image': uint8[B,H,W,3], 'label': int32[B], 'mask': float32[B], …}) -> (state, pulse).

    The pulse is what the loop looks at without touching the state: 'loss' float32 (the batch's mean) and 'bad_steps'
    int32 (non-finite steps in a row); with 'stop' float32[B] in the batch also 'stop', above 0 where any process was
    asked to end. The loss that is minimised is the mean over the batch, weighted by class where asked: over the sum of
    the weights. What is logged is over the number of rows: the same on average, with balanced weights and no smoothing.
    Randomness is a function of (seed, step, row).
    A step whose loss, gradient or statistics are not finite changes nothing but the counters: params, statistics,
    optimizer and averages keep their old values (optax.apply_if_finite would leave the statistics NaN for good).
    With accumulation the parts (see `split_parts`) run one after the other. Batch statistics are each part's own, or
    those of the groups in it; the running statistics move once a step, by the mean of what the parts would move them.
    Groups of spec.ghost_batch_size images are the same in any number of parts: gradient and running statistics are then
    those of the whole batch, but for the order of sums and for what is drawn at random, part by part.
    learning: the names of the parameters that learn (None: all); `optimizer` and its state are of these alone, and the
    others, with the statistics of `network.frozen`, leave the step bit for bit as they came. loss: default `loss_sum`.
    """
    keyed_step = make_keyed_step(network, optimizer, recipe, learning=learning, loss=loss)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Pulse]:
        return keyed_step(state, batch, jax.random.key(recipe.seed))

    return train_step


def make_keyed_step(
    network: ResNet,
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    *,
    learning: Names | None = None,
    loss: LossSum | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Pulse]]:
    """`make_train_step`'s step with the seed's key as a third argument, so that one program serves many seeds.

    `key` is jax.random.key(seed); recipe.seed is not looked at.
    """

    def keyed_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Pulse]:
        batch = with_mirrored(recipe, batch, key, state.step)
        key = jax.random.fold_in(key, state.step)
        total, weight, batch_stats, sums = accumulate(network, recipe, state, batch, key, learning=learning, loss=loss)
        old, resting = partition(state.params, learning)
        norm = norm_of(total) / weight
        finite = jnp.isfinite(norm) & jnp.isfinite(sums["loss"]) & all_finite(batch_stats)

        def advance(moving: Variables, total: Variables, weight: jax.Array, batch_stats: Variables) -> Variables:
            # Here and not before: the mean is then made where it is used, and no copy of the gradient goes to memory.
            gradient = jax.tree.map(lambda g: g / weight, total)
            updates, opt_state = optimizer.update(gradient, moving["opt_state"], moving["params"])
            params = optax.apply_updates(moving["params"], updates)
            ema = moving["ema"]
            if recipe.ema:
                newest = {"params": params, "batch_stats": batch_stats}
                ema = averaged(ema, newest, recipe.ema, state.step, learning, network.frozen)
            return {"params": params, "batch_stats": batch_stats, "opt_state": opt_state, "ema": ema}

        before = {"params": old, "batch_stats": state.batch_stats, "opt_state": state.opt_state, "ema": state.ema}
        of_any_shape = isinstance(optimizer, OfAnyShape)
        after = advanced_if(finite, advance, before, total, weight, batch_stats, of_any_shape=of_any_shape)
        pulse = {"loss": sums["loss"] / sums["count"], "bad_steps": jnp.where(finite, 0, state.bad_steps + 1)}
        if "stop" in batch:
            pulse["stop"] = batch["stop"].max()
        sums |= {"gradient_norm": norm, "steps": jnp.ones((), jnp.float32)}
        new_state = TrainState(
            step=state.step + 1,
            params=merge(after["params"], resting),
            batch_stats=after["batch_stats"],
            opt_state=after["opt_state"],
            ema=after["ema"],
            sums={name: state.sums[name] + jnp.where(finite, sums[name], 0.0) for name in state.sums},
            bad_steps=pulse["bad_steps"],
            bad_steps_total=state.bad_steps_total + jnp.where(finite, 0, 1),
        )
        return new_state, pulse

    return keyed_step


def with_mirrored(recipe: Recipe, batch: Batch, key: jax.Array, step: jax.Array | int) -> Batch:
    """The batch of `step`, under flip='alternating' with 'mirrored' bool[B] in it; key: jax.random.key(seed).

    Before the batch is cut into parts: a row's epoch follows from its place in the whole of it.
    """
    if recipe.augmentation.flip != ALTERNATING:
        return batch
    return {**batch, "mirrored": alternately_mirrored(key, step, batch["index"], recipe.num_examples)}


def accumulate(
    network: ResNet,
    recipe: Recipe,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    learning: Names | None = None,
    loss: LossSum | None = None,
) -> tuple[Variables, jax.Array, Variables, dict[str, jax.Array]]:
    """(gradient of the summed loss, its weight, new batch statistics, metric sums), in `recipe.accumulation` parts.

    Gradient over weight is the mean loss's. It is of the `learning` parameters alone: nothing is differentiated in
    front of the first of them.
    """
    parts = recipe.accumulation
    of_part = partial(part_gradient, network, recipe, state.params, state.batch_stats, learning=learning, loss=loss)
    if parts == 1:
        gradient, weight, moved, sums = of_part(batch, key)
    else:
        cut = split_parts(batch, parts, network.spec)
        shapes = jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], cut), key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add_part(totals: Any, numbered: Any) -> tuple[Any, None]:
            number, part = numbered
            return jax.tree.map(jnp.add, totals, of_part(part, part_key(key, parts, number))), None

        (gradient, weight, moved, sums), _ = jax.lax.scan(add_part, zeros, (jnp.arange(parts), cut))
        moved = jax.tree.map(lambda total: total / parts, moved)
    moving = moving_statistics(state.batch_stats, network.frozen)
    batch_stats = merge(moved, partition(state.batch_stats, moving)[1])
    return gradient, weight, batch_stats, sums


def part_gradient(
    network: ResNet,
    recipe: Recipe,
    params: Variables,
    batch_stats: Variables,
    part: Batch,
    key: jax.Array,
    *,
    learning: Names | None = None,
    loss: LossSum | None = None,
) -> tuple[Variables, jax.Array, Variables, dict[str, jax.Array]]:
    """What `accumulate` gives, for one part (key: `part_key`); of the new statistics only those that move."""
    learnt, resting = partition(params, learning)
    # A mean of equal numbers is not always the same number in floating point: what is frozen is left out.
    moving = moving_statistics(batch_stats, network.frozen)
    of_params = loss or loss_sum
    total = lambda p: of_params(network, recipe, merge(p, resting), batch_stats, part, key)  # noqa: E731
    gradient, (weight, new_stats, sums) = jax.grad(total, has_aux=True)(learnt)
    return gradient, weight, partition(new_stats, moving)[0], sums


def part_key(key: jax.Array, parts: int, number: jax.Array | int) -> jax.Array:
    """The key of part `number` of `parts`, from the step's key; the step's own where there is one part."""
    return key if parts == 1 else jax.random.fold_in(key, number)


def split_parts(batch: Batch, parts: int, spec: ResNetSpec) -> Batch:
    """A batch as the parts that accumulation takes one after the other: arrays [parts, B / parts, …].

    The batch is dealt out to the parts in turn, row by row or, with `spec.ghost_batch_size`, group by group, so that
    groups stay whole. Dealt out, each device keeps the rows that it has while every part has some on every device: as
    long as B is a multiple of devices × parts × group. Elsewhere rows travel, and the figures are the same.
    """
    return jax.tree.map(lambda rows: dealt(rows, parts, spec.ghost_batch_size or 1), batch)


def loss_sum(
    network: ResNet, recipe: Recipe, params: Variables, batch_stats: Variables, batch: Batch, key: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, Variables, dict[str, jax.Array]]]:
    """Sum of the losses of a batch's rows and (their total weight, new batch statistics, metric sums).

    The loss of a row against its (smoothed, mixed) target, and its weight, are losses.Loss.rows'; loss over weight is
    the mean. Masked rows count nothing.
    """
    num_classes = network.spec.num_classes
    images, targets = augment(
        jax.random.fold_in(key, AUGMENT),
        batch["image"],
        batch["label"],
        recipe.augmentation,
        recipe.contract,
        num_classes,
        batch.get("mirrored"),
    )
    logits, new = network.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.fold_in(key, DROPOUT)},
    )
    loss, weight, sums = batch_loss(recipe, logits, targets, batch)
    return loss, (weight, new.get("batch_stats", {}), sums)


def batch_loss(
    recipe: Recipe, logits: jax.Array, targets: jax.Array, batch: Batch
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """(sum of the losses of a batch's rows, their total weight, metric sums); see `loss_sum`."""
    losses, weights = recipe.loss.rows(logits, targets, recipe.class_weights)
    weight = jnp.sum(batch["mask"] * weights)
    sums = train_sums(logits, targets, batch["label"], batch["mask"], losses)
    return jnp.sum(losses * batch["mask"]), weight, sums


def make_eval_step(
    network: ResNet, contract: Contract, *, flip: bool = False, loss: str = "softmax"
) -> Callable[[Variables, Batch], tuple[Batch, Batch]]:
    """The evaluation step: (variables, batch) -> `eval_results`. flip: see `logits_of`. loss: one of losses.LOSSES.

    Running statistics, no augmentation, no dropout; rows with mask 0 (padding) count nothing in the sums.
    """

    def eval_step(variables: Variables, batch: Batch) -> tuple[Batch, Batch]:
        logits = logits_of(network, variables, prepare(batch["image"], contract), flip=flip)
        return eval_results(logits, batch, loss)

    return eval_step


def eval_results(logits: jax.Array, batch: Batch, loss: str) -> tuple[Batch, Batch]:
    """(masked sums of metrics.eval_sums, the batch's rows, padding included) by logits float32[B, C].

    Rows are 'probabilities' float32[B, C] (losses.probabilities), 'label', 'mask', 'index' and, of a run of several
    processes, 'stop' (see parallel.put_batches).
    """
    sums = eval_sums(logits, batch["label"], batch["mask"], logits.shape[-1], loss)
    rows: Batch = {name: batch[name] for name in ("label", "mask", "index", "stop") if name in batch}
    return sums, {"probabilities": probabilities(logits, loss), **rows}


def logits_of(network: ResNet, variables: Variables, images: jax.Array, *, flip: bool) -> jax.Array:
    """Evaluation's logits float32[B, C] of float[B, H, W, 3]; with flip their mean over each image and its mirror."""
    logits = evaluate(network, variables, images)
    return (logits + evaluate(network, variables, images[:, :, ::-1])) / 2 if flip else logits


def reset_sums(state: TrainState) -> TrainState:
    """The state with its metric sums at zero, for after they were logged."""
    return dataclasses.replace(state, sums=jax.tree.map(jnp.zeros_like, state.sums))
