"""What earlier audits found, kept on disk: all at once for the very same files, else file by file as far as unchanged.

An audit of millions of files takes hours. One that was cut short goes on, and one file that came or changed costs one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from input_pipeline.bars import BAR_FROM
from input_pipeline.whole_files import write_whole
from native.own_folders import cache_folder

if TYPE_CHECKING:
    from input_pipeline.images import Listing

# label, bytes, upright height and width, orientation, content, reason
Row = tuple[int, int, int, int, int, str, str]
_KINDS = (int, int, int, int, int, str, str)
# A few rows lost by a kill are a blink's work; each written by itself would be a call a file.
_FLUSHED = 256
# Seconds between looks at a lock that another process holds.
_POLLED = 0.2


class AuditCache:
    """The verdicts on a listing in `cache_dir` (default resnet-jax/audit under $XDG_CACHE_HOME or ~/.cache).

    KEY.json: columns of a whole audit, and the mark of each file (`Listing.known`). PLACE.key: the key of the folder's
    latest. PLACE.*.part: a row a line, of audits that are under way or were cut short. What cannot be written is left:
    it costs the next run another audit, nothing else. version: another one forgets.
    """

    def __init__(self, listing: Listing, cache_dir: str | None, version: int) -> None:
        self._folder, self._listing = Path(cache_dir or cache_folder("audit")), listing
        self._key = _digest(f"{version} {listing.stamp}")
        place = os.path.abspath(listing.where) if listing.known else listing.stamp
        self._place = _digest(f"{version} place {place}")
        self._journal: IO[str] | None = None
        self._parts: list[Path] = []
        self._noted = 0

    def whole(self) -> list[Row] | None:
        """All rows, of an earlier audit of the same files; None where there is none, or where a file was not given."""
        rows = [row for _, row in self._stored(self._key)]
        return rows if len(rows) == len(self._listing.ids) and all(map(_settled, rows)) else None

    @contextlib.contextmanager
    def turn(self, *, announce: bool = True) -> Iterator[None]:
        """Wait while another process audits the same files: of eight on a machine one reads them, the others recall.

        announce: whether a line says so, where the set is large. The lock goes with the process that holds it. Where
        there can be none, nobody waits.
        """
        path, new = self._folder / f"{self._key}.lock", not self._folder.exists()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            yield
            return
        try:
            self._wait_for(lock, announce)
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(lock)
            if new:
                with contextlib.suppress(OSError):
                    self._folder.rmdir()  # Where nothing came into it.

    def _wait_for(self, lock: int, announce: bool) -> None:
        announce = announce and len(self._listing.ids) >= BAR_FROM
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if announce:
                    print("Another process is checking the same images: waiting for its result", file=sys.stderr)
                announce = False
                time.sleep(_POLLED)
            except OSError:
                return  # A file system without locks.

    def single(self) -> dict[int, Row]:
        """Row i of each example i on which there is a verdict."""
        known = dict(self._cut_short())
        if self._listing.known is None:
            return {i: known[str(i)] for i in range(len(self._listing.ids)) if str(i) in known}
        try:
            latest = (self._folder / f"{self._place}.key").read_text()
        except (OSError, ValueError):
            latest = ""
        known |= {mark: row for mark, row in self._stored(latest) if mark and _settled(row)}
        found = {}
        for i in range(len(self._listing.ids) if known else 0):
            mark, label = self._listing.known(i)
            if mark in known:
                # Labels go by the classes that are there now.
                found[i] = (label, *known[mark][1:])
        return found

    def note(self, i: int, row: Row) -> None:
        """Keep a row until `keep` does, so that an audit that is cut short can go on from it."""
        if not _settled(row):
            return
        try:
            if self._journal is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._journal = tempfile.NamedTemporaryFile(  # noqa: SIM115 (closed in `keep`; a kill closes it as well)
                    "w", dir=self._folder, prefix=f"{self._place}.", suffix=".part", delete=False
                )
                self._parts.append(Path(self._journal.name))
            self._journal.write(json.dumps([self._mark(i), *row], separators=(",", ":")) + "\n")
            self._noted += 1
            if self._noted % _FLUSHED == 0:
                self._journal.flush()
        except (OSError, ValueError):
            pass

    def keep(self, rows: list[Row]) -> None:
        """Write the rows of all examples, in one piece: a reader sees all of it or none."""
        columns: list[object] = list(zip(*rows, strict=True))
        if self._listing.known:
            columns.append([self._mark(i) for i in range(len(rows))])
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._folder / f"{self._key}.json", json.dumps(columns, separators=(",", ":")))
            if self._listing.known:
                write_whole(self._folder / f"{self._place}.key", self._key)
        except OSError:
            return
        finally:
            self.close()
        for part in self._parts:
            part.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file that `note` writes."""
        if self._journal is not None:
            with contextlib.suppress(OSError):
                self._journal.close()

    def _mark(self, i: int) -> str:
        return self._listing.known(i)[0] if self._listing.known else str(i)

    def _stored(self, key: str) -> Iterator[tuple[str, Row]]:
        """(mark or '', row) of each example of a whole audit; nothing where there is none or something else."""
        try:
            columns = json.loads((self._folder / f"{key}.json").read_bytes())
            marks = columns.pop() if len(columns) > len(_KINDS) else [""] * len(columns[0])
            rows = [tuple(row) for row in zip(*columns, strict=True)]
            if len(marks) != len(rows) or not all(map(_sound, rows)) or not all(isinstance(m, str) for m in marks):
                return
        except (OSError, ValueError, TypeError, AttributeError, LookupError):
            return
        yield from zip(marks, rows, strict=True)

    def _cut_short(self) -> Iterator[tuple[str, Row]]:
        """(mark, row) of what audits noted that never came to their end."""
        self._parts = list(self._folder.glob(f"{self._place}.*.part"))
        for part in self._parts:
            try:
                with part.open("rb") as lines:
                    for line in lines:
                        try:
                            mark, *row = json.loads(line)
                        except (ValueError, TypeError):
                            continue  # The last one may be torn.
                        if isinstance(mark, str) and _sound(tuple(row)):
                            yield mark, tuple(row)
            except OSError:
                continue


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _sound(row: tuple[object, ...]) -> bool:
    return tuple(map(type, row)) == _KINDS and str(row[5]).isascii()


def _settled(row: Row) -> bool:
    """Whether the file was read. Where it was not given (no permission, say), that may be mended without a trace."""
    return bool(row[5]) or not row[6]
