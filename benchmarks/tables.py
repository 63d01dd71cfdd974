"""The speed tables of README.md and docs/*.md, made of benchmarks/results/*.json.

    python -m benchmarks.tables              # writes them anew
    python -m benchmarks.tables --check      # exit code 1, with the difference, where a page says something else

A table stands between <!-- speed: NAME --> and <!-- end of speed -->, lines of their own; NAME is one of TABLES. What
stands between them is replaced and nothing else.
"""

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import comparisons, record
from benchmarks.comparisons import Comparison
from benchmarks.record import Record
from input_pipeline.errors import InputError, printable
from resnet import command

ROOT = Path(__file__).resolve().parent.parent
END = "<!-- end of speed -->"
MARKED = re.compile(rf"^<!-- speed: (.*?) -->\n(.*?)^{END}$", re.MULTILINE | re.DOTALL)


def figure(value: float | None) -> str:
    """Three figures or all before the point: 0.971, 45.4, 1,290."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """A table that lines up where letters are of one width. right: columns of numbers."""
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - 1) + ":" if column in right else "-" * width for column, width in enumerate(widths)]
    return "\n".join([line(lines[0]), line(rule), *map(line, lines[1:])])


def filled(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns in which no row has anything."""
    kept = [column for column in range(len(heads)) if any(row[column] for row in rows)]
    return [heads[column] for column in kept], [[row[column] for column in kept] for row in rows]


def board(rows: Iterable[Comparison], notes: Sequence[tuple[str, str]] = ()) -> str:
    """The one table of everything. notes: (what, why it was not measured now), as rows of their own on top."""
    heads = ("what", "ours", "beside", "its", "ours / it", "bar", "date", "device")
    cells = [(what, "", why, "", "", "", "", "") for what, why in notes]
    for row in rows:
        ours = f"{figure(row.ours)} {row.unit}" if row.ours is not None else ""
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        theirs = figure(row.theirs) if row.theirs is not None else row.note
        cells.append((row.what, ours, row.peer, theirs, ratio, row.verdict, row.date, row.device))
    return markdown(heads, cells, right=(1, 3, 4))


def everything(records: list[Record]) -> str:
    return board(comparisons.compared(records))


def versioned(name: str, of: Record) -> str:
    """A peer's title with the version that took part, where the record has it."""
    versions = of.figures.get("versions", {})
    title = comparisons.feed_title(name) if of.benchmark == "feed" else comparisons.title(name)
    for package in ("torch", "keras", "onnxruntime"):
        if name.startswith(package) and package in versions:
            title += f" ({package} {versions[package].partition('+')[0]})"
    return f"{title} (flax {versions['flax']})" if name == "linen" and "flax" in versions else title


def caption(of: Record) -> str:
    """Where the figures come from: file, command, day, device."""
    module = f"`{of.command}`" if of.command else f"`python -m benchmarks.{of.benchmark}`, flags not in the file"
    link = f"[{of.file.name}](FOLDER/{of.file.name})"
    return f"({link}, {module}, {of.date or 'no date in the file'}, {of.device or 'no device in the file'})"


def shares(ours: float | None, theirs: float, bar: comparisons.Bar | None = None) -> str:
    """ours / theirs, with the bar beside it where one is set."""
    if ours is None:
        return ""
    return f"{ours / theirs:.2f}" + (f" (bar {bar.ratio:g})" if bar else "")


def step_tables(records: list[Record]) -> str:
    """Of each record of the step: rates, ratios, and seconds to compile."""
    texts = []
    for of in comparisons.newest(each for each in records if each.benchmark == "step"):
        figures = of.figures
        model, size = figures.get("model", "resnet50"), figures["image_size"]
        bars = comparisons.STEP_BARS.get((model, size), {})
        rates, compiled = figures["images_per_second"], figures.get("compile_seconds", {})
        rows = []
        for name in rates or compiled:
            mine = name == "ours"
            cells = ["ours" if mine else versioned(name, of)]
            for kind in ("train", "eval"):
                rate, ours = rates.get(name, {}).get(kind), rates.get("ours", {}).get(kind)
                cells += [figure(rate), "" if mine or rate is None else shares(ours, rate, bars.get(name))]
            took = compiled.get(name, {}).get("train")
            rows.append([*cells, f"{took['wall']:.1f}" if took else ""])
        heads: Sequence[str] = (
            f"{comparisons.NETWORKS.get(model, model)}, {size} px",
            "train",
            "ours / it",
            "eval",
            "ours / it",
            "compiled in, s",
        )
        heads, rows = filled(heads, rows)
        unit = f"batch {figures['batch_size']}, float32, "
        # Without rounds a record has the seconds to compile alone.
        unit += "images/s, medians of one run in which the peers take turns" if any(rates.values()) else "compilation"
        texts.append(f"{unit}\n{caption(of)}:\n\n{markdown(heads, rows, right=range(1, len(heads)))}")
    return "\n\n".join(texts) or f"Train and evaluation step: {comparisons.NOT_YET}."


def inference_tables(records: list[Record]) -> str:
    """Of each record of inference: milliseconds and images/s, one image and many at a time."""
    texts = []
    for of in comparisons.newest(each for each in records if each.benchmark == "inference"):
        milliseconds, rates = of.figures["milliseconds"], of.figures["images_per_second"]
        batches = list(next(iter(rates.values())))
        heads = [f"ResNet-50, {of.figures['image_size']} px"]
        for batch in batches:
            heads += [f"batch {batch}, ms", "images/s", "ours / it"]
        rows = []
        for name, rate in rates.items():
            cells = ["ours" if name == "ours" else versioned(name, of)]
            bar = comparisons.INFERENCE_BARS.get(name)
            for batch in batches:
                ours = rates.get("ours", {}).get(batch)
                beside = "" if name == "ours" else shares(ours, rate[batch], bar)
                cells += [figure(milliseconds[name][batch]), figure(rate[batch]), beside]
            rows.append(cells)
        made = markdown(heads, rows, right=range(1, len(heads)))
        texts.append(f"float32, medians of one run in which the peers take turns\n{caption(of)}:\n\n{made}")
    return "\n\n".join(texts) or f"Inference: {comparisons.NOT_YET}."


def feed_tables(records: list[Record]) -> str:
    """Of each record of feeding: rates of the feeds alone, and of training on ours."""
    texts = []
    for of in comparisons.newest(each for each in records if each.benchmark == "feed"):
        figures = of.figures
        bars = comparisons.FEED_BARS if figures["data"] in comparisons.PHOTOGRAPHS else {}
        fed, trained = figures["fed_images_per_second"], figures["trained_images_per_second"]
        rows = []
        for name, rate in fed.items():
            title = f"ours, {name}" if name in ("stream", "resident") else versioned(name, of)
            beside = "" if name == "stream" else shares(fed.get("stream"), rate, bars.get(name))
            rows.append([title, figure(rate), beside])
        for name, rate in trained.items():
            if name != "synthetic":
                title = f"training {figures['model']} on {name}"
                rows.append(
                    [title, figure(rate), f"{rate / trained['synthetic']:.1%} of a batch that is there already"]
                )
        size = f"{figures['mean_width']:.0f}×{figures['mean_height']:.0f} px and {figures['mean_bytes'] / 1e3:.0f} kB"
        data = f"{figures['images']:,} images of {figures['data']}, {size} on average"
        heads = (f"fed at {figures['image_size']} px", "images/s", "stream / it")
        texts.append(f"{data}, batch {figures['batch_size']}\n{caption(of)}:\n\n{markdown(heads, rows, right=(1,))}")
    return "\n\n".join(texts) or f"Feeding: {comparisons.NOT_YET}."


TABLES: dict[str, Callable[[list[Record]], str]] = {
    "everything": everything,
    "step": step_tables,
    "inference": inference_tables,
    "feed": feed_tables,
}


def renewed(page: Path, text: str, records: list[Record]) -> str:
    """The text of a page with its tables made anew. Raises InputError for a name that is no table's."""
    folder = Path(*[".."] * len(page.relative_to(ROOT).parts[:-1]), "benchmarks", "results").as_posix()

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise InputError(
                f"{printable(str(page))}: <!-- speed: {printable(name)} -->: no table; those are {', '.join(TABLES)}"
            )
        made = TABLES[name](records).replace("](FOLDER/", f"]({folder}/")
        return f"<!-- speed: {name} -->\n\n{made}\n\n{END}"

    if text.count("<!-- speed:") != len(MARKED.findall(text)):
        raise InputError(f"{printable(str(page))}: a line <!-- speed: NAME --> has no line {END} after it")
    return MARKED.sub(table, text)


def pages() -> list[Path]:
    """README.md and all of docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> int:
    parser = command.Parser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where something would change")
    arguments = parser.parse_args()
    records = record.read_all()
    changed = 0
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = renewed(page, old, records)
        if new == old:
            continue
        changed += 1
        name = page.relative_to(ROOT).as_posix()
        if arguments.check:
            lines = (old.splitlines(keepends=True), new.splitlines(keepends=True))
            sys.stdout.writelines(difflib.unified_diff(*lines, name, f"{name}, as benchmarks/results has it"))
        else:
            page.write_text(new, encoding="utf-8")
            print(f"{name}: rewritten")
    if changed and arguments.check:
        print("python -m benchmarks.tables rewrites them", file=sys.stderr)
    return 1 if changed and arguments.check else 0


if __name__ == "__main__":
    command.run(main)
