"""Looking at every file of a folder once, whoever reads it.

What is still as it was is recalled, what somebody else reads anyway is looked at as it comes, the rest is read here.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

import numpy as np

from input_pipeline.encoded_files import MAX_BYTES
from input_pipeline.fingerprints import CHROMA_SIDE, SIDE, Gallery, Look, look
from input_pipeline.images import Listing
from input_pipeline.look_cache import LookCache

# One task for the pool: a hundred microseconds of work a file would drown in the cost of handing each over.
_CHUNK = 32
# Each thread may hold a decoded picture of MAX_PIXELS.
_MAX_THREADS = 16
# What a file that cannot be had says for as long as its size and time stay: that it is none, or too large.
_LASTING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.EFBIG, errno.ENAMETOOLONG)


class Looking:
    """The looks at a listing's files, as they come."""

    def __init__(self, listing: Listing, cache_dir: str | None = None) -> None:
        """Recall what earlier looks left. cache_dir: see `LookCache`. Raises ValueError for a listing without paths."""
        if listing.paths is None:
            raise ValueError("only files can be looked over, and this listing has no paths")
        count = len(listing.paths)
        self.listing, self._cache = listing, LookCache(listing, cache_dir)
        self._sizes = np.array([_byte_size(path) for path in listing.paths], np.int64)
        values, often = np.unique(self._sizes, return_counts=True)
        # Bytes are compared where sizes are equal; else the sum of a file's bytes would be for nothing.
        self._shared = np.isin(self._sizes, values[often > 1])
        self._looks: list[Look | None] = [None] * count
        self._labels = np.full(count, -1, np.int32)
        self._grey = np.zeros((count, SIDE, SIDE), np.uint8)
        self._chroma = np.zeros((count, 2, CHROMA_SIDE, CHROMA_SIDE), np.uint8)
        self.recall()

    def recall(self) -> None:
        """Take what is kept by now of files that nobody has looked at yet: another process may have looked."""
        for i, seen, grey, chroma in self._cache.recall():
            if self._looks[i] is None and (seen.digest or not self._shared[i]):
                self._looks[i], self._grey[i], self._chroma[i] = seen, grey, chroma
                self._labels[i] = self._label(i)

    def _label(self, i: int) -> int:
        assert self.listing.known is not None
        return self.listing.known(i)[1]

    def take(self, i: int, data: bytes, label: int) -> None:
        """Look at file i, whose encoded bytes somebody has read. May be called in threads."""
        if self._looks[i] is None:
            self._labels[i] = label
            seen = look(data, self._grey[i], self._chroma[i], hashed=bool(self._shared[i]))
            self._looks[i] = seen
            self._cache.note(i, seen, self._grey[i], self._chroma[i])

    def left(self) -> list[int]:
        """The files that nobody has looked at yet."""
        return [i for i, seen in enumerate(self._looks) if seen is None]

    def read(self, rows: list[int]) -> int:
        """Read and look at these files; how many they are."""
        for i in rows:
            found = self._open(i)
            if isinstance(found, Look):
                self._looks[i] = found
            else:
                self.take(i, *found)
        return len(rows)

    def _open(self, i: int) -> tuple[bytes, int] | Look:
        """Encoded bytes and label of file i, or why there are none."""
        size = int(self._sizes[i])
        if size > MAX_BYTES:
            return Look(f"{size:,} bytes, too large for an image", byte_size=size)
        try:
            return self.listing.examine(i)
        except OSError as error:
            reason = f"cannot be read ({error.strerror or error})"
            return Look(reason, byte_size=max(size, 0), lasting=error.errno in _LASTING)

    def gallery(self) -> Gallery:
        """All looks. To be called once, when nothing is left."""
        self._cache.close()
        return Gallery(tuple(filter(None, self._looks)), self._labels, self._grey, self._chroma)

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Without Pillow's warnings of odd EXIF and palettes: nothing that a reader of the report could act on."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        # For whoever waited meanwhile.
        self._cache.flush()


def gather(looking: Looking, *, progress: Callable[[int], object] = lambda done: None) -> Gallery:
    """Look at every file that is left, in threads. progress: called with the number of files just finished."""
    left = looking.left()
    chunks = (left[start : start + _CHUNK] for start in range(0, len(left), _CHUNK))
    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    with looking.quietly(), ThreadPoolExecutor(max_workers=threads) as pool:
        waiting = deque(pool.submit(looking.read, chunk) for chunk in islice(chunks, 4 * threads))
        while waiting:
            progress(waiting.popleft().result())
            waiting.extend(pool.submit(looking.read, chunk) for chunk in islice(chunks, 1))
    return looking.gallery()


def _byte_size(path: str) -> int:
    """-1 where there is no such file: a dead link, say."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
