"""The doctor's report as one page: no script, nothing from the network, pictures of suspicious pairs side by side."""

from __future__ import annotations

from html import escape
from pathlib import Path

from input_pipeline.encoded_files import read_encoded
from input_pipeline.errors import printable
from input_pipeline.findings import ADVICE, Finding, Item, Report, plural
from input_pipeline.thumbnails import thumbnail

_SIDE = 128
# Of the 5 MB that a page may take; names and tables, cut to length, stay well below the rest.
_PICTURE_BYTES = 3_500_000
_PAIRS, _LINES, _ABREAST, _CLASSES, _NAME = 24, 50, 4, 1000, 160
_STYLE = """
:root { color-scheme: light dark; --ink: #1d1f23; --soft: #5c636e; --paper: #fbfbfa; --card: #fff; --line: #dcdfe4;
  --error: #b3261e; --warning: #8a5a00; --note: #2c5f9e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7ea; --soft: #9aa2ae; --paper: #15171a; --card: #1d2024;
  --line: #353a42; --error: #ff8a80; --warning: #f0b95a; --note: #8ab8f2; } }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .25rem; overflow-wrap: anywhere; } h2 { font-size: 1rem; margin: 0; }
p { margin: .25rem 0; } .soft { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .9rem 1rem;
  margin: 1rem 0; }
.error { border-left: 4px solid var(--error); } .warning { border-left: 4px solid var(--warning); }
.note { border-left: 4px solid var(--note); }
.error .level { color: var(--error); } .warning .level { color: var(--warning); } .note .level { color: var(--note); }
.level { font-weight: 700; text-transform: uppercase; font-size: .75rem; letter-spacing: .05em; margin-right: .5rem; }
.abreast { display: flex; flex-wrap: wrap; gap: 1rem; } .abreast section { flex: 1 1 20rem; margin: 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .9rem .15rem 0; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400; }
thead th { color: var(--soft); } th:first-child { text-align: left; overflow-wrap: anywhere; }
.contents { list-style: none; margin: 0; padding: 0; } .contents li { border: 0; margin: .15rem 0; }
a { color: inherit; text-decoration-color: var(--line); }
ul { margin: .5rem 0 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.items { display: flex; flex-wrap: wrap; gap: .75rem; margin-top: .75rem; }
.item { border: 1px solid var(--line); border-radius: 6px; padding: .5rem; max-width: 100%; }
.pictures { display: flex; flex-wrap: wrap; gap: .4rem; } figure { margin: 0; width: 120px; }
img, .gone { width: 120px; height: 120px; object-fit: contain; background: var(--paper); display: block; }
.tiny { image-rendering: pixelated; } .gone { line-height: 120px; text-align: center; color: var(--soft); }
figcaption { font-size: .7rem; line-height: 1.25; overflow-wrap: anywhere; color: var(--soft); margin-top: .2rem; }
summary { cursor: pointer; }
"""


class _Album:
    """Small pictures as data URIs, until their share of the page is used up."""

    def __init__(self, where: str) -> None:
        self._where, self._left = Path(where), _PICTURE_BYTES

    @property
    def full(self) -> bool:
        return self._left <= 0

    def picture(self, name: str) -> str:
        """An img element of the file `name`, upright; where it cannot be had any more, a box that says so."""
        try:
            data, tiny = _thumbnail(self._where / name)
        except Exception:  # Any: the file may have changed since it was looked at, and the page has the rest to show.
            return '<div class="gone">no picture</div>'
        self._left -= len(data)
        kind = ' class="tiny"' if tiny else ""
        return f'<img{kind} alt="" src="data:image/jpeg;base64,{data}">'


def _thumbnail(path: Path) -> tuple[str, bool]:
    """A JPEG of at most _SIDE pixels a side in base64, and whether the picture itself is smaller than half of that."""
    data, longer_side = thumbnail(read_encoded(path), _SIDE)
    return data, longer_side < _SIDE // 2


def page(report: Report) -> str:
    """The whole page as HTML, at most 5 MB. Reads the pictures that it shows."""
    album = _Album(report.where)
    sections = "".join(_section(number, finding, album) for number, finding in enumerate(report.findings))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_name(report.where)}: data check</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>{_name(report.where)}</h1>{_overview(report)}"
        f"{sections}</body></html>\n"
    )


def _overview(report: Report) -> str:
    levels = [finding.level for finding in report.findings]
    summary = ", ".join(plural(levels.count(level), level) for level in ("error", "warning", "note"))
    kinds = ", ".join(f"{escape(name)} {count:,}" for name, count in (*report.formats.items(), *report.modes.items()))
    contents = "".join(
        f'<li class="{finding.level}"><a href="#f{number}">{_headline(finding)}</a></li>'
        for number, finding in enumerate(report.findings)
    )
    sizes = "".join(
        "<tr><th>{}</th>{}</tr>".format(
            name, "".join(f"<td>{value:{'.2f' if name == 'aspect' else ',.0f'}}</td>" for value in values)
        )
        for name, values in report.sizes.items()
    )
    return (
        f'<p class="soft">{report.files:,} files, {plural(len(report.class_names), "class", "classes")}: {summary}</p>'
        f"<section><ul class=contents>{contents or '<li>nothing found</li>'}</ul></section>"
        f"<div class=abreast><section><p>{kinds}</p><div class=scroll><table><thead><tr><th>pixels</th><th>minimum</th>"
        f"<th>median</th><th>maximum</th></tr></thead>{sizes}</table></div></section>"
        f"<section><details{' open' if len(report.class_names) <= 20 else ''}><summary>Readable images by class"
        f"</summary><div class=scroll>{_classes(report)}</div></details></section></div>"
    )


def _classes(report: Report) -> str:
    head = "".join(f"<th>{split}</th>" for split in report.counts)
    rows = "".join(
        f"<tr><th>{_name(name)}</th>{''.join(f'<td>{counts[label]:,}</td>' for counts in report.counts.values())}</tr>"
        for label, name in enumerate(report.class_names[:_CLASSES])
    )
    total = "".join(f"<td>{sum(counts):,}</td>" for counts in report.counts.values())
    return f"<table><thead><tr><th>class</th>{head}</tr></thead>{rows}<tr><th>all</th>{total}</tr></table>"


def _section(number: int, finding: Finding, album: _Album) -> str:
    if finding.paired:
        shown = finding.items[:_PAIRS]
        body = f'<div class="items">{"".join(_pair(item, album) for item in shown)}</div>'
    else:
        shown = finding.items[:_LINES]
        body = f"<ul>{''.join(f'<li>{_line(item)}</li>' for item in shown)}</ul>" if shown else ""
    rest = len(finding.items) - len(shown)
    more = f'<p class="soft">and {rest:,} more; --json lists them all</p>' if rest else ""
    advice = f'<p class="soft">{escape(ADVICE[finding.code])}</p>' if finding.code in ADVICE else ""
    return (
        f'<section id="f{number}" class="{finding.level}"><h2>{_headline(finding)}</h2>{advice}{body}{more}</section>'
    )


def _headline(finding: Finding) -> str:
    return f'<span class="level">{finding.level}</span>{escape(finding.summary)}'


def _pair(item: Item, album: _Album) -> str:
    figures = "".join(
        f"<figure>{'' if album.full else album.picture(name)}<figcaption>{_name(name)}</figcaption></figure>"
        for name in item.files[:_ABREAST]
    )
    rest = len(item.files) - _ABREAST
    remarks = [escape(printable(item.remark))] if item.remark else []
    remarks += [f"and {plural(rest, 'more file')}"] if rest > 0 else []
    said = f'<p class="soft">{", ".join(remarks)}</p>' if remarks else ""
    return f'<div class="item"><div class="pictures">{figures}</div>{said}</div>'


def _line(item: Item) -> str:
    names = " = ".join(_name(name) for name in item.files[:_ABREAST])
    remark = escape(printable(item.remark)[: 2 * _NAME])
    return f'{names} <span class="soft">{remark}</span>' if names else remark


def _name(name: str) -> str:
    """`name` without control characters, shortened in the middle, escaped for HTML."""
    shown = printable(name)
    if len(shown) > _NAME:
        shown = f"{shown[: _NAME // 2]} … {shown[-_NAME // 2 :]}"
    return escape(shown)
