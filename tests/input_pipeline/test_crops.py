import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.crops import Crop, boxes, philox4x32, stored_boxes
from input_pipeline.errors import InputError

RESIZED = Crop("random_resized", 224)


def arguments(n: int, height: int = 375, width: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.zeros(n, np.int64), np.arange(n), np.tile([[height, width]], (n, 1))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    words = philox4x32(tuple(np.uint64([c]) for c in counter), (np.uint64(key[0]), np.uint64(key[1])))
    assert tuple(int(word[0]) for word in words) == expected


ranges = st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(sorted).map(tuple)
ratios = st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)).map(sorted).map(tuple)


@given(st.integers(1, 3000), st.integers(1, 3000), ranges, ratios, st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_a_box_is_never_empty_and_never_leaves_the_image(height, width, scale, ratio, seed, index):
    crop = Crop("random_resized", 224, scale=scale, ratio=ratio)
    ((top, left, h, w),) = boxes(crop, seed, np.array([3]), np.array([index]), np.array([[height, width]]))
    assert h >= 1
    assert w >= 1
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w


@given(st.integers(0, 2**64 - 1), st.integers(1, 30))
def test_a_box_does_not_depend_on_the_batch_around_it(seed, n):
    sizes = np.random.default_rng(n).integers(20, 600, (n, 2))
    epochs, indices = np.arange(n) % 3, np.arange(n) * 7
    together = boxes(RESIZED, seed, epochs, indices, sizes)
    alone = [boxes(RESIZED, seed, epochs[i : i + 1], indices[i : i + 1], sizes[i : i + 1])[0] for i in range(n)]
    np.testing.assert_array_equal(together, alone)
    assert together.dtype == np.int32


def test_areas_ratios_and_places_are_spread_as_torchvision_spreads_them():
    n = 20_000
    top, left, h, w = boxes(RESIZED, 0, *arguments(n, 2000, 2000)).astype(float).T
    area, ratio = h * w / 4e6, np.log(w / h)
    # Uniform area in 0.08..1 loses only what does not fit, near the whole image; below half of it all tries fit.
    small = area < 0.5
    assert abs(np.mean(area[small]) - 0.29) < 0.005
    assert abs(np.mean(ratio[small])) < 0.01
    assert abs(np.std(ratio[small]) - 2 * np.log(4 / 3) / np.sqrt(12)) < 0.01
    for offset, extent in ((top, h), (left, w)):
        assert abs(np.mean(offset[small] / (2000 - extent[small])) - 0.5) < 0.01
    assert ratio.min() >= np.log(3 / 4) - 0.01
    assert ratio.max() <= np.log(4 / 3) + 0.01


@pytest.mark.parametrize(("size", "box"), [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10))])
def test_an_image_that_no_try_fits_falls_back_to_its_centre(size, box):
    crop = Crop("random_resized", 8, scale=(1.0, 1.0))
    np.testing.assert_array_equal(boxes(crop, 0, np.array([0]), np.array([0]), np.array([size]))[0], [*box])


def test_seed_epoch_and_example_each_change_the_box():
    epochs, indices, sizes = arguments(50)
    first = boxes(RESIZED, 1, epochs, indices, sizes)
    for other in (
        boxes(RESIZED, 2, epochs, indices, sizes),
        boxes(RESIZED, 1 + 2**40, epochs, indices, sizes),
        boxes(RESIZED, 1, epochs + 1, indices, sizes),
        boxes(RESIZED, 1, epochs, indices + 50, sizes),
    ):
        assert (first != other).any(axis=1).mean() > 0.95


def test_pad_offsets_cover_the_padding_evenly():
    found = boxes(Crop("pad", 32, padding=4), 0, *arguments(9000, 32, 32))
    assert (found[:, 2:] == 32).all()
    for axis in (0, 1):
        counts = np.bincount(found[:, axis], minlength=9)
        assert len(counts) == 9
        assert counts.min() > 850
        assert counts.max() < 1150
    assert abs(np.corrcoef(found[:, 0], found[:, 1])[0, 1]) < 0.05


def test_none_is_the_whole_image():
    np.testing.assert_array_equal(boxes(Crop("none", 32), 0, *arguments(2)), [[0, 0, 375, 500]] * 2)


def turn_upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF's definition by NumPy, apart from the code under test: 5 to 8 swap the axes first."""
    image = stored.T if orientation >= 5 else stored
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image


@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 12), st.data())
def test_cutting_the_stored_pixels_equals_cutting_the_upright_image(orientation, rows, columns, data):
    stored = np.arange(rows * columns).reshape(rows, columns)
    upright = turn_upright(stored, orientation)
    height, width = upright.shape
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    h, w = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    ((t, s, bh, bw),) = stored_boxes(
        np.array([[top, left, h, w]]), np.array([[height, width]]), np.array([orientation])
    )
    piece = stored[t : t + bh, s : s + bw]
    np.testing.assert_array_equal(turn_upright(piece, orientation), upright[top : top + h, left : left + w])


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "resize"},
        {"image_size": 0},
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 0.2)},
        {"ratio": (2.0, 1.0)},
        {"padding": -1},
        {"resize_shorter": 0.5},
        {"interpolation": "area"},
    ],
)
def test_impossible_crops_are_refused(wrong):
    with pytest.raises(InputError):
        Crop(**({"kind": "random_resized", "image_size": 224} | wrong))
