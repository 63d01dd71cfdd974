"""A table of texts and numbers as Markdown, CSV or LaTeX."""

import csv
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

Row = Sequence[str | int]
FORMATS = ("markdown", "csv", "latex")
# What LaTeX reads as something else, and signs that not every font has.
_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{RIGHTWARDS ARROW}": r"$\to$",
}
_SIGNED = re.compile(r"(?<![\w.])([+-]\d)")


def markdown(columns: Sequence[str], rows: Sequence[Row], width: int | None = None) -> str:
    """A markdown table that also reads well as text: columns padded, numbers with thousands separators to the right.

    width: characters that a line may have. The widest column of texts is broken, behind semicolons and else at spaces,
    into lines of their own, as far as that helps; Markdown then takes each for a row. None: never.
    """
    cells = [shown(row) for row in rows]
    numeric = numbers_in(columns, rows)
    widths = [max(map(len, column), default=3) for column in zip(columns, *cells, strict=True)]
    texts = [at for at, right in enumerate(numeric) if not right]
    if width is not None and line_width(widths) > width and texts:
        widest = max(texts, key=lambda at: widths[at])
        room = max(widths[widest] - (line_width(widths) - width), 1)
        cells = [part for row in cells for part in broken(row, widest, room)]
        widths[widest] = max(len(row[widest]) for row in [columns, *cells])

    def line(row: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        return f"| {' | '.join(parts)} |"

    rule = [f"{'-' * (width - 1)}:" if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    return "\n".join([line(columns), line(rule), *map(line, cells)])


def latex(columns: Sequence[str], rows: Sequence[Row], note: Sequence[str] = (), *, texts: int | None = None) -> str:
    """A tabular of booktabs (`\\usepackage{booktabs}`): numbers to the right, with thousands separators.

    note: lines that go before it as comments. texts: how many columns, the first ones, are aligned to the left; None:
    all that hold no numbers, by the first row.
    """
    numeric = numbers_in(columns, rows) if texts is None else [at >= texts for at in range(len(columns))]
    places = "".join("r" if right else "l" for right in numeric)
    lines = [" & ".join(map(in_latex, row)) + r" \\" for row in [columns, *map(shown, rows)]]
    # Behind the line before these would be its options.
    lines = [f"{{}}{line}" if line.startswith(("[", "*")) else line for line in lines]
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    comments = [f"% {line}".rstrip() for text in note for line in text.splitlines()]
    return "\n".join([*comments, rf"\begin{{tabular}}{{{places}}}", *body, r"\end{tabular}"])


def comma_separated(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """CSV with a line of heads; numbers in full."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    return file.getvalue().rstrip("\n")


def terminal_width() -> int | None:
    """Characters in a line of the terminal; None where the output goes elsewhere, and lines may be of any length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def in_latex(text: str) -> str:
    """A text as LaTeX shows it; what looks like a signed number gets the sign of mathematics."""
    escaped = "".join(_LATEX.get(sign, sign) for sign in text)
    return _SIGNED.sub(lambda found: f"${found[1][0]}${found[1][1]}", escaped)


def shown(row: Row) -> list[str]:
    return [f"{value:,}" if isinstance(value, int) else value for value in row]


def numbers_in(columns: Sequence[str], rows: Sequence[Row]) -> list[bool]:
    """Of each column, whether it holds numbers, by the first row."""
    return [bool(rows) and isinstance(rows[0][at], int) for at in range(len(columns))]


def line_width(widths: Sequence[int]) -> int:
    """Characters of a line of `markdown` with columns of these widths."""
    return sum(widths) + 3 * len(widths) + 1


def broken(row: Sequence[str], at: int, room: int) -> list[list[str]]:
    """The row as lines of which column `at` has no more than `room` characters, if its words allow; others once."""
    parts: list[str] = []
    for piece in re.split(r"(?<=;) ", row[at]):
        if parts and len(parts[-1]) + 1 + len(piece) <= room:
            parts[-1] += f" {piece}"
        else:
            parts += textwrap.wrap(piece, room, break_long_words=False, break_on_hyphens=False) or [piece]
    return [
        [part if column == at else cell if number == 0 else "" for column, cell in enumerate(row)]
        for number, part in enumerate(parts)
    ]
