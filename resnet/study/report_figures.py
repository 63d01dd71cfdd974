"""The report's interactive figures, drawn by bokeh; the page carries bokeh's code in itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.embed import components
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter
from bokeh.plotting import figure
from bokeh.resources import Resources

from input_pipeline.errors import printable
from resnet.study.run_record import Line, RunRecord

TRAIN, VAL, MARK = "#8a97a8", "#3b82c4", "#d9822b"
# Told apart by colour-blind eyes too (Okabe and Ito 2008), without black, which a dark page would swallow.
RUNS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a800")
# A curve of more points is thinned out: 1,200 are more than the pixels it is drawn on.
POINTS = 1_200
# Of at most so many points every one gets its dot.
DOTTED = 60
PANELS = (("loss", "Loss"), ("top1", "Top-1 accuracy"), ("learning_rate", "Learning rate"))


def bokeh_script() -> str:
    """bokeh's own code (1.3 MB) for a page that asks nobody for it."""
    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)


def embedded(figures: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """(script, {name: div}) that put the figures into a page."""
    if not figures:
        return "", {}
    script, places = components(figures, wrap_script=False)
    return script, dict(places)


def curves(runs: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any]:
    """Loss, top-1 and learning rate against the epoch: one figure for each that has points.

    Of one run: training, validation and the best validation. Of several: a colour a run, validation drawn through,
    training dashed.
    """
    found = {}
    for key, title in PANELS:
        plot = panel(title, "Epoch")
        several = len(runs) > 1
        lines = [
            line
            for number, (run, name) in enumerate(zip(runs, names, strict=True))
            for line in (draw_of_several(plot, key, run, name, number) if several else draw(plot, key, run))
        ]
        if not lines:
            continue
        add_hover(
            plot, lines, [("", "@name"), ("epoch", "@x{0.00}"), ("step", "@step"), (title.lower(), "@y{0.0000[00]}")]
        )
        finish(plot, key, several)
        found[key] = plot
    return found


def draw(plot: Any, key: str, run: RunRecord) -> list[Any]:
    """The curves of one run and the mark of its best validation; the lines to hover over."""
    lines = []
    for kind, colour in (("train", TRAIN), ("val", VAL)):
        source = points(run, kind, key, kind)
        if source:
            legend = {} if key == "learning_rate" else {"legend_label": kind}
            lines.append(curve(plot, source, colour, **legend))
    best = run.best_validation
    if best and has(best, key):
        label = f"best: epoch {best['epoch']:.4g}"
        plot.scatter([best["epoch"]], [best[key]], marker="star", size=15, color=MARK, legend_label=label)
    return lines


def draw_of_several(plot: Any, key: str, run: RunRecord, name: str, number: int) -> list[Any]:
    """The curves of one run among others; the lines to hover over."""
    lines: list[Any] = []
    for kind in ("val", "train"):
        source = points(run, kind, key, f"{name}, {kind}")
        if source:
            # The legend names a run once; without a validation its training does.
            legend = {} if lines else {"legend_label": name}
            dash = "dashed" if kind == "train" and key != "learning_rate" else "solid"
            lines.append(curve(plot, source, RUNS[number % len(RUNS)], line_dash=dash, **legend))
    return lines


def curve(plot: Any, source: ColumnDataSource, colour: str, **look: Any) -> Any:
    if len(source.data["x"]) <= DOTTED:
        dots = {"legend_label": look["legend_label"]} if "legend_label" in look else {}
        plot.scatter("x", "y", source=source, color=colour, size=5, **dots)
    return plot.line("x", "y", source=source, color=colour, line_width=2, **look)


def points(run: RunRecord, kind: str, key: str, name: str) -> ColumnDataSource | None:
    """One curve's points; None where there are none."""
    found = [(line["epoch"], line[key], line["step"], name) for line in run.of_kind(kind) if has(line, key)]
    if len(found) > POINTS:
        found = [found[int(place)] for place in np.linspace(0, len(found) - 1, POINTS)]
    return (
        ColumnDataSource(dict(zip(("x", "y", "step", "name"), zip(*found, strict=True), strict=True)))
        if found
        else None
    )


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


def finish(plot: Any, key: str, several: bool) -> None:
    """Axis formats and the legend."""
    if key == "top1":
        plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
    if key == "learning_rate":
        plot.yaxis.formatter = NumeralTickFormatter(format="0[.][0000000]")
    if plot.legend:
        legend = plot.legend[0]
        legend.location = "bottom_right" if key == "top1" else "top_right"
        legend.background_fill_alpha, legend.border_line_color = 0.0, None
        legend.padding, legend.margin, legend.spacing = 2, 4, 0
        legend.label_text_font_size = "12px"
        legend.click_policy = "hide" if several else "none"


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
    source = points(run, "train", "images_per_second", "train")
    if not source:
        return None
    plot = panel("Training speed", "Epoch", 240)
    plot.y_range.start = 0
    line = curve(plot, source, VAL)
    plot.yaxis.axis_label = "Images a second"
    add_hover(plot, [line], [("epoch", "@x{0.00}"), ("step", "@step"), ("images a second", "@y{0,0.0}")])
    return plot


def label(name: str) -> str:
    """A run's name for a legend and a tooltip, the only text in a figure that a user chose."""
    # bokeh writes tooltips as text, not as HTML; the brackets go because its data stand inside a script element.
    return printable(name).replace("<", "‹").replace(">", "›").replace("&", "+")[:60]
