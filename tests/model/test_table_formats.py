"""A table comes out with every cell in it: as Markdown of a given width, as CSV, as LaTeX."""

import csv
import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet.model.table_formats import comma_separated, in_latex, latex, markdown

TIMES = "\N{MULTIPLICATION SIGN}"
COLUMNS = ("stage", "layers", "parameters")
LAYERS = f"3{TIMES}3 max pool, stride 2; [1{TIMES}1, 64; 3{TIMES}3, 64; 1{TIMES}1, 256] {TIMES} 3"
ROWS = [("conv2_x", LAYERS, 215_808), ("head", "1000-d fc", 2_049_000)]


def columns_of(text: str) -> list[str]:
    """What stands in each column of a markdown table, its lines one after the other."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [" ".join(filter(None, column)) for column in zip(*lines[2:], strict=True)]


@pytest.mark.parametrize("width", [None, 120, 80, 64, 50, 1])
def test_a_narrow_table_has_all_that_a_wide_one_has(width):
    text = markdown(COLUMNS, ROWS, width)
    assert len({len(line) for line in text.splitlines()}) == 1
    assert columns_of(text) == columns_of(markdown(COLUMNS, ROWS))
    if width in (None, 120):
        assert text == markdown(COLUMNS, ROWS)
    elif width > 1:
        assert max(map(len, text.splitlines())) <= width


def test_a_line_ends_behind_a_semicolon_where_one_fits():
    lines = markdown(COLUMNS, ROWS, 62).splitlines()
    assert lines[2] == f"| conv2_x | 3{TIMES}3 max pool, stride 2; [1{TIMES}1, 64; |    215,808 |"
    assert lines[3] == f"|         | 3{TIMES}3, 64; 1{TIMES}1, 256] {TIMES} 3            |            |"


# The csv module leaves a lone carriage return without quotes where lines end in \n; no cell of ours has one.
WORDS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r"), max_size=12)


@given(st.lists(st.tuples(WORDS, WORDS, st.integers(-(10**12), 10**12)), min_size=1, max_size=4))
def test_csv_gives_everything_back(rows):
    text = comma_separated(COLUMNS, rows)
    found = list(csv.reader(io.StringIO(text + "\n", newline="")))
    assert found == [list(COLUMNS), *([one, two, str(number)] for one, two, number in rows)]


def test_latex_has_its_rows_and_numbers_to_the_right():
    assert latex(COLUMNS, [("conv2_x", "50 %", 215_808)], note=["resnet50, 224 px\nof the paper"]).splitlines() == [
        "% resnet50, 224 px",
        "% of the paper",
        r"\begin{tabular}{llr}",
        r"\toprule",
        r"stage & layers & parameters \\",
        r"\midrule",
        r"conv2\_x & 50 \% & 215,808 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a_b & 5 %", r"a\_b \& 5 \%"),
        ("C:\\x{y}", r"C:\textbackslash{}x\{y\}"),
        (f"3{TIMES}3, x < 2 ~ y^2 #1 $ |", r"3$\times$3, x $<$ 2 \textasciitilde{} y\textasciicircum{}2 \#1 \$ $|$"),
        ("+1.50 (-0.20 to +3.20)", "$+$1.50 ($-$0.20 to $+$3.20)"),
        ("wide-28-10, 2016-11-3", "wide-28-10, 2016-11-3"),
    ],
)
def test_signs_that_latex_reads_otherwise_are_written_out(text, wanted):
    assert in_latex(text) == wanted


@pytest.mark.parametrize("begins", ["[3", "*"])
def test_no_row_passes_for_an_option_of_the_line_before(begins):
    rows = latex(COLUMNS, [("a", "b", 1), (begins, "b", 2)]).splitlines()
    assert rows[5] == rf"{{}}{begins} & b & 2 \\"
    assert not [two for one, two in itertools.pairwise(rows) if one.endswith("\\\\") and two[0] in "[*"]
