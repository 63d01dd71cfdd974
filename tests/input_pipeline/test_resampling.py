"""The resizing operation: TensorFlow's bits, in graphs and out of them; and what is done where it is missing."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from input_pipeline import decode, resampling
from input_pipeline.device_crops import filter_matrix
from input_pipeline.stream import _tensorflow

tf = _tensorflow()
needs_operation = pytest.mark.skipif(
    bool(resampling.missing(tf)), reason=f"no resizing operation: {resampling.missing(tf)}"
)


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@needs_operation
@settings(max_examples=60, deadline=None)
@given(
    before=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    after=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    seed=st.integers(0, 9),
)
@example((447, 441), (224, 224), "bilinear", 0)
@example((224, 224), (224, 224), "bicubic", 0)
@example((1, 1), (7, 5), "bicubic", 0)
@example((1500, 3), (11, 224), "bicubic", 0)  # spans of 546 rows
@example((3, 1999), (5, 64), "bilinear", 0)
def test_the_bits_are_those_of_tensorflow(before, after, interpolation, seed):
    # Black and white alone overshoot most; noise has every level.
    for image in (noise(seed, *before, 3), 255 * (noise(seed, *before, 3) % 2)):
        ours = resampling.resized(tf, tf.constant(image), *after, interpolation)
        theirs = decode.resize_by_tensorflow(tf, tf.constant(image), *after, interpolation)
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.floats(0, 1, width=32)] * 4), st.sampled_from(["bilinear", "bicubic"]))
@example((0.5, 0.37, 0.9, 0.71), "bilinear")
@example((0.97, 0.03, 0.02, 0.99), "bicubic")
def test_a_part_is_what_the_resident_feed_cuts(cut, interpolation):
    """Of a box between pixels, in eighths: by the operation, by TensorFlow's and by the matrices of `device_crops`."""
    before, after, box = (40, 33), (7, 9), []
    image = noise(0, *before, 3)
    for axis in (0, 1):
        length = max(round(8 * before[axis] * cut[2 + axis]), 1) / 8
        box.append((np.floor((before[axis] - length) * cut[axis] * 8) / 8, length))
    place = np.float32([box[0][0], box[1][0], box[0][1], box[1][1]])
    down, across = (
        np.asarray(filter_matrix(np.float32([start]), np.float32([length]), size, new_size, interpolation))[0]
        for (start, length), size, new_size in zip(box, before, after, strict=True)
    )
    expected = np.einsum("sh,tw,hwc->stc", down, across, image)
    ours = [decode.resize_by_tensorflow(tf, tf.constant(image), *after, interpolation, tf.constant(place))]
    if not resampling.missing(tf):
        ours.append(resampling.resized(tf, tf.constant(image), *after, interpolation, tf.constant(place)))
    for pixels in ours:
        np.testing.assert_allclose(pixels.numpy(), np.clip(expected, 0, 255), atol=0.502)


@needs_operation
def test_a_part_of_whole_pixels_is_resized_as_if_cut_out_before():
    image = noise(0, 50, 61, 3)
    ours = resampling.resized(tf, tf.constant(image), 16, 24, "bicubic", tf.constant([9.0, 7.0, 37.0, 41.0]))
    np.testing.assert_array_equal(ours, resampling.resized(tf, tf.constant(image[9:46, 7:48]), 16, 24, "bicubic"))
    theirs = decode.resize_by_tensorflow(tf, tf.constant(image), 16, 24, "bicubic", tf.constant([9.0, 7.0, 37.0, 41.0]))
    np.testing.assert_array_equal(ours, theirs)


@needs_operation
@pytest.mark.parametrize(
    "box",
    [(-0.1, 0, 2, 2), (0, 0, 4.1, 2), (3, 0, 1.5, 2), (0, 0, 0, 2), (0, 2, 1, 3), (0, float("nan"), 1, 1), (0, 0, 1)],
)
def test_a_part_outside_of_the_image_is_refused(box):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"outside of the image|box \[0\] or \[4\]"):
        resampling.resized(tf, tf.zeros((4, 4, 3), tf.uint8), 2, 2, "bilinear", tf.constant(box, tf.float32))


@needs_operation
def test_it_works_inside_a_pipeline_in_threads():
    images = [noise(i, 20 + i, 50 - i, 3) for i in range(30)]
    pipeline = tf.data.Dataset.from_generator(
        lambda: iter(images), output_signature=tf.TensorSpec((None, None, 3), tf.uint8)
    )
    small = pipeline.map(lambda image: decode.resize(tf, image, 16, 12, "bilinear"), num_parallel_calls=8)
    assert small.element_spec.shape.as_list() == [None, None, 3]
    for image, found in zip(images, small.as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(found, decode.resize_by_tensorflow(tf, image, 16, 12, "bilinear"))


@needs_operation
@pytest.mark.parametrize(
    ("image", "size", "said"),
    [
        ((4, 4, 1), (2, 2), "image must be"),
        ((4, 4), (2, 2), "image must be"),
        ((4, 4, 3), (2, 0), "a pixel at least"),
        ((4, 4, 3), (-1, 2), "a pixel at least"),
        ((0, 4, 3), (2, 2), "a pixel at least"),
        # As a float a row more.
        ((2**24 + 3, 1, 3), (2, 2), "at most 16,777,216 pixels"),
    ],
)
def test_other_shapes_are_refused(image, size, said):
    with pytest.raises(tf.errors.InvalidArgumentError, match=said):
        resampling.resized(tf, tf.zeros(image, tf.uint8), *size, "bilinear")


def test_where_it_is_missing_tensorflow_resizes(monkeypatch):
    monkeypatch.setattr(resampling, "missing", lambda tf: "left out by this test")
    monkeypatch.setattr(resampling, "resized", None)
    image = noise(0, 9, 14, 3)
    np.testing.assert_array_equal(decode.resize(tf, tf.constant(image), 9, 14, "bilinear"), image)


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with monkeypatch.context() as inside:
        inside.setenv("PATH", "/nowhere")
        _, said = resampling._outcome.__wrapped__(tf)
    assert said == "there is no C compiler (Debian: apt install gcc libc6-dev)"
    monkeypatch.setenv(resampling.SWITCH, "0")
    assert resampling._outcome.__wrapped__(tf)[1] == f"{resampling.SWITCH}=0 is set"


@needs_operation
def test_a_damaged_library_is_made_anew(tmp_path):
    code = """
from input_pipeline import resampling
from input_pipeline.stream import _tensorflow
kept = resampling._compiled()
kept.write_bytes(b"not a library")
print(resampling.missing(_tensorflow()), kept.stat().st_size > 1000)
"""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr
