"""Images of mixed sizes decoded once into one array, and how each lies in it: what the resident feed cuts crops from.

A canvas row holds one upright image, its shorter side along the rows, so that portraits and landscapes waste no room on
each other. Where all of them at their own size would not fit a budget, the large ones are kept smaller; crops are drawn
in the coordinates of the original image either way (`crops.boxes`) and show the same part of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from input_pipeline.errors import InputError, printable
from input_pipeline.sources import Split
from input_pipeline.stream import decode_resized
from input_pipeline.threaded import in_order

# Part of the key of what is kept on disk: raise it when the decoder or the layout changes.
VERSION = 1
# Each candidate for the shorter side is so many times the one before; finer steps win little room.
_STEP = 7 / 8
# A panorama may be so many times longer than the shorter side allowed; beyond, it is squeezed along its length.
_LONGEST = 2.0


@dataclasses.dataclass(frozen=True)
class Layout:
    """How N images lie in a canvas uint8[N, height, width, 3], RGB, upright, each at its top left corner.

    sizes: int32[N, 2], rows and columns that image i takes of its canvas. turned: bool[N], whether its rows and columns
    are swapped there. reduced: how many are kept smaller than they are.
    """

    height: int
    width: int
    sizes: np.ndarray
    turned: np.ndarray
    reduced: int

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of the canvas."""
        return len(self) * self.height * self.width * 3

    def boxes(self, boxes: np.ndarray, indices: np.ndarray, originals: np.ndarray) -> np.ndarray:
        """Boxes int[B, 4] (top, left, height, width) of upright images `indices`, in canvas coordinates: float32[B, 4].

        originals: int32[B, 2], height and width of these upright images. Whole numbers where an image is not reduced.
        """
        turned = self.turned[indices][:, None]
        swapped = np.where(turned, boxes[:, [1, 0, 3, 2]], boxes).astype(np.float64)
        scale = self.sizes[indices] / np.where(turned, originals[:, ::-1], originals)
        return (swapped * np.concatenate([scale, scale], axis=1)).astype(np.float32)


def lay_out(sizes: np.ndarray, image_size: int, most_bytes: int) -> Layout | None:
    """The layout of images of upright height and width `sizes` int[N, 2] that takes at most `most_bytes`.

    None where even shorter sides of `image_size` pixels take more: crops would be blown up that are not elsewhere.
    """
    sizes = np.asarray(sizes, np.int64)
    turned = sizes[:, 0] > sizes[:, 1]
    short, long = sizes.min(axis=1), sizes.max(axis=1)
    limit = int(short.max())
    while True:
        kept_short = np.minimum(short, limit)
        kept_long = np.maximum(np.rint(long * kept_short / short).astype(np.int64), 1)
        if limit < short.max():
            kept_long = np.minimum(kept_long, int(_LONGEST * limit))
        height, width = int(kept_short.max()), int(kept_long.max())
        if len(sizes) * height * width * 3 <= most_bytes:
            kept = np.stack([kept_short, kept_long], axis=1)
            reduced = int((kept != np.stack([short, long], axis=1)).any(axis=1).sum())
            return Layout(height, width, kept.astype(np.int32), turned, reduced)
        if limit <= image_size:
            return None
        limit = max(int(limit * _STEP), image_size)


def cached_canvas(
    split: Split, layout: Layout, interpolation: str, fingerprint: str, *, progress: bool = True
) -> np.ndarray:
    """The canvas uint8[N, height, width, 3] of a split, read-only, mapped from disk; decoded now where it is not there.

    It lies under $XDG_CACHE_HOME/resnet-jax/resident (~/.cache without it) under a key over the dataset's fingerprint
    and the layout, with the sha256 of its bytes beside it: one that does not match is decoded anew. Nothing there is
    needed once the runs are done. Raises InputError for an image that cannot be read, and where the disk refuses.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet-jax" / "resident"
    key = _key(split, layout, interpolation, fingerprint)
    target, note = folder / f"{key}.u8", folder / f"{key}.json"
    shape = (len(layout), layout.height, layout.width, 3)
    try:
        if not _is_whole(target, note, layout.nbytes):
            folder.mkdir(parents=True, exist_ok=True)
            _check_disk(folder, layout.nbytes)
            part = folder / f"{key}.{os.getpid()}.part"
            try:
                canvas = np.memmap(part, np.uint8, "w+", shape=shape)
                _decode_into(canvas, split, layout, interpolation, progress)
                canvas.flush()
                del canvas
                note.write_text(json.dumps({"sha256": _sha256(part)}) + "\n", encoding="utf-8")
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
        return np.memmap(target, np.uint8, "r", shape=shape)
    except OSError as error:
        raise InputError(
            f"{printable(str(folder))}: decoded images cannot be kept there ({error.strerror}); make room, set "
            "XDG_CACHE_HOME to another folder, or take --config.data.feed=stream"
        ) from error


def _key(split: Split, layout: Layout, interpolation: str, fingerprint: str) -> str:
    about = [VERSION, fingerprint, split.name, len(split), layout.height, layout.width, interpolation]
    digest = hashlib.sha256(json.dumps(about).encode())
    digest.update(layout.sizes.tobytes())
    digest.update(layout.turned.tobytes())
    digest.update(json.dumps(list(split.ids)).encode())
    return digest.hexdigest()[:32]


def _is_whole(target: Path, note: Path, nbytes: int) -> bool:
    """Whether a canvas is there with the bytes that were written."""
    try:
        if target.stat().st_size != nbytes:
            return False
        return bool(json.loads(note.read_bytes())["sha256"] == _sha256(target))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{printable(str(folder))}: decoded images need {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB "
            "free; make room, set XDG_CACHE_HOME to another folder, or take --config.data.feed=stream"
        )


def _decode_into(canvas: np.ndarray, split: Split, layout: Layout, interpolation: str, progress: bool) -> None:
    """Decode every image to its place, in threads; a bar where standard error is a terminal."""

    def work(i: int) -> None:
        rows, columns = (int(size) for size in layout.sizes[i])
        height, width = (columns, rows) if layout.turned[i] else (rows, columns)
        pixels = decode_resized(
            split.read(i), int(split.orientations[i]), height, width, interpolation, name=split.ids[i]
        )
        canvas[i, :rows, :columns] = pixels.transpose(1, 0, 2) if layout.turned[i] else pixels

    shown = progress and sys.stderr.isatty()
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        done = in_order(pool, work, len(split))
        bar = tqdm(done, "decoding images", len(split), unit="image", leave=False, disable=not shown)
        try:
            deque(bar, maxlen=0)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
