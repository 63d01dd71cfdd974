"""Pictures of a run: learning curves and the confusion matrix, as PNG files.

Drawn through matplotlib's Figure objects, never pyplot, whose global state leaks between callers.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from input_pipeline.errors import InputError, printable
from input_pipeline.whole_files import beside
from resnet.train.configuration import BEST_METRICS
from resnet.train.writers import METRICS_FILE, read_metrics

CURVES_FILE = "curves.png"
_TRAIN, _VAL, _INK, _GRID = "#8a97a8", "#1f5fa8", "#26313d", "#e3e7ec"
_ANNOTATED_CLASSES = 20  # up to here the numbers are written into the cells
_NAMED_CLASSES = 60  # up to here every class has its name at the axes
_LONGEST_NAME = 22
_SMOOTHED_FROM = 60  # training points; a curve of fewer is drawn as it is


def write_curves(workdir: str | os.PathLike[str], best_metric: str = "top1") -> Path:
    """Draw WORKDIR/curves.png from its metrics.jsonl and return its path.

    Against the epoch: 'loss' and 'top1' (0..1) of the lines of kind train and val, and 'learning_rate' of train.
    Training curves of many points are shown as they are, faintly, under their running mean. Marked is the validation
    that was best by `best_metric`, of equal ones the latest (configuration.BEST_METRICS). Values that are null are
    left out. Raises InputError if there is no metrics.jsonl or nothing of these in it.
    """
    records = [record for record in read_metrics(workdir) if record.get("kind") in ("train", "val")]
    panels = [
        (key, title)
        for key, title in (("loss", "Loss"), ("top1", "Top-1 accuracy"), ("learning_rate", "Learning rate"))
        if any(record.get(key) is not None for record in records)
    ]
    path = Path(workdir) / METRICS_FILE
    if not panels:
        raise InputError(
            f"{printable(str(path))} has no loss, top1 or learning_rate of kind train or val: nothing to draw"
        )
    figure = Figure(figsize=(4.6 * len(panels), 3.7), dpi=150, layout="constrained")
    best = _best(records, best_metric)
    for axes, (key, title) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        _style(axes, title)
        axes.set_xlabel("Epoch", color=_INK)
        _draw_panel(axes, key, records, best)
    target = Path(workdir) / CURVES_FILE
    _save(figure, target)
    return target


def write_confusion(path: str | os.PathLike[str], confusion: Any, class_names: Sequence[str]) -> None:
    """Draw a confusion matrix (rows true, columns predicted; counts [C, C], int) to `path`, a PNG file.

    The colour of a cell is its share of the row, so that rare classes are seen as well as frequent ones. Up to 20
    classes the counts stand in the cells, beyond that the colours go by the root of the share; up to 60 all names stand
    at the axes, beyond that class numbers. Raises ValueError if the matrix is not square or the names do not fit it.
    """
    _save(_confusion(confusion, class_names, dpi=150), Path(path))


def confusion_pixels(confusion: Any, class_names: Sequence[str]) -> np.ndarray:
    """`write_confusion`'s picture, smaller, as uint8[H, W, 3]."""
    canvas = FigureCanvasAgg(_confusion(confusion, class_names, dpi=80))
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _confusion(confusion: Any, class_names: Sequence[str], dpi: int) -> Figure:
    counts = np.asarray(confusion, dtype=np.int64)
    num_classes = len(class_names)
    if counts.shape != (num_classes, num_classes):
        raise ValueError(f"a confusion matrix of shape {counts.shape} for {num_classes} class names")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(14.0, max(4.8, 2.6 + 0.42 * num_classes))
    figure = Figure(figsize=(side + 1.0, side), dpi=dpi, layout="constrained")
    axes = figure.subplots()
    # Where no counts are written, the root brings out the confusions, each a few per cent at most.
    norm = PowerNorm(1.0 if num_classes <= _ANNOTATED_CLASSES else 0.5, vmin=0.0, vmax=1.0)
    image = axes.imshow(shares, cmap="Blues", norm=norm)
    correct = int(np.trace(counts))
    _style(axes, f"Confusion: {correct:,} of {int(counts.sum()):,} right", grid=False)
    axes.set_xlabel("Predicted class", color=_INK)
    axes.set_ylabel("True class", color=_INK)
    if num_classes <= _NAMED_CLASSES:
        names = [_shortened(name) for name in class_names]
        size = 8 if num_classes <= _ANNOTATED_CLASSES else 6
        crowded = num_classes * max(map(len, names)) > 40
        turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        axes.set_yticks(range(num_classes), names, fontsize=size)
        axes.set_xticks(range(num_classes), names, fontsize=size, **turned)
    if num_classes <= _ANNOTATED_CLASSES:
        _annotate(axes, counts, shares)
    bar = figure.colorbar(image, ax=axes, aspect=35, pad=0.02, format=PercentFormatter(1.0, decimals=0))
    bar.ax.tick_params(colors=_INK, labelsize=8)
    bar.set_label("Share of the true class", color=_INK)
    bar.outline.set_visible(False)
    return figure


def _best(records: list[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """The last of the validation records with the best value of `metric`; None if none has one."""
    rated = [record for record in reversed(records) if record["kind"] == "val" and record.get(metric) is not None]
    choose = min if BEST_METRICS.get(metric) else max
    return choose(rated, key=lambda record: record[metric]) if rated else None


def _draw_panel(axes: Axes, key: str, records: list[dict[str, Any]], best: dict[str, Any] | None) -> None:
    """One quantity against the epoch: train, validation, and the best epoch."""
    for kind, colour in (("train", _TRAIN), ("val", _VAL)):
        points = [(r["epoch"], r[key]) for r in records if r["kind"] == kind and r.get(key) is not None]
        if not points:
            continue
        epochs, values = np.array(points, dtype=np.float64).T
        if key == "learning_rate":
            axes.plot(epochs, values, color=_INK, linewidth=1.6)
            continue
        marker = {"marker": "o", "markersize": 3.0} if len(points) <= _SMOOTHED_FROM else {}
        if kind == "train" and len(points) > _SMOOTHED_FROM:
            axes.plot(epochs, values, color=colour, linewidth=0.7, alpha=0.35)
            values = _running_mean(values)
        axes.plot(epochs, values, color=colour, linewidth=1.8, label=kind, **marker)  # type: ignore[arg-type]
    if key == "learning_rate":
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))
        axes.set_ylim(bottom=0)
        return
    if key == "top1":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if best is not None and best.get(key) is not None:
        shown = f"{best[key]:.1%}" if key == "top1" else f"{best[key]:.4g}"
        label = f"best epoch {best['epoch']:.4g}: {shown}"
        axes.plot(best["epoch"], best[key], "*", color="#d9822b", markersize=12, zorder=5, label=label, linestyle="")
    axes.legend(frameon=False, fontsize=8, labelcolor=_INK, loc="upper right" if key == "loss" else "lower right")


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The centred mean over about a thirtieth of the curve, narrower at the ends."""
    half = max(1, len(values) // 60)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _annotate(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    """Write each count into its cell, light on dark; zeros stay empty."""
    size = 9 if len(counts) <= 10 else 6.5
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.55 else _INK
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=colour, fontsize=size)


def _shortened(name: str) -> str:
    """`name` in at most 22 characters: its beginning and its end, which tell names of one family apart."""
    name = printable(name)
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 9]}…{name[-8:]}"
    return name.replace("$", r"\$")  # a bare dollar sign starts a formula


def _style(axes: Axes, title: str, grid: bool = True) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_TRAIN)
    axes.tick_params(colors=_INK, labelsize=8)
    if grid:
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> None:
    """Write the picture in one piece."""
    with beside(path) as part:
        FigureCanvasAgg(figure).print_png(str(part))
