"""RandAugment and TrivialAugment in JAX on the accelerator: one or more operations drawn for each image.

RandAugment: Cubuk et al. 2020, arXiv 1909.13719, Section 3: N operations one after the other, each drawn evenly from a
set, all of one magnitude M. TrivialAugment: Müller & Hutter 2021, arXiv 2103.10158, Section 3: one operation, and its
magnitude drawn too. What an operation does to an image is Pillow's definition (`pixel_operations`); how strong it is at
a magnitude is the definition of torchvision or timm (`Space`).

A batch takes all kinds of operation at once, and a branch per image would compute every branch for every image: so the
operations are three passes over the image that every image makes, each with parameters that leave it as it is where the
operation drawn belongs to another pass.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.contract import Contract
from input_pipeline.errors import InputError, printable
from input_pipeline.pixel_operations import adjusted, grey_of, histograms, places_of, smoothed, warped

KINDS = ("none", "randaugment", "trivialaugment")
# Places among the numbers drawn for one operation, and how many they are.
_OPERATION, _SIGN, _APPLIED, _STRENGTH = range(4)
_NUMBERS = 4
# Added before levels and pixels are rounded down: what float32 may lack of a whole one.
_SLACK = 1e-3
# Whether the operation of a name was drawn. The strength at the magnitude drawn, from that at the greatest magnitude.
Drawn = Callable[[str], jax.Array]
UpTo = Callable[[float], jax.Array]


@dataclasses.dataclass(frozen=True)
class Space:
    """A set of operations, and what each does at `greatest`, the end of the scale of magnitudes that begins at 0.

    shear: pixels per pixel. translate: share of the side, or pixels with `in_pixels`; `whole_pixels` cuts fractions
    off. rotate: degrees. enhance: what is added to or taken from the factor 1 of brightness, colour, contrast and
    sharpness. posterize: bits lost, from and by how many more (the sum is rounded down). solarize: the threshold at
    magnitude 0, above which levels are inverted; it falls to 0. solarize_add: added to levels below 128.
    mean_fill: what a warp brings in from outside is the contract's mean colour, else black.
    """

    operations: tuple[str, ...]
    greatest: float
    shear: float
    translate: float
    rotate: float
    enhance: float
    posterize: tuple[float, float]
    solarize: float
    solarize_add: float = 0.0
    in_pixels: bool = False
    whole_pixels: bool = True
    mean_fill: bool = False


_WARPS = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_ENHANCED = ("brightness", "color", "contrast", "sharpness")
_PAPERS = ("identity", *_WARPS, *_ENHANCED, "posterize", "solarize", "autocontrast", "equalize")
# torchvision.transforms.RandAugment and TrivialAugmentWide, of 31 magnitudes (0.28.0). The 0.5 rounds.
_TORCHVISION = Space(_PAPERS, 30.0, 0.3, 150 / 331, 30.0, 0.9, (0.5, 4.0), 255.0)
_WIDE = Space(_PAPERS, 30.0, 0.99, 32.0, 135.0, 0.99, (0.5, 6.0), 255.0, in_pixels=True)
# timm's increasing set, as in rand-m7-mstd0.5-inc1 (1.0.31).
_TIMM = Space(
    (*_WARPS, *_ENHANCED, "posterize", "solarize", "solarize_add", "invert", "autocontrast", "equalize"),
    10.0, 0.3, 0.45, 30.0, 0.9, (4.0, 4.0), 256.0, 110.0, whole_pixels=False, mean_fill=True,
)  # fmt: skip
SETS = {"torchvision": _TORCHVISION, "timm": _TIMM}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoAugmentation:
    """The part of `augment.Augmentation` that draws operations.

    auto_augment: 'none' | 'randaugment' | 'trivialaugment' (its Wide set). The others act under randaugment alone.
    randaugment_set: 'torchvision' | 'timm', the operations and their scale of magnitudes: to 30, or to 10.
    randaugment_ops: N, at least 1. randaugment_magnitude: M, from 0 to the scale's end. randaugment_noise: standard
    deviation of a normal added to M for each operation, the sum kept on the scale. randaugment_probability: of each
    operation, that it is applied.

    Raises InputError for a value outside its range.
    """

    auto_augment: str = "none"
    randaugment_set: str = "torchvision"
    randaugment_ops: int = 2
    randaugment_magnitude: float = 9.0
    randaugment_noise: float = 0.0
    randaugment_probability: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (("auto_augment", KINDS), ("randaugment_set", tuple(SETS))):
            if (value := getattr(self, name)) not in choices:
                raise InputError(f"{name} {printable(str(value))!r} is not known; choose one of {', '.join(choices)}")
        if self.randaugment_ops < 1:
            raise InputError(f"randaugment_ops must be at least 1, not {self.randaugment_ops}")
        greatest = SETS[self.randaugment_set].greatest
        limits = {"magnitude": greatest, "noise": math.inf, "probability": 1.0}
        for name, limit in limits.items():
            value = getattr(self, f"randaugment_{name}")
            if not (0 <= value <= limit and math.isfinite(value)):
                scale = f" with randaugment_set={self.randaugment_set!r}" if name == "magnitude" else ""
                raise InputError(f"randaugment_{name} must be between 0 and {limit:g}{scale}, not {value}")


def numbers_drawn(how: AutoAugmentation) -> int:
    """How many numbers a row needs; 0 where nothing is on."""
    return _NUMBERS * {"none": 0, "randaugment": how.randaugment_ops, "trivialaugment": 1}[how.auto_augment]


def auto_augment(draws: jax.Array, images: jax.Array, how: AutoAugmentation, contract: Contract) -> jax.Array:
    """Apply the operations that `draws` say of `how`, which is not 'none'; to be called inside jit.

    draws: float32[B, numbers_drawn(how)], evenly in [0, 1). images: uint8[B, H, W, 3], RGB. contract: with whose mean
    colour timm's set fills. Returns uint8[B, H, W, 3]; a row follows from its own draws and image alone.
    """
    space = _WIDE if how.auto_augment == "trivialaugment" else SETS[how.randaugment_set]
    fill = _mean_colour(contract) if space.mean_fill else np.zeros(3, np.uint8)

    def one_operation(image: jax.Array, drawn: jax.Array) -> tuple[jax.Array, None]:
        number = jnp.floor(drawn[_OPERATION] * len(space.operations)).astype(jnp.int32)
        if space is not _WIDE and how.randaugment_probability < 1:
            number = jnp.where(drawn[_APPLIED] < how.randaugment_probability, number, len(space.operations))
        sign = jnp.where(drawn[_SIGN] < 0.5, 1.0, -1.0)
        return operate(image, number, _magnitude(drawn[_STRENGTH], how, space), sign, space, fill), None

    def all_operations(image: jax.Array, numbers: jax.Array) -> jax.Array:
        return jax.lax.scan(one_operation, image, numbers.reshape(-1, _NUMBERS))[0]

    return jax.vmap(all_operations)(images, draws)


def _magnitude(drawn: jax.Array, how: AutoAugmentation, space: Space) -> jax.Array:
    if space is _WIDE:
        return jnp.floor(drawn * (space.greatest + 1))
    magnitude = jnp.float32(how.randaugment_magnitude)
    if how.randaugment_noise:
        normal = math.sqrt(2) * jax.lax.erf_inv(2 * drawn - 1)
        magnitude = jnp.clip(magnitude + how.randaugment_noise * normal, 0, space.greatest)
    return magnitude


def operate(
    image: jax.Array, number: jax.Array, magnitude: jax.Array, sign: jax.Array, space: Space, fill: np.ndarray
) -> jax.Array:
    """One operation on one image uint8[H, W, 3]: uint8[H, W, 3].

    number: int32, its place in space.operations; one behind their end leaves the image as it is. magnitude: float32 in
    0..space.greatest. sign: 1.0 or -1.0, for operations that go both ways. fill: uint8[3], what lies outside.
    """

    def drawn(name: str) -> jax.Array:
        return number == (space.operations.index(name) if name in space.operations else -1)

    def up_to(most: float) -> jax.Array:
        return magnitude * most / space.greatest

    factor = 1 + sign * up_to(space.enhance)
    grey = grey_of(image)
    tables = _tables(image, grey, factor, drawn, up_to, space)
    moved = warped(image, _matrix(image.shape[0], image.shape[1], sign, drawn, up_to, space), fill)
    mapped = tables.at[places_of(moved)].get(mode="promise_in_bounds")
    other = jnp.where(drawn("sharpness"), smoothed(image), grey[..., None])
    return adjusted(other, mapped, jnp.where(drawn("color") | drawn("sharpness"), factor, 1.0))


def _mean_colour(contract: Contract) -> np.ndarray:
    mean = np.round(np.asarray(contract.mean) / contract.scale).astype(np.uint8)
    return mean[::-1] if contract.channel_order == "bgr" else mean


def _matrix(height: int, width: int, sign: jax.Array, drawn: Drawn, up_to: UpTo, space: Space) -> jax.Array:
    """Where a pixel of the result is found in the image: float32[2, 3] for (x, y, 1), corners of pixels being whole."""
    shear = sign * up_to(space.shear)

    def translation(side: int) -> jax.Array:
        pixels = up_to(space.translate * (1 if space.in_pixels else side))
        # The image goes the way of its sign, and so what is found at a place lies the other way.
        return -sign * (jnp.floor(pixels + _SLACK) if space.whole_pixels else pixels)

    # Counter-clockwise, y pointing down, about the centre.
    angle = jnp.where(drawn("rotate"), sign * up_to(math.radians(space.rotate)), 0.0)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return jnp.stack(
        [
            cosine,
            jnp.where(drawn("shear_x"), shear, -sine),
            x - cosine * x + sine * y + jnp.where(drawn("translate_x"), translation(width), 0.0),
            jnp.where(drawn("shear_y"), shear, sine),
            cosine,
            y - sine * x - cosine * y + jnp.where(drawn("translate_y"), translation(height), 0.0),
        ]
    ).reshape(2, 3)


def _tables(image: jax.Array, grey: jax.Array, factor: jax.Array, drawn: Drawn, up_to: UpTo, space: Space) -> jax.Array:
    """What every level of each channel becomes, uint8[768] in the order of `places_of`.

    Itself, where the operation is not one on levels alone.
    """
    levels = jnp.arange(256, dtype=jnp.int32)
    start, span = space.posterize
    lost = jnp.floor(start + up_to(span) + _SLACK).astype(jnp.int32)
    # Rounded half up in integers: a float32 sum of a large image's levels would be off.
    total, count = grey.sum(dtype=jnp.uint32), np.uint32(grey.size)
    mean = total // count + (total % count >= count - count // 2)
    plain = {
        "brightness": adjusted(jnp.int32(0), levels, factor),
        "contrast": adjusted(mean.astype(jnp.int32), levels, factor),
        "posterize": levels >> lost << lost,
        "solarize": jnp.where(levels < space.solarize - up_to(space.solarize) - _SLACK, levels, 255 - levels),
        "solarize_add": jnp.where(
            levels < 128, levels + jnp.floor(up_to(space.solarize_add) + _SLACK).astype(jnp.int32), levels
        ),
        "invert": 255 - levels,
    }
    table = levels
    for name, changed in plain.items():
        table = jnp.where(drawn(name), changed, table)
    counts = histograms(image)
    present = counts > 0
    low, high = jnp.argmax(present, 1)[:, None], 255 - jnp.argmax(present[:, ::-1], 1)[:, None]
    stretched = (levels - low) * 255 // jnp.maximum(high - low, 1)
    tables = jnp.where(drawn("autocontrast") & (high > low), stretched, table)
    # Each level becomes the count of pixels below it, in steps of a 255th of all but those of the highest level.
    step = (counts.sum(1, keepdims=True) - jnp.take_along_axis(counts, high, 1)) // 255
    spread = (step // 2 + jnp.cumsum(counts, 1) - counts) // jnp.maximum(step, 1)
    tables = jnp.where(drawn("equalize") & (step > 0), spread, tables)
    # Scattered to where they are already: XLA on CPU would else put all of the above into the loop over pixels and make
    # an entry anew for each pixel that looks it up, barrier or not (two operations on 32 images of 224 px: 218 ms of a
    # core, not 88).
    entries = jnp.clip(tables, 0, 255).astype(jnp.uint8).reshape(-1)
    return jnp.zeros(768, jnp.uint8).at[np.arange(768)].set(entries, unique_indices=True, mode="promise_in_bounds")
