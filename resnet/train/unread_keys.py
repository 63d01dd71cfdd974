"""Which key of a configuration acts only where another says so: set for nothing, it is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from configs.default import get_config as default_config
from input_pipeline.errors import InputError
from input_pipeline.recipe import Flat, flatten
from resnet.model.variants import variant

if TYPE_CHECKING:
    from input_pipeline.sources import Source

_WHERE_NORMS_LEARN = "model.norm is batch, transfer.mode is not probe and transfer.bn is auto or train"


def _norms_learn(config: Flat) -> bool:
    """Whether a training step takes statistics of its batch."""
    train = config["transfer.mode"] != "probe" and config["transfer.bn"] in ("auto", "train")
    return bool(config["model.norm"] == "batch" and train)


_OF_RANDAUGMENT = (
    "randaugment_set",
    "randaugment_ops",
    "randaugment_magnitude",
    "randaugment_noise",
    "randaugment_probability",
)
# Key of config.optim -> the optimizers whose rule reads it (tests/train/test_optimizer.py holds them to that).
READ_BY_OPTIMIZERS = {
    "momentum": ("sgd", "lars", "rmsprop"),
    "nesterov": ("sgd", "lars", "rmsprop"),
    "beta1": ("adam", "adamw", "lamb"),
    "beta2": ("adam", "adamw", "lamb", "rmsprop"),
    "epsilon": ("adam", "adamw", "lamb", "rmsprop"),
    "trust_coefficient": ("lars",),
}


def _one_of(key: str, names: tuple[str, ...]) -> tuple[Callable[[Flat], bool], str]:
    """(condition, words) of what acts where `key` is one of these."""
    words = f" is {', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else f"={names[0]!r}"
    return lambda c: c[key] in names, f"{key}{words}"


# Key -> (condition under which something reads it, the same in words). A key set for nothing is a mistake worth a word:
# the user believes that it acts.
READ_ONLY_IF: dict[str, tuple[Callable[[Flat], bool], str]] = {
    # A file of arrays is taken as it is.
    **{
        f"data.{key}": (lambda c: c["data.source"] != "arrays", "data.source is not arrays")
        for key in ("exclude", "per_class", "on_error", "drop_leaks")
    },
    "data.keep_copies_together": (
        lambda c: c["data.doctor"] and c["data.source"] != "arrays",
        "data.doctor=True and data.source is not arrays",
    ),
    # The features are of one size.
    "data.eval_image_size": (lambda c: c["transfer.mode"] != "probe", "transfer.mode is not probe"),
    "data.feed": (lambda c: c["transfer.mode"] != "probe", "transfer.mode is not probe"),
    "data.test_fraction": (
        lambda c: c["data.per_class"] == c["data.folds"] == 0,
        "data.per_class=0 and data.folds=0",
    ),
    # What is left of a few a class is the test split already.
    "data.folds": (
        lambda c: c["data.per_class"] == 0 and c["data.source"] != "arrays",
        "data.per_class=0 and data.source is not arrays",
    ),
    "data.fold": (
        lambda c: c["data.folds"] > 0 and c["data.per_class"] == 0 and c["data.source"] != "arrays",
        "data.folds is above 0, data.per_class=0 and data.source is not arrays",
    ),
    "data.crop_scale": (lambda c: c["data.crop"] == "random_resized", "data.crop='random_resized'"),
    "data.crop_ratio": (lambda c: c["data.crop"] == "random_resized", "data.crop='random_resized'"),
    "data.crop_padding": (lambda c: c["data.crop"] == "pad", "data.crop='pad'"),
    **{
        f"data.{key}": (lambda c: c["data.auto_augment"] == "randaugment", "data.auto_augment='randaugment'")
        for key in _OF_RANDAUGMENT
    },
    **{f"optim.{key}": _one_of("optim.name", names) for key, names in READ_BY_OPTIMIZERS.items()},
    # Where nothing is mixed an image is of one class whole.
    "optim.target_threshold": (
        lambda c: c["optim.loss"] == "sigmoid" and bool(c["data.mixup"] or c["data.cutmix"]),
        "optim.loss='sigmoid' and data.mixup or data.cutmix is above 0",
    ),
    "optim.step_epochs": (lambda c: c["optim.schedule"] == "step", "optim.schedule='step'"),
    "optim.step_factor": (lambda c: c["optim.schedule"] == "step", "optim.schedule='step'"),
    "optim.power": (lambda c: c["optim.schedule"] == "polynomial", "optim.schedule='polynomial'"),
    "optim.final_lr": _one_of("optim.schedule", ("cosine", "polynomial")),
    "run.epochs": (lambda c: c["run.steps"] == 0, "run.steps=0"),
    "model.shortcut_scale": (lambda c: c["model.shortcut_transform"] == "scale", "model.shortcut_transform='scale'"),
    "model.gate_bias": (
        lambda c: c["model.shortcut_transform"] in ("exclusive_gate", "shortcut_gate"),
        "model.shortcut_transform is a gate",
    ),
    # A probe runs the blocks as evaluation does, which drops nothing.
    "model.shortcut_dropout": (
        lambda c: c["model.shortcut_transform"] == "dropout" and c["transfer.mode"] != "probe",
        "model.shortcut_transform='dropout' and transfer.mode is not probe",
    ),
    "model.norm_groups": (lambda c: c["model.norm"] == "group", "model.norm='group'"),
    "model.norm_momentum": (_norms_learn, _WHERE_NORMS_LEARN),
    "model.ghost_batch_size": (_norms_learn, _WHERE_NORMS_LEARN),
    "model.norm_epsilon": (lambda c: c["model.norm"] != "none", "model.norm is batch or group"),
    # Without norms the convolutions have biases whatever it says.
    "model.conv_bias": (lambda c: c["model.norm"] != "none", "model.norm is batch or group"),
    "model.zero_init_last_gamma": (lambda c: c["transfer.mode"] == "scratch", "transfer.mode='scratch'"),
    "model.stochastic_depth": (lambda c: c["transfer.mode"] != "probe", "transfer.mode is not probe"),
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
    # Its head keeps next to nothing for the backward pass, and the backbone has none.
    "run.remat": (lambda c: c["transfer.mode"] != "probe", "transfer.mode is not probe"),
    # It evaluates on features of the images as they are.
    "run.eval_flip": (lambda c: c["transfer.mode"] != "probe", "transfer.mode is not probe"),
    # A head learns on features: two images, once mixed, have none.
    "data.mixup": (lambda c: c["transfer.mode"] != "probe", "transfer.mode is not probe"),
    "data.cutmix": (lambda c: c["transfer.mode"] != "probe", "transfer.mode is not probe"),
}
# Read only where training images are varied: by a probe of a single view they are not.
READ_WITH_VIEWS = tuple(
    f"data.{key}"
    for key in (
        "crop",
        "crop_scale",
        "crop_ratio",
        "crop_padding",
        "flip",
        "auto_augment",
        *_OF_RANDAUGMENT,
        "brightness",
        "contrast",
        "saturation",
        "hue",
        "erasing",
    )
)
# Read only where there is a validation split, which the data may bring whatever data.val_fraction says.
READ_WITH_VALIDATION = ("run.best_metric", "run.early_stopping")
# Read only in blocks that learn: others run as in evaluation.
READ_IN_LEARNING_BLOCKS = ("model.stochastic_depth", "model.shortcut_dropout")
# Read only where the data leave one of these splits to be made.
READ_WITH_MAKING = {
    "data.val_fraction": ("val",),
    "data.test_fraction": ("test",),
    "data.split_seed": ("val", "test"),
    "data.keep_copies_together": ("val", "test"),
}


def unread(given: Flat, default: Flat) -> dict[str, str]:
    """Key -> why nothing would read it, for every key of `given` that is set to another value than its default."""
    resolved = dict(given)
    spec = dataclasses.asdict(variant(given["model.name"]).spec)
    for name, value in spec.items():
        if resolved[f"model.{name}"] is None:
            resolved[f"model.{name}"] = value
    set_here = [key for key in default if given[key] != default[key]]
    reasons = {
        key: f"; it applies only where {words}"
        for key, (condition, words) in READ_ONLY_IF.items()
        if key in set_here and not condition(resolved)
    }
    if given["transfer.mode"] == "probe" and given["transfer.views"] == 1:
        why = ": a probe of one view sees images as evaluation does; set config.transfer.views above 1"
        reasons |= {key: why for key in READ_WITH_VIEWS if key in set_here and key not in reasons}
    return reasons


def check_read(given: Flat, default: Flat) -> None:
    """Raise InputError for the first key that nothing would read."""
    for key, why in unread(given, default).items():
        raise InputError(f"config.{key}={given[key]!r} has no effect{why}")


def let_go(config: ConfigDict, recipe: Flat, flagged: Collection[str]) -> list[str]:
    """Give keys that a recipe set, and that nothing reads since flags changed others, their defaults; a line for each.

    recipe: what `config` was before the flags. flagged: the keys that flags set. So that --config.optim.name=adam is
    enough where a recipe says nesterov. What nothing read before either, or a flag itself set, is left to `check_read`.
    """
    given, default = flatten(config), flatten(default_config())
    if default.keys() - given.keys() or default.keys() - recipe.keys():
        return []
    before, lines = unread(recipe, default), []
    for key, why in unread(given, default).items():
        if key in flagged or key in before:
            continue
        section, _, name = key.partition(".")
        config[section][name] = default[key]
        lines.append(
            f"Note      the recipe's config.{key}={given[key]!r} is ignored, because it has no effect with these "
            f"flags{why}"
        )
    return lines


def check_validation(config: ConfigDict) -> None:
    """For data without a validation split: raise InputError for a key that only validation reads."""
    given, default = flatten(config), flatten(default_config())
    for key in READ_WITH_VALIDATION:
        if given[key] != default[key]:
            raise InputError(
                f"config.{key}={given[key]!r} has no effect: there is no validation split; "
                "set config.data.val_fraction above 0"
            )


def check_blocks(config: ConfigDict, learning: Collection[str] | None) -> None:
    """For a run of which the parameters `learning` (None: all) ever learn: raise InputError for a key that only blocks
    with one of these read."""
    if learning is None or any(name.startswith("layer") for name in learning):
        return
    given = flatten(config)
    for key in READ_IN_LEARNING_BLOCKS:
        # 0 asks for nothing to be dropped, and nothing is.
        if given[key]:
            raise InputError(
                f"config.{key}={given[key]!r} has no effect: no block ever learns by "
                f"config.transfer.unfreeze={tuple(given['transfer.unfreeze'])!r}; omit the key"
            )


def check_splits(config: ConfigDict, source: Source, flagged: Collection[str]) -> None:
    """Raise InputError for a flag about how splits are made where the data bring them, and for folds of such data.

    flagged: the keys that were given as flags. A recipe may say more than its data need: that of configs/imagenet.py is
    for tfds' set, which has no validation images, and for folders, which mostly bring some. 0 is never refused: it
    asks for no split to be made, and none is.
    """
    given, default = flatten(config), flatten(default_config())
    if given["data.folds"] and "test" not in source.made:
        # From a recipe as well: a run for each fold would be as many runs of one and the same split.
        raise InputError(
            f"config.data.folds={given['data.folds']}: the data have a test split of their own, which is not a fold; "
            "move its images to the training images, or omit the key"
        )
    # The test split that config.data.per_class leaves over is drawn by the seed, and by nothing else here.
    made = set(source.made) - ({"test"} if given["data.per_class"] else set())
    for key, names in READ_WITH_MAKING.items():
        drawn = not made.isdisjoint(names) or (key == "data.split_seed" and given["data.per_class"] > 0)
        if key in flagged and given[key] not in (default[key], 0) and not drawn:
            brought = [f"a {name} split" for name in names if name in source.splits and name not in source.made]
            why = (
                f"the data have {' and '.join(brought)} of their own" if brought else "these data are split without it"
            )
            raise InputError(f"config.{key}={given[key]!r} has no effect: {why}; omit the flag")
