"""Everything after the crop, in JAX on the accelerator: flip, colour, normalise, erase, mix, smooth.

Every draw comes from the key. Draws for one example come from fold_in(key, row of the global batch), each kind of
augmentation from its own place among them, so that they depend neither on how the batch is sharded nor on which other
kinds are on. A kind of strength zero is not traced.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.auto_augment import AutoAugmentation, auto_augment, numbers_drawn
from input_pipeline.contract import Contract, normalise
from input_pipeline.errors import InputError, printable

# Of the streams of randomness that a step draws from its key, augmentation's.
AUGMENT = 0
FLIPS = ("none", "horizontal", "vertical", "both", "alternating")
ALTERNATING = "alternating"
# Each kind's place among a row's draws. One call for all of them: every further one costs XLA on CPU 0.5 s to compile,
# and six numbers a row take it twice as long as one.
_HORIZONTAL, _VERTICAL, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(6)
_OPERATIONS = 6  # and as many behind it as auto_augment needs
_ERASING = 6  # folded into a row's key: only erasing needs as many as 50 numbers
_MIX = 2**31  # folded into the batch's key, beside the rows, whose numbers are smaller
_ALTERNATE = 2**31  # folded into the seed's key, beside the steps, whose numbers are smaller
# Above it the sum in `odd_epochs` might not fit 32 bits.
_MOST_EXAMPLES = 1 << 26
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow
_ERASED_AREA = (0.02, 0.33)
_ERASED_RATIO = (0.3, 3.3)
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Augmentation(AutoAugmentation):
    """Which augmentations are on, and how strongly; 0 and 'none' are off. The fields of AutoAugmentation too.

    flip: 'none' | 'horizontal' | 'vertical' | 'both', each axis with probability 1/2; or 'alternating', horizontal, see
    `alternately_mirrored`.
    brightness, contrast, saturation: a factor drawn from [max(0, 1 - s), 1 + s]; hue: a shift drawn from [-s, s] of the
    circle, s <= 0.5 (torchvision's ColorJitter, always applied in this order).
    erasing: probability per image (Zhong et al. 2020). mixup: alpha of Beta(alpha, alpha) (Zhang et al. 2018).
    cutmix: the same (Yun et al. 2019); with both, each batch takes one of them with probability 1/2.
    label_smoothing: part of the target spread evenly over all classes (Szegedy et al. 2016), in 0..1, below 1.

    Raises InputError for a value outside its range.
    """

    flip: str = "none"
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flip not in FLIPS:
            raise InputError(f"flip {printable(str(self.flip))!r} is not known; choose one of {', '.join(FLIPS)}")
        limits = {"hue": 0.5, "erasing": 1.0}
        for name in ("brightness", "contrast", "saturation", "hue", "erasing", "mixup", "cutmix"):
            value, limit = getattr(self, name), limits.get(name, math.inf)
            if not (0 <= value <= limit and math.isfinite(value)):
                raise InputError(f"{name} must be between 0 and {limit}, not {value}")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing must be at least 0 and below 1, not {self.label_smoothing}")


def prepare(images: jax.Array | np.ndarray, contract: Contract) -> jax.Array:
    """Evaluation's way: normalise RGB `images` [B, H, W, 3] (uint8 or float in 0..255) to float32, nothing else."""
    return normalise(images, contract)


def augment(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    augmentation: Augmentation,
    contract: Contract,
    num_classes: int,
    mirrored: jax.Array | None = None,
    places: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Training's way, to be called inside jit.

    key: already folded with (seed, step). images: uint8[B, H, W, 3], RGB. labels: int32[B] in 0..num_classes-1.
    mirrored: bool[B], which of them flip='alternating' shows mirrored; ValueError without it.
    places: int[B], the row of each image where they are some out of a batch; by default 0, 1, ….
    Returns (images float32[B, H, W, 3], normalised by `contract`; targets float32[B, num_classes], rows summing to 1).
    """
    if augmentation.flip == ALTERNATING:
        if mirrored is None:
            raise ValueError("flip='alternating' needs to be told which images are mirrored (alternately_mirrored)")
        images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    numbers = jnp.arange(images.shape[0], dtype=jnp.uint32) if places is None else places.astype(jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    if kinds := _drawn_for(augmentation):
        draws = jax.vmap(lambda row_key: jax.random.uniform(row_key, (max(kinds) + 1,)))(keys)
        images = _flip(draws, images, augmentation.flip)
        if count := numbers_drawn(augmentation):
            images = auto_augment(draws[:, _OPERATIONS : _OPERATIONS + count], images, augmentation, contract)
        images = _jitter(draws, images.astype(jnp.float32), augmentation) if max(kinds) >= _BRIGHTNESS else images
    images = normalise(images, contract)
    if augmentation.erasing:
        images = _erase(keys, images, augmentation.erasing)
    targets = soft_targets(labels, augmentation, num_classes)
    if augmentation.mixup or augmentation.cutmix:
        images, targets = _mix(jax.random.fold_in(key, np.uint32(_MIX)), images, targets, augmentation)
    return images, targets


def _drawn_for(augmentation: Augmentation) -> list[int]:
    """The kinds that need a number of each row. A number depends on its place, not on how many are drawn behind it."""
    wanted = {
        _HORIZONTAL: augmentation.flip in ("horizontal", "both"),
        _VERTICAL: augmentation.flip in ("vertical", "both"),
        _BRIGHTNESS: augmentation.brightness,
        _CONTRAST: augmentation.contrast,
        _SATURATION: augmentation.saturation,
        _HUE: augmentation.hue,
    }
    operations = range(_OPERATIONS, _OPERATIONS + numbers_drawn(augmentation))
    return [*(kind for kind, is_wanted in wanted.items() if is_wanted), *operations]


def alternately_mirrored(
    key: jax.Array, step: jax.Array | int, index: jax.Array | np.ndarray, num_examples: int
) -> jax.Array:
    """Which rows of a step's batch are shown mirrored under flip='alternating': bool[B]. To be called inside jit.

    Each example is mirrored or not by a coin of its own in the first epoch, and then in every other epoch (Jordan 2024,
    arXiv 2404.00498, Section 3.6): two epochs in a row always show both of its sides, where independent coins show the
    same side twice in half of the cases. A pure function of (seed, step, example).
    key: jax.random.key(seed). step: number of the step, from 0. index: int32[B], the examples of the whole batch, in
    0..num_examples-1, as `order.Order` gives them. Raises InputError for more than 2**26 examples.
    """
    coins_key = jax.random.fold_in(key, np.uint32(_ALTERNATE))
    coins = jax.vmap(lambda example: jax.random.bits(jax.random.fold_in(coins_key, example)) & 1)(index)
    return (coins == 1) ^ odd_epochs(step, index.shape[0], num_examples)


def odd_epochs(step: jax.Array | int, batch_size: int, num_examples: int) -> jax.Array:
    """bool[B]: whether each row of the batch of `step` is of an odd epoch, counted from 0 as `order.Order` does.

    The epoch of position p = step · B + row is p // N, odd where p mod 2N is at least N. p does not fit 32 bits for
    long runs on large sets; so the bits of `step` add up their shares of p, each taken modulo 2N beforehand.
    """
    if num_examples > _MOST_EXAMPLES:
        raise InputError(f"config.data.flip='alternating' works with at most {_MOST_EXAMPLES:,} images; use horizontal")
    shares = np.array([(batch_size << bit) % (2 * num_examples) for bit in range(31)], np.uint32)
    bits = (jnp.asarray(step, jnp.uint32) >> np.arange(31, dtype=np.uint32)) & 1
    start = (bits * shares).sum(dtype=jnp.uint32) % np.uint32(2 * num_examples)
    places = (start + jnp.arange(batch_size, dtype=jnp.uint32)) % np.uint32(2 * num_examples)
    return places >= num_examples


def soft_targets(labels: jax.Array, augmentation: Augmentation, num_classes: int) -> jax.Array:
    """float32[B, num_classes] of int32[B]: one-hot, smoothed as the augmentation says."""
    targets = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    if augmentation.label_smoothing:
        targets = targets * (1 - augmentation.label_smoothing) + augmentation.label_smoothing / num_classes
    return targets


def _flip(draws: jax.Array, images: jax.Array, flip: str) -> jax.Array:
    if flip in ("horizontal", "both"):
        images = jnp.where(draws[:, _HORIZONTAL, None, None, None] < 0.5, images[:, :, ::-1], images)
    if flip in ("vertical", "both"):
        images = jnp.where(draws[:, _VERTICAL, None, None, None] < 0.5, images[:, ::-1], images)
    return images


def _jitter(draws: jax.Array, images: jax.Array, augmentation: Augmentation) -> jax.Array:
    if augmentation.brightness:
        images = _blend(images, jnp.zeros(()), _factor(draws, _BRIGHTNESS, augmentation.brightness))
    if augmentation.contrast:
        mean = _grey(images).mean((1, 2, 3), keepdims=True)
        images = _blend(images, mean, _factor(draws, _CONTRAST, augmentation.contrast))
    if augmentation.saturation:
        images = _blend(images, _grey(images), _factor(draws, _SATURATION, augmentation.saturation))
    if augmentation.hue:
        shift = (2 * draws[:, _HUE, None, None] - 1) * augmentation.hue
        images = shift_hue(images, shift)
    return images


def _factor(draws: jax.Array, kind: int, strength: float) -> jax.Array:
    low = max(0.0, 1 - strength)
    return low + draws[:, kind, None, None, None] * (1 + strength - low)


def _blend(images: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(factor * images + (1 - factor) * other, 0.0, 255.0)


def _grey(images: jax.Array) -> jax.Array:
    # A sum of products, not a dot: on GPU a float32 dot would run in TF32.
    return (images * jnp.asarray(_LUMA, jnp.float32)).sum(-1, keepdims=True)


def shift_hue(images: jax.Array, shift: jax.Array) -> jax.Array:
    """Turn the hue of RGB `images` float32[..., 3] in 0..255 by `shift` (parts of the circle, broadcast to [...]).

    Value and saturation of the hexcone model (Smith 1978) stay: the same as through colorsys' HSV and back.
    """
    value, least = images.max(-1), images.min(-1)
    chroma = value - least
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    divisor = jnp.where(chroma > 0, chroma, 1.0)
    sextant = jnp.where(
        red == value,
        (green - blue) / divisor,
        jnp.where(green == value, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    turned = sextant + 6.0 * shift
    # f(n) = V - C * clip(min(k, 4 - k), 0, 1) with k = (n + H / 60 degrees) mod 6, for n = 5, 3, 1.
    sectors = jnp.mod(jnp.asarray([5.0, 3.0, 1.0], jnp.float32) + turned[..., None], 6.0)
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(sectors, 4.0 - sectors), 0.0, 1.0)


def _inside(top: jax.Array, left: jax.Array, height: jax.Array, width: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Which pixels of an image of `size` lie in each box: bool[..., H, W] for boxes of shape [...]."""
    rows, columns = jnp.arange(size[0], dtype=jnp.float32), jnp.arange(size[1], dtype=jnp.float32)
    top, left, height, width = (v[..., None] for v in (top, left, height, width))
    in_rows, in_columns = (rows >= top) & (rows < top + height), (columns >= left) & (columns < left + width)
    return in_rows[..., :, None] & in_columns[..., None, :]


def _erase(keys: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Random erasing: a box of 2-33 % of the area, ratio 0.3-3.3 (log-uniform), set to 0 after normalisation.

    These are torchvision's (RandomErasing); Zhong et al. erase up to 40 % and fill with random values.

    The first of ten tries that is smaller than the image counts; where none is, the image stays.
    """
    size = (images.shape[1], images.shape[2])
    draws = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, _ERASING), (_TRIES, 5)))(keys)
    area = size[0] * size[1] * (_ERASED_AREA[0] + draws[..., 0] * (_ERASED_AREA[1] - _ERASED_AREA[0]))
    low, high = math.log(_ERASED_RATIO[0]), math.log(_ERASED_RATIO[1])
    ratio = jnp.exp(low + draws[..., 1] * (high - low))
    heights, widths = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (heights < size[0]) & (widths < size[1])
    first = jnp.argmax(fits, axis=1)[:, None]

    def pick(values: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, first, axis=1)[:, 0]

    height, width = pick(heights), pick(widths)
    top = jnp.floor(pick(draws[..., 2]) * (size[0] - height + 1))
    left = jnp.floor(pick(draws[..., 3]) * (size[1] - width + 1))
    erased = (draws[:, 0, 4] < probability) & fits.any(1)
    box = _inside(top, left, height, width, size) & erased[:, None, None]
    return jnp.where(box[..., None], 0.0, images)


def _mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, augmentation: Augmentation
) -> tuple[jax.Array, jax.Array]:
    """Mixup or cutmix, one draw for the whole batch, each example with the one before it in the batch.

    Both are images * m + other * (1 - m): m is constant for mixup, and 0 in a box and 1 around it for cutmix. The
    weight of the own label is m's mean, for cutmix thus the area that is really left after the box is clipped.
    """
    size = (images.shape[1], images.shape[2])
    choice_key, mixup_key, cutmix_key = jax.random.split(key, 3)
    own = None
    if augmentation.mixup:
        own = jnp.full(size, jax.random.beta(mixup_key, augmentation.mixup, augmentation.mixup))
    if augmentation.cutmix:
        box = _cutmix_box(cutmix_key, augmentation.cutmix, size)
        around = jnp.where(box, 0.0, 1.0)
        own = around if own is None else jnp.where(jax.random.bernoulli(choice_key), own, around)
    assert own is not None
    weight, share = own.mean(), own[None, :, :, None]
    # roll, not a reversal: over a sharded batch only one row crosses from each device to the next.
    images = images * share + jnp.roll(images, 1, axis=0) * (1 - share)
    return images, targets * weight + jnp.roll(targets, 1, axis=0) * (1 - weight)


def _cutmix_box(key: jax.Array, alpha: float, size: tuple[int, int]) -> jax.Array:
    """The pixels taken from the other image, bool[H, W]: sides sqrt(1 - lambda), centre anywhere, then clipped."""
    lambda_key, centre_key = jax.random.split(key)
    side = jnp.sqrt(1 - jax.random.beta(lambda_key, alpha, alpha))
    extent = jnp.asarray(size, jnp.float32)
    centre = jnp.floor(jax.random.uniform(centre_key, (2,)) * extent)
    half = jnp.floor(extent * side) // 2
    low, high = jnp.clip(centre - half, 0, extent), jnp.clip(centre + half, 0, extent)
    return _inside(low[0], low[1], high[0] - low[0], high[1] - low[1], size)
