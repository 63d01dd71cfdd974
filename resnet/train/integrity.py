"""Whether a checkpoint on disk is what was written: every step's folder carries the size and sha256 of its files.

Orbax restores an array with a flipped bit without a word (80 of 80 tried, 0.12.8), takes an empty folder for the newest
checkpoint, and does not push its JSON files to the disk before it gives the folder its name. So the manifest is made
while the folder still has its temporary name: a folder with a step's name and no manifest was never written whole.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.errors import printable
from input_pipeline.ordinary_files import read_ordinary

MANIFEST = "integrity.json"
# Orbax rewrites it once more after the manifest is made; it holds times only.
TIMES = "_CHECKPOINT_METADATA"
# Orbax' own mark, written last: what a checkpoint from before there were manifests is known by.
COMMITTED = "commit_success.txt"
ITEMS = ("variables", "meta")
DAMAGED, REPLACED = "damaged-", "replaced-"
ABSENT = "it does not exist"
# Ten million class names take less.
MOST_JSON = 1 << 29


def seal(folder: Path) -> None:
    """Write the manifest of everything in `folder`, and push it all to the disk; 0.12 s per 100 MB.

    Then the folder may get its final name: whatever cuts the power, files and manifest agree. Raises OSError.
    """
    files = {}
    for name in sorted(files_below(folder)):
        with (folder / name).open("rb") as file:
            files[name] = {
                "size": os.fstat(file.fileno()).st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
            # Linux pushes a file's pages out through any descriptor, also one that only reads.
            os.fsync(file.fileno())
    with (folder / MANIFEST).open("w", encoding="utf-8") as manifest:
        json.dump({"files": files}, manifest, indent=1)
        manifest.flush()
        os.fsync(manifest.fileno())
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Push a folder's list of names to the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_below(folder: Path) -> Iterator[str]:
    """Relative names of everything below `folder` that is no folder, without the manifest and what changes after it."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name not in (MANIFEST, TIMES, COMMITTED) and (path.is_symlink() or not path.is_dir()):
            yield name


def fault(folder: Path, *, deep: bool = True) -> str | None:
    """What is wrong with a step's folder, in a few words without its name; None for a whole one.

    deep: compare the sums as well, not only names and sizes. A folder without a manifest, from before there were any,
    passes if orbax committed it and its parts are there.
    """
    try:
        if not folder.is_dir():
            return "it is not a folder" if folder.exists() else ABSENT
        if not json_or_absent(folder / TIMES):
            return f"{TIMES} is damaged"
        if not (folder / MANIFEST).exists():
            return fault_without_manifest(folder)
        stored = json.loads(read_ordinary(folder / MANIFEST, MOST_JSON, "any manifest"))["files"]
        wanted = {str(name): (int(about["size"]), str(about["sha256"])) for name, about in stored.items()}
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{MANIFEST} is damaged"
    try:
        return difference(folder, wanted, deep=deep)
    except OSError as error:
        return f"{printable(Path(str(error.filename)).name)} cannot be read: {error.strerror}"


def difference(folder: Path, wanted: dict[str, tuple[int, str]], *, deep: bool) -> str | None:
    """The first file that is not as `wanted` (name -> size, sha256) says, and how it differs. Raises OSError."""
    # What is opened is what lies in the folder: a manifest is no list of places to read.
    present = set(files_below(folder))
    for name, (size, checksum) in sorted(wanted.items()):
        if name not in present:
            return f"{printable(name)} is missing"
        about = (folder / name).lstat()
        if not stat.S_ISREG(about.st_mode):
            return f"{printable(name)} is not a file"
        if about.st_size != size:
            return f"{printable(name)} has {about.st_size:,} of {size:,} bytes"
        if deep:
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                    return f"{printable(name)} is not what was written"
    return None


def fault_without_manifest(folder: Path) -> str | None:
    """As `fault`, for a checkpoint from before there were manifests: its parts are there, its JSON can be read."""
    if not any(folder.iterdir()):
        return "it is empty"
    if not (folder / COMMITTED).exists() and not (folder / TIMES).exists():
        return f"it has no {MANIFEST}"
    for item in ITEMS:
        if not (folder / item).is_dir() or not any((folder / item).iterdir()):
            return f"{item} is missing"
    return None if json_or_absent(folder / "meta" / "metadata") else "meta/metadata is damaged"


def json_or_absent(path: Path) -> bool:
    """Whether a file is JSON, or not there at all. Raises OSError for one that cannot be read."""
    try:
        json.loads(read_ordinary(path, MOST_JSON, "any metadata"))
    except FileNotFoundError:
        return True
    except (ValueError, RecursionError):
        return False
    return True


def step_numbers(root: Path) -> list[int]:
    """The steps that have something of their name in `root`, newest first; [] if there is no such folder."""
    if not root.is_dir():
        return []
    return sorted(
        (int(path.name) for path in root.iterdir() if path.name.isdecimal() and path.name.isascii()), reverse=True
    )


def tidy(root: Path) -> list[str]:
    """Make the newest checkpoint in `root` a whole one; one line for the user for each damaged one on the way to it.

    A damaged step is moved to damaged-STEP; nothing of it is deleted. Steps before the newest whole one stay as they
    are: a kill while one of them was deleted leaves a part of it, which the next save deletes. Raises OSError.
    """
    finish_replacing(root)
    # What killed saves left, each as large as a checkpoint. Orbax can do it, but in a thread that nobody waits for.
    for left in root.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(left, ignore_errors=True)
    lines = []
    steps = step_numbers(root)
    for step in steps:
        folder = root / str(step)
        why = fault(folder)
        if not why:
            break
        aside = set_aside(folder)
        then = "the run starts again" if step == steps[-1] else "the one before it is used"
        lines.append(f"{printable(str(folder))} is damaged ({why}) and was moved to {aside.name}; {then}")
    return lines


def set_aside(folder: Path) -> Path:
    """Rename a damaged step's folder so that nobody takes it for a checkpoint; the new path. Raises OSError."""
    number, aside = 1, folder.with_name(f"{DAMAGED}{folder.name}")
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{DAMAGED}{folder.name}-{number}")
    folder.rename(aside)
    return aside


def begin_replacing(root: Path, step: int) -> None:
    """Take the name away from a step's folder that is about to be written anew. Raises OSError."""
    replaced = root / f"{REPLACED}{step}"
    shutil.rmtree(replaced, ignore_errors=True)
    (root / str(step)).rename(replaced)


def finish_replacing(root: Path) -> None:
    """Delete what was replaced once the new one is whole; where that was never written, give the old one its name back.

    Raises OSError.
    """
    for replaced in root.glob(f"{REPLACED}*"):
        folder = root / replaced.name.removeprefix(REPLACED)
        if not folder.exists():
            replaced.rename(folder)
        elif not fault(folder, deep=False):
            shutil.rmtree(replaced, ignore_errors=True)
