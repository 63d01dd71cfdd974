"""Gathers what the site consists of into one folder: the pages of docs/, and those made from code and measurements."""

import json
import os
import shutil
from pathlib import Path

from docs.builder import links
from docs.builder.links import DOCS, ROOT
from docs.builder.module_pages import code, index_page, module_page, modules
from docs.builder.results_page import results_page

TUTORIALS = ("folder", "transfer", "ablation", "counts", "hosts")
# The order of the pages in docs/; a page that is not named stands behind those that are.
GUIDES = {
    "Using it": ("report", "seeing", "transfer", "weights", "export", "doctor", "ablations", "counts", "many-hosts"),
    "What it survives": ("faults", "bad-input", "hostile-input"),
}
EXTENSIONS = {".sh": "bash", ".json": "json", ".yaml": "yaml", ".py": "python", ".toml": "toml"}


class BrokenLink(Exception):
    """A link that leads nowhere; says on which page."""


def gather(source: Path) -> None:
    """Fill the folder `source` with all pages, as Sphinx wants them. Raises BrokenLink, naming the first."""
    shutil.rmtree(source, ignore_errors=True)
    (source / "_static").mkdir(parents=True)
    builder = Path(__file__).parent
    shutil.copy(builder / "conf.py", source)
    shutil.copy(builder / "site.css", source / "_static")
    wanted: dict[str, Path] = {}
    for page in sorted([*DOCS.glob("*.md"), *DOCS.glob("tutorials/*.md")]):
        write(source / page.relative_to(DOCS), rewritten(page.read_text(encoding="utf-8"), page, wanted))
    for picture in sorted(path for kind in ("png", "svg", "jpg", "webp", "gif") for path in DOCS.rglob(f"*.{kind}")):
        target = source / picture.relative_to(DOCS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, target)
    for notebook in sorted(DOCS.glob("*.ipynb")):
        write(source / f"{notebook.stem}.md", rewritten(notebook_page(notebook), notebook, wanted))
    for name, path in modules().items():
        write(source / "modules" / f"{name}.md", module_page(name, path))
    write(source / "modules" / "index.md", index_page())
    write(source / "results.md", results_page())
    for name, path in wanted.items():
        write(source / "files" / f"{name}.md", file_page(path))
    with (source / "index.md").open("a", encoding="utf-8") as index:
        index.write(navigation())


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def navigation() -> str:
    """The table of contents, appended to the landing page: every page of docs/ stands in it once."""
    pages = sorted(path.stem for path in DOCS.glob("*.md") if path.stem not in ("index", "extending"))
    notebooks = sorted(path.stem for path in DOCS.glob("*.ipynb"))
    tutorials = sorted(path.stem for path in DOCS.glob("tutorials/*.md"))
    groups: dict[str, list[str]] = {
        "Tutorials": [f"tutorials/{name}" for name in ordered(tutorials, TUTORIALS)] + notebooks
    }
    named = {name for names in GUIDES.values() for name in names}
    for caption, names in GUIDES.items():
        groups[caption] = ordered([page for page in pages if page in names], names)
    groups["Using it"] += [page for page in pages if page not in named]
    groups["Looking up"] = ["results", "extending", "modules/index"]
    return "".join(
        "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```", ""])
        for caption, entries in groups.items()
    )


def ordered(names: list[str], first: tuple[str, ...]) -> list[str]:
    """`names`, those in `first` in that order, then the others by name."""
    return sorted(names, key=lambda name: (first.index(name) if name in first else len(first), name))


def rewritten(text: str, page: Path, wanted: dict[str, Path]) -> str:
    """A page of docs/ whose links out of docs/ lead to pages of the site: a module's own, else one that shows the file.

    Files that are to be shown are added to `wanted`, by the name of their page.
    """
    here = page.parent.relative_to(DOCS)
    pages = {path: f"modules/{name}.md" for name, path in modules().items()}

    def new(target: str) -> str:
        path, hash_sign, anchor = target.partition("#")
        if links.is_outside(target) or not path:
            return target
        file = (page.parent / path).resolve()
        if not file.exists() or not file.is_relative_to(ROOT):
            raise BrokenLink(f"{page.relative_to(ROOT)}: {target}: no such file")
        if file.suffix == ".ipynb":
            place = f"{file.stem}.md"
        elif file.is_relative_to(DOCS) and not file.is_relative_to(DOCS / "builder"):
            return target
        elif file in pages:
            place = pages[file]
        elif file == ROOT / "README.md":
            place = "index.md"
        elif file.is_dir():
            place = "modules/index.md"
        else:
            name = file.relative_to(ROOT).as_posix()
            wanted[name] = file
            place = f"files/{name}.md"
        return os.path.relpath(place, here) + hash_sign + anchor

    return links.replaced(text, new)


def file_page(path: Path) -> str:
    """The page that shows a file which is neither a module nor a page of docs/."""
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    language = "text" if len(text) > 100_000 else EXTENSIONS.get(path.suffix, "text")
    return "\n".join(["---", "orphan: true", "nosearch: true", "---", "", f"# {name}", "", *code(text, language), ""])


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its words, and its code in blocks."""
    parts = []
    for block in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(block["source"])
        parts.append(text if block["cell_type"] == "markdown" else "\n".join(code(text)))
    return "\n\n".join(parts) + "\n"
