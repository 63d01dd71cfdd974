"""The page of results: every number is read from benchmarks/results/*.json when the site is built.

Any file there gets a section, whatever its shape: scalars as they are, lists of numbers as median and range. A file of
several runs gets a table for each. Quantities that a reader comes for (HEADLINES) also stand in the table on top.
"""

import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs.builder.links import ROOT

RESULTS = ROOT / "benchmarks" / "results"
# What a record says of itself, not measured; the rest is.
ABOUT = ("benchmark", "date", "device", "command", "revision", "fingerprint")
# Path in a record -> what it is called on top.
HEADLINES = {
    r"all/top1": "test top-1",
    r"clean/top1": "test top-1 without images that are also in train",
    r"top1|test/top1": "test top-1",
    r"images_per_second/(?P<who>[^/]+)/(?P<step>[^/]+)": "images/s, {who}, {step}",
    r"images_per_second": "images/s",
    r"seconds/(?P<what>blocked|safe|restore|verify)": "seconds, {what}",
    r"growth": "growth of resident memory",
}
# Shares that are printed as percentages, by the last part of their path.
SHARES = re.compile(r"(^|_)(top1|top5|accuracy|growth|ece|auroc|mfu|share|efficiency)($|_)")
MOST_ROWS = 60


@dataclass(frozen=True)
class Record:
    """One measured run: who measured what, when, where, with which command, and everything that came out, by path."""

    name: str
    about: dict[str, str]
    values: dict[str, str]
    file: Path


def records(file: Path) -> list[Record]:
    """The measurements in a file. Raises ValueError, naming the file, where it is no JSON object."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file.relative_to(ROOT)}: not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ValueError(f"{file.relative_to(ROOT)}: not a JSON object")
    lists = {key: value for key, value in document.items() if is_list_of_records(value)}
    shared = {key: value for key, value in document.items() if key not in lists}
    runs = [(key, run) for key, value in lists.items() for run in value] or [("", {})]
    return [record(shared | run, key, file) for key, run in runs]


def is_list_of_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and len(v) > 3 for v in value)


def record(run: dict[str, Any], key: str, file: Path) -> Record:
    about = {name: str(run[name]) for name in ABOUT if isinstance(run.get(name), str)}
    # Some files say it at more length: command_as_run_at_revision, same_in_todays_keys_not_rerun.
    about |= {name: text for name, text in run.items() if isinstance(text, str) and is_command(text)}
    values = {name: text for name, text in flat(run) if name not in about}
    name = about.get("benchmark", file.stem)
    model = run.get("model")
    if isinstance(model, str) and model not in name:
        name = f"{model}, {name}"
    return Record(f"{name} (earlier)" if key.startswith("earlier") else name, about, values, file)


def is_command(text: str) -> bool:
    return text.startswith(("python ", "./run.sh", "train_main.py", "pytest "))


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, words) of everything in a document: 'seconds/blocked', 'median 2.04 of 3 (1.81 to 2.14)'."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{path}/{key}" if path else str(key))
    elif isinstance(value, list):
        yield path, listed(value, path)
    elif value is not None:
        yield path, shown(value, path)


def listed(values: list[Any], path: str) -> str:
    if values and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        if len(values) == 1:
            return shown(values[0], path)
        low, high = shown(min(values), path), shown(max(values), path)
        return f"median {shown(statistics.median(values), path)} of {len(values)} ({low} to {high})"
    text = json.dumps(values)
    return text if len(text) <= 80 else f"{len(values)} entries"


def shown(value: Any, path: str) -> str:
    """A number as a reader wants it: shares in percent, thousands with commas, four figures."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if SHARES.search(path.rpartition("/")[2]) and -1 <= value <= 1:
        return f"{value:.2%}"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def headlines(found: Record) -> list[tuple[str, str]]:
    """(what, figure) of a record for the table on top, with its interval where it has one."""
    rows = []
    for pattern, words in HEADLINES.items():
        for path, text in found.values.items():
            if match := re.fullmatch(pattern, path):
                low, high = (found.values.get(f"{path}_{end}") for end in ("low", "high"))
                figure = f"{text} (95 % interval {low} to {high})" if low and high else text
                rows.append((words.format(**match.groupdict()), figure))
    return rows


def command_of(found: Record) -> str:
    """The command that a record names, else the benchmark's own and that the file has no more."""
    named = found.about.get("command") or next((t for n, t in found.about.items() if n.startswith("command")), "")
    if named:
        return f"`{named}`"
    module = found.about.get("benchmark", "")
    if (ROOT / "benchmarks" / f"{module}.py").is_file():
        return f"`python -m benchmarks.{module}`; its flags are not in the file"
    return "not in the file"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def results_page(files: list[Path] | None = None) -> str:
    """The page, in Markdown, of `files` (default: all of benchmarks/results)."""
    files = sorted(RESULTS.glob("*.json")) if files is None else files
    found = [each for file in files for each in records(file)]
    lines = [
        "# Results",
        "",
        "Read from `benchmarks/results/` when this page was built: a figure that nobody has measured is not here.",
        "Each row has the command that measured it, the day, the device and the file with all the rest.",
        "",
        "| what | command | day, device, file |",
        "| --- | --- | --- |",
    ]
    for each in found:
        figures = [f"{what}: **{figure}**" for what, figure in headlines(each)] or ["figures below"]
        where = (each.about.get("date", "no date"), each.about.get("device", "no device named"))
        link = f"[{each.file.name}](#{each.file.stem})"
        row = ("<br>".join([each.name, *figures]), command_of(each), "<br>".join([*where, link]))
        lines.append(f"| {' | '.join(map(cell, row))} |")
    for file in files:
        lines += ["", f"({file.stem})=", "", f"## {file.stem}", ""]
        lines += [f"All of `{file.relative_to(ROOT).as_posix()}`.", ""]
        for each in (each for each in found if each.file == file):
            lines += [f"### {each.name}", ""]
            lines += [
                f"- {name.replace('_', ' ')}: {f'`{text}`' if is_command(text) else text}"
                for name, text in each.about.items()
            ]
            lines += ["", "| quantity | value |", "| --- | --- |"]
            rows = [f"| {cell(path)} | {cell(text)} |" for path, text in each.values.items()]
            lines += rows[:MOST_ROWS]
            if len(rows) > MOST_ROWS:
                lines += ["", f"{len(rows) - MOST_ROWS} more in the file."]
            lines.append("")
    return "\n".join(lines)
