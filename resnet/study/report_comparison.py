"""Runs beside each other: results with their intervals, curves in one figure, and what differs between them."""

import math
from typing import Any

import numpy as np

from input_pipeline.errors import printable
from resnet.study import report_figures, report_tables
from resnet.study.report_repeats import fingerprint_of, repeats
from resnet.study.report_speed import speed_of
from resnet.study.report_tables import not_finite
from resnet.study.report_template import render
from resnet.study.run_record import RunRecord
from resnet.train.code_digests import changed
from resnet.train.metrics import wilson_interval

# What training is measured against, besides the labels; test and validation know none of these.
TARGET_KEYS = ("optim.label_smoothing", "optim.target_threshold", "data.mixup", "data.cutmix", "data.class_weights")


def comparison(runs: list[RunRecord]) -> str:
    """The page of at least two runs. The first is what the others are compared with."""
    names = run_names(runs)
    labels = [report_figures.label(name) for name in names]
    script, places = report_figures.embedded(report_figures.curves(runs, labels))
    shown = {run.config["optim.loss"] for run in runs}
    known = [name for name in report_tables.LOSS_NAMES if name in shown]
    kinds = [*known, *sorted(shown.difference(known))]
    context = {
        "title": f"{len(runs)} runs compared",
        "names": names,
        "figures": places,
        "curve_names": [name for name, _ in report_figures.PANELS if name in places],
        "legend": report_figures.keys(names),
        "thins": report_figures.thins(runs),
        "crowded": report_figures.crowded(runs),
        "rows": [
            row(run, key, runs[0] if number else None)
            for number, (run, key) in enumerate(zip(runs, report_figures.keys(names), strict=True))
        ],
        "not_finite": [(name, told) for run, name in zip(runs, names, strict=True) if (told := not_finite(run))],
        "other_targets": other_targets(runs),
        "losses": [(name, report_tables.loss_name(name)) for name in kinds],
        "differing": differing(runs),
        "repeats": repeats(runs, names),
        "other_data": other_data(runs),
        "other_sources": other_sources(runs),
    }
    return render("comparison.html", context, figure_script=script)


def other_data(runs: list[RunRecord]) -> str:
    """In what way the runs' test images are not the same, as words of a sentence; '' where they are."""
    images: dict[tuple[Any, ...], set[str]] = {}
    for run in runs:
        split = tuple(run.config.get(key) for key in ("data.folds", "data.fold", "data.split_seed"))
        images.setdefault(split, set()).add(fingerprint_of(run))
    if any(len(prints) > 1 for prints in images.values()) or len({run.class_names for run in runs}) > 1:
        return "different data"
    return "different splits" if len(set.union(*images.values())) > 1 else ""


def run_names(runs: list[RunRecord]) -> list[str]:
    """As much of the end of each run's path as tells them apart; runs named twice are numbered."""
    paths = [run.folder.resolve().parts for run in runs]
    longest = max(map(len, paths))
    for length in range(1, longest + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return [printable(name) for name in names]
    # One folder given twice: no end of its path tells them apart.
    return [printable(f"{parts[-1]} ({number})") for number, parts in enumerate(paths, start=1)]


def other_targets(runs: list[RunRecord]) -> list[str]:
    """The keys that make training losses of one kind incomparable and on which the runs differ."""
    return [key for key in TARGET_KEYS if len({str(run.config.get(key)) for run in runs}) > 1]


def other_sources(runs: list[RunRecord]) -> list[str]:
    """The files of the code that are not the same in all runs and at all their steps; none where a run has not noted
    its own, or all changed alike."""
    histories = [code_history(run) for run in runs]
    if not all(histories) or all(history == histories[0] for history in histories):
        return []
    noted = [sources for history in histories for _, sources in history]
    return sorted({printable(file) for each in noted[1:] for file in changed(noted[0], each)})


def code_history(run: RunRecord) -> list[tuple[int, list[str]]]:
    """(steps done before, the sources from there on) for each code that a run noted; what is damaged is left out."""
    later = run.provenance.get("new_code")
    history = []
    for entry in (run.provenance | {"after_step": 0}, *(later if isinstance(later, list) else ())):
        step, lines = (entry.get("after_step"), entry.get("sources")) if isinstance(entry, dict) else (None, None)
        if type(step) is int and isinstance(lines, list) and all(isinstance(line, str) for line in lines):
            history.append((step, lines))
    return history


def row(run: RunRecord, key: report_figures.Key, first: RunRecord | None) -> dict[str, Any]:
    """One run's line of the table of results. first: the run that it is compared with; None for that run itself."""
    speed, best, test = speed_of(run), run.best_validation, run.test or {}
    return {
        "name": key.name,
        "key": key,
        "loss": run.config["optim.loss"],
        "test": run.test,
        "clean": test.get("cleanest") or test.get("clean"),
        "best": best,
        "model": run.config.get("model.name"),
        "parameters": speed.parameters if speed else None,
        "images_per_second": speed.images_per_second if speed else None,
        "device": f"{run.provenance.get('devices', 1)} × {run.provenance.get('device', 'unknown')}",
        "steps": run.last_step,
        "difference": paired_difference(first, run) if first else None,
    }


def paired_difference(first: RunRecord, other: RunRecord) -> tuple[float, float, float] | None:
    """(difference in top-1, lowest, highest of its 95 % interval), other minus first, over the same test images.

    The interval is that of paired proportions (`newcombe_interval`), narrower than two separate intervals suggest. None
    where the runs' test images or labels differ, or predictions are missing.
    """
    one, two = first.predictions, other.predictions
    if one is None or two is None or one.ids != two.ids or first.class_names != other.class_names:
        return None
    if not np.array_equal(one.labels, two.labels):
        return None
    right = [
        np.isfinite(each.probabilities).all(axis=1) & (each.probabilities.argmax(axis=1) == each.labels)
        for each in (one, two)
    ]
    count = len(one.labels)
    if not count:
        return None
    both, gained, lost = (int(cell.sum()) for cell in (right[0] & right[1], right[1] & ~right[0], right[0] & ~right[1]))
    low, high = newcombe_interval(both, gained, lost, count - both - gained - lost)
    return (gained - lost) / count, low, high


def newcombe_interval(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """The 95 % interval of a difference of paired proportions, (gained - lost) / all, from numbers of images.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired data",
    Statistics in Medicine 17, 2635-2650, method 10: distances to Wilson's limits of the two proportions, squared and
    added, less what their correlation phi explains, with half the images off phi's numerator where it is positive.
    This is no test: where few images decide, it may leave out zero although McNemar's exact test does not reject.
    """
    count = both + gained + lost + neither
    share, other = (both + gained) / count, (both + lost) / count
    low, high = wilson_interval(both + gained, count)
    other_low, other_high = wilson_interval(both + lost, count)
    excess = both * neither - gained * lost
    spread = math.sqrt((both + gained) * (lost + neither) * (both + lost) * (gained + neither))
    # The spread is 0 where a run has all right or all wrong: nothing can go together then.
    phi = min(excess, max(excess - count / 2, 0)) / spread if spread else 0.0

    def distance(one: float, two: float) -> float:
        return math.sqrt(one**2 - 2 * phi * one * two + two**2)

    difference = (gained - lost) / count
    lower = difference - distance(share - low, other_high - other)
    return lower, difference + distance(high - share, other - other_low)


def differing(runs: list[RunRecord]) -> list[tuple[str, list[str]]]:
    """(key, value in each run) of every key of the configuration on which the runs are not all alike."""
    keys = sorted({key for run in runs for key in run.config})
    rows = []
    for key in keys:
        values = [run.config.get(key, "(absent)") for run in runs]
        if any(value != values[0] for value in values):
            rows.append((key, [report_tables.shown(value) for value in values]))
    return rows
