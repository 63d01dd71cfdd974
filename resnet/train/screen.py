"""What a run prints besides its progress bar: one screen at the start, a line per evaluation, the result at the end."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline.doctor_summary import leak_lines, warning_lines
from input_pipeline.errors import printable
from input_pipeline.shell_words import shell_word
from input_pipeline.sources import DEMO_DIR, Source
from resnet.model.counts import count
from resnet.model.onednn_library import description
from resnet.train.freezing import Stage, partition
from resnet.train.plan import Plan, schedule_settings
from resnet.train.provenance import one_cpu, tf32_products
from resnet.train.result import Outcome
from resnet.train.schedules import never_drops
from resnet.train.state import TrainState


def start(config: ConfigDict, plan: Plan, source: Source, state: TrainState, workdir: Path) -> str:
    """Dataset, network, device, schedule and place, one line each."""
    images = ", ".join(f"{len(split):,} {name}" for name, split in source.splits.items())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    dtype = f"{config.run.dtype}{convolutions(config)}{products(config)}"
    multiply_adds = count(plan.network.spec, config.data.image_size).multiply_adds
    optim = config.optim
    lines = [
        f"Data      {source.name}: {len(source.class_names)} classes, {images} images at {sides(config)} px, "
        f"feed {'resident' if plan.resident else 'stream'}",
        f"Network   {config.model.name}: {parameters:,} parameters, {multiply_adds:,} multiply-adds an image",
        f"Device    {jax.device_count()} x {jax.devices()[0].device_kind}, {dtype}",
        f"Schedule  {plan.total_steps:,} steps of {plan.batch_size} ({plan.epoch(plan.total_steps):.1f} epochs), "
        f"{optim.name} {optim.schedule}, peak learning rate {optim.lr:g}",
        f"Run       {printable(str(workdir))}",
    ]
    if plan.pretrained:
        lines[2:2] = [f"Weights   {plan.pretrained.describe()}", *advice(config, plan)]
    if len(plan.stages) > 1 or plan.stages[0].learning is not None:
        lines.insert(-1, f"Learning  {learning(plan, state)}")
    lines[-1:-1] = [f"Note      {note}" for note in without_effect(config, plan)]
    lines[1:1] = held_out(source)
    lines[1:1] = [f"Leaks     {line}" for line in leak_lines(source)]
    lines[1:1] = [f"Doctor    {line}" for line in warning_lines(source)]
    lines[1:1] = skipped(source, "all are listed in provenance.json")
    return "\n".join(lines)


def sides(config: ConfigDict) -> str:
    """'224', or '176 (224 in evaluation)'."""
    side, other = config.data.image_size, config.data.eval_image_size
    return f"{side} ({other} in evaluation)" if other not in (0, side) else f"{side}"


def held_out(source: Source) -> list[str]:
    """A note where the data bring train and val alone: people who lay data out so often mean val as the test split."""
    if source.made != ("test",) or "val" not in source.splits:
        return []
    return [
        f"Note      the data have no test split: {len(source.splits['test']):,} of their training images are held out "
        "as one; --config.data.test_fraction=0 trains on these too, and the result is val's"
    ]


def skipped(source: Source, listed: str) -> list[str]:
    """The line of what was left out because it cannot be read, none where nothing was. listed: where all of it is."""
    if not source.skipped:
        return []
    name, reason = source.skipped[0]
    more = f" and {len(source.skipped) - 1} more" if len(source.skipped) > 1 else ""
    return [f"Skipped   {printable(name)} ({printable(reason)}){more}; {listed}"]


def convolutions(config: ConfigDict) -> str:
    """Whose they are, where it is a question: small networks are twice as fast by oneDNN, which may be missing."""
    return f", convolutions by {description()}" if one_cpu() and config.run.dtype == "float32" else ""


def products(config: ConfigDict) -> str:
    """What float32 means for a GPU's convolutions, where it is not what it says."""
    coarse = config.run.dtype == "float32" and tf32_products()
    return " (products in TF32; with JAX_DEFAULT_MATMUL_PRECISION=highest in float32)" if coarse else ""


def advice(config: ConfigDict, plan: Plan) -> list[str]:
    """A line where the images are not of the size that the weights were trained at."""
    pretrained, side = plan.pretrained, config.data.image_size
    if pretrained is None or pretrained.image_size == side:
        return []
    cost = (pretrained.image_size / side) ** 2
    return [
        f"Note      the weights expect {pretrained.image_size} px and get {side}; "
        f"--config.data.image_size={pretrained.image_size} is likely better and costs {cost:.1f} times the time"
    ]


def without_effect(config: ConfigDict, plan: Plan) -> list[str]:
    """What the configuration says that so short a run does not come to. No errors: a flag may shorten any recipe."""
    notes = []
    optim, patience = config.optim, config.run.early_stopping
    if never_drops(schedule_settings(config), plan.steps_per_epoch, plan.total_steps):
        since = " after the warm-up" if optim.warmup_epochs else ""
        notes.append(
            f"none of config.optim.step_epochs={tuple(optim.step_epochs)!r} lies within the run's "
            f"{plan.epoch(plan.total_steps):.3g} epochs: the learning rate stays at {optim.lr:g}{since}"
        )
    # The one after the last step finds the run at its end; the first has no earlier one to be worse than.
    evaluations = (plan.total_steps - 1) // plan.eval_every
    if patience > 0 and evaluations <= patience:
        notes.append(
            f"config.run.early_stopping={patience} cannot end this run: it takes {patience + 1} evaluations before "
            f"the last step, and config.run.eval_every={config.run.eval_every:g} gives {evaluations}"
        )
    return notes


def learning(plan: Plan, state: TrainState) -> str:
    """How many parameters learn, stage by stage."""
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(partition(state.params, s.learning)[0])) for s in plan.stages]
    parts = [
        f"{size:,} parameters" + (f" from epoch {plan.epoch(stage.start):.1f}" if stage.start else "")
        for size, stage in zip(sizes, plan.stages, strict=True)
    ]
    return ", ".join(parts)


def entered(stage: Stage, plan: Plan) -> str:
    """The line at the start of a later stage."""
    blocks = sorted({name.split("/")[0] for name in stage.learning or ()})
    return f"step {stage.start}  epoch {plan.epoch(stage.start):.1f}  learning from here on: {', '.join(blocks)}"


def evaluation(
    step: int, epoch: float, split: str, summary: dict[str, Any], best: bool, best_metric: str = "top1"
) -> str:
    """One evaluation in one line, with what 'best' goes by; the best so far is marked."""
    top5 = f"  top-5 {summary['top5']:.2%}" if "top5" in summary else ""
    mark = "  (best so far)" if best else ""
    chosen_by = ""
    if best_metric not in ("top1", "loss") and summary.get(best_metric) is not None:
        chosen_by = f"  {best_metric} {summary[best_metric]:.4f}"
    figures = f"top-1 {summary['top1']:.2%}{top5}  loss {summary['loss']:.4f}{chosen_by}"
    return f"step {step}  epoch {epoch:.1f}  {split} {figures}{mark}"


def figures(outcome: Outcome) -> str:
    """The figures of an outcome: one line, one more without the images that leak, one more without near copies."""
    name = f"{outcome.split} top-1"
    lines = [describe(name, outcome.summary)]
    if outcome.clean:
        which = f"the {outcome.leaked} images that are also in another split"
        lines.append(describe(f"{name} without {which}", outcome.clean))
    if outcome.cleanest:
        leaked = "these and " if outcome.clean else ""
        which = f"{leaked}the {outcome.near_leaked} that have a copy there (re-encoded, scaled …)"
        lines.append(describe(f"{name} without {which}", outcome.cleanest))
    if any(outcome.dropped.values()):
        exact, near = outcome.dropped["exact"], outcome.dropped["near"]
        lines.append(f"(left out beforehand, also in another split: {exact} byte for byte, {near} as copies)")
    return "\n".join(lines)


def describe(name: str, summary: dict[str, Any]) -> str:
    interval = f"95 % interval {summary['top1_low']:.1%} to {summary['top1_high']:.1%}"
    more = f", top-5 {summary['top5']:.2%}" if "top5" in summary else ""
    balanced = f"balanced {summary['balanced_accuracy']:.2%}"
    return f"{name} {summary['top1']:.2%} of {summary['count']:,} ({interval}){more}, {balanced}"


def end(workdir: Path, outcome: Outcome | None, data: ConfigDict, *, validated: bool) -> str:
    """Where the run lies, how good its best checkpoint is, and what to do with it next.

    data: the section of the configuration. validated: whether a validation split chose the checkpoint, which else is
    the newest.
    """
    where = printable(str(workdir))
    confusion = "confusion.png, " if outcome and "confusion" in outcome.summary else ""
    lines = [f"\nDone. The run is in {where}: metrics.jsonl, curves.png, {confusion}tensorboard/, checkpoints/."]
    if outcome:
        lines.append(figures(outcome))
        chosen = "chosen on the validation split" if validated else "the newest"
        lines.append(f"(checkpoint of step {outcome.step}, {chosen})")
    run, place = shell_word(str(workdir)), shell_word(data_place(data))
    lines += [
        "Next:",
        f"  ./run.sh python -m resnet.study.predict --checkpoint={run} IMAGE...",
        f"  ./run.sh python -m resnet.study.evaluate --checkpoint={run} --data={place}",
        f"  ./run.sh python -m resnet.study.report {run}",
        "If a run stops before its end, the same command resumes it.",
    ]
    return "\n".join(lines)


def data_place(data: ConfigDict) -> str:
    """What evaluation's --data takes for the data of the configuration's section `data`."""
    if data.source.startswith("tfds:"):
        return str(data.source)  # Evaluation looks for it where the run had it.
    return data.dir or DEMO_DIR
