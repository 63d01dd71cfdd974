import colorsys
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from input_pipeline.augment import (
    Augmentation,
    alternately_mirrored,
    augment,
    odd_epochs,
    prepare,
    shift_hue,
)
from input_pipeline.contract import CONTRACTS, normalise
from input_pipeline.errors import InputError
from input_pipeline.order import Order

RAW = CONTRACTS["raw"]  # 0..1: pixels stay readable
CLASSES = 7
KEY = jax.random.key(5)
EVERYTHING = Augmentation("both", 0.4, 0.4, 0.4, 0.1, 0.5, 0.2, 1.0, 0.1)


def photos(n: int = 64, size: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


def labels_of(images: np.ndarray) -> np.ndarray:
    return (np.arange(len(images)) % CLASSES).astype(np.int32)


_jitted = jax.jit(augment, static_argnames=("augmentation", "contract", "num_classes"))


def run(augmentation: Augmentation, images: np.ndarray, key=KEY, contract=RAW) -> tuple[np.ndarray, np.ndarray]:
    result, targets = _jitted(key, images, labels_of(images), augmentation, contract, CLASSES)
    return np.asarray(result), np.asarray(targets)


def test_nothing_on_means_normalised_pixels_and_one_hot_targets():
    images = photos(8)
    for contract in CONTRACTS.values():
        result, targets = run(Augmentation(), images, contract=contract)
        np.testing.assert_allclose(result, normalise(images, contract), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(result, prepare(images, contract), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(targets, np.eye(CLASSES, dtype=np.float32)[labels_of(images)])


@pytest.mark.parametrize("off", [Augmentation(), Augmentation(label_smoothing=0.1)])
def test_what_is_off_is_not_traced(off):
    def traced(augmentation):
        images, labels = jnp.zeros((4, 8, 8, 3), jnp.uint8), jnp.zeros(4, jnp.int32)
        return str(jax.make_jaxpr(augment, static_argnums=(3, 4, 5))(KEY, images, labels, augmentation, RAW, CLASSES))

    assert "random_bits" not in traced(off)
    assert "random_bits" in traced(Augmentation(flip="horizontal"))
    assert "argmax" not in traced(Augmentation("both", 0.4, 0.4, 0.4, 0.1, mixup=1.0))
    assert "argmax" in traced(Augmentation(erasing=0.5))


@pytest.mark.parametrize(("flip", "axes"), [("horizontal", (2,)), ("vertical", (1,)), ("both", (1, 2))])
def test_flips_are_mirror_images_half_of_the_time(flip, axes):
    images = photos(600, 4)
    result, targets = run(Augmentation(flip=flip), images)
    variants = {(): images}
    for axis in axes:
        variants |= {(*key, axis): np.flip(v, axis) for key, v in variants.items()}
    hits = np.stack([np.isclose(result, v / 255.0, atol=1e-6).all((1, 2, 3)) for v in variants.values()])
    np.testing.assert_array_equal(hits.sum(0), 1)
    np.testing.assert_allclose(hits.mean(1), 1 / len(variants), atol=0.07)
    np.testing.assert_array_equal(targets.argmax(1), labels_of(images))


def test_alternating_flips_each_image_every_other_epoch():
    """Over three epochs, whose batches cross into the next: a fair coin first, then the other side each time."""
    order = Order(num_examples=201, batch_size=32, seed=4)
    sides = {}
    for step in range(19):
        mirrored = np.asarray(alternately_mirrored(KEY, step, order.indices(step).astype(np.int32), 201))
        sides |= dict(zip(zip(order.epochs(step), order.indices(step), strict=True), mirrored, strict=True))
    first, second, third = (np.array([sides[epoch, i] for i in range(201)]) for epoch in range(3))
    assert 70 < first.sum() < 130
    np.testing.assert_array_equal(second, ~first)
    np.testing.assert_array_equal(third, first)
    other = np.asarray(alternately_mirrored(jax.random.key(6), 0, np.arange(201, dtype=np.int32), 201))
    assert 50 < (other != first).sum() < 150

    images = photos(201, 4)
    shown, _ = _jitted(KEY, images, labels_of(images), Augmentation("alternating"), RAW, CLASSES, first)
    expected = np.where(first[:, None, None, None], images[:, :, ::-1], images)
    np.testing.assert_allclose(shown, expected / 255.0, atol=1e-6)
    with pytest.raises(ValueError, match="alternating"):
        run(Augmentation("alternating"), images)


@pytest.mark.parametrize(("num_examples", "batch_size"), [(7, 5), (50_000, 512), (1_281_167, 32_768), (1 << 26, 8192)])
def test_an_epoch_is_odd_as_the_order_says_however_long_the_run(num_examples, batch_size):
    for step in (0, 1, 97, 98, 1_000_003, 2**31 - 2):
        positions = step * batch_size + np.arange(batch_size, dtype=np.int64)
        expected = positions // num_examples % 2 == 1
        np.testing.assert_array_equal(odd_epochs(np.int32(step), batch_size, num_examples), expected)


def test_too_many_images_to_alternate_are_refused():
    with pytest.raises(InputError, match="alternating"):
        odd_epochs(0, 8, (1 << 26) + 1)


def test_the_same_key_gives_the_same_batch_and_another_key_another():
    images = photos(16)
    first, again, other = (run(EVERYTHING, images, key) for key in (KEY, jax.random.key(5), jax.random.key(6)))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (first[0] != other[0]).mean() > 0.5


def test_a_row_does_not_depend_on_the_rows_around_it():
    per_row = Augmentation("both", 0.4, 0.4, 0.4, 0.1, 0.5)
    images = photos(16)
    others = np.concatenate([images[:8], photos(8, seed=9)])
    np.testing.assert_allclose(run(per_row, images)[0][:8], run(per_row, others)[0][:8], atol=1e-6)


def test_turning_one_kind_on_leaves_the_draws_of_the_others():
    images = photos(64)
    flipped = run(Augmentation(flip="horizontal"), images)[0]
    erased = run(Augmentation(flip="horizontal", erasing=1.0), images)[0]
    kept = erased != 0
    np.testing.assert_array_equal(erased[kept], flipped[kept])


@pytest.mark.parametrize("flip", ["horizontal", "both"])
def test_flips_are_the_same_however_many_numbers_colour_draws(flip):
    images = photos(64)
    alone = run(Augmentation(flip=flip), images)[0]
    for kind in ("brightness", "hue"):
        np.testing.assert_allclose(run(Augmentation(flip=flip, **{kind: 1e-7}), images)[0], alone, atol=1e-3)


def test_brightness_scales_each_image_by_one_factor_within_the_limits():
    images = np.full((300, 4, 4, 3), 100, np.uint8)
    factors = run(Augmentation(brightness=0.4), images)[0] * 255 / 100
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1, :1, :1], factors.shape), rtol=1e-5)
    factors = factors[:, 0, 0, 0]
    assert 0.6 <= factors.min() < 0.65
    assert 1.35 < factors.max() <= 1.4
    assert abs(factors.mean() - 1) < 0.05


@pytest.mark.parametrize(
    ("kind", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_colour_matches_pillow_at_the_factor_that_was_drawn(kind, enhance):
    images = photos(16)
    result = run(Augmentation(**{kind: 0.9}), images)[0] * 255
    for image, got in zip(images, result, strict=True):
        # The factor is the test's only unknown: take the one that fits best, then it must fit everywhere.
        candidates = np.linspace(0.1, 1.9, 361)
        pillow = [np.asarray(enhance(Image.fromarray(image)).enhance(f), np.float32) for f in candidates]
        best = min(np.abs(got - p).max() for p in pillow)
        assert best < 2.5


@pytest.mark.parametrize("shift", [-0.5, -0.13, 0.0, 0.07, 0.25, 0.5])
def test_hue_matches_colorsys(shift):
    pixels = np.concatenate([photos(1, 10).reshape(-1, 3), [[0, 0, 0], [255, 255, 255], [9, 9, 9], [255, 0, 0]]])
    expected = []
    for red, green, blue in pixels / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        expected.append(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value))
    got = shift_hue(jnp.asarray(pixels, jnp.float32), jnp.float32(shift))
    np.testing.assert_allclose(np.asarray(got) / 255, expected, atol=2e-5)


def test_hue_keeps_grey_grey_and_draws_within_its_limits():
    grey = np.repeat(photos(8)[..., :1], 3, axis=-1)
    np.testing.assert_allclose(run(Augmentation(hue=0.5), grey)[0], grey / 255.0, atol=1e-5)
    red = np.tile(np.uint8([255, 0, 0]), (300, 2, 2, 1))
    result = run(Augmentation(hue=0.1), red)[0][:, 0, 0]
    turned = np.array([colorsys.rgb_to_hsv(*np.clip(pixel, 0, 1))[0] for pixel in result])
    turned = np.where(turned > 0.5, turned - 1, turned)
    assert -0.1001 <= turned.min() < -0.08
    assert 0.08 < turned.max() <= 0.1001


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_erasing_sets_one_box_to_zero_after_normalisation(probability):
    images = photos(400, 32)
    torch = CONTRACTS["torch"]
    result, targets = run(Augmentation(erasing=probability), images, contract=torch)
    plain = np.asarray(normalise(images, torch))
    erased = (result == 0).all(-1)
    np.testing.assert_allclose(result[~erased], plain[~erased], rtol=1e-5, atol=1e-6)
    hit = erased.any((1, 2))
    assert abs(hit.mean() - probability) < 0.08
    for mask in erased[hit]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 0.015 <= mask.mean() <= 0.35
        assert 0.2 <= len(rows) / len(columns) <= 5
    np.testing.assert_array_equal(targets.argmax(1), labels_of(images))


def test_mixup_mixes_images_and_targets_by_the_same_weight():
    images = photos(8)
    own, onto = images / 255.0, np.roll(images, 1, axis=0) / 255.0
    eye = np.eye(CLASSES)[labels_of(images)]
    weights = []
    for seed in range(20):
        result, targets = run(Augmentation(mixup=0.4), images, jax.random.key(seed))
        weight = targets[1, 1]
        np.testing.assert_allclose(targets, weight * eye + (1 - weight) * np.roll(eye, 1, axis=0), atol=1e-6)
        np.testing.assert_allclose(result, weight * own + (1 - weight) * onto, atol=1e-5)
        weights.append(weight)
    assert 0 <= min(weights) < 0.4
    assert 0.6 < max(weights) <= 1


def test_cutmix_weighs_the_label_by_the_area_that_is_left():
    images = np.arange(1, 8, dtype=np.uint8)[:, None, None, None] * np.ones((7, 20, 30, 3), np.uint8)
    shares = []
    for seed in range(30):
        result, targets = run(Augmentation(cutmix=1.0), images, jax.random.key(seed))
        values = np.round(result * 255).astype(int)
        kept = (values == images).all(-1)
        assert (values[~kept] == np.roll(images, 1, axis=0)[~kept]).all()
        assert (kept == kept[0]).all()
        np.testing.assert_allclose(np.diag(targets), kept[0].mean(), atol=1e-6)
        np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
        rows, columns = np.flatnonzero((~kept[0]).any(1)), np.flatnonzero((~kept[0]).any(0))
        assert (~kept[0]).sum() == len(rows) * len(columns)
        shares.append(kept[0].mean())
    assert min(shares) < 0.5
    assert max(shares) > 0.9


def test_with_both_on_a_batch_takes_one_of_them_half_of_the_time():
    images = np.arange(1, 8, dtype=np.uint8)[:, None, None, None] * np.full((7, 16, 16, 3), 30, np.uint8)
    cut = 0
    for seed in range(200):
        result, _ = run(Augmentation(mixup=1.0, cutmix=1.0), images, jax.random.key(seed))
        # Mixup leaves flat images flat, at a value of neither; cutmix leaves only values that were there.
        cut += np.isclose(result[1], 30 / 255, atol=1e-5).any() or np.isclose(result[1], 60 / 255, atol=1e-5).all()
    assert 70 <= cut <= 130


def test_label_smoothing_spreads_its_part_over_all_classes():
    _, targets = run(Augmentation(label_smoothing=0.1), photos(3))
    np.testing.assert_allclose(targets[0], [0.9 + 0.1 / 7] + [0.1 / 7] * 6, atol=1e-6)


def test_everything_at_once_runs_in_jit_without_hidden_transfers():
    images, labels = jax.device_put(photos(16)), jax.device_put(labels_of(photos(16)))
    with jax.transfer_guard("disallow"):
        result, targets = _jitted(KEY, images, labels, EVERYTHING, RAW, CLASSES)
    assert result.dtype == targets.dtype == jnp.float32
    assert np.isfinite(result).all()
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": "left"},
        {"hue": 0.6},
        {"erasing": 1.5},
        {"mixup": -1.0},
        {"cutmix": float("nan")},
        {"label_smoothing": 1.0},
        {"brightness": float("inf")},
    ],
)
def test_impossible_strengths_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        dataclasses.replace(Augmentation(), **wrong)
