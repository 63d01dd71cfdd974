"""docs/bad-input.md: what this project prints when it is given something bad, as the tests saw it printed.

    python -m tests.bad_input_table        runs those tests and writes the file

The tests note each refusal that they see; the last test of each file holds its section of the document against them, so
no command runs twice. Folders of the test run are written as DIR.
"""

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests import place
from tests.commands import Result

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "bad-input.md"
WRITE = "WRITE_BAD_INPUT_TABLE"
SECTIONS = {
    "tests/test_bad_input.py": "What a user gets wrong",
    "tests/test_hostile_input.py": "What is made to do harm",
}
HEAD = """# Bad input, and what is printed

Each line was printed by the code in the tests named here; `python -m tests.bad_input_table` rewrites this file, and
the tests check it. A command prints such a line on standard error as `error: …`, exits with code 2 and has written
nothing. DIR stands for a folder, `\\n` and `\\x1b` for a newline and an escape in a name.
"""
# Flags that are the same in every case.
HIDDEN = ("--config=", "--workdir=", "--checkpoint=", "--data=")
PYTHON = f"Python {sys.version_info.major}.{sys.version_info.minor}"
# test file -> test -> what it printed, in order
_noted: dict[str, dict[str, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))


def note(message: str, given: str = "") -> None:
    """Note a refusal in the test that is running: its message and, for a command, what it was `given`.

    BAD_INPUT_BASE in the environment: pytest's folder, below which each test has its own.
    """
    base = os.environ["BAD_INPUT_BASE"]
    file, _, test = os.environ["PYTEST_CURRENT_TEST"].removesuffix(" (call)").partition("::")
    plain = [re.sub(rf"{re.escape(base)}/[^/\s:;,'\"]+", "DIR", text.strip()) for text in (message, given)]
    # Names and sizes of arrays' files differ from run to run.
    message = re.sub(r"(ocdbt\.process_\d+/d/)[0-9a-f]+", r"\1NAME", plain[0].removeprefix("error: "))
    # In brackets stands what Pillow says, which differs from one version to another.
    message = re.sub(r"(broken \w+ header) \([^)]*\)", r"\1 (…)", message)
    message = re.sub(r"has [\d,]+ of [\d,]+ bytes", "has N of M bytes", message)
    _noted[file][test].append((message, plain[1]))


def refused(result: Result, *words: str) -> None:
    """As `place.refused`; and the line is noted, if it is known what was given."""
    place.refused(result, *words)
    if result.command:
        shown = [word for word in result.command.split() if not word.startswith(HIDDEN)]
        note(result.err, " ".join(shown))


def rows(file: str) -> list[str]:
    """The table's lines for what was noted in a test file."""
    lines = []
    for test, refusals in _noted[file].items():
        name, _, case = test.removeprefix("test_").partition("[")
        words = f"{name}: {case.removesuffix(']')}" if case else name
        for message, given in refusals:
            shown = f"<br>`{_cell(given)}`" if given else ""
            lines.append(f"| {_cell(words.replace('_', ' '))}{shown} | `{_cell(message)}` |")
    return lines


def _cell(text: str) -> str:
    return text.replace("`", "'").replace("|", "\\|")


def check(file: str) -> None:
    """Assert that the page says what was noted in `file`: all of it where all its tests ran, else at least that.

    Under `python -m tests.bad_input_table` the section is written instead.
    """
    title = f"## {SECTIONS[file]}\n"
    table = "\n".join([title, f"({file}, {PYTHON})\n", "| given | printed |", "| --- | --- |", *rows(file)]) + "\n"
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else HEAD
    before, found, behind = page.partition(title)
    following = behind.partition("\n## ")
    if os.environ.get(WRITE):
        rest = "\n## " + following[2] if following[1] else ""
        PAGE.write_text((before if found else page + "\n") + table + rest, encoding="utf-8")
        return
    written = title + following[0]
    if f"({file}, {PYTHON})" not in written:
        pytest.skip(f"{PAGE.name} was written under another Python than {PYTHON}, whose own words differ")
    missing = [row for row in rows(file) if row not in written.splitlines()]
    assert not missing, f"not in {PAGE.name}; python -m tests.bad_input_table writes it: {missing[:3]}"
    stale = [row for row in written.splitlines()[6:] if row and row not in rows(file)]
    # Some tests skip where a machine lacks something, or were not asked for; none of those is noted here.
    assert not stale or len(rows(file)) < len(written.splitlines()) - 6, f"no longer printed: {stale[:3]}"


if __name__ == "__main__":
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SECTIONS]
    sys.exit(subprocess.run(words, cwd=ROOT, env=os.environ | {WRITE: "1"}, check=False).returncode)
