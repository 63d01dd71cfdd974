"""The report's tables as plain rows: classes, leaks, configuration, what was found in the data."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.errors import InputError, printable
from resnet.study.run_record import Line, RunRecord, changed_keys

# Images up to which the data are looked over unasked: about 7 s of one core (docs/doctor.md).
LOOKED_OVER_UNASKED = 10_000
LONGEST_NAME = 80
# What config.optim.loss means in every figure called loss.
LOSS_NAMES = {"softmax": "cross-entropy in nats", "sigmoid": "binary cross-entropy in nats, mean over the classes"}


def loss_name(kind: str) -> str:
    """What a figure called loss is; of a loss of somebody's own its name in the configuration."""
    return LOSS_NAMES.get(kind, printable(kind))


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """One class of the test split; None where a figure has no meaning (nothing was said, or is, of the class)."""

    index: int
    name: str
    count: int
    precision: float | None
    recall: float | None
    f1: float | None


def class_rows(class_names: tuple[str, ...], confusion: list[list[int]], per_class: list[Any]) -> list[ClassRow]:
    """One row a class from the confusion matrix (rows true, columns predicted).

    per_class: the line's accuracies. An image without a softmax stands in no cell but counts against its class' recall,
    which is why the class' size comes from there where it can: hits over accuracy.
    """
    counts = np.asarray(confusion, np.int64)
    hits, said = np.diagonal(counts), counts.sum(axis=0)
    rows = []
    for index, name in enumerate(class_names):
        size = int(counts[index].sum())
        accuracy = per_class[index] if index < len(per_class) else None
        if accuracy and hits[index]:
            size = round(int(hits[index]) / accuracy)
        precision = float(hits[index] / said[index]) if said[index] else None
        recall = float(hits[index] / size) if size else None
        f1 = float(2 * hits[index] / (said[index] + size)) if size else None
        rows.append(ClassRow(index, shortened(name), size, precision, recall, f1))
    return rows


def shortened(name: str) -> str:
    """`name` without control characters, in at most LONGEST_NAME characters: its beginning and its end."""
    shown = printable(name)
    half = LONGEST_NAME // 2
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: half - 1]}…{shown[-half:]}"


def result_rows(line: Line) -> list[tuple[str, Line]]:
    """(what was counted, figures) of a test line: all images and, where some leak, those that do not."""
    rows = [("all test images", line)]
    if line.get("clean"):
        rows.append((f"without the {line['leaked']:,} that are also in another split", line["clean"]))
    if line.get("cleanest"):
        these = "these and " if line.get("clean") else ""
        rows.append((f"without {these}the {line['near_leaked']:,} that have a copy there", line["cleanest"]))
    return rows


def leak_sentence(line: Line) -> str:
    """What the test line says of images that stand in another split too."""
    leaked, count = int(line.get("leaked") or 0), int(line["count"])
    if leaked == count:
        return "Every test image is also in another split, byte for byte: the figure measures memory, not vision."
    told = "No test image is byte for byte in another split."
    if leaked:
        share = f"{leaked / count:.1%}"
        told = f"{leaked:,} of {count:,} test images are also in another split, byte for byte ({share})."
    if near := int(line.get("near_leaked") or 0):
        told += f" {near:,} more have a copy there, re-encoded, scaled or the like."
    dropped = sum(line.get("dropped", {}).values())
    return told + (f" {dropped:,} that leak were left out beforehand (config.data.drop_leaks)." if dropped else "")


def not_finite(run: RunRecord) -> str:
    """What a run's lines say of losses that are no numbers and of steps that changed nothing; '' where all is well."""
    rated = [line for line in run.lines if "loss" in line]
    lost = [line for line in rated if not finite(line["loss"])]
    told = []
    if lost:
        told.append(
            f"The loss was NaN or infinite in {len(lost):,} of {len(rated):,} lines, first at step {lost[0]['step']:,}."
        )
    if skipped := int(max((line.get("bad_steps") or 0 for line in run.of_kind("train")), default=0)):
        told.append(f"{skipped:,} training steps were not finite in loss, gradient or statistics and changed nothing.")
    return " ".join(told)


def configuration(run: RunRecord) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """((key, default, value) of what the run set otherwise, (key, value) of all)."""
    changed = [(key, shown(default), shown(value)) for key, default, value in changed_keys(run.config)]
    return changed, [(key, shown(value)) for key, value in sorted(run.config.items())]


def shown(value: Any) -> str:
    """A configuration's value as text: null is what the named network has."""
    if value is None:
        return "as the network defines it"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(shown(one) for one in value) + ")"
    return printable(str(value))[:400]


def flattened(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """('dataset.classes', '5') for every leaf of the provenance; long lists by their length."""
    rows: list[tuple[str, str]] = []
    for key, value in sorted(tree.items()):
        if isinstance(value, dict):
            rows += flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list) and len(value) > 4:
            rows.append((f"{prefix}{key}", f"{len(value):,} entries; provenance.json lists them"))
        else:
            rows.append((f"{prefix}{key}", "none" if value in (None, []) else shown(value)))
    return rows


def doctor_findings(run: RunRecord, data_dir: str, forced: bool) -> Any:
    """The doctor's report on the run's folder of images (it keeps its own cache, by the files' stamps).

    Raises InputError, with what to do, where there is no folder or it is large and nobody asked.
    """
    # Here, not above: it imports what looks at pictures.
    from input_pipeline.doctor import look_over
    from input_pipeline.sources import DEMO_DIR

    source = run.config.get("data.source")
    folder = data_dir or run.config.get("data.dir") or (DEMO_DIR if source == "demo" else "")
    if source not in ("folder", "demo"):
        raise InputError("the doctor checks folders of images, and these data are not one")
    if not Path(folder).is_dir():
        raise InputError(f"the data are not at {printable(str(folder))}; say where they are with --data=DATA_DIR")
    images = sum(run.provenance.get("dataset", {}).get("images", {}).values())
    if images > LOOKED_OVER_UNASKED and not forced:
        raise InputError(f"{images:,} images take a while: --doctor checks them")
    return look_over(folder, progress=False)


def percent(share: Any, digits: int = 2) -> str:
    """0.87 as '87.00 %'; '–' for what is no number."""
    return f"{100 * share:.{digits}f} %" if finite(share) else "–"


def decimal(value: Any, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if finite(value) else "–"


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def interval(line: Line) -> str:
    """The 95 % interval of a line's top-1."""
    return f"{percent(line.get('top1_low'), 1)} to {percent(line.get('top1_high'), 1)}"


def amount(number: Any, unit: str = "") -> str:
    """12,345,678 as '12.35 M', with the unit behind it."""
    if not finite(number):
        return "–"
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.2f} {letter}{unit}"
    return f"{number:.0f} {unit}".strip()
