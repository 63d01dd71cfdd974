"""The end of a run: its best checkpoint on the test split, with and without images that also stand in training."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from input_pipeline.leaks import byte_identical
from input_pipeline.sources import Source
from resnet.train import parallel
from resnet.train.evaluation import Predictions, summarise_subset
from resnet.train.predictions import PREDICTIONS_FILE, KeptPredictions, write_predictions
from resnet.train.state import TrainState

if TYPE_CHECKING:
    from resnet.train.loop import Run


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The figures of one split. clean: the same without the `leaked` images that are byte-identical to training images;
    None where there are none."""

    split: str
    step: int
    summary: dict[str, Any]
    leaked: int = 0
    clean: dict[str, Any] | None = None

    def values(self) -> dict[str, Any]:
        """As one line of metrics.jsonl."""
        extra = {"leaked": self.leaked, "clean": self.clean} if self.clean else {"leaked": self.leaked}
        return {**self.summary, "checkpoint_step": self.step, **extra}


def leaked(source: Source, split: str) -> np.ndarray:
    """bool[N]: which images of `split` are byte for byte in another split too (training first of all)."""
    found = np.zeros(len(source.splits[split]), bool)
    for name, other in source.splits.items():
        if name != split:
            found |= byte_identical(other, source.splits[split])
    return found


def judge(split: str, step: int, predictions: Predictions, leaks: np.ndarray) -> Outcome:
    """The outcome on a split, told twice where some but not all of its images leak."""
    if not leaks.any() or leaks.all():
        return Outcome(split, step, predictions.summary, int(leaks.sum()))
    return Outcome(split, step, predictions.summary, int(leaks.sum()), summarise_subset(predictions, ~leaks))


def test_run(run: Run, step: int, state: TrainState) -> Outcome | None:
    """Evaluate the best checkpoint (the newest where nothing was validated) on the test split, once per run.

    Writes predictions.npz, the line of kind 'test' and confusion.png. None without a test split. A finished run that is
    started again reads its line instead; one that lacks predictions.npz writes that anew, and no second line. Raises
    Interrupted when a signal arrives; nothing was written then.
    """
    # Here, not above: evaluation of a checkpoint uses this file too, and these bring matplotlib and tensorboardX.
    from resnet.train.figures import write_confusion
    from resnet.train.writers import read_metrics

    if "test" not in run.source.splits:
        return None
    told = next((line for line in read_metrics(run.workdir) if line["kind"] == "test"), None)
    if told and (run.workdir / PREDICTIONS_FILE).exists():
        return Outcome("test", told["checkpoint_step"], told, told["leaked"], told.get("clean"))
    best = run.progress.best_step
    if best is not None and best != step:
        state, _ = run.checkpoints.restore(best, state, parallel.replicated(run.mesh))
    chosen = step if best is None else best
    predictions = run.predict("test", state)
    leaks = leaked(run.source, "test")
    outcome = judge("test", chosen, predictions, leaks)
    ids = run.source.splits["test"].ids
    # Before the line: a run whose line is told has its predictions too, wherever it was killed.
    write_predictions(
        run.workdir, KeptPredictions(predictions.probabilities, predictions.labels, ids, leaks, outcome.step)
    )
    if not told:
        run.writer.write(step, run.plan.epoch(step), "test", outcome.values())
    write_confusion(run.workdir / "confusion.png", predictions.summary["confusion"], run.source.class_names)
    return outcome
