"""curves.png: how the variants learn, and what they look like inside, one colour a variant."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from resnet.study.ablation_config import Study
from resnet.study.ablation_records import Record

FILE = "curves.png"
_INK, _GRID = "#26313d", "#e3e7ec"
Series = list[list[float | None]]


def write_curves(workdir: Path, study: Study, records: Mapping[str, Record]) -> None:
    """Draw WORKDIR/curves.png of the variants that are done: mean over the seeds, and the range between them.

    Test error and training loss against the step; after the last step, by depth: branch over shortcut, gradient norm.
    A seed that diverged is left out, from its first step on.
    """
    figure = Figure(figsize=(11.5, 8), dpi=130, layout="constrained")
    error, loss, ratio, gradient = figure.subplots(2, 2).ravel()
    style(error, "Test error, %", "Step")
    style(loss, "Training loss", "Step")
    style(ratio, "Branch over shortcut, after the last step", "Depth (share of the blocks)")
    style(gradient, "Gradient norm, after the last step", "Depth (share of the blocks)")
    shades = colormaps["tab10" if len(study.variants) <= 10 else "tab20"]
    for number, variant in enumerate(study.variants):
        record = records.get(variant.name)
        if record is None:
            continue
        colour = shades(number % shades.N)
        curves = record.curves
        well = lambda series, curves=curves: [curves.well(row) for row in series]  # noqa: E731
        percent = [[None if share is None else 100 * (1 - share) for share in row] for row in well(curves.test_top1)]
        draw(error, np.array(curves.test_step), percent, colour, variant.name)
        draw(loss, np.array(curves.train_step), well(curves.train_loss), colour, variant.name)
        for axes, quantity in ((ratio, "branch_to_shortcut"), (gradient, "gradient_norm")):
            blocks = {n: v for n, v in record.end.get(quantity, {}).items() if n.startswith("layer")}
            places = np.linspace(0, 1, max(len(blocks), 1))[: len(blocks)]
            draw(axes, places, well(blocks.values()), colour, variant.name)
    gradient.set_yscale("log")
    handles, names = error.get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 6), frameon=False, fontsize=9)
    target = workdir / FILE
    temporary = target.with_name(f".{FILE}.part")
    FigureCanvasAgg(figure).print_png(str(temporary))
    os.replace(temporary, target)


def draw(axes: Axes, places: np.ndarray, series: Series, colour: Any, name: str) -> None:
    """One line with its range: `series` has one row a place, one value a seed in each, None where not finite."""
    values = np.array(series, np.float64)
    kept = np.isfinite(values).any(axis=1) if values.size else np.zeros(0, bool)
    if not kept.any():
        return
    places, values = places[kept], values[kept]
    axes.plot(places, np.nanmean(values, axis=1), color=colour, linewidth=1.6, label=name)
    axes.fill_between(places, np.nanmin(values, 1), np.nanmax(values, 1), color=colour, alpha=0.15, linewidth=0)


def style(axes: Axes, title: str, across: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=11, fontweight="bold")
    axes.set_xlabel(across, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=8)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
