"""A run's directory: claimed by one process, fixed to one configuration, written so that nothing is ever half there."""

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from input_pipeline.disk import amount, first_standing, require_room
from input_pipeline.errors import InputError, printable
from input_pipeline.ordinary_files import read_ordinary
from input_pipeline.whole_files import clear_parts
from resnet.train.configuration import FREE, LENGTH, PLACES, differences, differences_line
from resnet.train.integrity import MOST_JSON

CONFIG, CLASSES, PROVENANCE, LOCK = "config.json", "classes.json", "provenance.json", ".lock"
# The mark of an ablation's folder (resnet.study.ablation), which is no run's.
ABLATION = "ablation.json"
# What a run that was killed before its configuration was written may have left: as good as an empty folder.
BEGINNINGS = (LOCK, PROVENANCE, CLASSES, *(f".{name}.part" for name in (PROVENANCE, CLASSES, CONFIG)))


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that `path` holds the old text or the new, never a part of it, even after a power cut."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
        file.flush()
        # A rename can reach the disk before what was written: after a power cut the file would be there, and empty.
        os.fsync(file.fileno())
    os.replace(part, path)


def without_nan(value: Any) -> Any:
    """`value`, of dicts, lists, tuples and plain values, with None for each number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_workdir(workdir: Path, config: dict[str, Any], *, new_length: bool = False) -> bool:
    """Whether `workdir` already holds this very run (then it is to be resumed). Touches nothing.

    config: the flat configuration. new_length: it may end elsewhere than it did (the keys of LENGTH). Raises InputError
    for a file, for a path that cannot become a folder, for a folder with other things in it, and for a run of another
    configuration, with every difference.
    """
    name, entries = printable(str(workdir)), names_in(workdir)
    if CONFIG not in entries:
        others = [entry for entry in entries if entry not in BEGINNINGS]
        if others:
            raise InputError(
                f"{name} is not a run but holds {printable(others[0])!r}; give --workdir a new or empty folder"
            )
        return False
    changed = differences(read_config(workdir), config, (*FREE, *PLACES, *(LENGTH if new_length else ())))
    if changed.keys() and changed.keys() <= set(LENGTH):
        raise InputError(
            f"{name} holds a run of another length; add --new_length to continue to this one, or give --workdir a new "
            f"folder, or the old settings: {differences_line(changed)}"
        )
    if changed:
        raise InputError(
            f"{name} holds a run of another configuration; give --workdir a new folder, or the old settings: "
            f"{differences_line(changed)}"
        )
    return True


def names_in(workdir: Path) -> list[str]:
    """What lies in `workdir`, sorted; [] where it is not there yet. Raises InputError for one that cannot be."""
    try:
        check_place(workdir)
        return sorted(entry.name for entry in workdir.iterdir()) if workdir.is_dir() else []
    except OSError as error:
        raise InputError(
            f"{printable(str(workdir))} cannot be read ({error.strerror}); give --workdir a folder of your own"
        ) from error


def read_config(workdir: Path) -> dict[str, Any]:
    """The flat configuration that a run's directory has. Raises InputError where it cannot be read."""
    stored = workdir / CONFIG
    try:
        return dict(json.loads(read_ordinary(stored, MOST_JSON, "any configuration")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{printable(str(stored))} cannot be read; restore it or give --workdir a new folder"
        ) from error


def check_place(workdir: Path) -> None:
    """Raise InputError unless `workdir` is a folder, or can be made one, that this process may write in."""
    name = printable(str(workdir))
    try:
        os.fspath(workdir.absolute()).encode()
    except UnicodeEncodeError as error:
        # Tensorstore, which writes the checkpoints, takes no other names.
        raise InputError(f"{name} is not UTF-8; give --workdir a folder whose whole path is") from error
    standing = first_standing(workdir)
    if not standing.is_dir():
        which = "is" if standing == workdir.absolute() else f"lies below {printable(str(standing))}, which is"
        raise InputError(f"{name} {which} a file; give --workdir a folder")
    if not os.access(standing, os.W_OK | os.X_OK):
        raise InputError(f"{name}: {printable(str(standing))} is not writable; give --workdir another folder")


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """Hold the run's directory, made if missing. The lock dies with the process, however that ends.

    Raises InputError if another process holds it or it cannot be written.
    """
    name = printable(str(workdir))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / LOCK).open("a+")
    except OSError as error:
        raise InputError(f"{name} cannot be written ({error.strerror}); give --workdir a writable folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{name} is in use by another process; wait for it or give another --workdir") from error
        except OSError as error:
            raise InputError(
                f"{name} cannot be locked ({error.strerror}); give --workdir a folder whose file system locks files "
                "(Lustre: mounted with -o flock), or a local one"
            ) from error
        clear_parts(workdir)
        yield


def check_room(workdir: Path, checkpoints: int, predictions: int = 0) -> None:
    """Raise InputError unless the disk under `workdir` (which need not exist yet) has so many bytes free.

    predictions: of predictions.npz, which is written when all training is done.
    """
    advice = "lower --config.run.keep or give another --workdir"
    require_room(workdir, checkpoints, "checkpoints", advice)
    if predictions:
        require_room(workdir, checkpoints + predictions, "checkpoints and predictions.npz", advice)


@contextlib.contextmanager
def room_told(workdir: Path, needed: int) -> Iterator[None]:
    """Turn the OSError of a disk that fills up into an InputError that says how much room one checkpoint needs.

    needed: bytes of one. Any file may be the one that finds the disk full: a line of metrics, TensorBoard's, a picture.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(workdir).free
        raise InputError(
            f"{printable(str(workdir))}: {error.strerror}: a checkpoint takes {amount(needed)}, the disk has "
            f"{amount(free)} free; make room and run the same command to resume from the last complete one"
        ) from error
