"""The interactive figures of an ablation's report, drawn by bokeh; each variant tagged with its place in the recipe."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, FactorRange, Range1d
from bokeh.models.annotations import Span

from resnet.study.ablation_config import Study
from resnet.study.ablation_records import FAILED, Record
from resnet.study.ablation_statistics import figures, loss_kinds
from resnet.study.report_figures import POINTS, Key, add_hover, curve, panel, thinned

# Lines of more variants' seeds, or of more seeds in all, hide each other.
_VARIANTS_WITH_SEEDS, _SEEDS_DRAWN = 8, 40
# Pixels: of the figures by variant, for each of them and around.
_ROW, _AROUND = 26, 80
Records = Mapping[str, Record]
Values = Sequence[float | None]


def all_figures(study: Study, records: Records, keys: Sequence[Key]) -> dict[str, Any]:
    """Those that have something to show: 'errors', 'differences', 'error', 'loss', 'ratio', 'gradient'."""
    done = {key.name: (number, key) for number, key in enumerate(keys) if key.name in records}
    loss = "Training loss" + (" (of different losses)" if len(loss_kinds(study, records)) > 1 else "")
    found = {
        "errors": errors_by_variant(study, records, done),
        "differences": differences(study, records, done),
        "error": curves("Test error, %", records, done, "test_step", "test_top1"),
        "loss": curves(loss, records, done, "train_step", "train_loss"),
        "ratio": by_depth("Branch over shortcut, last step", records, done, "branch_to_shortcut"),
        "gradient": by_depth("Gradient norm, last step", records, done, "gradient_norm", y_axis_type="log"),
    }
    return {name: plot for name, plot in found.items() if plot is not None}


def draws_seeds(records: Records) -> bool:
    """Whether curves have a thin line for each seed."""
    counts = [len(record.seeds) for record in records.values() if record.status != FAILED]
    return len(counts) <= _VARIANTS_WITH_SEEDS and sum(counts) <= _SEEDS_DRAWN and max(counts, default=1) > 1


def numbers(values: Values) -> np.ndarray:
    """float64 of the values, NaN for None."""
    return np.array([np.nan if value is None else value for value in values], np.float64)


def rows_of(names: Sequence[str], title: str, x_label: str) -> Any:
    """A figure with a line of its own for each variant, the first at the top."""
    plot = panel(title, x_label, _ROW * len(names) + _AROUND, y_range=FactorRange(factors=names[::-1]))
    plot.ygrid.grid_line_color = None
    plot.min_border_right = 20
    return plot


def errors_by_variant(study: Study, records: Records, done: Mapping[str, tuple[int, Key]]) -> Any | None:
    """Every seed's test error at the last step, and their mean."""
    found = {name: figures(records[name], None) for name in done}
    names = [name for name, own in found.items() if own.mean is not None]
    if not names:
        return None
    plot = rows_of(names, "Test error of every seed, last step", "%")
    drawn = []
    for name in names:
        number, key = done[name]
        pairs = zip(records[name].seeds, found[name].last, strict=True)
        seeds = [(f"seed {seed}", value) for seed, value in pairs if value is not None]
        points = [*seeds, ("mean", found[name].mean)]
        source = ColumnDataSource(
            {
                "x": [value for _, value in points],
                "name": [name] * len(points),
                "what": [what for what, _ in points],
                "size": [*[7] * len(seeds), 16],
                "marker": [*["circle"] * len(seeds), "dash"],
                "angle": [*[0.0] * len(seeds), np.pi / 2],
            }
        )
        look = {"size": "size", "marker": "marker", "angle": "angle", "color": key.colour, "fill_alpha": 0.6}
        drawn.append(plot.scatter("x", "name", source=source, line_width=2, tags=[number], **look))
    add_hover(plot, drawn, [("", "@name, @what"), ("test error", "@x{0.00} %")])
    return plot


def differences(study: Study, records: Records, done: Mapping[str, tuple[int, Key]]) -> Any | None:
    """The mean of the paired differences to the baseline with their interval, where there is one."""
    found = {name: figures(records[name], records.get(study.baseline)) for name in done}
    names = [name for name, own in found.items() if own.difference is not None]
    if not names:
        return None
    plot = rows_of(names, f"Difference to {study.baseline}, 95 % interval", "percentage points")
    ends = [end for own in found.values() if own.difference is not None for end in (own.interval or (own.difference,))]
    lowest, highest = min(0.0, *ends), max(0.0, *ends)
    room = 0.05 * (highest - lowest) or 1.0
    plot.x_range = Range1d(start=lowest - room, end=highest + room)
    plot.add_layout(Span(location=0, dimension="height", line_color="#808080", line_dash="dashed"))
    drawn = []
    for name in names:
        own, (number, key) = found[name], done[name]
        low, high = own.interval or (own.difference, own.difference)
        told = f"{low:+.2f} to {high:+.2f}" if own.interval else "none"
        source = ColumnDataSource(
            {"x": [own.difference], "low": [low], "high": [high], "name": [name], "told": [told], "pairs": [own.pairs]}
        )
        line = plot.segment("low", "name", "high", "name", source=source, color=key.colour, line_width=3)
        point = plot.scatter("x", "name", source=source, color=key.colour, size=10)
        line.tags = point.tags = [number]
        drawn.append(point)
    tooltips = [("", "@name"), ("difference", "@x{+0.00} points"), ("interval", "@told"), ("pairs", "@pairs")]
    add_hover(plot, drawn, tooltips)
    return plot


def curves(title: str, records: Records, done: Mapping[str, tuple[int, Key]], steps: str, values: str) -> Any | None:
    """A quantity of a record's curves against the step: the mean of the seeds that did not diverge, and each thinly."""
    lines: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in done:
        own = records[name].curves
        rows = [numbers(own.well(row)) for row in getattr(own, values)]
        series = np.array(rows) if rows else np.zeros((0, 0))
        lines[name] = (np.array(getattr(own, steps)), 100 * (1 - series) if values == "test_top1" else series)
    return drawn_lines(panel(title, "Step", 300), lines, done, "step", seeds=draws_seeds(records))


def by_depth(
    title: str, records: Records, done: Mapping[str, tuple[int, Key]], quantity: str, **settings: Any
) -> Any | None:
    """A diagnosis after the last step against the place of the block: 0 the first, 1 the last."""
    lines: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in done:
        parts = records[name].end.get(quantity, {})
        blocks = [records[name].curves.well(each) for part, each in parts.items() if part.startswith("layer")]
        series = np.array([numbers(each) for each in blocks]) if blocks else np.zeros((0, 0))
        lines[name] = (np.linspace(0, 1, max(len(blocks), 1))[: len(blocks)], series)
    plot = panel(title, "Depth (share of the blocks)", 300, **settings)
    return drawn_lines(plot, lines, done, "depth", seeds=draws_seeds(records))


def drawn_lines(
    plot: Any,
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    done: Mapping[str, tuple[int, Key]],
    across: str,
    *,
    seeds: bool,
) -> Any | None:
    """`plot` with a line for each variant's (places[N], series[N, K]); None where none has a number."""
    drawn = []
    for name, (places, series) in lines.items():
        kept = np.isfinite(series).any(axis=1) if series.size else np.zeros(0, bool)
        if not kept.any():
            continue
        number, key = done[name]
        places, series = places[kept], series[kept]
        mean = np.nanmean(series, axis=1)
        if len(mean) > POINTS:
            chosen = thinned(mean.tolist(), POINTS)
            places, series, mean = places[chosen], series[chosen], mean[chosen]
        if seeds and series.shape[1] > 1:
            own = plot.multi_line(
                [places.tolist()] * series.shape[1], series.T.tolist(), color=key.colour, line_width=0.8, line_alpha=0.5
            )
            own.tags = [number]
        source = ColumnDataSource({"x": places, "y": mean})
        drawn.append(curve(plot, source, key.colour, tags=[number], name=name, line_dash=list(key.dash)))
    if not drawn:
        return None
    add_hover(plot, drawn, [("", "$name"), (across, "@x{0.[00]}"), ("mean", "@y{0.0000}")])
    return plot
