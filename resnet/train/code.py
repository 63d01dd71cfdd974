"""The code that figures are of, by digests of its files; and what is noted where a run goes on with another.

A revision with changes that are not committed names no code: two runs of it may be of two kinds.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from input_pipeline.errors import printable
from resnet.train.provenance import revision, versions

ROOT = Path(__file__).resolve().parents[2]
# What decides a run's figures, below ROOT. Recipes do not: what they give is the configuration.
FOLDERS = ("input_pipeline", "native", "resnet/model", "resnet/train", "resnet/weights")
# Files that a line about changed code names; provenance.json has all.
MOST_NAMED = 4


@functools.cache
def sources() -> tuple[str, ...]:
    """'resnet/train/losses.py 9f86d081884c7d65' for each Python and C file of FOLDERS: path and sha256, cut short.

    Sorted; as they are at the first call, soon after this process imported them.
    """
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".c", ".h")]
    digest = lambda file: hashlib.sha256(file.read_bytes()).hexdigest()[:16]  # noqa: E731
    return tuple(sorted(f"{file.relative_to(ROOT).as_posix()} {digest(file)}" for file in files))


def code() -> str:
    """One number for all of `sources`: 16 hex digits."""
    return hashlib.sha256("\n".join(sources()).encode()).hexdigest()[:16]


def changed(before: Sequence[Any], now: Sequence[str]) -> list[str]:
    """The paths that are new, gone or of other contents in the second of two lists of `sources`."""
    return sorted({str(line).rpartition(" ")[0] for line in set(map(str, before)) ^ set(now)})


def gone_on_with(provenance: dict[str, Any], done: int) -> tuple[dict[str, Any], list[str]]:
    """(a begun run's provenance with what code goes on with it, lines to print where the last step done had another).

    done: the steps done; where there are none the run is this code's from its first step on. Code under which no step
    was done is forgotten. Of a run of November 2026 or before, which noted no sources, nothing can be told.
    """
    now: dict[str, Any] = {"sources": list(sources()), "versions": versions()}
    stored = provenance.get("new_code", [])
    if not isinstance(stored, list) or not all(map(_tells_code, (provenance, *stored))):
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
            f"Note      the code is not that of step {done:,}, the last one done: {printable(', '.join(named))}. "
            "What is done stays as it is; where that matters, give --workdir a new folder"
        ]
    return noted | ({"new_code": entries} if entries else {}), lines


def _tells_code(entry: Any) -> bool:
    """Whether a provenance, or an entry of its 'new_code', is as `gone_on_with` writes it; a damaged one is not."""
    kinds = {"sources": list, "versions": dict}
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())


def other_versions(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """'jax 0.10.1 -> 0.10.2' for each package that is new, gone or of another version."""
    of = lambda versions, name: versions.get(name, "none")  # noqa: E731
    names = sorted(before.keys() | now.keys())
    return [f"{name} {of(before, name)} -> {of(now, name)}" for name in names if of(before, name) != of(now, name)]
