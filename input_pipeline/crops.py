"""Where an image is cut: crop boxes as pure functions of (seed, epoch, example), shared by all feeds. NumPy only."""

import dataclasses

import numpy as np

from input_pipeline.errors import InputError

KINDS = ("random_resized", "pad", "none")
INTERPOLATIONS = ("bilinear", "bicubic")
_TRIES = 10
_PHILOX_ROUNDS = 10
_PHILOX_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_PHILOX_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)


@dataclasses.dataclass(frozen=True)
class Crop:
    """How an image becomes `image_size` x `image_size` pixels.

    kind, in training: 'random_resized' (a box of `scale` of the area and `ratio` width / height, resized; Szegedy et
    al. 2015, section 6), 'pad' (evaluation's image with `padding` black pixels on each side, cut at random; He et al.
    2015, section 4.2, where the border holds the mean), 'none' (as in evaluation).
    Evaluation: the shorter side is resized to round(image_size * resize_shorter) and the centre is cut out; with
    resize_shorter 0 the whole image is resized to the square. `interpolation`: 'bilinear' | 'bicubic', antialiased.

    Raises InputError for a value outside its range.
    """

    kind: str
    image_size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    padding: int = 4
    resize_shorter: float = 256 / 224
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"crop {self.kind!r} is not known; choose one of {', '.join(KINDS)}")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"interpolation {self.interpolation!r} is not known; choose one of {', '.join(INTERPOLATIONS)}"
            )
        if self.image_size < 1:
            raise InputError(f"image_size must be at least 1, not {self.image_size}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"crop_scale must be two ascending parts of the area in 0..1, not {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1] < float("inf"):
            raise InputError(f"crop_ratio must be two ascending positive ratios of width to height, not {self.ratio}")
        if self.padding < 0:
            raise InputError(f"crop_padding must not be negative, not {self.padding}")
        if not (self.resize_shorter == 0 or 1 <= self.resize_shorter < float("inf")):
            raise InputError(f"resize_shorter must be 0 or at least 1, not {self.resize_shorter}")

    @property
    def shorter_side(self) -> int:
        """Pixels of the shorter side after evaluation's resize."""
        return round(self.image_size * self.resize_shorter) if self.resize_shorter else self.image_size


def boxes(crop: Crop, seed: int, epochs: np.ndarray, indices: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The training box of each example: int32[B, 4] of (top, left, height, width) in pixels.

    epochs, indices: int[B]; sizes: int[B, 2], height and width of the upright image. A box depends on (seed, epoch,
    index, size) alone, not on the batch around it.
    'random_resized': inside the upright image. 'pad': inside evaluation's image after padding, always image_size
    square, so that top and left lie in 0..2*padding. 'none': the whole upright image.
    """
    heights, widths = np.asarray(sizes, np.int64).T
    if crop.kind == "none":
        return np.stack([np.zeros_like(heights), np.zeros_like(widths), heights, widths], axis=1).astype(np.int32)
    draws = _uniforms(seed, np.asarray(epochs), np.asarray(indices), blocks=_TRIES if crop.kind != "pad" else 1)
    if crop.kind == "pad":
        offsets = np.floor(draws[:, 0, :2] * (2 * crop.padding + 1))
        return np.concatenate([offsets, np.full_like(offsets, crop.image_size)], axis=1).astype(np.int32)
    return _random_resized(crop, draws, heights, widths).astype(np.int32)


def _random_resized(crop: Crop, draws: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """torchvision's RandomResizedCrop.get_params: the first of ten tries that fits, else the centre. float64[B, 4]."""
    areas = (heights * widths)[:, None] * (crop.scale[0] + draws[..., 0] * (crop.scale[1] - crop.scale[0]))
    low, high = np.log(crop.ratio)
    ratios = np.exp(low + draws[..., 1] * (high - low))
    tried_w, tried_h = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (tried_w > 0) & (tried_w <= widths[:, None]) & (tried_h > 0) & (tried_h <= heights[:, None])
    rows, first = np.arange(len(heights)), np.argmax(fits, axis=1)
    found = fits[rows, first]

    # No try fitted: as much of the centre as the limits of the ratio allow.
    narrow, wide = widths < crop.ratio[0] * heights, widths > crop.ratio[1] * heights
    centre_h = np.where(narrow, np.clip(np.rint(widths / crop.ratio[0]), 1, heights), heights)
    centre_w = np.where(wide, np.clip(np.rint(heights * crop.ratio[1]), 1, widths), widths)

    height = np.where(found, tried_h[rows, first], centre_h)
    width = np.where(found, tried_w[rows, first], centre_w)
    top = np.where(found, np.floor(draws[rows, first, 2] * (heights - height + 1)), (heights - height) // 2)
    left = np.where(found, np.floor(draws[rows, first, 3] * (widths - width + 1)), (widths - width) // 2)
    return np.stack([top, left, height, width], axis=1)


def stored_boxes(upright: np.ndarray, sizes: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    """Boxes of upright images int[B, 4] in the coordinates of the pixels as stored in the file: int32[B, 4].

    sizes: int[B, 2], upright height and width; orientations: int[B], EXIF 1..8. Turning the cut piece upright gives the
    same pixels as cutting the upright image (EXIF 2.3, tag 0x0112).
    """
    top, left, height, width = np.asarray(upright, np.int64).T
    heights, widths = np.asarray(sizes, np.int64).T
    orientation = np.asarray(orientations)
    right, bottom = widths - left - width, heights - top - height
    # Which upright edge lies at row 0 and at column 0 of the file, by orientation.
    first_row = np.choose(orientation - 1, [top, top, bottom, bottom, left, right, right, left])
    first_column = np.choose(orientation - 1, [left, right, right, left, top, top, bottom, bottom])
    turned = orientation >= 5
    return np.stack(
        [first_row, first_column, np.where(turned, width, height), np.where(turned, height, width)], axis=1
    ).astype(np.int32)


def _uniforms(seed: int, epochs: np.ndarray, indices: np.ndarray, blocks: int) -> np.ndarray:
    """float64[B, blocks, 4] in the open interval (0, 1), four numbers from each counter (block, index, epoch)."""
    index = indices.astype(np.uint64)[:, None]
    counter = (
        np.arange(blocks, dtype=np.uint64)[None, :],
        index & _LOW_32,
        # Sets beyond 2**32 examples do not occur; epochs beyond 2**32 neither. The fourth word is this file's own.
        np.broadcast_to(epochs.astype(np.uint64)[:, None], index.shape) & _LOW_32,
        np.full_like(index, 0x63726F70),
    )
    key = (np.uint64(seed) & _LOW_32, np.uint64(seed) >> _SHIFT_32)
    return (np.stack(philox4x32(counter, key), axis=-1) + 0.5) / 2.0**32


def philox4x32(counter: tuple[np.ndarray, ...], key: tuple[np.uint64, np.uint64]) -> tuple[np.ndarray, ...]:
    """Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), over arrays of counters.

    Four counter words and two key words, each a 32-bit value held in uint64; returns four words of the broadcast shape.
    NumPy's own Philox takes one counter at a time, some 60 µs each; this takes 0.6 ms for 256 examples of ten tries.
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*counter)
    k0, k1 = key
    for _ in range(_PHILOX_ROUNDS):
        product0, product1 = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT_32) ^ c1 ^ k0,
            product1 & _LOW_32,
            (product0 >> _SHIFT_32) ^ c3 ^ k1,
            product0 & _LOW_32,
        )
        k0, k1 = (k0 + _PHILOX_KEY_STEPS[0]) & _LOW_32, (k1 + _PHILOX_KEY_STEPS[1]) & _LOW_32
    return c0, c1, c2, c3
