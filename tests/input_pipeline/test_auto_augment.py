"""RandAugment and TrivialAugment: each operation is Pillow's, each draw is even, and nothing depends on the rest."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from input_pipeline import auto_augment as module
from input_pipeline.augment import Augmentation, augment
from input_pipeline.auto_augment import KINDS, SETS, Space, operate
from input_pipeline.contract import CONTRACTS
from input_pipeline.errors import InputError
from input_pipeline.preview import describe
from input_pipeline.recipe_values import CHOICES
from resnet.train.loop import train
from tests.input_pipeline.test_augment import KEY, RAW, photos, run
from tests.tiny import tiny_config, tiny_data

WIDE = module._WIDE
SPACES = {"torchvision": SETS["torchvision"], "timm": SETS["timm"], "wide": WIDE}
FILL = (124, 116, 104)
BOTH_WAYS = (
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
)
# Arithmetic in float32, and autocontrast's double that falls short of a whole level: a level apart at most.
WITHIN_A_LEVEL = ("brightness", "color", "contrast", "sharpness", "autocontrast")


def pictures() -> np.ndarray:
    """uint8[6, 24, 32, 3]: like a photograph, dark, of one colour, with a full channel, of two levels, of one row."""
    rows, columns = np.mgrid[:24, :32] / 24
    waves = [120 + 80 * np.sin(6 * columns + 3 * rows + p) + 40 * np.cos(9 * rows * (1 + p)) for p in (0, 0.7, 1.9)]
    noise = np.random.default_rng(0).normal(0, 12, (24, 32, 3))
    photo = np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)
    full, two, row = photo.copy(), np.zeros_like(photo), np.full_like(photo, 200)
    full[..., 0] = 255
    two[::2] = 255
    row[3] = photo[3]
    return np.stack([photo, photo // 4 + 20, np.full_like(photo, 77), full, two, row])


def by_pillow(picture: np.ndarray, name: str, magnitude: float, sign: float, space: str) -> np.ndarray:
    """By Pillow, as strong as torchvision 0.28's _augmentation_space and timm 1.0.31's LEVEL_TO_ARG say."""
    image, timm = Image.fromarray(picture), space == "timm"
    part = magnitude / (10 if timm else 30)
    width, height = image.size
    if name in BOTH_WAYS[:5]:
        shear = sign * part * (0.99 if space == "wide" else 0.3)
        moved = [
            part * {"timm": 0.45 * side, "torchvision": 150 / 331 * side, "wide": 32}[space] for side in image.size
        ]
        # The nudge: torch.linspace leaves 15.999999 where 16 is meant.
        x, y = (-sign * (pixels if timm else int(pixels + 1e-4)) for pixels in moved)
        angle = sign * part * (135 if space == "wide" else 30)
        fill = FILL if timm else (0, 0, 0)
        if name == "rotate":
            return np.asarray(image.rotate(angle, Image.Resampling.NEAREST, fillcolor=fill))
        matrix = {
            "shear_x": (1, shear, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, shear, 1, 0),
            "translate_x": (1, 0, x, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, y),
        }[name]
        return np.asarray(
            image.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=fill)
        )
    factor = 1 + sign * part * (0.99 if space == "wide" else 0.9)
    bits = 4 - int(part * 4) if timm else 8 - round(part * (6 if space == "wide" else 4))
    done = {
        "identity": lambda: image,
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        # timm's strongest keeps no bit, which Pillow does no longer.
        "posterize": lambda: ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size),
        "solarize": lambda: ImageOps.solarize(image, 256 - int(part * 256) if timm else 255 - 8.5 * magnitude),
        "solarize_add": lambda: image.point([min(255, v + int(part * 110)) if v < 128 else v for v in range(256)] * 3),
        "invert": lambda: ImageOps.invert(image),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }
    return np.asarray(done[name]())


@pytest.mark.parametrize("space", SPACES)
def test_every_operation_is_pillows_at_every_magnitude(space):
    names, greatest = SPACES[space].operations, SPACES[space].greatest
    # Without an angle of 90 degrees (20 of the wide set): Pillow leaves a side that is not square otherwise there.
    magnitudes = (0, 1, 2, 3, 5, 6, 7, 9, 10) if space == "timm" else (0, 1, 4, 7, 9, 10, 13, 15, 19, 22, 27, 30)
    assert magnitudes[-1] == greatest
    cases = [
        (picture, number, magnitude, sign)
        for picture in range(6)
        for number, name in enumerate(names)
        for magnitude in magnitudes
        for sign in ((1.0, -1.0) if name in BOTH_WAYS else (1.0,))
    ]
    shown = pictures()
    which, numbers, strengths, signs = (np.array(column) for column in zip(*cases, strict=True))
    fill = np.array(FILL if space == "timm" else (0, 0, 0), np.uint8)
    program = jax.jit(jax.vmap(lambda *given: operate(*given, SPACES[space], fill)))
    found = np.asarray(
        program(shown[which], numbers.astype(np.int32), strengths.astype(np.float32), signs.astype(np.float32))
    )
    for (picture, number, magnitude, sign), got in zip(cases, found, strict=True):
        name = names[number]
        difference = np.abs(by_pillow(shown[picture], name, magnitude, sign, space).astype(int) - got)
        if name == "rotate":  # the matrix is float32: a pixel's middle may come to lie beyond an edge
            assert difference.any(-1).sum() <= 2, (name, picture, magnitude, sign)
        else:
            assert difference.max() <= (name in WITHIN_A_LEVEL), (name, picture, magnitude, sign)


def test_an_operation_of_magnitude_0_and_none_leave_the_image():
    shown = pictures()
    for space in SPACES.values():
        program = jax.jit(lambda n, image, s=space: operate(image, n, jnp.float32(0), jnp.float32(1), s, np.zeros(3)))
        for name in (*BOTH_WAYS, "none"):
            number = space.operations.index(name) if name != "none" else len(space.operations)
            np.testing.assert_array_equal(program(np.int32(number), shown[0]), shown[0])


@pytest.fixture
def told(monkeypatch):
    """Have each operation write down what was drawn, in the image's pixels: number, magnitude in eighths, way."""

    def tell(image, number, magnitude, sign, space: Space, fill):
        line = jnp.stack([number.astype(jnp.float32) + 1, magnitude * 8, sign + 1]).astype(jnp.uint8)
        free = (image[:, 0, 0] == 0).argmax()
        return image.at[free, :].set(line)

    monkeypatch.setattr(module, "operate", tell)

    def drawn(augmentation: Augmentation, count: int = 3100) -> np.ndarray:
        black, labels = np.zeros((count, 4, 2, 3), np.uint8), np.zeros(count, np.int32)
        images, _ = jax.jit(lambda images: augment(KEY, images, labels, augmentation, RAW, 2))(black)
        return np.rint(np.asarray(images)[:, :, 0] * 255).astype(int)

    return drawn


def evenly(values: np.ndarray, choices: int) -> None:
    counts = np.bincount(values, minlength=choices)
    assert len(counts) == choices
    expected = len(values) / choices
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)


def test_trivialaugment_draws_one_operation_and_its_magnitude_evenly(told):
    drawn = told(Augmentation(auto_augment="trivialaugment"))
    assert not drawn[:, 1:].any()
    number, magnitude, sign = drawn[:, 0].T
    evenly(number - 1, len(WIDE.operations))
    evenly(magnitude // 8, 31)
    evenly(sign // 2, 2)


def test_randaugment_draws_each_of_its_operations_evenly_and_apart(told):
    drawn = told(Augmentation(auto_augment="randaugment", randaugment_ops=3, randaugment_magnitude=6))
    assert (drawn[:, :3, 0] > 0).all()
    assert (drawn[:, :3, 1] == 48).all()
    assert not drawn[:, 3].any()
    size = len(SETS["torchvision"].operations)
    for place in range(3):
        evenly(drawn[:, place, 0] - 1, size)
        evenly(drawn[:, place, 2] // 2, 2)
    evenly((drawn[:, 0, 0] - 1) * size + drawn[:, 1, 0] - 1, size**2)


def test_timms_recipe_skips_half_of_them_and_varies_the_magnitude(told):
    recipe = Augmentation(
        auto_augment="randaugment",
        randaugment_set="timm",
        randaugment_magnitude=6.0,
        randaugment_noise=2.0,
        randaugment_probability=0.5,
    )
    drawn = told(recipe)[:, :2]
    size = len(SETS["timm"].operations)
    applied = drawn[..., 0] <= size
    assert abs(applied.mean() - 0.5) < 0.04
    evenly(drawn[..., 0][applied] - 1, size)
    magnitudes = drawn[..., 1] / 8 + 1 / 16  # cut to eighths
    assert magnitudes.max() < 10.1
    assert (np.abs(np.quantile(magnitudes, [0.16, 0.5, 0.84]) - [4.0, 6.0, 8.0]) < 0.2).all()


RANDOM = Augmentation("horizontal", auto_augment="randaugment", randaugment_noise=1.0)


def test_a_row_does_not_depend_on_how_the_batch_is_cut():
    images = photos(16)
    program = jax.jit(lambda images, places: augment(KEY, images, places % 7, RANDOM, RAW, 7, places=places)[0])
    rows = np.arange(16, dtype=np.int32)
    whole = np.asarray(program(images, rows))
    for part in (rows[::2], rows[1::2]):
        twice = np.concatenate([part, part[::-1]])  # of the same shape, so that one program does
        np.testing.assert_array_equal(program(images[twice], twice), whole[twice])
    assert (np.abs(whole - images / 255.0).max((1, 2, 3)) > 0.1).mean() > 0.5


def test_the_other_kinds_draw_what_they_drew(monkeypatch):
    monkeypatch.setattr(module, "operate", lambda image, *drawn: image)
    others, images = Augmentation("both", brightness=0.4, erasing=0.5), photos(32)
    with_it, without = (
        jax.jit(lambda images, how: augment(KEY, images, jnp.zeros(32, jnp.int32), how, RAW, 2)[0], static_argnums=1)(
            images, dataclasses.replace(others, auto_augment=kind)
        )
        for kind in ("randaugment", "none")
    )
    np.testing.assert_allclose(with_it, without, atol=1e-6)


def test_it_draws_the_same_whichever_other_kinds_are_on(told):
    alone = Augmentation(auto_augment="trivialaugment")
    np.testing.assert_array_equal(told(dataclasses.replace(alone, flip="both"), 64), told(alone, 64))


def test_off_costs_nothing():
    def traced(augmentation: Augmentation) -> str:
        images, labels = jnp.zeros((4, 8, 8, 3), jnp.uint8), jnp.zeros(4, jnp.int32)
        return str(jax.make_jaxpr(lambda *given: augment(*given, augmentation, RAW, 7))(KEY, images, labels))

    off = traced(Augmentation(flip="horizontal", randaugment_ops=5, randaugment_noise=1.0))
    assert off == traced(Augmentation(flip="horizontal"))
    assert "scan" not in off
    assert "scan" in traced(RANDOM)


def test_timms_set_fills_with_the_contracts_mean_colour_and_torchvisions_with_black():
    assert module._mean_colour(CONTRACTS["torch"]).tolist() == list(FILL)
    assert module._mean_colour(CONTRACTS["caffe"]).tolist() == [124, 117, 104]
    white = np.full((64, 8, 8, 3), 255, np.uint8)
    for name, colour in (("timm", 128), ("torchvision", 0)):
        random = Augmentation(auto_augment="randaugment", randaugment_set=name, randaugment_ops=1)
        random = dataclasses.replace(random, randaugment_magnitude=SETS[name].greatest)
        shown = np.rint(255 * (run(random, white, contract=CONTRACTS["tf"])[0] + 1) / 2)
        warped = (shown == colour).any((1, 2, 3)) & (shown == 255).any((1, 2, 3))
        assert 8 < warped.sum() < 40


@pytest.mark.parametrize(
    "wrong",
    [
        {"auto_augment": "autoaugment"},
        {"randaugment_set": "keras"},
        {"randaugment_ops": 0},
        {"randaugment_magnitude": 31},
        {"randaugment_set": "timm", "randaugment_magnitude": 10.5},
        {"randaugment_noise": float("inf")},
        {"randaugment_probability": 1.5},
    ],
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(InputError, match=list(wrong)[-1]):
        Augmentation(**wrong)


def test_choices_are_told_before_jax_is_imported_as_they_are_here():
    assert CHOICES["data.auto_augment"] == KINDS
    assert CHOICES["data.randaugment_set"] == tuple(SETS)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("kind", "feed", "said"),
    [
        ("randaugment", "resident", "; randaugment 3 of timm's at 6 ± 0.5, each with 0.5; "),
        ("trivialaugment", "stream", "; trivialaugment; "),
    ],
)
def test_a_run_takes_it_with_either_feed(kind, feed, said, tmp_path, monkeypatch):
    """The loop lets no transfer pass unseen."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = tiny_config(tiny_data(tmp_path, per_class=4))
    config.data.auto_augment, config.data.feed, config.run.steps = kind, feed, 2
    config.data.crop = "pad"
    if kind == "randaugment":
        config.data.randaugment_set, config.data.randaugment_ops = "timm", 3
        config.data.randaugment_magnitude, config.data.randaugment_noise = 6.0, 0.5
        config.data.randaugment_probability = 0.5
    assert said in describe(config, "step 0", plain=False)
    assert train(config, tmp_path / "run") == 0
