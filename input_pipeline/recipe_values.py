"""The values in a recipe that say what is fed, checked one by one: types, ranges, choices, the division of a batch."""

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from input_pipeline.errors import InputError
from input_pipeline.recipe import Flat

# Tuples of texts, of any length; other tuples hold numbers, as many as in configs/default.py.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "data.exclude": ("name",),
    "transfer.unfreeze": ("layer4@2",),
    "transfer.lr_multipliers": ("^fc=10",),
    "run.writers": ("wandb", "mlflow"),
}
# Tuples of numbers, of any length.
_LISTS = ("optim.step_epochs",)
# Key -> lowest and highest value, both allowed.
RANGES: dict[str, tuple[float, float]] = {
    "data.val_fraction": (0.0, 0.9),
    "data.test_fraction": (0.0, 0.9),
    "data.per_class": (0, 1 << 30),
    "data.image_size": (1, 4096),
    "data.eval_image_size": (0, 4096),
    "data.batch_size": (1, 1 << 20),
    "data.eval_batch_size": (0, 1 << 20),
    "data.threads": (0, 1024),
    "data.resize_shorter": (-1.0, 4.0),
    "data.randaugment_ops": (1, 16),
    # auto_augment.SETS has where each scale ends.
    "data.randaugment_magnitude": (0.0, 30.0),
    "data.randaugment_noise": (0.0, 100.0),
    "data.randaugment_probability": (0.0, 1.0),
    "optim.accumulation": (1, 1 << 16),
    "optim.label_smoothing": (0.0, 0.999),
    "run.seed": (0, (1 << 32) - 1),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "data.on_error": ("fail", "skip"),
    "data.feed": ("auto", "stream", "resident"),
    "data.crop": ("random_resized", "pad", "none"),
    "data.flip": ("horizontal", "vertical", "both", "none", "alternating"),
    # auto_augment.KINDS and SETS, written out: their file imports jax.
    "data.auto_augment": ("none", "randaugment", "trivialaugment"),
    "data.randaugment_set": ("torchvision", "timm"),
    "data.class_weights": ("none", "balanced"),
}


def check_types(given: Flat, default: Flat, check_open: Callable[[str, Any], None]) -> None:
    """Raise InputError, naming the key, unless every key of `default` is there with a value of its type.

    check_open(key, value): the same for a key whose default is None, which says no type.
    """
    for key, was in default.items():
        if key not in given:
            raise InputError(f"config.{key} is missing; start your config from configs/default.py's get_config()")
        # `--config.x=None` on a string gives 'None'.
        if isinstance(given[key], str) and given[key] == "None":
            raise InputError(f"config.{key}=None: omit the flag to keep the default")
        if was is None:
            check_open(key, given[key])
        else:
            _check_type(key, given[key], was)


def check_ranges(given: Flat, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise InputError for a value outside its range, both ends of which are allowed."""
    for key, (low, high) in ranges.items():
        if not low <= given[key] <= high:
            raise InputError(f"config.{key}={given[key]} must lie between {low} and {high}")


def check_choices(given: Flat, choices_of: Mapping[str, tuple[str, ...]]) -> None:
    """Raise InputError for a value that is none of its key's choices, which the message lists."""
    for key, choices in choices_of.items():
        if given[key] not in choices:
            raise InputError(f"config.{key}={given[key]!r} is not one of {', '.join(choices)}")


def check_parts(given: Flat, ghost_batch_size: int) -> None:
    """Raise InputError unless a batch parts into config.optim.accumulation and these into groups of `ghost_batch_size`.

    A part must hold two images where images are mixed.
    """
    batch_size, accumulation = given["data.batch_size"], given["optim.accumulation"]
    if batch_size % accumulation:
        raise InputError(
            f"config.optim.accumulation={accumulation} does not divide config.data.batch_size={batch_size}"
        )
    rows = batch_size // accumulation
    if rows % ghost_batch_size:
        raise InputError(
            f"config.model.ghost_batch_size={ghost_batch_size} does not divide the {rows} images that are normalised "
            f"at a time (config.data.batch_size={batch_size} in config.optim.accumulation={accumulation} parts)"
        )
    for key in ("data.mixup", "data.cutmix"):
        # Parts are mixed one by one, groups are not: they are cut behind that, for the norms alone.
        if given[key] and rows < 2:
            raise InputError(
                f"config.{key}={given[key]!r} would mix each image with itself: config.data.batch_size={batch_size} "
                f"in config.optim.accumulation={accumulation} parts leaves one image per part, and it needs two"
            )


def _check_type(key: str, value: Any, default: Any) -> None:
    if isinstance(default, tuple):
        # `--config.x=a,b` on a tuple gives ('a,b',).
        if not (isinstance(value, tuple | list) and _are_well(key, value, len(default))):
            raise InputError(
                f'config.{key}={value!r} must look like {default or EXAMPLES[key]!r}: write "--config.{key}=(…)"'
            )
    elif isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return
    elif type(value) is not type(default):
        raise InputError(f"config.{key}={value!r} must be of type {type(default).__name__}, such as {default!r}")


def _are_well(key: str, values: Iterable[Any], usual: int) -> bool:
    values = tuple(values)
    if key in EXAMPLES:
        # A comma is what `--config.x=a,b` leaves in a name; in a regular expression it may stand.
        commas = key == "data.exclude" and any("," in str(value) for value in values)
        return all(isinstance(value, str) for value in values) and not commas
    numbers = all(isinstance(value, int | float) for value in values)
    return numbers and (key in _LISTS or len(values) == usual)


def check_fed(given: Flat, default: Flat, also: Container[str]) -> None:
    """All of the above for config.data and the keys `also`, of those that have a default.

    Raises InputError, one line that names the key.
    """
    read = lambda key: key.startswith("data.") or key in also  # noqa: E731
    check_types(given, {key: was for key, was in default.items() if read(key)}, lambda key, value: None)
    check_ranges(given, {key: ends for key, ends in RANGES.items() if read(key)})
    check_choices(given, CHOICES)
