"""What is decoded of a JPEG holds the crop, where it is said to lie: Pillow's crop of the whole image."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from input_pipeline import decode as graph
from input_pipeline.crops import Crop, boxes
from input_pipeline.cuts import LEAST_REDUCTION, Cut, cuts

PILLOWS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def row(batch: Cut, number: int = 0) -> Cut:
    """One example's Cut, as tensors."""
    return Cut(*(tf.constant(part[number]) for part in batch))


def landscape(height: int, width: int, seed: int = 0) -> Image.Image:
    """As much contrast at every scale, as in photographs (Field 1987)."""
    rng, levels = np.random.default_rng(seed), np.zeros((height, width, 3))
    for step in (64, 32, 16, 8, 4, 2, 1):
        coarse = rng.normal(size=(height // step + 2, width // step + 2, 3))
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel].astype(np.float32))
            levels[..., channel] += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(128 + 16 * levels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def drawn(crop: Crop, count: int, size: tuple[int, int]) -> tuple[np.ndarray, Cut]:
    sizes = np.array([size] * count)
    box = boxes(crop, 0, np.zeros(count, int), np.arange(count), sizes)
    return box, cuts(crop, box, sizes)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_the_box_holds_the_pixels_of_the_whole_image(subsampling, progressive):
    """Bit for bit: reduced colour is interpolated over the edge of what is decoded as elsewhere."""
    shape = (333, 421)  # no multiples of a block
    data = encoded(landscape(*shape), subsampling=subsampling, progressive=progressive)
    whole = [tf.io.decode_jpeg(data, 3, ratio=ratio, dct_method="INTEGER_ACCURATE").numpy() for ratio in (1, 2, 4, 8)]
    for size in (150, 40, 20, 12):
        _, found = drawn(Crop("random_resized", size), 12, shape)
        for number in range(12):
            top, left, height, width = found.window[number]
            y, x, tall, wide = found.place[number]
            inside = np.s_[int(y) : int(np.ceil(y + tall)), int(x) : int(np.ceil(x + wide))]
            image = whole[found.halvings[number]][top : top + height, left : left + width]
            got = graph._jpeg_window(tf, tf.constant(data), row(found, number)).numpy()
            assert got.shape == image.shape == (height, width, 3)
            np.testing.assert_array_equal(got[inside], image[inside])


def test_an_image_is_reduced_only_where_the_filter_has_as_much_left_to_do():
    crop, least = Crop("random_resized", 32), 32 * LEAST_REDUCTION
    sides = np.array([2 * least - 1, 2 * least, 4 * least - 1, 4 * least, 8 * least - 1, 8 * least, 50 * least])
    for turned in (1, -1):
        extents = np.stack([sides, sides + 9], axis=1)[:, ::turned]
        box = np.concatenate([np.full_like(extents, 3), extents], axis=1).astype(np.int32)
        found = cuts(crop, box, np.full((len(sides), 2), 5000))
        np.testing.assert_array_equal(found.halvings, [0, 1, 1, 2, 2, 3, 3])


def displacement(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far `one` lies below and to the right of `other`, in pixels: least squares (Lucas & Kanade 1981)."""
    slopes = np.stack([slope[1:-1, 1:-1].ravel() for slope in np.gradient(other, axis=(0, 1))], axis=1)
    return -np.linalg.lstsq(slopes, (one - other)[1:-1, 1:-1].ravel(), rcond=None)[0]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 16, 64])
def test_a_crop_decoded_small_is_pillows_crop_in_its_place(size, interpolation):
    """No part of it is shifted; what remains is how libjpeg blurs."""
    shape = (601, 799)
    data, crop = encoded(landscape(*shape)), Crop("random_resized", size, interpolation=interpolation)
    whole = Image.open(io.BytesIO(data))
    box, found = drawn(crop, 16, shape)
    differences = []
    for number in np.flatnonzero(found.halvings):
        top, left, height, width = box[number].tolist()
        piece = whole.crop((left, top, left + width, top + height))
        expected = np.asarray(piece.resize((size, size), PILLOWS[interpolation])).astype(float)
        got = graph.training_image(tf, tf.constant(data), tf.constant(1), row(found, number), crop).numpy()
        differences.append(np.abs(got - expected))
        half = size // 2
        for part in (np.s_[:half], np.s_[half:], np.s_[:, :half], np.s_[:, half:]):
            assert np.abs(displacement(got[part].astype(float), expected[part])).max() < 0.02
    assert len(set(found.halvings) - {0}) > 1
    assert np.mean(differences) < 0.7
    assert np.max(differences) <= 6
