"""What of a stored image is decoded for a training crop: of a JPEG a window, small where that is enough. NumPy only.

Worked out for a batch at a time: as operations of the graph that decodes, it would take a tenth of the feed's time.
"""

from typing import Any, NamedTuple

import numpy as np

from input_pipeline.crops import Crop

# The least factor by which the resizing filter still reduces what libjpeg has reduced before. libjpeg leaves out high
# frequencies where the filter averages; the larger the factor, the less is seen of that. Figures: docs/feeding.md.
LEAST_REDUCTION = 2
# Part of the key of what is kept of crops (features of random views): raise it when their pixels change.
VERSION = 2
_REDUCTIONS = 2 ** np.arange(4)  # what libjpeg offers


class Cut(NamedTuple):
    """Of one example, or with a leading axis of a batch; NumPy's arrays or TensorFlow's tensors.

    box: int32[4], (top, left, height, width) as `crops` gives it; for 'random_resized' in stored pixels. All else is
    for JPEG and 'random_resized' alone: halvings: int32, the image is decoded at 1 / 2**halvings, 0 to 3. window:
    int32[4], what is decoded, in pixels of that image. place: float32[4], where in the window `box` lies.
    """

    box: Any
    halvings: Any
    window: Any
    place: Any


def cuts(crop: Crop, boxes: np.ndarray, sizes: np.ndarray) -> Cut:
    """The Cut of a batch. boxes: int32[B, 4]; sizes: int[B, 2], stored height and width.

    A JPEG is reduced as far as LEAST_REDUCTION allows on both sides of the box. The window holds every reduced pixel
    that the box touches and a column more on either side, where there is one: colour is mostly stored at half the width
    and interpolated, for which libjpeg lacks the neighbour where its decoding ends. What the box holds is then bit for
    bit what decoding the whole image gives.
    """
    if crop.kind != "random_resized":
        return Cut(boxes, np.zeros(len(boxes), np.int32), np.zeros_like(boxes), np.zeros(boxes.shape, np.float32))
    corners, sides = boxes[:, :2].astype(np.int64), boxes[:, 2:].astype(np.int64)
    least = LEAST_REDUCTION * crop.image_size * _REDUCTIONS[1:]
    halvings = (sides.min(axis=1, keepdims=True) >= least).sum(axis=1)
    reductions = _REDUCTIONS[halvings][:, None]
    first, end = corners // reductions, -(-(corners + sides) // reductions)
    first[:, 1] = np.maximum(first[:, 1] - 1, 0)
    end[:, 1] = np.minimum(end[:, 1] + 1, -(-sizes[:, 1] // reductions[:, 0]))
    window = np.concatenate([first, end - first], axis=1)
    place = np.concatenate([corners / reductions - first, sides / reductions], axis=1)
    return Cut(boxes, halvings.astype(np.int32), window.astype(np.int32), place.astype(np.float32))
