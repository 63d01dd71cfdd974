"""The report's interactive figures, drawn by bokeh; the page carries bokeh's code in itself."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.embed import components
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter
from bokeh.plotting import figure
from bokeh.resources import Resources

from input_pipeline.errors import printable
from resnet.study.colours import MARK, RUNS, TRAIN, VAL
from resnet.study.run_record import Line, RunRecord

# Runs beyond the colours have them again, dashed otherwise: as SVG's stroke-dasharray and bokeh's line_dash have it.
DASHES = ((), (6,), (2, 4), (2, 4, 6, 4), (6, 4, 2, 4))
# More points than the pixels that they are drawn on: a longer curve is thinned out. Many runs share the page's 5 MB.
POINTS, POINTS_OF_MANY = 1_200, 400
# Of at most so many points every one gets its dot.
DOTTED = 60
PANELS = (("loss", "Loss"), ("top1", "Top-1 accuracy"), ("learning_rate", "Learning rate"))


@dataclasses.dataclass(frozen=True)
class Key:
    """How a run, or a kind of line, is drawn. dash: lengths in pixels, () for a line drawn through."""

    name: str
    colour: str
    dash: tuple[int, ...] = ()


def keys(names: Sequence[str]) -> list[Key]:
    """A key for each run of several; none looks like another up to 35."""
    count = len(RUNS)
    return [Key(name, RUNS[number % count], DASHES[number // count % len(DASHES)]) for number, name in enumerate(names)]


def crowded(runs: Sequence[RunRecord]) -> bool:
    """Whether dashes tell runs from each other, and no longer training from validation, which then stands alone."""
    return len(runs) > len(RUNS)


def bokeh_script() -> str:
    """bokeh's own code (1.3 MB) for a page that asks nobody for it."""
    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)


def embedded(figures: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """(script, {name: div}) that put the figures into a page."""
    if not figures:
        return "", {}
    script, places = components(figures, wrap_script=False)
    return script, dict(places)


def thins(runs: Sequence[RunRecord]) -> bool:
    """Whether a curve of these runs is too long to have all its points."""
    limit = POINTS_OF_MANY if crowded(runs) else POINTS
    return any(len(run.of_kind(kind)) > limit for run in runs for kind in ("train", "val"))


def curves(runs: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any]:
    """Loss, top-1 and learning rate against the epoch: one figure for each that has points.

    Of one run: training, validation and the best validation. Of several: `keys` a run, validation drawn through,
    training dashed; where they are `crowded` training only of a run without validations. The page holds the legend: a
    figure has no room that no curve may cross.
    """
    found = {}
    for key, title in PANELS:
        plot = panel(title, "Epoch")
        if len(runs) > 1:
            few = not crowded(runs)
            lines = [
                line
                for number, (run, own) in enumerate(zip(runs, keys(names), strict=True))
                for line in draw_of_several(plot, key, run, own, number, few)
            ]
        else:
            lines = draw(plot, key, runs[0])
        if not lines:
            continue
        add_hover(
            plot, lines, [("", "$name"), ("epoch", "@x{0.00}"), ("step", "@step"), (title.lower(), "@y{0.0000[00]}")]
        )
        finish(plot, key)
        found[key] = plot
    return found


def draw(plot: Any, key: str, run: RunRecord) -> list[Any]:
    """The curves of one run and the mark of its best validation; the lines to hover over."""
    lines = []
    for kind, colour in (("train", TRAIN), ("val", VAL)):
        source = points(run, kind, key)
        if source:
            lines.append(curve(plot, source, colour, name=kind))
    best = run.best_validation
    if best and has(best, key):
        plot.scatter([best["epoch"]], [best[key]], marker="star", size=15, color=MARK)
    return lines


def draw_of_several(plot: Any, key: str, run: RunRecord, own: Key, number: int, few: bool) -> list[Any]:
    """The curves of one run among others, tagged with its number for the page's legend; the lines to hover over."""
    lines: list[Any] = []
    for kind in ("val", "train"):
        if lines and not few:
            break
        source = points(run, kind, key, POINTS if few else POINTS_OF_MANY)
        if source:
            dash = (6,) if few and kind == "train" and key != "learning_rate" else own.dash
            lines.append(
                curve(plot, source, own.colour, name=f"{own.name}, {kind}", line_dash=list(dash), tags=[number])
            )
    return lines


def curve(plot: Any, source: ColumnDataSource, colour: str, *, tags: Sequence[int] = (), **look: Any) -> Any:
    """The line, with a dot a point where these are few; both tagged."""
    drawn = [plot.line("x", "y", source=source, color=colour, line_width=2, **look)]
    if len(source.data["x"]) <= DOTTED:
        drawn.append(plot.scatter("x", "y", source=source, color=colour, size=5))
    for each in drawn:
        each.tags = list(tags)
    return drawn[0]


def points(run: RunRecord, kind: str, key: str, limit: int = POINTS) -> ColumnDataSource | None:
    """One curve's points, NaN where a figure was not finite, which breaks the line; None without any that was."""
    found = [
        (line["epoch"], line[key] if has(line, key) else math.nan, line["step"])
        for line in run.of_kind(kind)
        if key in line
    ]
    if all(math.isnan(value) for _, value, _ in found):
        return None
    if len(found) > limit:
        found = [found[place] for place in thinned([value for _, value, _ in found], limit)]
    return ColumnDataSource(dict(zip(("x", "y", "step"), zip(*found, strict=True), strict=True)))


def thinned(values: Sequence[float], limit: int) -> list[int]:
    """Places of the lowest and highest of each of limit / 2 equal stretches, rising: a spike stays to be seen.

    Where a stretch holds a NaN its first one is kept too, the first and last value always.
    """
    array = np.asarray(values, np.float64)
    kept = {0, len(array) - 1}
    for places in np.array_split(np.arange(len(array)), limit // 2):
        missing = np.isnan(array[places])
        if missing.any():
            kept.add(int(places[missing.argmax()]))
        if not missing.all():
            kept |= {int(places[np.nanargmin(array[places])]), int(places[np.nanargmax(array[places])])}
    return sorted(kept)


def has(line: Line, key: str) -> bool:
    """Whether a line of metrics.jsonl has a number there: what was not finite is null."""
    return isinstance(line.get(key), int | float)


def panel(title: str, x_label: str, height: int = 270, **settings: Any) -> Any:
    """An empty figure in the page's style; page.js gives it the colours of a dark page."""
    plot: Any = figure(title=title, height=height, sizing_mode="stretch_width", tools=["box_zoom", "reset"], **settings)
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.xaxis.axis_label = x_label
    plot.background_fill_color = plot.border_fill_color = plot.outline_line_color = None
    plot.title.text_font_size = "14px"
    plot.grid.grid_line_alpha = 0.25
    for axis in plot.axis:
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
        axis.axis_line_alpha = axis.major_tick_line_alpha = 0.5
    return plot


def add_hover(plot: Any, renderers: list[Any], tooltips: list[tuple[str, str]]) -> None:
    hover = HoverTool(renderers=renderers, tooltips=tooltips)
    plot.add_tools(hover)
    plot.toolbar.active_inspect = hover


def finish(plot: Any, key: str) -> None:
    """The axes' formats."""
    if key == "top1":
        plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
    if key == "learning_rate":
        plot.yaxis.formatter = NumeralTickFormatter(format="0[.][0000000]")


def reliability(bins: list[Line]) -> Any:
    """Accuracy against confidence, bin by bin (Guo et al. 2017, Figure 1), from a test line's 'calibration'.

    A bar below the diagonal: the network was surer than it was right. Fainter bars have fewer images.
    """
    full = [one for one in bins if one.get("count") and has(one, "accuracy") and has(one, "confidence")]
    plot = panel("Reliability", "Confidence", 320, x_range=(0, 1), y_range=(0, 1))
    plot.yaxis.axis_label = "Accuracy"
    most = max((one["count"] for one in full), default=1)
    source = ColumnDataSource(
        {
            "x": [(one["lower"] + one["upper"]) / 2 for one in full],
            "y": [one["accuracy"] for one in full],
            "width": [(one["upper"] - one["lower"]) * 0.92 for one in full],
            "confidence": [one["confidence"] for one in full],
            "count": [one["count"] for one in full],
            "alpha": [0.3 + 0.7 * one["count"] / most for one in full],
        }
    )
    bars = plot.vbar("x", "width", "y", source=source, color=VAL, fill_alpha="alpha", line_alpha=0.6)
    plot.line([0, 1], [0, 1], color=MARK, line_dash="dashed", line_width=1.5)
    tooltips = [("images", "@count"), ("accuracy", "@y{0.0 %}"), ("mean confidence", "@confidence{0.0 %}")]
    add_hover(plot, [bars], tooltips)
    for axis in plot.axis:
        axis.formatter = NumeralTickFormatter(format="0 %")
    return plot


def speed(run: RunRecord) -> Any | None:
    """Images a second against the epoch; None for a run that logged none."""
    source = points(run, "train", "images_per_second")
    if not source:
        return None
    plot = panel("Training speed", "Epoch", 240)
    plot.y_range.start = 0
    line = curve(plot, source, VAL, name="train")
    plot.yaxis.axis_label = "Images per second"
    add_hover(plot, [line], [("epoch", "@x{0.00}"), ("step", "@step"), ("images per second", "@y{0,0.0}")])
    return plot


def label(name: str) -> str:
    """A run's name for a legend and a tooltip, the only text in a figure that a user chose."""
    # bokeh writes tooltips as text, not as HTML; the brackets go because its data stand inside a script element.
    return printable(name).replace("<", "‹").replace(">", "›").replace("&", "+")[:60]
