"""Decoded images kept on disk, so that a set is decoded once however many runs look at it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from input_pipeline.bars import over_batches
from input_pipeline.disk import require_room
from input_pipeline.errors import InputError, printable
from input_pipeline.sources import Split
from input_pipeline.threaded import in_order
from native.own_folders import cache_folder

# Part of every key: raise it when the decoder changes.
VERSION = 3


def folder() -> Path:
    """Where decoded images are kept. Nothing there is needed when runs are done."""
    return cache_folder("resident")


def kept_rows(
    split: Split,
    shape: tuple[int, ...],
    decode: Callable[[int, np.ndarray], None],
    about: Sequence[object],
) -> np.ndarray:
    """uint8[N, *shape], row i of example i, read-only and mapped from disk; decoded now where it is not there.

    decode(i, row): writes example i into its row of zeros; called in threads. about: everything that the rows depend on
    besides the encoded images, as JSON values. Both make the key: copies elsewhere share rows, a changed image has new
    ones. The sha256 of the bytes lies beside them, and rows that do not match it are decoded anew. Raises what
    `decode` raises, and InputError where the disk refuses.
    """
    key = hashlib.sha256(json.dumps([VERSION, split.digest(), list(shape), *about]).encode()).hexdigest()
    target, note = folder() / f"{key[:32]}.u8", folder() / f"{key[:32]}.json"
    whole = (len(split), *shape)
    nbytes = int(np.prod(whole, dtype=np.int64))
    try:
        if not _is_whole(target, note, nbytes):
            folder().mkdir(parents=True, exist_ok=True)
            _remove_abandoned()
            advice = "set XDG_CACHE_HOME to another folder, or use --config.data.feed=stream"
            require_room(folder(), nbytes, "decoded images", advice)
            part = target.with_suffix(f".{os.getpid()}.part")
            try:
                with part.open("wb") as held:
                    with contextlib.suppress(OSError):  # Some shared disks know no locks; there nothing is removed.
                        fcntl.flock(held, fcntl.LOCK_EX)
                    rows = np.memmap(part, np.uint8, "w+", shape=whole)
                    _decode_all(rows, decode)
                    rows.flush()
                    del rows
                    note.write_text(json.dumps({"sha256": _sha256(part)}) + "\n", encoding="utf-8")
                    os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
        return np.memmap(target, np.uint8, "r", shape=whole)
    except OSError as error:
        raise InputError(
            f"{printable(str(folder()))}: decoded images cannot be kept there ({error.strerror}); make room, set "
            "XDG_CACHE_HOME to another folder, or use --config.data.feed=stream"
        ) from error


def _remove_abandoned() -> None:
    """Remove what a process that was killed was decoding; one that lives holds its file locked."""
    for part in folder().glob("*.part"):
        with contextlib.suppress(OSError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def _is_whole(target: Path, note: Path, nbytes: int) -> bool:
    """Whether rows are there, with the bytes that were written."""
    try:
        if target.stat().st_size != nbytes:
            return False
        return bool(json.loads(note.read_bytes())["sha256"] == _sha256(target))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _decode_all(rows: np.ndarray, decode: Callable[[int, np.ndarray], None]) -> None:
    """Fill every row, in threads, with a bar."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        done = in_order(pool, lambda i: decode(i, rows[i]), len(rows))
        try:
            deque(over_batches(done, "decoding images", len(rows), 1), maxlen=0)
        except BaseException:
            # What waits in line would be decoded first.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
