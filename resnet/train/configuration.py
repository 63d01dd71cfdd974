"""What a configuration says, checked: types, ranges, choices, what spans several keys; and the network it describes."""

import dataclasses
import importlib.util
import math
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.default import get_config as default_config
from input_pipeline import recipe_values
from input_pipeline.errors import InputError
from input_pipeline.folds import check_folds
from input_pipeline.recipe import Flat, flatten
from resnet.model.spec import ResNetSpec
from resnet.model.variants import variant
from resnet.train.profiling import read_span
from resnet.train.transfer import MODES, NORM_MODES, head_units, read_transfer
from resnet.train.unread_keys import check_read

MOST_STEPS = (1 << 31) - 1
# Key -> lowest and highest value, both allowed.
RANGES: dict[str, tuple[float, float]] = {
    **recipe_values.RANGES,
    "transfer.views": (1, 1000),
    "optim.ema": (0.0, 0.999999),
    # Above a half an image could be of no class at all.
    "optim.target_threshold": (-1.0, 0.5),
    # The state counts steps in an int32.
    "run.steps": (0, MOST_STEPS),
    "run.log_every": (1, 1 << 40),
    "run.steps_per_call": (1, 1 << 12),
    "run.keep": (1, 1000),
    "run.early_stopping": (0, 1 << 20),
    "run.max_bad_steps": (0, 1 << 20),
    "run.hang_timeout": (0.0, 1e6),
}

# What a run may be continued with another value of: where and how it runs, not what comes out (but for rounding, where
# the number of devices changes).
FREE = (
    "run.mesh",
    "run.remat",
    "run.steps_per_call",
    "run.hang_timeout",
    "run.debug",
    "run.profile",
    "run.writers",
    "data.threads",
)
# Where things lie that are known by their contents: the data by their fingerprint, the weights by their digest.
PLACES = ("data.dir", "transfer.weights")
# What decides when a run ends, and may differ where that is asked for.
LENGTH = ("run.epochs", "run.steps", "run.early_stopping")

# What the best checkpoint may be chosen by, figures of metrics.summarise: whether less of it is better.
BEST_METRICS = {"top1": False, "balanced_accuracy": False, "loss": True}

# Epochs, counted in fractions: above 0, and no more than arithmetic on steps can bear.
POSITIVE, MOST_EPOCHS = ("run.epochs", "run.eval_every", "run.checkpoint_every"), 1e9

CHOICES: dict[str, tuple[str, ...]] = {
    **recipe_values.CHOICES,
    # optimizer.OPTIMIZERS, losses.LOSSES, schedules.SCHEDULES and network.REMAT, written out: their files import jax,
    # and a slip is told before that.
    "optim.name": ("sgd", "adam", "adamw", "lars", "lamb", "rmsprop"),
    "optim.loss": ("softmax", "sigmoid"),
    "optim.schedule": ("constant", "step", "cosine", "polynomial"),
    "transfer.mode": MODES,
    "transfer.bn": NORM_MODES,
    "run.dtype": ("float32", "bfloat16"),
    "run.remat": ("none", "block", "stage"),
    "run.best_metric": tuple(BEST_METRICS),
}


def steps_of(epochs: float, images: int, batch_size: int) -> int:
    """Steps of so many passes over `images`: no epoch is cut short. Raises InputError for more than can be counted."""
    steps = epochs * images / batch_size
    # The allowance keeps what is whole but for rounding: (0.1 + 0.2) epochs of 10 steps are 3. It is relative for long
    # runs, and less than an image's share of a step in all that are run.
    total = max(1, math.ceil(steps - max(1e-9, 1e-12 * steps)))
    if total > MOST_STEPS:
        raise InputError(f"config.run.epochs={epochs} is {total} steps; at most {MOST_STEPS} can be counted")
    return total


def validate(config: ConfigDict) -> None:
    """Raise InputError, one line that names the key, unless every key is known, well typed, in range and read.

    Raises SpecError for a network that cannot be.
    """
    given, default = flatten(config), flatten(default_config())
    for key in given:
        if key not in default:
            raise InputError(f"unknown key config.{key}; configs/default.py lists all")
    recipe_values.check_types(given, default, check_model_type)
    recipe_values.check_ranges(given, RANGES)
    for key in POSITIVE:
        if not 0 < given[key] <= MOST_EPOCHS:
            raise InputError(f"config.{key}={given[key]} must be above 0 and at most {MOST_EPOCHS:g}")
    recipe_values.check_choices(given, CHOICES)
    check_read(given, default)
    check_folds(given["data.folds"], given["data.fold"])
    if given["data.flip"] == "alternating" and given["transfer.mode"] == "probe":
        raise InputError(
            "config.data.flip='alternating' depends on the epoch, and a probe's views have none; use horizontal"
        )
    read_transfer(config)
    read_span(given["run.profile"])
    check_writers(given["run.writers"])
    # An impossible network is told before the data are looked over, whatever the number of their classes.
    spec = make_spec(config, given["model.num_classes"] or 2)
    recipe_values.check_parts(given, spec.ghost_batch_size or 1)


def check_model_type(key: str, value: Any) -> None:
    if value is None:
        return
    examples: dict[str, Any] = {f"model.{field.name}": field.default for field in dataclasses.fields(ResNetSpec)}
    example = examples.get(key, "resnet50")
    kind = type(example)
    if kind is float and type(value) is int:
        return
    if type(value) is not kind or (kind is tuple and not all(type(v) is int for v in value)):
        raise InputError(f"config.{key}={value!r} must be of type {kind.__name__}, such as {example!r}")


def check_writers(names: tuple[str, ...]) -> None:
    """Raise InputError for a writer of config.run.writers that is not known, named twice or not installed."""
    known = recipe_values.EXAMPLES["run.writers"]
    for name in names:
        if name not in known or list(names).count(name) > 1:
            raise InputError(
                f"config.run.writers={tuple(names)!r}: choose from {', '.join(known)}, each once, and write "
                '"--config.run.writers=(…)", such as '
                f"{known!r}"
            )
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"config.run.writers: {name} is not installed; ./run.sh setup writers installs requirements-writers.txt"
            )


def make_spec(config: ConfigDict, num_classes: int) -> ResNetSpec:
    """The network that config.model describes for data of `num_classes` classes.

    Raises SpecError for an impossible network, InputError for one that does not fit the data.
    """
    changes = {
        field.name: config.model[field.name]
        for field in dataclasses.fields(ResNetSpec)
        if config.model[field.name] is not None
    }
    if "stage_sizes" in changes:
        changes["stage_sizes"] = tuple(changes["stage_sizes"])
    units = head_units(config)
    if units is not None and changes.setdefault("head_hidden", units) != units:
        raise InputError(
            f"config.transfer.head={config.transfer.head!r}, but config.model.head_hidden={changes['head_hidden']}; "
            "omit one of them"
        )
    wanted = changes.setdefault("num_classes", num_classes)
    if wanted != num_classes:
        raise InputError(
            f"config.model.num_classes={wanted}, but the data has {num_classes} classes; "
            "omit the key to follow the data"
        )
    spec = dataclasses.replace(variant(config.model.name).spec, **changes)
    if spec.in_channels != 3:
        raise InputError(f"config.model.in_channels={spec.in_channels}, but the feed gives RGB images; omit the key")
    for side in (config.data.image_size, config.data.eval_image_size):
        if side:
            spec.check_image_size(side)
    return spec


def differences(before: Flat, after: Flat, free: Collection[str] = FREE) -> dict[str, str]:
    """Key -> how it differs: {'optim.lr': '0.1 -> 0.2'}. Lists and tuples of the same numbers are the same.

    free: keys that may differ. A key that `before` has not is one that came later: it acted by its default.
    """
    before = {key: value for key, value in flatten(default_config()).items() if key in after} | before
    plain = lambda value: list(value) if isinstance(value, tuple) else value  # noqa: E731
    missing = "(absent)"
    return {
        key: f"{plain(before.get(key, missing))!r} -> {plain(after.get(key, missing))!r}"
        for key in sorted((before.keys() | after.keys()) - set(free))
        if plain(before.get(key, missing)) != plain(after.get(key, missing))
    }


def differences_line(changes: Mapping[str, str]) -> str:
    """`differences` in one line: 'optim.lr: 0.1 -> 0.2; run.keep: 2 -> 3'."""
    return "; ".join(f"{key}: {change}" for key, change in changes.items())
