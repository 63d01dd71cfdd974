"""Links in Markdown: which there are, where they lead, and how a page of the site says the same."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# A fence and everything to its end, or inline code: in neither is anything a link.
_CODE = re.compile(
    r"^(?P<fence>`{3,}|~{3,})[^\n]*\n.*?^(?P=fence)[ \t]*$|(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)", re.M | re.S
)
_LINK = re.compile(r"(?P<text>\]\()(?P<target>[^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.M)


def links(text: str) -> Iterator[str]:
    """Every target of a link or picture in Markdown, in order."""
    for match in _LINK.finditer(without_code(text)):
        yield match["target"]


def replaced(text: str, new: Callable[[str], str]) -> str:
    """Markdown with each link's target as `new(target)` gives it; code is left as it is."""
    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [_in_prose(text[end : code.start()], new), code[0]]
        end = code.end()
    return "".join([*parts, _in_prose(text[end:], new)])


def _in_prose(text: str, new: Callable[[str], str]) -> str:
    return _LINK.sub(lambda match: f"{match['text']}{new(match['target'])})", text)


def without_code(text: str) -> str:
    """Markdown whose code is blanked out; places and lines stay."""
    return _CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def is_outside(target: str) -> bool:
    """Whether a target leads off this repository."""
    return re.match(r"[a-z][a-z0-9+.-]*:", target) is not None


def anchors(text: str) -> set[str]:
    """The anchors that GitHub (and the site) give the headings of a page."""
    found: set[str] = set()
    # Headings keep their inline code: only fences may hold what looks like one.
    prose = re.sub(r"^(`{3,}|~{3,})[^\n]*\n.*?^\1[ \t]*$", "", text, flags=re.M | re.S)
    for heading in _HEADING.findall(prose):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


def broken(page: Path) -> list[str]:
    """Links of a Markdown file of this repository that lead nowhere: no such file, or no such heading in it."""
    text = page.read_text(encoding="utf-8")
    wrong = []
    for target in links(text):
        if is_outside(target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or not file.is_relative_to(ROOT):
            wrong.append(f"{page.relative_to(ROOT)}: {target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
            wrong.append(f"{page.relative_to(ROOT)}: {target}: no such heading")
    return wrong
