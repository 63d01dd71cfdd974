"""What a run prints besides its progress bar: one screen at the start, a line per evaluation, the result at the end."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline.errors import printable
from input_pipeline.sources import Source
from resnet.train.plan import Plan
from resnet.train.result import Outcome
from resnet.train.state import TrainState


def start(config: ConfigDict, plan: Plan, source: Source, state: TrainState, workdir: Path) -> str:
    """Dataset, network, device, schedule and place, one line each."""
    images = ", ".join(f"{len(split):,} {name}" for name, split in source.splits.items())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    optim = config.optim
    lines = [
        f"Data      {source.name}: {len(source.class_names)} classes, {images} images at {config.data.image_size} px, "
        f"feed {plan.feed}",
        f"Network   {config.model.name}: {parameters:,} parameters",
        f"Device    {device}, {config.run.dtype}",
        f"Schedule  {plan.total_steps:,} steps of {plan.batch_size} ({plan.epoch(plan.total_steps):.1f} epochs), "
        f"{optim.name} {optim.schedule}, peak learning rate {optim.lr:g}",
        f"Run       {printable(str(workdir))}",
    ]
    if source.skipped:
        name, reason = source.skipped[0]
        more = f" and {len(source.skipped) - 1} more" if len(source.skipped) > 1 else ""
        lines.insert(1, f"Skipped   {printable(name)} ({printable(reason)}){more}; all are listed in provenance.json")
    return "\n".join(lines)


def evaluation(step: int, epoch: float, split: str, summary: dict[str, Any], best: bool) -> str:
    """One evaluation in one line; the best so far is marked."""
    top5 = f"  top-5 {summary['top5']:.2%}" if "top5" in summary else ""
    mark = "  (best so far)" if best else ""
    return (
        f"step {step}  epoch {epoch:.1f}  {split} top-1 {summary['top1']:.2%}{top5}  loss {summary['loss']:.4f}{mark}"
    )


def figures(outcome: Outcome) -> str:
    """The figures of an outcome, one line, two where images leak."""
    text = describe(f"{outcome.split} top-1", outcome.summary)
    if outcome.clean:
        text += "\n" + describe(
            f"{outcome.split} top-1 without the {outcome.leaked} images that also stand in another split", outcome.clean
        )
    return text


def describe(name: str, summary: dict[str, Any]) -> str:
    interval = f"95 % interval {summary['top1_low']:.1%} to {summary['top1_high']:.1%}"
    more = f", top-5 {summary['top5']:.2%}" if "top5" in summary else ""
    balanced = f"balanced {summary['balanced_accuracy']:.2%}"
    return f"{name} {summary['top1']:.2%} of {summary['count']:,} ({interval}){more}, {balanced}"


def end(workdir: Path, outcome: Outcome | None, source: str, *, validated: bool) -> str:
    """Where the run lies, how good its best checkpoint is, and what to do with it next.

    validated: whether a validation split chose the checkpoint, which else is the newest.
    """
    where = printable(str(workdir))
    confusion = "confusion.png, " if outcome else ""
    lines = [f"\nDone. The run lies in {where}: metrics.jsonl, curves.png, {confusion}tensorboard/, checkpoints/."]
    if outcome:
        lines.append(figures(outcome))
        chosen = "chosen on the validation split" if validated else "the newest: there is no validation split"
        lines.append(f"(checkpoint of step {outcome.step}, {chosen})")
    data = ".data/demo" if source == "demo" else "DATA_DIR"
    lines += [
        "Next:",
        f"  ./run.sh python -m resnet.study.predict --checkpoint={where} IMAGE...",
        f"  ./run.sh python -m resnet.study.evaluate --checkpoint={where} --data={data}",
        f"  ./run.sh python -m resnet.study.report {where}",
        "A run that stops before its end goes on with the same command.",
    ]
    return "\n".join(lines)
