"""Which pictures are copies of each other: the same bytes, the same picture encoded anew, or merely much alike.

Two independent looks decide on a pair. First a perceptual hash (the signs of low frequencies, 64 bits) proposes; every
pair of hashes is compared, by popcount in blocks: exact, and bounded in time whatever the pictures. Then the small grey
pictures are correlated, as they are and with everything smooth taken away: neighbouring slices of one patient agree in
the smooth part nearly as well as copies do, but not in the fine detail. docs/doctor.md shows what was measured.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from input_pipeline.fingerprints import CHROMA_SIDE, NEUTRAL, SIDE, Gallery

# Of 64 bits. Of 600 photographs and slices encoded at quality 50 and scaled to 60 %, 99 % move at most 6 bits.
MAX_DISTANCE = 10
# Grey levels: below this spread there is nothing to compare but noise.
MIN_SPREAD = 2.0
# A picture this small loses its finest detail when scaled down: such pairs are compared at half the resolution.
TINY = 48
# Levels of Cb or Cr by which the chroma of a copy may differ anywhere; brightening by 15 % moves it by up to 14.
MAX_CHROMA = 16
# Bounds on one search: a hundred thousand scans of nearly blank pages would propose billions of pairs.
MAX_PROPOSED = 20_000_000
MAX_FOUND = 200_000
_ROWS, _COLUMNS, _BATCH = 64, 4096, 2048
_BELOW, _RADIUS = 8, 2


@dataclass(frozen=True)
class Limits:
    """Least correlation of two small grey pictures as they are, and of their detail."""

    whole: float
    detail: float


# Of the 24 faintest copies between the splits of brain_mri about nine were neighbouring slices at 0.96, one at 0.97.
COPY, COPY_TINY = Limits(0.96, 0.97), Limits(0.96, 0.93)
ALIKE, ALIKE_TINY = Limits(0.95, 0.85), Limits(0.92, 0.80)


@dataclass(frozen=True)
class Pairs:
    """P pairs of rows i < j. rows: int64[P, 2], sorted. copy: bool[P], False where merely alike. detail: float32[P],
    correlation of the detail. complete: False where the search was given up for too many pairs.
    """

    rows: np.ndarray
    copy: np.ndarray
    detail: np.ndarray
    complete: bool


def identical(gallery: Gallery, *, unreadable_too: bool = False) -> list[list[int]]:
    """Groups of two and more rows with the very same bytes, each in ascending order; of unreadable files on demand."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, look in enumerate(gallery.looks):
        if look.digest and (unreadable_too or not look.reason):
            groups[look.digest].append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def blank(gallery: Gallery) -> np.ndarray:
    """Which readable pictures are all one grey, or nearly: bool[N]."""
    spread = np.zeros(len(gallery.looks), np.float32)
    # In parts: numpy turns what it takes the deviation of into floats, eight times the pictures' bytes.
    for start in range(0, len(spread), _BATCH):
        part = gallery.grey[start : start + _BATCH]
        spread[start : start + _BATCH] = part.reshape(len(part), SIDE * SIDE).std(1, dtype=np.float32)
    return np.asarray(gallery.readable & (spread < MIN_SPREAD))


def perceptual_hash(grey: np.ndarray) -> np.ndarray:
    """uint64[N] of uint8[N, SIDE, SIDE]: which of 63 low frequencies lie above their median.

    The frequencies are the first 8 x 8 of the cosine transform but the mean. Brightness and contrast do not move it.
    """
    points = np.arange(SIDE, dtype=np.float32) + 0.5
    waves = np.cos(np.pi / SIDE * np.arange(_BELOW, dtype=np.float32)[:, None] * points)
    low = (waves @ grey.astype(np.float32) @ waves.T).reshape(len(grey), _BELOW * _BELOW)[:, 1:]
    bits = np.packbits(low > np.median(low, 1, keepdims=True), axis=1, bitorder="little")
    return np.ascontiguousarray(bits).view("<u8")[:, 0].astype(np.uint64)


def near_pairs(
    gallery: Gallery, rows: Sequence[int] | np.ndarray, *, progress: Callable[[int], object] = lambda done: None
) -> Pairs:
    """The pairs among `rows` (ascending; leave out unreadable and blank ones) that are copies or much alike.

    progress: called with the number of rows just compared with all those behind them.
    """
    index = np.asarray(rows, np.int64)
    hashes = np.zeros(len(index), np.uint64)
    for start in range(0, len(index), _BATCH):
        hashes[start : start + _BATCH] = perceptual_hash(gallery.grey[index[start : start + _BATCH]])
    shorter = np.array([min(gallery.looks[row].height, gallery.looks[row].width) for row in index], np.int32)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    proposed = kept = 0
    complete = True
    for pairs, done in _proposals(hashes):
        proposed += len(pairs)
        for start in range(0, len(pairs), _BATCH):
            part = pairs[start : start + _BATCH]
            verdict = _judge(gallery, index[part], shorter[part].min(1) < TINY)
            found.append(verdict)
            kept += len(verdict[0])
        progress(done)
        if proposed > MAX_PROPOSED or kept > MAX_FOUND:
            complete = False
            break
    if not found:
        return Pairs(np.zeros((0, 2), np.int64), np.zeros(0, bool), np.zeros(0, np.float32), complete)
    pairs, copy, detail = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Pairs(pairs[order], copy[order], detail[order], complete)


def _proposals(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Pairs i < j of hashes at most MAX_DISTANCE bits apart, int64[n, 2], block of rows by block of rows."""

    def block(start: int) -> tuple[np.ndarray, int]:
        mine = hashes[start : start + _ROWS, None]
        parts = []
        for first in range(start, len(hashes), _COLUMNS):
            near = np.bitwise_count(mine ^ hashes[first : first + _COLUMNS]) <= MAX_DISTANCE
            i, j = np.nonzero(near)
            parts.append(np.stack([i + start, j + first], 1))
        pairs = np.concatenate(parts)
        return pairs[pairs[:, 0] < pairs[:, 1]], len(mine)

    threads = min(os.cpu_count() or 1, 16)
    # numpy lets go of the interpreter inside these operations, so threads do run side by side.
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for first in range(0, len(hashes), _ROWS * threads):
            yield from pool.map(block, range(first, min(first + _ROWS * threads, len(hashes)), _ROWS))


def _judge(gallery: Gallery, pairs: np.ndarray, tiny: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of proposed pairs int64[n, 2]: those that are copies or alike, bool whether copies, correlation of the detail."""
    kept, copy, details = [], [], []
    for small, copies, alike in ((False, COPY, ALIKE), (True, COPY_TINY, ALIKE_TINY)):
        some = pairs[tiny == small]
        whole = _correlation(_pixels(gallery, some[:, 0], small), _pixels(gallery, some[:, 1], small))
        some, whole = some[whole >= alike.whole], whole[whole >= alike.whole]
        one, other = (_detail(_pixels(gallery, some[:, side], small)) for side in (0, 1))
        detail = _correlation(one, other)
        chosen = detail >= alike.detail
        some, whole, detail = some[chosen], whole[chosen], detail[chosen]
        kept.append(some)
        copy.append((whole >= copies.whole) & (detail >= copies.detail) & _same_colours(gallery.chroma, some))
        details.append(detail)
    return np.concatenate(kept), np.concatenate(copy), np.concatenate(details)


def _pixels(gallery: Gallery, rows: np.ndarray, halved: bool) -> np.ndarray:
    """float32[n, S, S]: the small grey pictures, or at half their resolution."""
    pixels = gallery.grey[rows].astype(np.float32)
    if not halved:
        return pixels
    return np.asarray(pixels.reshape(len(rows), SIDE // 2, 2, SIDE // 2, 2).mean((2, 4)))


def _detail(pixels: np.ndarray) -> np.ndarray:
    """What is left of float32[n, S, S] when the mean of the 5 x 5 neighbourhood is taken away."""
    side, width = pixels.shape[1], 2 * _RADIUS + 1
    sums = np.pad(pixels, ((0, 0), (_RADIUS, _RADIUS), (_RADIUS, _RADIUS)), "edge")
    down = sum((sums[:, k : k + side] for k in range(width)), start=np.zeros(1, np.float32))
    across = sum((down[:, :, k : k + side] for k in range(width)), start=np.zeros(1, np.float32))
    return np.asarray(pixels - across / width**2)


def _correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pearson's, of n pairs of pictures: float32[n]; 0 where one of the two is flat."""
    one, other = (pixels.reshape(len(pixels), int(np.prod(pixels.shape[1:]))) for pixels in (one, other))
    one, other = (pixels - pixels.mean(1, keepdims=True) for pixels in (one, other))
    scale = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray(np.einsum("nk,nk->n", one, other) / np.maximum(scale, 1e-6), np.float32)


def _same_colours(chroma: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """bool[n]: a red and a blue drawing of one shape are no copies; a colour picture and its grey version are."""
    one, other = (chroma[pairs[:, side]].reshape(len(pairs), 2 * CHROMA_SIDE**2).astype(np.int16) for side in (0, 1))
    grey = [np.all(np.abs(values - NEUTRAL) <= 2, axis=1) for values in (one, other)]
    close = np.all(np.abs(one - other) <= MAX_CHROMA, axis=1)
    return np.asarray(close | grey[0] | grey[1])
