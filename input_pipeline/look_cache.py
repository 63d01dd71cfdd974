"""What the doctor saw of single files, kept on disk: a file that is new or changed costs one look, not a look at all.

Rows of one size, appended one by one, so that a look over a folder that was cut short goes on where it was. Each row
ends in a checksum: one that a power cut left in part costs another look, nothing else. 1.2 kB an image.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import PIL

from input_pipeline.fingerprints import CHROMA_SIDE, SIDE, Look
from input_pipeline.images import Listing
from input_pipeline.whole_files import beside
from native.own_folders import cache_folder

# Part of the file's name: raise it when a look, or a row, becomes another.
VERSION = 1
ROW = np.dtype([
    ("mark", "S32"), ("format", "S4"), ("mode", "S8"), ("bits", "u1"), ("height", "<i4"), ("width", "<i4"),
    ("orientation", "u1"), ("animated", "u1"), ("byte_size", "<i8"), ("hashed", "u1"), ("digest", "u1", (32,)),
    ("transparent", "u1"), ("grey", "u1", (SIDE, SIDE)), ("chroma", "u1", (2, CHROMA_SIDE, CHROMA_SIDE)),
    ("check", "<u4"),
])  # fmt: skip
# Rows beyond twice as many as there are files, from which on the file is written anew without those of files that are
# gone or changed.
_STALE = 256
_FLUSHED = 64


class LookCache:
    """The looks at the files of a folder in `cache_dir` (default resnet-jax/doctor under $XDG_CACHE_HOME or ~/.cache).

    What cannot be read or written there costs another look, nothing else. Of several processes one writes.
    """

    def __init__(self, listing: Listing, cache_dir: str | None) -> None:
        place = f"{VERSION} {PIL.__version__} {os.path.abspath(listing.where)}".encode("utf-8", "surrogateescape")
        self._path = Path(cache_dir or cache_folder("doctor")) / f"{hashlib.sha256(place).hexdigest()}.looks"
        self._listing = listing
        self._rows, self._used = np.zeros(0, ROW), list[int]()
        self._file: IO[bytes] | None = None
        self._refused = listing.known is None
        self._noted = 0
        # Files are looked at in threads.
        self._lock = threading.Lock()

    def recall(self) -> Iterator[tuple[int, Look, np.ndarray, np.ndarray]]:
        """(i, look, grey, chroma) of each file i of the listing that is still as it was; see `fingerprints.Gallery`."""
        self._used = []
        try:
            rows = self._rows = np.memmap(self._path, ROW, "r", shape=(self._path.stat().st_size // ROW.itemsize,))
        except (OSError, ValueError):  # ValueError: there is none yet, or it is empty.
            return
        place_of = {mark: place for place, mark in enumerate(rows["mark"].tolist())}
        for i in range(len(self._listing.ids) if self._listing.known else 0):
            place = place_of.get(self._mark(i))
            if place is None:
                continue
            row = rows[place]
            if _checksum(row.tobytes()) != row["check"]:
                continue
            self._used.append(place)
            yield i, _look(row), row["grey"], row["chroma"]

    def note(self, i: int, look: Look, grey: np.ndarray, chroma: np.ndarray) -> None:
        """Keep the look at file i; one that could not be read is looked at again. Called in threads."""
        if self._refused or look.reason:
            return
        row = np.zeros((), ROW)
        digest = np.frombuffer(look.digest or bytes(32), np.uint8)
        values = (
            self._mark(i), look.format.encode(), look.mode.encode(), look.bits, look.height, look.width,
            look.orientation, look.animated, look.byte_size, bool(look.digest), digest, look.transparent, grey, chroma,
        )  # fmt: skip
        for name, value in zip(ROW.names or (), values, strict=False):
            row[name] = value
        row["check"] = _checksum(row.tobytes())
        with self._lock:
            try:
                self._file = self._file or self._open()
                self._file.write(row.tobytes())
                self._noted += 1
                if self._noted % _FLUSHED == 0:
                    self._file.flush()
            except OSError:
                self._refused = True

    def flush(self) -> None:
        """Let other processes see what was noted."""
        with self._lock, contextlib.suppress(OSError):
            if self._file is not None:
                self._file.flush()

    def close(self) -> None:
        """Let go of the file that `note` writes."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _mark(self, i: int) -> bytes:
        assert self._listing.known is not None
        return self._listing.known(i)[0].encode()

    def _open(self) -> IO[bytes]:
        """The file to append whole rows to, held by this process alone. Raises OSError where another one holds it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        usage = shutil.disk_usage(self._path.parent)
        # As much again is left to what others keep there: the audit's verdicts are worth more.
        if usage.total and usage.free < 2 * len(self._listing.ids) * ROW.itemsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file = self._held()
        rows = file.seek(0, os.SEEK_END) // ROW.itemsize
        if rows > 2 * len(self._listing.ids) + _STALE:
            # Anew: another process may have added rows since.
            deque(self.recall(), maxlen=0)
            file.close()
            with beside(self._path) as part:
                part.write_bytes(self._rows[self._used].tobytes())
            file, rows = self._held(), len(self._used)
        # A kill may have left a part of a row.
        file.truncate(rows * ROW.itemsize)
        return file

    def _held(self) -> IO[bytes]:
        file = self._path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise
        return file


def _checksum(row: bytes) -> int:
    return zlib.crc32(row[: -ROW["check"].itemsize])


def _look(row: np.void) -> Look:
    return Look(
        "", row["format"].decode(), row["mode"].decode(), int(row["bits"]), int(row["height"]), int(row["width"]),
        int(row["orientation"]), bool(row["animated"]), int(row["byte_size"]),
        row["digest"].tobytes() if row["hashed"] else b"", bool(row["transparent"]),
    )  # fmt: skip
