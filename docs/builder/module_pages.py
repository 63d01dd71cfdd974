"""A page for each module, from its source alone: nothing is imported, so neither JAX nor TensorFlow is needed.

Docstrings here are Markdown, which Sphinx' own autodoc (reStructuredText, after an import) would misread; what a page
shows of a function or a class is its head as it stands in the file, which the formatter has laid out already.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from docs.builder.links import ROOT

ROOMS = {
    "configs": "Recipes: one `get_config()` each.",
    "input_pipeline": "What is fed: sources, order, crops, augmentation, the doctor.",
    "resnet": "The command line that all recipes share.",
    "resnet.model": "The network: pure functions of parameters.",
    "resnet.weights": "Pretrained weights in and out.",
    "resnet.train": "A run.",
    "resnet.study": "What people do with runs.",
    "native": "C sources made into libraries by the machine's compiler.",
    "benchmarks": "One script a claim.",
}


def modules() -> dict[str, Path]:
    """Import path -> file of every module that has a page, in the order of ROOMS and then by name."""
    found = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for room in ("configs", "input_pipeline", "native", "resnet", "benchmarks")
        for path in sorted((ROOT / room).rglob("*.py"))
        if path.name != "__init__.py"
    }
    return dict(sorted(found.items(), key=lambda item: (list(ROOMS).index(room_of(item[0])), item[0])))


def room_of(module: str) -> str:
    """The nearest of ROOMS that a module lies in."""
    return max((room for room in ROOMS if module.startswith(f"{room}.")), key=len)


def summary(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def index_page() -> str:
    """The page that lists all modules, a table a room."""
    lines = ["# Modules", "", "What each file is for, in its own words. Names are those of the import path.", ""]
    everything = modules()
    for room, words in ROOMS.items():
        here = {name: path for name, path in everything.items() if room_of(name) == room}
        lines += [f"## {room}", "", words, "", "| module | |", "| --- | --- |"]
        lines += [
            f"| [{name}]({name}.md) | {summary(path).replace('|', chr(92) + '|')} |" for name, path in here.items()
        ]
        lines.append("")
    return "\n".join(lines)


def module_page(name: str, path: Path) -> str:
    """The page of one module: its docstring, its public classes and functions, its source."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    # In no table of contents: 150 entries beside every page would take most of the building and be read by nobody.
    lines = ["---", "orphan: true", "---", "", f"# {name}", "", "[All modules](index.md)", "", docstring(tree), ""]
    for node in public(tree):
        lines += [f"## {node.name}", "", *code(head(node, text)), "", docstring(node), ""]
        if isinstance(node, ast.ClassDef):
            for inner in public(node):
                lines += [f"### {node.name}.{inner.name}", "", *code(head(inner, text)), "", docstring(inner), ""]
    # A recipe is its source; of others it is behind a click.
    if room_of(name) == "configs":
        return "\n".join([*lines, "## Source", "", *code(text), ""])
    folded = [
        "<details>",
        f"<summary>Source of {path.relative_to(ROOT).as_posix()}</summary>",
        "",
        *code(text),
        "",
        "</details>",
        "",
    ]
    return "\n".join(lines + folded)


# 'flip:' and 'brightness, contrast:' at the beginning of a line.
_PARAMETERS = re.compile(r"([a-z_][a-z0-9_]*(?:, [a-z_][a-z0-9_]*)*):(?= )")
_ENDING = ("Return", "Raise", "Yield")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(node: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    """The classes and functions in it that others may use; a command's `main` says what the module's docstring says."""
    for inner in node.body:
        if not isinstance(inner, Definition) or inner.name.startswith("_"):
            continue
        if inner.name != "main" or ast.get_docstring(inner):
            yield inner


def docstring(node: ast.Module | Definition) -> str:
    """Its docstring as Markdown, '' for none; lines that begin with the names of parameters become a list."""
    lines: list[str] = []
    in_list = False
    for line in (ast.get_docstring(node) or "").splitlines():
        if match := _PARAMETERS.match(line):
            lines += [] if in_list else [""]
            lines.append(f"- **{match[1]}**:{line[match.end() :]}")
            in_list = True
        elif in_list and not line.startswith(_ENDING):
            lines.append(f"  {line}" if line else "")
            in_list = bool(line)
        else:
            lines += ["", line] if in_list else [line]
            in_list = False
    return "\n".join(lines)


def head(node: Definition, text: str) -> str:
    """What stands in front of the body: decorators, name, parameters, result; of a class its fields as well."""
    lines = text.splitlines()
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    body = node.body[0]
    last = body.lineno - 1 if body.lineno > node.lineno else node.lineno
    shown = lines[first - 1 : last]
    # Comments between the head and the first line of a body speak of the body.
    while len(shown) > 1 and shown[-1].strip().startswith("#"):
        shown.pop()
    if isinstance(node, ast.ClassDef):
        shown += fields(node, lines)
    indent = len(lines[first - 1]) - len(lines[first - 1].lstrip())
    return "\n".join(line[indent:] for line in shown).rstrip()


def fields(node: ast.ClassDef, lines: list[str]) -> list[str]:
    """The lines of a class that declare its fields, each with the comment above it."""
    shown: list[str] = []
    for inner in node.body:
        if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name) and inner.target.id[0] != "_":
            first = inner.lineno - 1
            while lines[first - 1].strip().startswith("#"):
                first -= 1
            shown += lines[first : inner.end_lineno]
    return shown


def code(text: str, language: str = "python") -> list[str]:
    """A fenced block, its fence longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}{language}", text.rstrip("\n"), fence]
