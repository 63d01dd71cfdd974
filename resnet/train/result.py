"""The end of a run: its best checkpoint on the test split, with and without images that also stand in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from input_pipeline.disk import require_room
from input_pipeline.leaks import Leaks, find_leaks
from input_pipeline.sources import Source
from resnet.train import agreement, hosts, parallel
from resnet.train.checkpoints import Damaged
from resnet.train.evaluation import Predictions, summarise_subset
from resnet.train.predictions import PREDICTIONS_FILE, KeptPredictions, room_of_predictions, write_predictions
from resnet.train.state import TrainState

if TYPE_CHECKING:
    from resnet.train.loop import Run


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The figures of one split.

    clean: the same without the `leaked` images that are byte-identical to images of an earlier split (train before val
    before test). cleanest: without those and the `near_leaked` of which a near copy stands there. Either is None where
    it would leave out nothing, or everything. leaked, near_leaked: None where nobody looked for such. dropped: how many
    images had been left out before the evaluation, under 'exact' and 'near'; empty without drop_leaks.
    """

    split: str
    step: int
    summary: dict[str, Any]
    leaked: int | None = 0
    clean: dict[str, Any] | None = None
    near_leaked: int | None = None
    cleanest: dict[str, Any] | None = None
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """As one line of metrics.jsonl."""
        extra = {name: getattr(self, name) for name in ("clean", "near_leaked", "cleanest", "dropped")}
        kept = {name: value for name, value in extra.items() if value is not None and value != {}}
        return {**self.summary, "checkpoint_step": self.step, "leaked": self.leaked, **kept}


def judge(source: Source, split: str, step: int, predictions: Predictions, leaks: Leaks | None = None) -> Outcome:
    """The outcome on a split of `source`, or on 'all' of it, told again without its leaks (found if not given)."""
    if split == "all":
        return Outcome(split, step, predictions.summary, leaked=None)
    leaks = leaks or find_leaks(source, split)
    without = lambda left_out: summarise_subset(predictions, ~left_out) if not left_out.all() else None  # noqa: E731
    return Outcome(
        split,
        step,
        predictions.summary,
        leaked=int(leaks.exact.sum()),
        clean=without(leaks.exact) if leaks.exact.any() else None,
        near_leaked=int(leaks.near.sum()) if leaks.searched else None,
        cleanest=without(leaks.either) if leaks.near.any() else None,
        dropped={kind: len(ids) for kind, ids in source.dropped.get(split, {}).items()},
    )


def remembered(line: dict[str, Any]) -> Outcome:
    """The outcome that a line of kind 'test' in metrics.jsonl records; lines of earlier versions record less."""
    rest = {name: line.get(name) for name in ("clean", "near_leaked", "cleanest")}
    return Outcome(line["kind"], line["checkpoint_step"], line, line["leaked"], dropped=line.get("dropped", {}), **rest)


def test_run(run: Run, step: int, state: TrainState) -> Outcome | None:
    """Evaluate the best checkpoint on the test split, once per end; the newest where there is no best or it is damaged.

    Writes predictions.npz, the line of kind 'test' and, of up to MOST_CONFUSED classes, confusion.png. None without a
    test split. A finished run that is started again reads its line instead; one that lacks predictions.npz writes that
    anew, and no second line. Raises Interrupted when a signal arrives, and InputError for a disk without room for the
    predictions; nothing was written then.
    """
    # Here, not above: evaluation of a checkpoint uses this file too, and these bring matplotlib and tensorboardX.
    from resnet.train.figures import confusion_pixels, write_confusion
    from resnet.train.writers import read_metrics

    if "test" not in run.source.splits:
        return None
    # A run that was given a new length after it had ended has a line of its earlier end too.
    lines = (line for line in read_metrics(run.workdir) if line["kind"] == "test" and line["step"] == step)
    told = next(lines, None)
    if told and (run.workdir / PREDICTIONS_FILE).exists():
        return remembered(told)
    if hosts.primary():
        # Hours before it is written, and after as many in which others may have filled the disk.
        ids, classes = run.source.splits["test"].ids, len(run.source.class_names)
        needed = room_of_predictions(run.workdir, ids, classes)
        require_room(run.workdir, needed, "predictions of the test images", "then run the same command to resume")
    best = run.progress.best_step
    if best is not None and best != step:
        try:
            agreement.check_whole(run.checkpoints, best)
            like = run.like(best, state)
            state, _ = run.checkpoints.restore(best, like, parallel.state_shardings(run.mesh, like))
        except Damaged as damage:
            hosts.say(
                f"{damage}; it was the best on the validation split: the newest, of step {step}, is tested instead"
            )
            best = None
    chosen = step if best is None else best
    predictions = run.predict("test", state)
    leaks = find_leaks(run.source, "test")
    outcome = judge(run.source, "test", chosen, predictions, leaks)
    ids = run.source.splits["test"].ids
    rows = KeptPredictions(predictions.probabilities, predictions.labels, ids, leaks.either, outcome.step)
    if hosts.primary():
        # Before the line: a run whose line is told has its predictions too, wherever it was killed.
        write_predictions(run.workdir, rows)
        if not told:
            run.writer.write(step, run.plan.epoch(step), "test", outcome.values())
        confusion, names = predictions.summary.get("confusion"), run.source.class_names
        if confusion is not None:
            run.writer.show(step, "test/confusion", confusion_pixels(confusion, names))
            write_confusion(run.workdir / "confusion.png", confusion, names)
    return outcome
