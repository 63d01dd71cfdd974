"""What a configuration says, checked: types, ranges that span several keys, keys that nothing would read."""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs.default import get_config as default_config
from input_pipeline.errors import InputError
from input_pipeline.recipe import flatten
from resnet.model.spec import ResNetSpec
from resnet.model.variants import variant
from resnet.train.profiling import read_span
from resnet.train.transfer import MODES, NORM_MODES, head_units, read_transfer

Flat = dict[str, Any]

# Key -> (condition under which something reads it, the same in words). A key set for nothing is a mistake worth a word:
# the user believes that it acts.
READ_ONLY_IF: dict[str, tuple[Callable[[Flat], bool], str]] = {
    "data.keep_copies_together": (lambda c: c["data.doctor"], "data.doctor=True"),
    "data.feed": (lambda c: c["transfer.mode"] != "probe", "transfer.mode is not probe"),
    "data.test_fraction": (lambda c: c["data.per_class"] == 0, "data.per_class=0"),
    "data.crop_scale": (lambda c: c["data.crop"] == "random_resized", "data.crop='random_resized'"),
    "data.crop_ratio": (lambda c: c["data.crop"] == "random_resized", "data.crop='random_resized'"),
    "data.crop_padding": (lambda c: c["data.crop"] == "pad", "data.crop='pad'"),
    "optim.momentum": (lambda c: c["optim.name"] in ("sgd", "lars", "rmsprop"), "optim.name is sgd, lars or rmsprop"),
    "optim.nesterov": (lambda c: c["optim.name"] in ("sgd", "lars", "rmsprop"), "optim.name is sgd, lars or rmsprop"),
    "optim.beta1": (lambda c: c["optim.name"] in ("adam", "adamw"), "optim.name is adam or adamw"),
    "optim.beta2": (lambda c: c["optim.name"] in ("adam", "adamw", "rmsprop"), "optim.name is adam, adamw or rmsprop"),
    "optim.epsilon": (
        lambda c: c["optim.name"] in ("adam", "adamw", "rmsprop"),
        "optim.name is adam, adamw or rmsprop",
    ),
    "optim.trust_coefficient": (lambda c: c["optim.name"] == "lars", "optim.name='lars'"),
    "optim.step_epochs": (lambda c: c["optim.schedule"] == "step", "optim.schedule='step'"),
    "optim.step_factor": (lambda c: c["optim.schedule"] == "step", "optim.schedule='step'"),
    "optim.power": (lambda c: c["optim.schedule"] == "polynomial", "optim.schedule='polynomial'"),
    "optim.final_lr": (
        lambda c: c["optim.schedule"] in ("cosine", "polynomial"),
        "optim.schedule is cosine or polynomial",
    ),
    "run.epochs": (lambda c: c["run.steps"] == 0, "run.steps=0"),
    "model.shortcut_scale": (lambda c: c["model.shortcut_transform"] == "scale", "model.shortcut_transform='scale'"),
    "model.gate_bias": (
        lambda c: c["model.shortcut_transform"] in ("exclusive_gate", "shortcut_gate"),
        "model.shortcut_transform is a gate",
    ),
    "model.shortcut_dropout": (
        lambda c: c["model.shortcut_transform"] == "dropout",
        "model.shortcut_transform='dropout'",
    ),
    "model.norm_groups": (lambda c: c["model.norm"] == "group", "model.norm='group'"),
    "model.norm_momentum": (lambda c: c["model.norm"] == "batch", "model.norm='batch'"),
    "model.ghost_batch_size": (
        lambda c: (
            c["model.norm"] == "batch" and c["transfer.mode"] != "probe" and c["transfer.bn"] in ("auto", "train")
        ),
        "model.norm is batch, transfer.mode is not probe and transfer.bn is auto or train",
    ),
    "model.norm_epsilon": (lambda c: c["model.norm"] != "none", "model.norm is batch or group"),
    # Without norms the convolutions have biases whatever it says.
    "model.conv_bias": (lambda c: c["model.norm"] != "none", "model.norm is batch or group"),
    "model.zero_init_last_gamma": (lambda c: c["transfer.mode"] == "scratch", "transfer.mode='scratch'"),
    "transfer.weights": (lambda c: c["transfer.mode"] != "scratch", "transfer.mode is finetune or probe"),
    "transfer.head": (lambda c: c["transfer.mode"] != "scratch", "transfer.mode is finetune or probe"),
    "transfer.bn": (
        lambda c: c["transfer.mode"] != "scratch" and c["model.norm"] == "batch",
        "transfer.mode is finetune or probe, and model.norm is batch",
    ),
    "transfer.unfreeze": (lambda c: c["transfer.mode"] == "finetune", "transfer.mode='finetune'"),
    "transfer.views": (lambda c: c["transfer.mode"] == "probe", "transfer.mode='probe'"),
    # A probe does many steps in one call.
    "run.profile": (lambda c: c["transfer.mode"] != "probe", "transfer.mode is not probe"),
    "run.steps_per_call": (lambda c: c["transfer.mode"] != "probe", "transfer.mode is not probe"),
    # It evaluates on features of the images as they are.
    "run.eval_flip": (lambda c: c["transfer.mode"] != "probe", "transfer.mode is not probe"),
    # A head learns on features: two images, once mixed, have none.
    "data.mixup": (lambda c: c["transfer.mode"] != "probe", "transfer.mode is not probe"),
    "data.cutmix": (lambda c: c["transfer.mode"] != "probe", "transfer.mode is not probe"),
}
# Tuples of texts, of any length.
EXAMPLES = {
    "data.exclude": ("name",),
    "transfer.unfreeze": ("layer4@2",),
    "transfer.lr_multipliers": ("^fc=10",),
    "run.writers": ("wandb", "mlflow"),
}
TEXTS = tuple(EXAMPLES)
# Read only where training images are varied: by a probe of a single view they are not.
READ_WITH_VIEWS = tuple(
    f"data.{key}"
    for key in (
        "crop",
        "crop_scale",
        "crop_ratio",
        "crop_padding",
        "flip",
        "brightness",
        "contrast",
        "saturation",
        "hue",
        "erasing",
    )
)
# Read only where there is a validation split, which the data may bring whatever data.val_fraction says.
READ_WITH_VALIDATION = ("run.best_metric", "run.early_stopping")

MOST_STEPS = (1 << 31) - 1
# Key -> lowest and highest value, both allowed.
RANGES: dict[str, tuple[float, float]] = {
    "data.val_fraction": (0.0, 0.9),
    "data.test_fraction": (0.0, 0.9),
    "data.per_class": (0, 1 << 30),
    "data.image_size": (1, 4096),
    "data.batch_size": (1, 1 << 20),
    "data.eval_batch_size": (0, 1 << 20),
    "data.threads": (0, 1024),
    "data.resize_shorter": (-1.0, 4.0),
    "transfer.views": (1, 1000),
    "optim.accumulation": (1, 1 << 16),
    "optim.label_smoothing": (0.0, 0.999),
    "optim.ema": (0.0, 0.999999),
    # The state counts steps in an int32.
    "run.steps": (0, MOST_STEPS),
    "run.seed": (0, (1 << 32) - 1),
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

# Epochs, counted in fractions: above 0, and no more than arithmetic on steps can bear.
POSITIVE, MOST_EPOCHS = ("run.epochs", "run.eval_every", "run.checkpoint_every"), 1e9

CHOICES: dict[str, tuple[str, ...]] = {
    "data.on_error": ("fail", "skip"),
    "data.feed": ("auto", "stream", "resident"),
    "data.crop": ("random_resized", "pad", "none"),
    "data.flip": ("horizontal", "vertical", "both", "none", "alternating"),
    "data.class_weights": ("none", "balanced"),
    # optimizer.OPTIMIZERS, schedules.SCHEDULES and network.REMAT, written out: their files import jax, and a slip is
    # told before that.
    "optim.name": ("sgd", "adam", "adamw", "lars", "rmsprop"),
    "optim.schedule": ("constant", "step", "cosine", "polynomial"),
    "transfer.mode": MODES,
    "transfer.bn": NORM_MODES,
    "run.dtype": ("float32", "bfloat16"),
    "run.remat": ("none", "block", "stage"),
    "run.best_metric": ("top1", "balanced_accuracy", "loss"),
}


def validate(config: ConfigDict) -> None:
    """Raise InputError, one line that names the key, unless every key is known, well typed, in range and read.

    Raises SpecError for a network that cannot be.
    """
    given, default = dict(flatten(config)), dict(flatten(default_config()))
    for key in given:
        if key not in default:
            raise InputError(f"unknown key config.{key}; configs/default.py lists all")
    for key, was in default.items():
        if key not in given:
            raise InputError(f"config.{key} is missing; start your config from configs/default.py's get_config()")
        check_type(key, given[key], was)
    for key, (low, high) in RANGES.items():
        if not low <= given[key] <= high:
            raise InputError(f"config.{key}={given[key]} must lie between {low} and {high}")
    for key in POSITIVE:
        if not 0 < given[key] <= MOST_EPOCHS:
            raise InputError(f"config.{key}={given[key]} must be above 0 and at most {MOST_EPOCHS:g}")
    for key, choices in CHOICES.items():
        if given[key] not in choices:
            raise InputError(f"config.{key}={given[key]!r} is not one of {', '.join(choices)}")
    check_read(given, default)
    if given["data.batch_size"] % given["optim.accumulation"]:
        raise InputError(
            f"config.optim.accumulation={given['optim.accumulation']} does not divide "
            f"config.data.batch_size={given['data.batch_size']}"
        )
    if given["data.flip"] == "alternating" and given["transfer.mode"] == "probe":
        raise InputError(
            "config.data.flip='alternating' goes by epochs, and a probe's views have none; take horizontal"
        )
    read_transfer(config)
    read_span(given["run.profile"])
    check_writers(given["run.writers"])
    # An impossible network is told before the data are looked over, whatever the number of their classes.
    spec = make_spec(config, given["model.num_classes"] or 2)
    group, rows = spec.ghost_batch_size or 1, given["data.batch_size"] // given["optim.accumulation"]
    if rows % group:
        raise InputError(
            f"config.model.ghost_batch_size={group} does not divide the {rows} images that are normalised at a time "
            f"(config.data.batch_size={given['data.batch_size']} in config.optim.accumulation="
            f"{given['optim.accumulation']} parts)"
        )


def check_type(key: str, value: Any, default: Any) -> None:
    """`--config.x=a,b` on a tuple gives ('a,b',) and `--config.x=None` on a string 'None': both are caught here."""
    if isinstance(value, str) and value == "None":
        raise InputError(f"config.{key}=None: leave the flag away to keep the default")
    if default is None:
        check_model_type(key, value)
    elif isinstance(default, tuple):
        element = str if key in TEXTS else (int, float)
        well = isinstance(value, tuple | list) and all(isinstance(v, element) for v in value)
        well = well and (key in (*TEXTS, "optim.step_epochs") or len(value) == len(default))
        # A comma is what `--config.x=a,b` leaves in a name; in a regular expression it may stand.
        if well and key == "data.exclude" and any("," in v for v in value):
            well = False
        if not well:
            raise InputError(
                f'config.{key}={value!r} must look like {default or EXAMPLES[key]!r}: write "--config.{key}=(…)"'
            )
    elif isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return
    elif type(value) is not type(default):
        raise InputError(f"config.{key}={value!r} must be of type {type(default).__name__}, such as {default!r}")


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


def check_read(given: Flat, default: Flat) -> None:
    resolved = dict(given)
    spec = dataclasses.asdict(variant(given["model.name"]).spec)
    for name, value in spec.items():
        if resolved[f"model.{name}"] is None:
            resolved[f"model.{name}"] = value
    for key, (condition, words) in READ_ONLY_IF.items():
        if given[key] != default[key] and not condition(resolved):
            raise InputError(f"config.{key}={given[key]!r} would be read by nothing; it acts only where {words}")
    if given["transfer.mode"] == "probe" and given["transfer.views"] == 1:
        for key in READ_WITH_VIEWS:
            if given[key] != default[key]:
                raise InputError(
                    f"config.{key}={given[key]!r} would be read by nothing: a probe of one view sees images as "
                    "evaluation does; set config.transfer.views above 1"
                )


def check_writers(names: tuple[str, ...]) -> None:
    """Raise InputError for a writer of config.run.writers that is not known, named twice or not installed."""
    known = EXAMPLES["run.writers"]
    for name in names:
        if name not in known or list(names).count(name) > 1:
            raise InputError(
                f"config.run.writers={tuple(names)!r}: choose of {', '.join(known)}, each once, and write "
                '"--config.run.writers=(…)", such as '
                f"{known!r}"
            )
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"config.run.writers: {name} is not installed; ./run.sh setup writers installs requirements-writers.txt"
            )


def check_validation(config: ConfigDict) -> None:
    """For data without a validation split: raise InputError for a key that only validation reads."""
    given, default = dict(flatten(config)), dict(flatten(default_config()))
    for key in READ_WITH_VALIDATION:
        if given[key] != default[key]:
            raise InputError(
                f"config.{key}={given[key]!r} would be read by nothing: there is no validation split; "
                "set config.data.val_fraction above 0"
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
            "leave one of them away"
        )
    wanted = changes.setdefault("num_classes", num_classes)
    if wanted != num_classes:
        raise InputError(
            f"config.model.num_classes={wanted}, but the data has {num_classes} classes; "
            "leave the key away to follow the data"
        )
    spec = dataclasses.replace(variant(config.model.name).spec, **changes)
    if spec.in_channels != 3:
        raise InputError(
            f"config.model.in_channels={spec.in_channels}, but the feed gives RGB images; leave the key away"
        )
    spec.check_image_size(config.data.image_size)
    return spec


def differences(before: Flat, after: Flat) -> list[str]:
    """One entry per key that differs: 'optim.lr: 0.1 -> 0.2'. Lists and tuples of the same numbers are the same.

    Keys in FREE may differ. A key that `before` has not is one that came later: it acted by its default.
    """
    before = {key: value for key, value in flatten(default_config()) if key in after} | before
    plain = lambda value: list(value) if isinstance(value, tuple) else value  # noqa: E731
    missing = "(absent)"
    return [
        f"{key}: {plain(before.get(key, missing))!r} -> {plain(after.get(key, missing))!r}"
        for key in sorted((before.keys() | after.keys()) - set(FREE))
        if plain(before.get(key, missing)) != plain(after.get(key, missing))
    ]
