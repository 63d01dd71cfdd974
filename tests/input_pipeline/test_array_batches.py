"""Batches out of arrays are those that TensorFlow makes of their PNGs, bit for bit."""

import dataclasses

import numpy as np
import pytest

from input_pipeline.array_batches import need_no_decoder, taken_as_they_are
from input_pipeline.crops import Crop
from input_pipeline.order import Order
from input_pipeline.resident import Images, make_resident
from input_pipeline.sources import Split
from input_pipeline.stream import eval_batches, eval_image, train_batches

N, SIDE = 11, 12
PAD = Crop("pad", SIDE, padding=3, resize_shorter=1.0)


@pytest.fixture(scope="module")
def split() -> Split:
    pixels = np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE, 3), np.uint8)
    data = make_resident(("a", "b"), {"train": Images(pixels, np.arange(N, dtype=np.int32) % 2)})
    return data.as_source("arrays").splits["train"]


def same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, values in other.items():
            np.testing.assert_array_equal(one[name], values, err_msg=name)
            assert one[name].dtype == values.dtype


@pytest.mark.parametrize(("kind", "resize_shorter"), [("pad", 1.0), ("none", 0.0)])
def test_they_are_the_decoded_ones(split, kind, resize_shorter):
    """Over two epochs and from a later step on; evaluation's last batch is filled up."""
    crop, order = dataclasses.replace(PAD, kind=kind, resize_shorter=resize_shorter), Order(N, 4, seed=2**40 + 3)
    decoded = dataclasses.replace(split, pixels=None)
    assert need_no_decoder(split, crop)
    ours, theirs = (list(train_batches(each, order, crop, start_step=2, num_steps=5)) for each in (split, decoded))
    same(ours, theirs)
    shard = {"shard": (1, 2)}
    same(*(list(train_batches(each, order, crop, num_steps=2, **shard)) for each in (split, decoded)))
    same(*(list(eval_batches(each, 4, PAD)) for each in (split, decoded)))
    np.testing.assert_array_equal(eval_image(split, 3, crop), eval_image(decoded, 3, crop))


def test_what_has_to_be_resized_goes_through_the_decoder(split):
    for crop in (
        dataclasses.replace(PAD, kind="random_resized"),
        dataclasses.replace(PAD, resize_shorter=1.25),
        dataclasses.replace(PAD, image_size=8),
    ):
        assert not need_no_decoder(split, crop)
    assert taken_as_they_are(split, dataclasses.replace(PAD, kind="random_resized"))
    assert not taken_as_they_are(dataclasses.replace(split, pixels=None), PAD)
    larger = dataclasses.replace(PAD, kind="none", image_size=16)
    assert next(eval_batches(split, 4, larger))["image"].shape == (4, 16, 16, 3)


def test_a_part_of_the_split_has_its_pixels(split):
    part = split.take([4, 2])
    np.testing.assert_array_equal(part.pixels, split.pixels[[4, 2]])
    np.testing.assert_array_equal(next(eval_batches(part, 2, PAD))["image"], split.pixels[[4, 2]])
