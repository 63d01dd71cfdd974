"""The resident feed shows what the tf.data feed shows, bit for bit, and reads nothing that is not what it says."""

import dataclasses
import io
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from input_pipeline import resident
from input_pipeline.crops import Crop
from input_pipeline.errors import InputError
from input_pipeline.images import content_of
from input_pipeline.order import Order
from input_pipeline.resident import (
    Images,
    cut,
    decode_source,
    evaluation_rows,
    make_resident,
    read_arrays,
    step_rows,
    write_arrays,
)
from input_pipeline.sources import Source, Split
from input_pipeline.stream import decode, eval_batches, train_batches

N, SIDE = 11, 12
PAD = Crop("pad", SIDE, padding=3, resize_shorter=0.0)
cut_in_jit = jax.jit(cut, static_argnums=3)


def drawn_split(name: str, count: int, seed: int) -> Split:
    """PNG files in memory, of sizes of their own, one of them to be turned upright."""
    rng = np.random.default_rng(seed)
    encoded, sizes = [], []
    for number in range(count):
        height, width = (SIDE, SIDE) if number % 2 else tuple(rng.integers(SIDE, 30, 2))
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
        sizes.append((height, width))
    orientations = np.ones(count, np.int8)
    orientations[1] = 3
    return Split(
        name=name,
        labels=np.arange(count, dtype=np.int32) % 3,
        ids=tuple(f"{name}/{number}" for number in range(count)),
        sizes=np.array(sizes, np.int32),
        orientations=orientations,
        paths=None,
        contents=np.array([content_of(data) for data in encoded], "S32"),
        read=lambda i: encoded[i],
    )


@pytest.fixture(scope="module")
def source() -> Source:
    splits = {"train": drawn_split("train", N, 0), "test": drawn_split("test", 5, 1)}
    return Source("folder", ("a", "b", "c"), splits, "0" * 64, ())


@pytest.fixture(scope="module")
def data(source) -> resident.ResidentData:
    return decode_source(source, PAD)


@pytest.mark.parametrize("seed", [0, 2**40 + 3])
@pytest.mark.parametrize("kind", ["pad", "none"])
def test_training_batches_are_those_of_the_stream(source, data, kind, seed):
    """Over two epochs and a batch that crosses from one into the next."""
    order, crop = Order(N, 4, seed), dataclasses.replace(PAD, kind=kind)
    train = data.splits["train"]
    rows = step_rows(order, crop, 2, 5)
    streamed = list(train_batches(source.splits["train"], order, crop, start_step=2, num_steps=5))
    for number, batch in enumerate(streamed):
        index, offset = rows["index"][number], rows["offset"][number]
        padding = crop.padding if kind == "pad" else 0
        np.testing.assert_array_equal(cut_in_jit(train.images, index, offset, padding), batch["image"])
        np.testing.assert_array_equal(index, batch["index"])
        np.testing.assert_array_equal(train.labels[index], batch["label"])
    assert (rows["offset"].max() == 0) == (kind == "none")
    assert (rows["index"].dtype, rows["offset"].dtype) == (np.int32, np.int32)


def test_evaluation_batches_are_those_of_the_stream(source, data):
    ours = evaluation_rows(data.splits["test"], 3)
    streamed = list(eval_batches(source.splits["test"], 3, PAD))
    assert len(ours) == len(streamed) == 2
    for one, other in zip(ours, streamed, strict=True):
        assert one.keys() == other.keys()
        for name, values in other.items():
            np.testing.assert_array_equal(one[name], values, err_msg=name)
            assert one[name].dtype == values.dtype


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 40), st.integers(1, 7), st.integers(1, 9))
def test_rows_of_many_steps_are_those_of_each(seed, start, count, batch_size):
    order = Order(N, batch_size, seed)
    together = step_rows(order, PAD, start, count)
    for number in range(count):
        alone = step_rows(order, PAD, start + number, 1)
        for name, rows in alone.items():
            np.testing.assert_array_equal(together[name][number], rows[0])
    assert together["offset"].min() >= 0
    assert together["offset"].max() <= 2 * PAD.padding


def test_a_crop_that_needs_whole_images_is_refused():
    with pytest.raises(InputError, match=r"config\.data\.crop='random_resized'"):
        step_rows(Order(N, 2, 0), Crop("random_resized", SIDE), 0, 1)


def test_a_file_of_arrays_gives_back_what_was_written(data, tmp_path):
    write_arrays(data, tmp_path / "set.npz")
    again = read_arrays(tmp_path / "set.npz", SIDE)
    assert again.class_names == data.class_names
    assert again.fingerprint == data.fingerprint
    assert again.image_size == SIDE
    for name, split in data.splits.items():
        np.testing.assert_array_equal(again.splits[name].images, split.images)
        np.testing.assert_array_equal(again.splits[name].labels, split.labels)
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


def test_the_fingerprint_is_of_pixels_labels_and_classes(data):
    train = data.splits["train"]
    pixels, labels = train.images.copy(), train.labels.copy()
    pixels[3, 2, 1, 0] ^= 1
    labels[5] = (labels[5] + 1) % 3
    others = [
        make_resident(("a", "b", "d"), data.splits),
        make_resident(data.class_names, {**data.splits, "train": Images(pixels, train.labels)}),
        make_resident(data.class_names, {**data.splits, "train": Images(train.images, labels)}),
    ]
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 4


def written(file: Path, **arrays: np.ndarray) -> Path:
    good = {
        "class_names": np.array('["a", "b"]'),
        "train_images": np.zeros((3, SIDE, SIDE, 3), np.uint8),
        "train_labels": np.zeros(3, np.int32),
    }
    np.savez(file, **{name: array for name, array in (good | arrays).items() if array is not None})
    return file


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"train_images": None}, "train split"),
        ({"train_labels": None}, "not a complete file of arrays"),
        ({"class_names": np.array("{not json")}, "not a complete file of arrays"),
        ({"class_names": np.array('["a"]')}, "two or more classes"),
        ({"train_labels": np.zeros(3, np.int64)}, "int32"),
        ({"train_labels": np.full(3, 2, np.int32)}, "none of the 2 classes"),
        ({"train_images": np.zeros((3, SIDE, SIDE, 3), np.float32)}, "uint8"),
        ({"train_images": np.zeros((3, SIDE, SIDE + 1, 3), np.uint8)}, "uint8"),
        ({"train_images": np.zeros((3, 9, 9, 3), np.uint8)}, "--config.data.image_size=9"),
        # Would run a program of the file's choice if it were unpickled.
        ({"train_images": np.array([print], object)}, "not a complete file of arrays"),
    ],
)
def test_a_file_that_is_not_of_that_form_is_refused_by_name(arrays, word, tmp_path):
    file = written(tmp_path / "set.npz", **arrays)
    with pytest.raises(InputError, match=word) as error:
        read_arrays(file, SIDE)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_torn_or_absent_file_is_refused_by_name(tmp_path):
    file = written(tmp_path / "set.npz")
    file.write_bytes(file.read_bytes()[:-200])
    for path in (file, tmp_path / "absent.npz", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_arrays(path, SIDE)


def test_more_than_a_device_should_hold_is_refused_before_anything_is_decoded(source, monkeypatch, tmp_path):
    monkeypatch.setattr(resident, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match="16 images at 12 px"):
        decode_source(source, PAD)
    with pytest.raises(InputError, match="lower"):
        read_arrays(written(tmp_path / "set.npz"), SIDE)


def test_as_a_source_it_plans_and_reads_back_its_pixels(data):
    source = data.as_source("arrays")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": N, "test": 5}
    assert source.fingerprint == data.fingerprint
    for index in (0, 3):
        pixels = decode(source.splits["train"].read(index))
        np.testing.assert_array_equal(pixels, data.splits["train"].images[index])
