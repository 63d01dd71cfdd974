"""The commands that pages show: found, taken apart, and held against what there is to call."""

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docs.builder.links import ROOT

# ```console title=… … ```: the language, the rest of its line, the text; before it perhaps a comment that excuses it.
_BLOCK = re.compile(
    r"(?P<excuse><!-- not run[^>]*-->\s*)?^(?P<fence>`{3,})(?P<language>\w*)(?P<info>[^\n]*)\n"
    r"(?P<text>.*?)^(?P=fence)[ \t]*$",
    re.M | re.S,
)
_INLINE = re.compile(r"(?<!`)`((?:\./run\.sh|python -m|python train_main)[^`]*)`(?!`)", re.S)
_BEGINNING = re.compile(r"^(?:\$ )?((?:[A-Z_]+=\S+ )*(?:\./run\.sh|python|launch/local\.sh|sbatch|git) .*|\./run\.sh)$")
_ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, what else its first line says, its text, and whether it is not run."""

    language: str
    info: str
    text: str
    excused: bool


@dataclass(frozen=True)
class Shown:
    """A command of a page with what it is said to print, line by line.

    environment: what stands before it. job: of ./run.sh, '' for none. target: 'train_main.py', 'resnet.study.evaluate',
    '-c' or '' where nothing of ours is called. arguments: what follows.
    """

    text: str
    environment: dict[str, str]
    job: str
    target: str
    arguments: tuple[str, ...]
    output: tuple[str, ...]
    excused: bool


def blocks(page: str) -> Iterator[Block]:
    for match in _BLOCK.finditer(page):
        yield Block(match["language"], match["info"].strip(), match["text"], match["excuse"] is not None)


def consoles(page: str) -> list[Shown]:
    """What the ```console blocks of a page ask the reader to type, in order: lines that begin with '$ '."""
    shown = []
    for block in blocks(page):
        if block.language == "console":
            for entry in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
                command, _, output = entry.replace("\\\n", " ").partition("\n")
                shown.append(parsed(command, tuple(output.splitlines()), block.excused))
    return shown


def commands(page: str) -> list[Shown]:
    """Every command on a page, in blocks of any kind and in inline code."""
    found = [match[1] for match in _INLINE.finditer(page)]
    for block in blocks(page):
        if block.language not in ("python", "json"):
            lines = block.text.replace("\\\n", " ").splitlines()
            found += [match[1] for match in map(_BEGINNING.match, lines) if match]
    return [parsed(text) for text in found]


def parsed(text: str, output: tuple[str, ...] = (), excused: bool = False) -> Shown:
    # Behind two blanks a block explains in words; '...', '[…]' and '|' stand for what the reader fills in.
    command = re.split(r"  +(?=[#a-z(])| +#", " ".join(text.split("\n")), maxsplit=1)[0]
    words = shlex.split(re.sub(r"[\[\]]|\.\.\.|…", " ", command))
    environment = {}
    while words and _ASSIGNMENT.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    job = ""
    if words and words[0] == "./run.sh":
        job = words[1] if len(words) > 1 else "train"
        words = words[1:]
    if words and words[0] == "launch/local.sh":
        words = ["python", "train_main.py", *words[2:]]
    if not words or words[0] != "python":
        return Shown(text, environment, job, "", tuple(words[1:]), output, excused)
    words = words[1:]
    if words[:1] == ["-m"]:
        words = words[1:]
    return Shown(text, environment, job, words[0] if words else "", tuple(words[1:]), output, excused)


def faults(shown: Shown) -> list[str]:
    """What in a command does not exist: the job, the module, the recipe, a flag."""
    wrong = []
    if shown.job and shown.job not in jobs() and not shown.job.isupper():
        wrong.append(f"no job {shown.job} of run.sh")
    file = file_of(shown.target)
    if file is None:
        return wrong
    if not file.is_file():
        return [*wrong, f"no module {shown.target}"]
    for word in shown.arguments:
        name, _, value = word.partition("=")
        if name == "--config" and not is_placeholder(value) and not (ROOT / value.partition(":")[0]).is_file():
            wrong.append(f"no recipe {value}")
        elif name.startswith("--config."):
            wrong += [f"no key {name}"] if not known_key(name.removeprefix("--config.")) else []
        elif name.startswith("--") and not takes(file, name[2:]):
            wrong.append(f"{shown.target} takes no {name}")
    return wrong


def is_placeholder(value: str) -> bool:
    """Whether a path is the reader's to fill in: configs/ablations/NAME.py, FILE, or a file that the page has made."""
    return not value or re.search(r"[A-Z]{3,}", value) is not None or Path(value).stem in ("mine", "leaves")


@functools.cache
def jobs() -> set[str]:
    """The jobs of run.sh."""
    return set(re.findall(r"^  (\w+)(?: \|[^)]*)?\)", (ROOT / "run.sh").read_text(encoding="utf-8"), re.M))


def file_of(target: str) -> Path | None:
    """The file that a command runs; None where it is none of ours."""
    if target.endswith(".py"):
        return ROOT / target
    if target.split(".")[0] in ("resnet", "input_pipeline", "benchmarks", "tests", "configs"):
        path = ROOT.joinpath(*target.split("."))
        return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return None


@functools.cache
def takes(file: Path, flag: str) -> bool:
    """Whether a file, or one of ours that it imports, defines this flag."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = [
        path
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        if (path := file_of(name)) is not None and path.is_file()
    ]
    trees = [tree, *(ast.parse(path.read_text(encoding="utf-8")) for path in imported)]
    return flag == "help" or any(flag in flags(each) for each in trees)


def flags(tree: ast.Module) -> set[str]:
    """The flags that a module defines: "--name" (argparse), DEFINE_x("name", …) (absl), f"--{field}" of its fields."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value[2:]} if re.fullmatch(r"--[a-z_]+", node.value) else set()
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "").startswith("DEFINE_") and node.args:
            found.add(getattr(node.args[0], "value", ""))
        elif isinstance(node, ast.JoinedStr) and getattr(node.values[0], "value", "") == "--":
            found |= {
                str(f.target.id)
                for f in ast.walk(tree)
                if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)
            }
    return found


def known_key(key: str) -> bool:
    """Whether a configuration has the key, or an ablation's."""
    from configs.default import get_config

    section, _, name = key.partition(".")
    if section in ("seeds", "baseline", "variants", "paper"):
        return True
    config = get_config()
    return section in config and name in config[section]
