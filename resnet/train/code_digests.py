"""Digests of the code that a run's figures come from, and what is noted where a run goes on with other code.

A revision with changes that are not committed names no code: two runs of it may be of two kinds.
"""

import contextlib
import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from input_pipeline.errors import printable
from resnet.train.provenance import revision, versions

ROOT = Path(__file__).resolve().parents[2]
# What decides a run's figures, below ROOT. Recipes do not: what they give is the configuration.
FOLDERS = ("input_pipeline", "native", "resnet/model", "resnet/train", "resnet/weights")
# What decides an ablation's as well.
OF_ABLATIONS = tuple(f"resnet/study/ablation_{name}.py" for name in ("diagnostics", "program", "runs"))
# Files that a line about changed code names; provenance.json has all.
MOST_NAMED = 4


@functools.cache
def sources() -> tuple[str, ...]:
    """'resnet/train/losses.py 9f86d081884c7d65' for each Python and C file of FOLDERS: path and sha256, cut short.

    Sorted; read when this process imported this file, before any data were opened. Left out is what no import reads:
    names that begin with a dot, which editors and file systems leave behind, and files that cannot be read.
    """
    files = (file.relative_to(ROOT) for folder in FOLDERS for file in (ROOT / folder).rglob("*"))
    named = [file for file in files if file.suffix in (".py", ".c", ".h") and not any(p[0] == "." for p in file.parts)]
    return digests(named)


def digests(files: Iterable[Path]) -> tuple[str, ...]:
    """Sorted lines as `sources` has them, of those of these paths below ROOT that can be read."""
    lines = []
    for file in files:
        # An editor's lock is a link to nowhere, and a file may go while it is looked for.
        with contextlib.suppress(OSError):
            lines.append(f"{file.as_posix()} {hashlib.sha256((ROOT / file).read_bytes()).hexdigest()[:16]}")
    return tuple(sorted(lines))


@functools.cache
def code_digest() -> str:
    """One number for the code of an ablation: `sources`, its own program, versions of packages. 16 hex digits.

    As it was when this process imported this file.
    """
    own = digests(Path(name) for name in OF_ABLATIONS)
    packages = [f"{name} {version}" for name, version in sorted(versions().items())]
    return hashlib.sha256("\n".join((*sources(), *own, *packages)).encode()).hexdigest()[:16]


def changed(before: Sequence[Any], now: Sequence[str]) -> list[str]:
    """The paths that are new, gone or of other contents in the second of two lists of `sources`."""
    return sorted({str(line).rpartition(" ")[0] for line in set(map(str, before)) ^ set(now)})


def gone_on_with(provenance: dict[str, Any], done: int) -> tuple[dict[str, Any], list[str]]:
    """(the provenance of a begun run with today's code noted in it, lines to print where the last step had other code).

    done: the steps done; if none, the run is this code's from its first step on. Code that did no step is dropped from
    the notes. A run of November 2026 or before noted no sources; its provenance comes back as it is.
    """
    now: dict[str, Any] = {"sources": list(sources()), "versions": versions()}
    stored = provenance.get("new_code", [])
    is_later = lambda entry: _tells_code(entry) and type(entry.get("after_step")) is int  # noqa: E731
    if not (isinstance(stored, list) and _tells_code(provenance) and all(map(is_later, stored))):
        return provenance, []
    entries = [entry for entry in stored if entry["after_step"] < done]
    noted = {key: value for key, value in provenance.items() if key != "new_code"}
    if not done:
        same = noted == noted | now
        return noted | ({} if same else now | {"revision": revision()}), []
    last = entries[-1] if entries else noted
    lines = []
    if last != last | now:
        files, moved = changed(last["sources"], now["sources"]), other_versions(last["versions"], now["versions"])
        entries.append({"after_step": done, "revision": revision(), "files": files, "moved": moved, **now})
        named = [*files[:MOST_NAMED], *([f"{len(files) - MOST_NAMED} more"] if len(files) > MOST_NAMED else []), *moved]
        lines = [
            f"Note      the code has changed since step {done:,}, the last one done: {printable(', '.join(named))}. "
            "Finished steps stay as they are; if that matters, give --workdir a new folder"
        ]
    return noted | ({"new_code": entries} if entries else {}), lines


def _tells_code(entry: Any) -> bool:
    """Whether a provenance, or an entry of its 'new_code' but for its step, is as `gone_on_with` writes it."""
    kinds = {"sources": list, "versions": dict}
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())


def other_versions(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """'jax 0.10.1 -> 0.10.2' for each package that is new, gone or of another version."""
    of = lambda versions, name: versions.get(name, "none")  # noqa: E731
    names = sorted(before.keys() | now.keys())
    return [f"{name} {of(before, name)} -> {of(now, name)}" for name in names if of(before, name) != of(now, name)]


# Now: data are opened for minutes, and who changes a file meanwhile changes nothing of this process.
code_digest()
