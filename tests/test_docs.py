"""README and docs/: links lead somewhere, commands exist, tutorials and notebook run, the site builds."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.builder import commands, links, module_pages, pages, results_page
from input_pipeline.demo import write_demo
from tests.commands import ROOT, Result, run

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
# These list keys that do not exist, on purpose.
OF_MISTAKES = ("bad-input.md", "hostile-input.md")
# What makes a tutorial's command small: put behind its own flags, which it overrides.
TINY_RUN = (
    "--config.model.width=8",
    "--config.data.image_size=16",
    "--config.data.batch_size=8",
    "--config.data.val_fraction=0.25",
    "--config.data.threads=1",
    "--config.run.epochs=2",
    "--config.run.eval_every=2",
    "--config.run.checkpoint_every=2",
    "--config.optim.warmup_epochs=0",
)
# These compute what they print of what is typed, which is typed as it stands: it is printed to the letter.
EXACT = ("resnet.model.counting", "benchmarks.plan")
TINY_STUDY = (
    "--config.model.stage_sizes=(1,)",
    "--config.model.width=8",
    "--config.data.image_size=8",
    "--config.data.batch_size=8",
    "--config.data.crop_padding=1",
    "--config.run.epochs=1",
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert not links.broken(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page):
    """Jobs of run.sh, modules, recipes and flags of every command; keys of the configuration in the text as well."""
    text = page.read_text(encoding="utf-8")
    wrong = [(shown.text, found) for shown in commands.commands(text) if (found := commands.faults(shown))]
    assert not wrong
    if page.name not in OF_MISTAKES:
        keys = re.findall(r"--config\.([a-z_]+\.[a-z_0-9]+)\b", text)
        assert not [key for key in keys if not commands.known_key(key)]


@pytest.mark.parametrize(
    "text",
    [
        "./run.sh trian",
        "python -m resnet.study.evaluated --checkpoint=runs/demo",
        "python -m resnet.study.evaluate --checkpoints=runs/demo",
        "python train_main.py --config=configs/flower.py --workdir=runs/x",
        "./run.sh python train_main.py --config=configs/flowers.py --config.optim.rate=1",
        "launch/local.sh 2 --config=configs/demo.py --config.run.sed=1",
    ],
)
def test_a_command_that_does_not_exist_is_seen(text):
    (shown,) = commands.commands(f"Look:\n\n```\n{text}\n```\n")
    assert commands.faults(shown)


def test_a_broken_link_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# One `word`\n\n[a](#one-word) [b](#two) [c](absent.md) `[d](code.md)` [e](https://example.org)\n")
    assert links.broken(page) == ["page.md: #two: no such heading", "page.md: absent.md: no such file"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder in which a reader's commands run: this checkout's code, and nothing that they write goes into it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("train_main.py", "input_pipeline", "native", "resnet", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    for path in [*(ROOT / "configs").glob("*.py"), *(ROOT / "configs").glob("*/*.py")]:
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(path)
    return folder


def save_weights(folder: Path) -> Path:
    """Converted weights of two small stages of bottlenecks, of larger images than TINY_RUN's: a run notes that."""
    from input_pipeline.contract import CONTRACTS
    from resnet.model.spec import ResNetSpec
    from resnet.train.checkpoints import Meta, save_converted
    from tests.networks import random_variables

    spec = ResNetSpec(block="bottleneck", stage_sizes=(1, 1), width=8, num_classes=3)
    meta = Meta(spec, ("a", "b", "c"), CONTRACTS["torch"], image_size=32, resize_shorter=1.0)
    save_converted(folder, random_variables(spec), meta)
    return folder


def typed(shown: commands.Shown, checkout: Path) -> Result:
    """What a reader types, made small, in `checkout`."""
    target, arguments = shown.target, list(shown.arguments)
    if target == "-c":
        code = arguments[0].replace("write_demo('.data/flowers')", "write_demo('.data/flowers', per_class=(8, 4))")
        assert code != arguments[0], "only the drawing is known how to be made small"
        target, arguments = "drawing.py", []
        (checkout / target).write_text(code)
    elif target == "train_main.py":
        arguments += TINY_RUN
        if any("configs/transfer.py" in argument for argument in arguments):
            if not (checkout / "weights").exists():
                save_weights(checkout / "weights")
            arguments += ["--config.model.stage_sizes=(1,1)", "--config.transfer.weights=weights"]
            # The last stage of the small network, where the page names that of the large one.
            arguments = [argument.replace("layer4@", "layer2@") for argument in arguments]
        else:
            arguments.append("--config.model.stage_sizes=(1,)")
        if "--config=configs/demo.py" in arguments:
            write_demo(checkout / ".data" / "flowers", per_class=(8, 4))
            arguments += ["--config.data.source=folder", "--config.data.dir=.data/flowers"]
    elif target == "resnet.study.ablation":
        arguments += TINY_STUDY
        if not any(argument.startswith("--config.seeds=") for argument in arguments):
            arguments.append("--config.seeds=(0,1)")
    environment = {"XDG_CACHE_HOME": str(checkout / "cache"), **shown.environment}
    return run(target, *arguments, environment=environment, directory=checkout)


def beginnings(lines: list[str]) -> set[str]:
    """The first word of each line, whatever its digits."""
    return {re.sub(r"[\d,.]*\d", "#", line.split()[0]) for line in lines if line.strip()}


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_does_what_it_says(tutorial, checkout):
    """Its files are written, its commands typed, one after the other; each line it shows begins like one printed."""
    text = tutorial.read_text(encoding="utf-8")
    for block in commands.blocks(text):
        if block.info.startswith("title="):
            (checkout / block.info.removeprefix("title=")).write_text(block.text)
    typed_here = [shown for shown in commands.consoles(text) if not shown.excused]
    assert typed_here
    for shown in typed_here:
        result = typed(shown, checkout)
        assert result.code == 0, (shown.text, result)
        printed = beginnings((result.out + result.err).splitlines())
        promised = beginnings([line for line in shown.output if line.strip() != "…"])
        assert promised <= printed, (shown.text, promised - printed, result.out)
        if shown.target in EXACT:
            lines = {line for line in shown.output if line.strip() not in ("", "…")}
            assert lines <= set(result.out.splitlines()), (shown.text, lines - set(result.out.splitlines()))


def cells() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_runs(tmp_path):
    """Its cells in order in a process of their own, on tiny settings, which its one variable asks for."""
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells()))
    environment = {
        "NOTEBOOK_TINY": "1",
        "MPLBACKEND": "agg",
        "TMPDIR": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    result = run(str(script), environment=environment, directory=ROOT / "docs")
    assert result.code == 0, result
    assert "test top-1" in result.out
    assert "resnet50_v1: 25,557,032 parameters, 3,857,973,248 multiply-adds" in result.out


def test_the_notebook_is_kept_without_outputs():
    assert not [cell for cell in cells() if cell["outputs"] or cell["execution_count"]]


def test_every_module_has_a_page_and_every_page_a_place(tmp_path):
    pages.gather(tmp_path)
    found = {path.stem for path in (tmp_path / "modules").glob("*.md")} - {"index"}
    code = [
        *(ROOT / "configs").rglob("*.py"),
        *(ROOT / "input_pipeline").rglob("*.py"),
        *(ROOT / "native").rglob("*.py"),
        *(ROOT / "resnet").rglob("*.py"),
    ]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in code if path.name != "__init__.py"}
    assert modules <= found
    index, listed = (tmp_path / "index.md").read_text(), (tmp_path / "modules" / "index.md").read_text()
    assert not [name for name in found if f"({name}.md)" not in listed]
    for page in [*(ROOT / "docs").glob("*.md"), *TUTORIALS]:
        place = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert place == "index" or index.splitlines().count(place) == 1


def test_a_page_of_a_module_shows_heads_fields_and_words(tmp_path, monkeypatch):
    monkeypatch.setattr(module_pages, "ROOT", tmp_path)
    file = tmp_path / "shapes.py"
    file.write_text(
        '"""Shapes."""\n\nimport dataclasses\n\n\n@dataclasses.dataclass(frozen=True)\nclass Square:\n'
        '    """A square.\n\n    side: in pixels,\n    above 0. Raises ValueError.\n    """\n\n'
        "    # As drawn.\n    side: int = 3\n\n"
        "    def area(self) -> int:\n        # Exact.\n        return self.side**2\n\n\ndef _hidden() -> None: ...\n"
    )
    page = module_pages.module_page("resnet.model.shapes", file)
    assert "@dataclasses.dataclass(frozen=True)\nclass Square:\n    # As drawn.\n    side: int = 3\n```" in page
    assert "- **side**: in pixels,\n  above 0. Raises ValueError." in page
    assert "### Square.area\n\n```python\ndef area(self) -> int:\n```" in page
    assert "## _hidden" not in page


def test_results_are_those_of_the_files(tmp_path, monkeypatch):
    """Every file has its section; a number on the page is the file's, a share in per cent, with its command and day."""
    page = results_page.results_page()
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert f"## {file.stem}\n" in page
    monkeypatch.setattr(results_page, "ROOT", tmp_path)
    file = tmp_path / "speed_cpu.json"
    run_of = {
        "model": "resnet18",
        "command": "python -m x --y",
        "all": {"top1": 0.5, "top1_low": 0.4, "top1_high": 0.6},
    }
    file.write_text(
        json.dumps({"benchmark": "speed", "date": "2026-01-02", "device": "a CPU", "runs": [run_of | {"n": 1}]})
    )
    page = results_page.results_page([file])
    row = next(line for line in page.splitlines() if line.startswith("| resnet18, speed"))
    assert "test top-1: **50.00% (95 % interval 40.00% to 60.00%)**" in row
    for word in ("`python -m x --y`", "2026-01-02", "a CPU", "[speed_cpu.json](#speed_cpu)"):
        assert word in row
    file.write_text("[1]")
    with pytest.raises(ValueError, match=r"speed_cpu\.json: not a JSON object"):
        results_page.results_page([file])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("sphinx", reason="Sphinx is not installed: ./run.sh setup docs")
    pytest.importorskip("furo", reason="furo is not installed: ./run.sh setup docs")
    pytest.importorskip("myst_parser", reason="myst-parser is not installed: ./run.sh setup docs")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "docs.builder", "build", f"--out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_the_site_builds_and_asks_nothing_of_the_network(site):
    """What a browser fetches by itself is in the folder; links that a reader may follow may lead out."""
    fetched = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href|srcset)=\"([^\"]+)\"")
    for page in site.rglob("*.html"):
        for target in fetched.findall(page.read_text(encoding="utf-8")):
            assert not re.match(r"(?:[a-z]+:)?//", target), (page, target)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", style.read_text(encoding="utf-8")), style
