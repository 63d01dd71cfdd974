"""Where a non-finite value arose: a step done again with every layer's output and every gradient looked at."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.errors import InputError, printable
from input_pipeline.sources import Split
from resnet.model.inspection import recorded_outputs
from resnet.model.network import ResNet
from resnet.train import hosts
from resnet.train.advancing import norm_of
from resnet.train.checkpoints import Checkpoints
from resnet.train.evaluation import Interrupted
from resnet.train.freezing import Names
from resnet.train.progress import EpochBar
from resnet.train.state import TrainState, Variables
from resnet.train.steps import Batch, Recipe, loss_sum, part_gradient, part_key, split_parts, with_mirrored
from resnet.train.workdir import without_nan, write_json

if TYPE_CHECKING:
    from resnet.train.loop import Run
    from resnet.train.plan import Plan
    from resnet.train.stepping import Stepping

FILE = "diverged.json"


class Diverged(InputError):
    """Too many non-finite steps in a row."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was seen of one array: kind is 'output', 'loss', 'gradient', 'statistics' or 'norm'.

    bad: how many of its `size` values are NaN or infinite. low, high, mean: of the others, NaN where there are none.
    """

    kind: str
    name: str
    bad: int
    size: int
    low: float
    high: float
    mean: float

    def words(self) -> str:
        """Such as 'the output of layer1_0/conv1 (32 of 4,096 values)'."""
        what = {
            "output": f"the output of {self.name}",
            "loss": "the loss",
            "gradient": f"the gradient of {self.name}",
            "statistics": f"the new running statistics {self.name}",
            "norm": "the norm of the gradient, whose values are finite",
        }[self.kind]
        return f"{what} ({self.bad:,} of {self.size:,} values)"


def examine(
    network: ResNet, recipe: Recipe, state: TrainState, batch: Batch, step: int, *, learning: Names | None = None
) -> list[Reading]:
    """Do train step number `step` (counted from 0) on `batch` again from `state`, which stays as it is.

    network, learning: its stage's; gradients are those of what learns, new statistics those that move.
    The readings come in the order in which values depend on each other: the images, the layers' outputs, the loss, the
    gradients (those of the last layers first), the new running statistics, the gradient's norm. With accumulation they
    are those of the first part that has a non-finite value, else of the last; the norm is the whole batch's.
    The step is compiled anew, with the readings in it and each layer computed by itself, by lax: values are rounded
    otherwise, and where XLA leaves open what comes out (the greater of 0 and NaN), a value may be NaN here and was not
    there, or the other way round.
    """
    batch = with_mirrored(recipe, batch, jax.random.key(recipe.seed), step)
    key = jax.random.fold_in(jax.random.key(recipe.seed), step)
    # Layers inside what is computed again, or by oneDNN in one call, could not be looked at.
    network = network.clone(remat="none", backend=jax.lax.conv_general_dilated)
    parts = recipe.accumulation
    totals: Any = None
    cut = split_parts(batch, parts, network.spec)
    names: list[str] = []
    readings: list[Reading] = []

    @jax.jit
    def look(params: Variables, batch_stats: Variables, part: Batch, key: jax.Array) -> Any:
        with recorded_outputs() as outputs:
            loss_sum(network, recipe, params, batch_stats, part, key)
        # A list outside the traced function: jit hands dicts back in alphabetical order.
        names[:] = [name for name, _ in outputs]
        gradient, weight, moved, sums = part_gradient(
            network, recipe, params, batch_stats, part, key, learning=learning
        )
        seen = [output for _, output in outputs], sums["loss"], gradient, moved
        return jax.tree.map(describe, seen), (gradient, weight)

    for number in range(parts):
        part = {name: rows[number] for name, rows in cut.items()}
        seen, found = look(state.params, state.batch_stats, part, part_key(key, parts, number))
        totals = found if totals is None else jax.tree.map(jnp.add, totals, found)
        if first_bad(readings) is None:
            readings = in_order(names, *seen)
    total, weight = totals
    return [*readings, reading("norm", "gradient", describe(norm_of(total) / weight))]


def describe(x: jax.Array) -> jax.Array:
    """float32[5] of an array: how many values are not finite, how many there are; least, greatest, mean of the rest."""
    x = x.astype(jnp.float32).ravel()
    finite = jnp.isfinite(x)
    rest = jnp.where(finite, x, jnp.nan)
    figures = (jnp.sum(~finite), x.size, jnp.nanmin(rest), jnp.nanmax(rest), jnp.nanmean(rest))
    return jnp.stack([jnp.asarray(figure, jnp.float32) for figure in figures])


def reading(kind: str, name: str, figures: jax.Array) -> Reading:
    bad, size, low, high, mean = np.asarray(jax.device_get(figures)).tolist()
    return Reading(kind, name, int(bad), int(size), low, high, mean)


def in_order(
    names: list[str], outputs: list[jax.Array], loss: jax.Array, gradients: Variables, statistics: Variables
) -> list[Reading]:
    """The readings of one part; a gradient stands where its layer does, from the last layer to the first."""
    place = {name: number for number, name in enumerate(names)}
    layer = lambda pair: -place.get(pair[0].rpartition("/")[0], -1)  # noqa: E731
    return [
        *(reading("output", name, figures) for name, figures in zip(names, outputs, strict=True)),
        reading("loss", "loss", loss),
        *(reading("gradient", name, figures) for name, figures in sorted(by_name(gradients), key=layer)),
        *(reading("statistics", name, figures) for name, figures in by_name(statistics)),
    ]


def by_name(tree: Variables) -> list[tuple[str, jax.Array]]:
    """('layer1_0/conv1/kernel', leaf) for every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [("/".join(str(entry.key) for entry in path), leaf) for path, leaf in leaves]


def first_bad(readings: list[Reading]) -> Reading | None:
    """The first reading with a value that is not finite."""
    return next((reading for reading in readings if reading.bad), None)


def examples(split: Split, index: np.ndarray) -> list[str]:
    """What a batch was made of: the files' paths, the examples' names where they are no files."""
    return [(split.paths or split.ids)[i] for i in index.tolist()]


def check_debug(plan: Plan, workdir: Path, *, begun: bool) -> None:
    """Raise InputError where config.run.debug has nothing to show or cannot show it."""
    name = printable(str(workdir))
    if not begun:
        raise InputError(f"config.run.debug=True replays a run, and there is none in {name}; omit the key")
    if plan.transfer.mode == "probe" or hosts.several():
        raise InputError("config.run.debug=True replays a run of one process, not a probe; omit the key")


def diverged(run: Stepping, last: int, state: TrainState) -> Diverged:
    """The error that ends a run whose steps up to `last` (counted from 1) were non-finite, max_bad_steps in a row.

    None of them changed a parameter, so the first is done again from `state` as it was then; steps that were under way
    already and turned out finite would have moved it by a little. What is seen is written to WORKDIR/diverged.json.
    Of several processes and of a probe, which `check_debug` refuses too, nothing is done again.
    """
    limit = run.config.run.max_bad_steps
    first = last - limit + 1
    if hosts.several() or run.plan.transfer.mode == "probe":
        alone = "; one process alone, started with --config.run.debug=True, shows that step layer by layer"
        return Diverged(
            f"steps {first} to {last} had a loss, gradient or statistic that is not finite and were skipped; lower "
            "--config.optim.lr or set --config.optim.clip_norm. The last checkpoint is intact"
            + ("" if run.plan.transfer.mode == "probe" else alone)
        )
    with jax.transfer_guard("allow"):
        readings, fed = done_again(run, first, state)
    cause, file = first_bad(readings), run.workdir / FILE
    figures = without_nan([dataclasses.asdict(reading) for reading in readings])
    write_json(file, {"first_step": first, "last_step": last, "examples": fed, "readings": figures})
    where = f"in {cause.words()}" if cause else "gone when the step was repeated"
    more = f" and {len(fed) - 1} more" if len(fed) > 1 else ""
    return Diverged(
        f"steps {first} to {last} had a loss, gradient or statistic that is not finite and were skipped; in step "
        f"{first} the first such value is {where}, its batch is {printable(fed[0])}{more} (all in "
        f"{printable(str(file))}); lower --config.optim.lr or set --config.optim.clip_norm. The last checkpoint is "
        "intact; --config.run.debug=True shows that step layer by layer"
    )


def done_again(run: Stepping, number: int, state: TrainState) -> tuple[list[Reading], list[str]]:
    """(what the layers make of step `number`, counted from 1, in its stage and from `state`; its batch's examples)."""
    stage, step = run.plan.stage(number - 1), number - 1
    batch = run.streamed(next(run.batches(step)))
    readings = examine(stage.network, run.plan.recipe, state, batch, step, learning=stage.learning)
    return readings, examples(run.source.splits["train"], run.plan.order.indices(step))


def replay(run: Run, fresh: TrainState) -> int:
    """What --config.run.debug=True does: go on to the first non-finite step and print what its layers made of it.

    The steps are those of the run itself, from its last checkpoint on, none where it stopped early at that; nothing is
    logged or saved. The exit code: 0, or 128 + a signal's number.
    """
    with Checkpoints(run.workdir, keep=run.config.run.keep) as run.checkpoints:
        start, state = run.resume(fresh)
    try:
        state = run.prepare(start, state)
    except Interrupted:
        return run.interruption.exit_code
    found, state = first_bad_step(run, start, state)
    if run.interruption.requested:
        return run.interruption.exit_code
    if found is None:
        last = last_step(run, start)
        every = f"Every step from {start + 1} to {last} has a finite loss, gradient and statistics."
        print(every if start < last else f"The run ended at step {last}, the step of its last checkpoint.")
        return 0
    # A non-finite step changes no parameter: this state's are those it began with.
    print(table(found, *done_again(run, found, state), run.workdir))
    return 0


def last_step(run: Run, step: int) -> int:
    """Of a run resumed at `step`: early stopping, which steps alone do not bring about, may have ended it there."""
    return step if run.stopped_early() else run.plan.total_steps


def first_bad_step(run: Run, step: int, state: TrainState) -> tuple[int | None, TrainState]:
    """(the first non-finite step from `state`, of `step` steps, on; a state with the parameters that it began with).

    None where all are finite or a signal came. A state saved in the midst of a row of such steps leads to the row's
    first: its parameters are still those. Steps count from 1.
    """
    row = int(jax.device_get(state.bad_steps))
    if row:
        return step - row + 1, state
    total = last_step(run, step)
    with EpochBar(run.plan.total_steps, run.plan.steps_per_epoch, start_step=step) as run.bar:
        while step < total and not run.interruption.requested:
            # Of one step each under config.run.debug.
            dispatch = run.dispatch_at(step)
            state, pulse = run.call(dispatch, run.staged(step, state))
            step = dispatch.last
            seen = {name: np.ravel(values)[0] for name, values in jax.device_get(pulse).items()}
            run.bar.update(step, run.plan.batch_size, loss=float(seen["loss"]))
            if int(seen["bad_steps"]):
                return step, state
    return None, state


def table(step: int, readings: list[Reading], fed: list[str], workdir: Path) -> str:
    """The readings, one line each, under the step and its examples; the first non-finite one is marked."""
    cause = first_bad(readings)
    lines = [f"Step {step} of {printable(str(workdir))}, on:", *(f"  {printable(name)}" for name in fed), ""]
    width = max(len(reading.name) for reading in readings)
    lines.append(f"{'':12}{'':{width}} {'not finite':>12} {'of':>12} {'min':>12} {'max':>12} {'mean':>12}")
    for reading in readings:
        mark = "  <- first" if reading is cause else ""
        figures = " ".join(f"{value:12.4g}" for value in (reading.low, reading.high, reading.mean))
        lines.append(f"{reading.kind:12}{reading.name:{width}} {reading.bad:12,} {reading.size:12,} {figures}{mark}")
    return "\n".join(lines)
