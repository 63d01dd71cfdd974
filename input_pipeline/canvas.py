"""Images of mixed sizes decoded once into one array, and how each lies in it: what the resident feed cuts crops from.

A canvas row holds one upright image, its shorter side along the rows, so that portraits and landscapes waste no room on
each other. Where all of them at their own size would not fit a budget, the large ones are kept smaller; crops are drawn
in the coordinates of the original image either way (`crops.boxes`) and show the same part of it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from input_pipeline.decoded import kept_rows
from input_pipeline.sources import Split
from input_pipeline.stream import decode_resized

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


def canvas_of(split: Split, layout: Layout, interpolation: str) -> np.ndarray:
    """The canvas uint8[N, height, width, 3] of a split, kept on disk and read-only; see `decoded.kept_rows`. Of images
    that are arrays, and not reduced, these themselves.

    interpolation: 'bilinear' or 'bicubic', of the images that the layout reduces.
    """
    if split.pixels is not None and not layout.reduced:
        return split.pixels

    def decode(i: int, row: np.ndarray) -> None:
        rows, columns = (int(size) for size in layout.sizes[i])
        height, width = (columns, rows) if layout.turned[i] else (rows, columns)
        pixels = decode_resized(
            split.read(i), int(split.orientations[i]), height, width, interpolation, name=split.ids[i]
        )
        row[:rows, :columns] = pixels.transpose(1, 0, 2) if layout.turned[i] else pixels

    about = [layout.sizes.tobytes().hex(), layout.turned.tobytes().hex(), layout.reduced, interpolation]
    return kept_rows(split, (layout.height, layout.width, 3), decode, about)
