"""Images that stand in two splits at once: accuracy on them measures memory, not vision."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from input_pipeline.sources import Split


def byte_identical(reference: Split, other: Split) -> np.ndarray:
    """Which examples of `other` have the very same encoded bytes as some example of `reference`: bool[len(other)].

    Copies that were encoded anew, cropped or scaled are not found. Only examples whose size in bytes occurs on both
    sides are read and hashed (sha256). Raises OSError where a file has gone since the source was opened.
    """
    with ThreadPoolExecutor() as pool:
        reference_sizes = _byte_sizes(reference, pool)
        other_sizes = _byte_sizes(other, pool)
        shared = np.intersect1d(reference_sizes, other_sizes)
        candidates = np.flatnonzero(np.isin(reference_sizes, shared))
        known = set(pool.map(lambda i: _digest(reference, i), candidates))
        suspects = np.flatnonzero(np.isin(other_sizes, shared))
        found = np.zeros(len(other), bool)
        found[suspects] = [digest in known for digest in pool.map(lambda i: _digest(other, i), suspects)]
    return found


def _byte_sizes(split: Split, pool: ThreadPoolExecutor) -> np.ndarray:
    """Encoded size of each example in bytes: int64[N]; from the file system where examples are files."""
    if split.paths is not None:
        return np.fromiter((os.path.getsize(path) for path in split.paths), np.int64, len(split))
    return np.fromiter(pool.map(lambda i: len(split.read(i)), range(len(split))), np.int64, len(split))


def _digest(split: Split, i: int) -> bytes:
    return hashlib.sha256(split.read(int(i))).digest()
