"""Batches out of images that are arrays already, cut by NumPy: the feed of a machine without TensorFlow.

The bits are those of `stream`, whose decoder gives back the pixels of such an image's PNG and whose resize of an image
to its own size changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from input_pipeline.crops import Crop
from input_pipeline.cuts import Cut

if TYPE_CHECKING:
    from input_pipeline.sources import Split


class Plan(Protocol):
    """The rows of a step: index int64[b], mask float32[b] and the cut of each."""

    @property
    def index(self) -> np.ndarray: ...
    @property
    def mask(self) -> np.ndarray: ...
    @property
    def cut(self) -> Cut: ...


def taken_as_they_are(split: Split, crop: Crop) -> bool:
    """Whether evaluation's image of every example is its array: at the network's size, and nothing to cut off."""
    return split.pixels is not None and crop.image_size == crop.shorter_side == split.pixels.shape[1]


def need_no_decoder(split: Split, crop: Crop) -> bool:
    """Whether `batches` can make these crops: of arrays as they are all but random_resized ones, which are resized."""
    return crop.kind != "random_resized" and taken_as_they_are(split, crop)


def batches(
    split: Split, crop: Crop, plan: Callable[[int], Plan], start: int, stop: int | None
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of steps [start, stop), without end where stop is None, as `stream.train_batches` describes them."""
    assert split.pixels is not None
    for step in itertools.count(start) if stop is None else range(start, stop):
        rows = plan(step)
        images = split.pixels[rows.index]
        if crop.kind == "pad":
            images = cut(images, rows.cut.box[:, :2], crop.padding)
        # The rows that fill up a last batch are black images.
        images[rows.mask == 0] = 0
        yield {
            "image": images,
            "label": split.labels[rows.index].astype(np.int32),
            "mask": rows.mask,
            "index": rows.index.astype(np.int32),
        }


def cut(images: np.ndarray, offsets: np.ndarray, padding: int) -> np.ndarray:
    """uint8[B, S, S, 3] with so many black pixels around, cut at `offsets` int[B, 2] (top, left): uint8[B, S, S, 3]."""
    side = images.shape[1]
    wide = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return np.stack(
        [image[top : top + side, left : left + side] for image, (top, left) in zip(wide, offsets, strict=True)]
    )
