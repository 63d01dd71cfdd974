"""curves.png: how the variants learn, and what they look like inside, one colour a variant."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from input_pipeline.whole_files import beside
from resnet.study.ablation_config import Study
from resnet.study.ablation_records import Record
from resnet.study.ablation_statistics import figures, loss_kinds
from resnet.study.colours import BLACK, RUNS

FILE = "curves.png"
_INK, _GRID, _PALE = "#26313d", "#e3e7ec", "#c3cad3"
# A second eight are dashed.
_COLOURS = (BLACK, *RUNS)
_DASHES = ("solid", "dashed")
# More variants than these have no look of their own: the others are pale and without a name.
NAMED = len(_COLOURS) * len(_DASHES)
# Ranges of more seeds' lines over each other hide the lines.
_RANGES = 8
# What the width of the figure holds of the legend's letters.
_LETTERS = 150
Series = list[list[float | None]]


def write_curves(workdir: Path, study: Study, records: Mapping[str, Record]) -> None:
    """Draw WORKDIR/curves.png of the variants that are done: mean over the seeds, and the range between them.

    Test error and training loss against the step; after the last step, by depth: branch over shortcut, gradient norm.
    A seed that diverged is left out, from its first step on. Of more than NAMED variants the baseline and those of
    least test error have a colour; ranges are drawn of up to 8 variants.
    """
    figure = Figure(figsize=(11.5, 8), dpi=130, layout="constrained")
    error, loss, ratio, gradient = figure.subplots(2, 2).ravel()
    style(error, "Test error, %", "Step")
    style(loss, loss_title(study, records), "Step")
    style(ratio, "Branch over shortcut, after the last step", "Depth (share of the blocks)")
    style(gradient, "Gradient norm, after the last step", "Depth (share of the blocks)")
    done = [variant.name for variant in study.variants if variant.name in records]
    looks = {
        name: (_COLOURS[n % len(_COLOURS)], _DASHES[n // len(_COLOURS)]) for n, name in enumerate(named(study, records))
    }
    ranges = len(done) <= _RANGES
    # Pale ones first: the others lie over them.
    for name in sorted(done, key=lambda name: name in looks):
        record = records[name]
        look = Look(*looks.get(name, (_PALE, "solid")), name if name in looks else "", ranges)
        curves = record.curves
        well = lambda series, curves=curves: [curves.well(row) for row in series]  # noqa: E731
        percent = [[None if share is None else 100 * (1 - share) for share in row] for row in well(curves.test_top1)]
        draw(error, np.array(curves.test_step), percent, look)
        draw(loss, np.array(curves.train_step), well(curves.train_loss), look)
        for axes, quantity in ((ratio, "branch_to_shortcut"), (gradient, "gradient_norm")):
            blocks = {n: v for n, v in record.end.get(quantity, {}).items() if n.startswith("layer")}
            places = np.linspace(0, 1, max(len(blocks), 1))[: len(blocks)]
            draw(axes, places, well(blocks.values()), look)
    gradient.set_yscale("log")
    told = "Lines: mean over the seeds" + ("; bands: their range, not an interval" if ranges else "")
    if others := len(done) - len(looks):
        told += f"; pale: {others} variants of larger test error, without a label here"
    figure.suptitle(told, fontsize=9, color=_INK, x=0.01, horizontalalignment="left")
    handles, names = error.get_legend_handles_labels()
    if handles:
        columns = max(1, min(6, len(names), _LETTERS // (max(map(len, names)) + 7)))
        figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    with beside(workdir / FILE) as part:
        FigureCanvasAgg(figure).print_png(str(part))


def named(study: Study, records: Mapping[str, Record]) -> list[str]:
    """The variants with a look of their own, in the recipe's order, the baseline first where it is done."""
    done = [variant.name for variant in study.variants if variant.name in records]

    def rank(name: str) -> tuple[bool, float]:
        last = figures(records[name], None).mean
        return name != study.baseline, math.inf if last is None else last

    kept = set(sorted(done, key=rank)[:NAMED])
    return sorted((name for name in done if name in kept), key=lambda name: name != study.baseline)


def loss_title(study: Study, records: Mapping[str, Record]) -> str:
    """What the losses are of; several kinds of loss have no common axis."""
    kinds = loss_kinds(study, records)
    if len(kinds) < 2:
        return "Training loss"
    return f"Training loss ({' and '.join(kinds) if len(kinds) == 2 else f'{len(kinds)} kinds'}: not comparable)"


@dataclasses.dataclass(frozen=True)
class Look:
    """How a variant is drawn. name: in the legend, '' for none there."""

    colour: str
    dash: str
    name: str
    ranges: bool


def draw(axes: Axes, places: np.ndarray, series: Series, look: Look) -> None:
    """One line, and its range: `series` has one row a place, one value a seed in each, None where not finite."""
    values = np.array(series, np.float64)
    kept = np.isfinite(values).any(axis=1) if values.size else np.zeros(0, bool)
    if not kept.any():
        return
    places, values = places[kept], values[kept]
    label = look.name or "_nolegend_"
    axes.plot(places, np.nanmean(values, axis=1), color=look.colour, linestyle=look.dash, linewidth=1.6, label=label)
    if look.ranges:
        low, high = np.nanmin(values, 1), np.nanmax(values, 1)
        axes.fill_between(places, low, high, color=look.colour, alpha=0.15, linewidth=0)


def style(axes: Axes, title: str, across: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=11, fontweight="bold")
    axes.set_xlabel(across, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", colors=_INK, labelsize=8)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
