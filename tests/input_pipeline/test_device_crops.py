"""Crops cut on the device are those that the stream cuts on the host."""

import jax
import numpy as np
import pytest
from PIL import Image

from input_pipeline.canvas import canvas_of, lay_out
from input_pipeline.crops import Crop, boxes
from input_pipeline.device_crops import cut_boxes, filter_matrix
from input_pipeline.order import Order
from input_pipeline.stream import train_batches
from tests.input_pipeline.test_canvas import noise, split_of

cut_in_jit = jax.jit(cut_boxes, static_argnums=(4, 5))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_are_those_of_the_stream(interpolation):
    """Landscape and portrait, turned ones, smaller and larger than the crop; to a level where rounding is a tie."""
    split = split_of(noise((20, 31), (33, 18), (12, 12), (40, 25), (16, 60), (24, 24)), [1, 1, 1, 6, 3, 8])
    crop = Crop("random_resized", 16, interpolation=interpolation)
    order = Order(len(split), 4, seed=3)
    layout = lay_out(split.sizes, crop.image_size, 10**6)
    rows = jax.numpy.asarray(np.array(canvas_of(split, layout, interpolation)))
    differing = []
    for step, batch in enumerate(train_batches(split, order, crop, num_steps=12, threads=1)):
        index = order.indices(step)
        np.testing.assert_array_equal(batch["index"], index)
        box = boxes(crop, order.seed, order.epochs(step), index, split.sizes[index])
        placed = layout.boxes(box, index, split.sizes[index])
        cut = cut_in_jit(rows, index.astype(np.int32), layout.turned[index], placed, 16, interpolation)
        differing.append(np.abs(np.asarray(cut).astype(int) - batch["image"]))
    assert np.max(differing) <= 1
    # Bilinear weights are often simple fractions, and then a sum is a half that either side may round.
    assert np.mean(np.array(differing) > 0) < 5e-3


def test_a_reduced_image_shows_the_same_part():
    """Of a picture kept at half its size a crop is the blurred crop of the whole: the mean level tells where it is."""
    ramp = np.broadcast_to(np.linspace(0, 255, 128)[None, :, None], (128, 128, 3)).astype(np.uint8)
    split = split_of([ramp])
    layout = lay_out(split.sizes, 16, 64 * 64 * 3)
    assert layout.reduced == 1
    rows = jax.numpy.asarray(np.array(canvas_of(split, layout, "bilinear")))
    box, index = np.array([[10, 50, 40, 60]]), np.array([0])
    cut = cut_in_jit(rows, index, layout.turned[index], layout.boxes(box, index, split.sizes), 16, "bilinear")
    expected = np.asarray(Image.fromarray(ramp[10:50, 50:110]).resize((16, 16), Image.Resampling.BILINEAR))
    assert np.abs(np.asarray(cut[0]).astype(int) - expected).max() <= 2


def test_a_whole_axis_at_its_own_size_is_left_alone():
    matrix = filter_matrix(np.float32([0]), np.float32([9]), 9, 9, "bicubic")
    np.testing.assert_allclose(matrix[0], np.eye(9), atol=1e-6)
