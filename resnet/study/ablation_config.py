"""An ablation's recipe, checked: a complete, valid configuration for each variant, seeds, baseline, the papers."""

import copy
import dataclasses
import keyword
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.default import get_config as default_config
from input_pipeline.errors import InputError, printable
from resnet.model.errors import SpecError
from resnet.study.ablation_alike import check_alike, flat_config
from resnet.train.configuration import validate

# The keys that an ablation's recipe has on top of a run's (configs/ablations/study.py).
KEYS = ("seeds", "baseline", "variants", "paper")
# What a variant may change. Data and length are the same for all, or the comparison would be of two things at once.
SECTIONS = ("model", "optim")
# Keys of a run that nothing in an ablation reads, and what does instead.
UNREAD = {
    "run.seed": "config.seeds names the seeds",
    "run.best_metric": "nothing is chosen by a validation split",
    "run.early_stopping": "all variants train equally long",
    "run.keep": "one checkpoint is kept until a variant is done",
    "run.steps_per_call": "use --steps_per_dispatch",
    "run.mesh": "one device is used",
    "run.hang_timeout": "one process is used",
    "run.writers": "it writes only tables, curves and TensorBoard's events",
    "run.profile": "trace an ordinary run of train_main.py",
    "run.debug": "replay an ordinary run of train_main.py",
    "data.feed": "the data are always resident",
    "data.eval_image_size": "the images are kept at one size",
}
# Crops whose box the resident feed can cut: input_pipeline.resident.CROPS, whose file imports jax.
CROPS = ("pad", "none")
MOST_SEEDS = 64
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")


@dataclasses.dataclass(frozen=True)
class Published:
    """What a paper says of a variant. error: test error in per cent, or words where there is no number."""

    error: float | str
    source: str


@dataclasses.dataclass(frozen=True)
class Variant:
    """config: a complete, valid configuration of a run. changes: what is different in it, 'model.shortcut=A'."""

    name: str
    config: ConfigDict
    changes: tuple[str, ...]
    published: Published | None


@dataclasses.dataclass(frozen=True)
class Study:
    """A checked ablation: variants in the recipe's order, the seeds that each is trained with, and the baseline."""

    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    baseline: str

    @property
    def base(self) -> ConfigDict:
        """A configuration whose data and run sections hold for every variant."""
        return self.variants[0].config


def known_key(key: str) -> bool:
    """Whether 'variants.NAME.section.key' and the like may be set on the command line; defaults' keys aside."""
    return key.partition(".")[0] in KEYS


def add_keys(config: ConfigDict, flagged: Collection[str]) -> None:
    """Give the variants the keys that flags are about to set, where the recipe has no word of them.

    Raises InputError that names the flag whose key cannot be there.
    """
    default = default_config()
    for key in sorted(flagged):
        parts = key.split(".")
        if parts[0] not in KEYS:
            continue
        if not all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
            raise InputError(
                f"--config.{printable(key)}: a flag can set only names of letters, digits and _, letter first; change "
                "the recipe instead"
            )
        variants = config.get("variants")
        if parts[0] == "variants" and isinstance(variants, ConfigDict):
            add_key(variants, parts, default)
        holder: Any = config
        for part in parts:
            if not isinstance(holder, ConfigDict) or part not in holder:
                raise InputError(f"--config.{key}: the recipe has no such key; write it there")
            holder = holder[part]


def add_key(variants: ConfigDict, parts: list[str], default: ConfigDict) -> None:
    """Put ['variants', NAME, SECTION, KEY], or as much of it as is given, into the variants: the default of the key."""
    flag = f"--config.{'.'.join(parts)}"
    name, section, key = (*parts[1:], "", "", "")[:3]
    if name and name not in variants:
        raise InputError(f"{flag}: no such variant; choose from {printable(', '.join(variants))}")
    if not section or not isinstance(variants[name], ConfigDict):
        return
    if section not in SECTIONS:
        raise InputError(f"{flag}: a variant changes only keys of {' and '.join(SECTIONS)}")
    if key and key not in default[section]:
        raise InputError(f"{flag}: no such key; configs/default.py lists all of {section}")
    with variants.unlocked(), variants.ignore_type():
        if section not in variants[name]:
            variants[name][section] = ConfigDict()
        if key and isinstance(variants[name][section], ConfigDict):
            # The reference, not its value, which may be None: it has the type that the flag is read as, where the
            # recipe's own value may be of another (1 for a rate).
            variants[name][section][key] = default[section].get_ref(key)


def read_study(config: ConfigDict, flagged: Collection[str] = ()) -> Study:
    """The study that a recipe describes. Raises InputError, one line naming key or variant, unless it can be run.

    flagged: the keys that were given as flags, and so are meant to be read.
    """
    for key in KEYS:
        if key not in config:
            raise InputError(f"config.{key} is missing; build an ablation's recipe with configs/ablations/study.py")
    for key in ("variants", "paper"):
        if not isinstance(config[key], ConfigDict):
            raise InputError(f"config.{key} must map the names of variants; see configs/ablations/study.py")
    base = {key: config[key] for key in config if key not in KEYS}
    for key in base:
        if key not in default_config():
            raise InputError(f"unknown key config.{printable(str(key))}; configs/default.py lists all")
    seeds = read_seeds(config.seeds)
    variants = tuple(
        read_variant(name, base, changes, published(name, config.paper)) for name, changes in config.variants.items()
    )
    if not variants:
        raise InputError("config.variants is empty; name at least one variant")
    check_overridden(config.variants, flagged)
    names = [variant.name for variant in variants]
    if config.baseline not in names:
        raise InputError(
            f"config.baseline={printable(str(config.baseline))!r} is not a variant; choose one of {', '.join(names)}"
        )
    for name in config.paper:
        if name not in names:
            raise InputError(f"config.paper.{printable(name)} is not for a variant; choose one of {', '.join(names)}")
    check_alike({variant.name: variant.config for variant in variants})
    return Study(variants, seeds, config.baseline)


def read_seeds(seeds: Any) -> tuple[int, ...]:
    """config.seeds. Raises InputError unless they are distinct whole numbers in 0..2**32 - 1, at most MOST_SEEDS."""
    whole = isinstance(seeds, tuple | list) and all(type(seed) is int and 0 <= seed < 1 << 32 for seed in seeds)
    if not whole or not 1 <= len(seeds) <= MOST_SEEDS:
        raise InputError(
            f"config.seeds={printable(str(seeds))} must be 1 to {MOST_SEEDS} whole numbers from 0 to 2**32 - 1: "
            'write "--config.seeds=(0,1,2)"'
        )
    twice = sorted({seed for seed in seeds if list(seeds).count(seed) > 1})
    if twice:
        raise InputError(f"config.seeds names {twice[0]} twice; a seed gives the same run every time")
    return tuple(seeds)


def read_variant(name: str, base: Mapping[str, ConfigDict], changes: Any, paper: Published | None) -> Variant:
    """The base with a variant's changes. Raises InputError that names the variant and the key at fault."""
    where = f"config.variants.{printable(str(name))}"
    if not NAME.fullmatch(str(name)):
        raise InputError(f"{where}: a name has at most 64 letters, digits and _ . + -, because it becomes a file's")
    if not isinstance(changes, ConfigDict):
        raise InputError(f"{where} must be {{'model': {{…}}, 'optim': {{…}}}}; see configs/ablations/study.py")
    config = ConfigDict({key: copy.deepcopy(section) for key, section in base.items()})
    told = []
    for section, values in changes.items():
        if section not in SECTIONS or not isinstance(values, ConfigDict):
            raise InputError(
                f"{where}.{printable(str(section))}: a variant changes only keys of {' and '.join(SECTIONS)}"
            )
        for key, value in values.items():
            if key not in config[section]:
                raise InputError(
                    f"{where}.{section}.{printable(str(key))}: no such key; configs/default.py lists all of {section}"
                )
            try:
                config[section][key] = value
            except (TypeError, ValueError) as error:
                raise InputError(f"{where}.{section}.{key}={printable(str(value))}: wrong type") from error
            told.append(f"{section}.{key}={value}")
    try:
        # First, as it asks for less: a writer that nothing reads need not be installed.
        check_read(config)
        validate(config)
    except (InputError, SpecError) as error:
        raise InputError(f"variant {name}: {error}") from error
    return Variant(name, config.lock(), tuple(told), paper)


def check_overridden(variants: ConfigDict, flagged: Collection[str]) -> None:
    """Raise InputError for a flag of the base's key that every variant has a value of its own for."""
    for key in sorted(flagged):
        section, _, name = key.partition(".")
        if section in SECTIONS and all(name in changes.get(section, ()) for changes in variants.values()):
            raise InputError(
                f"--config.{key} has no effect: every variant sets its own; set --config.variants.NAME.{key}"
            )


def check_read(config: ConfigDict) -> None:
    """Raise InputError for a key that an ablation does not read, and for a crop that its feed cannot cut."""
    given, default = flat_config(config), flat_config(default_config())
    for key, instead in UNREAD.items():
        if given[key] != default[key]:
            raise InputError(f"config.{key}={given[key]!r} has no effect in an ablation: {instead}")
    if given["data.crop"] not in CROPS:
        raise InputError(
            f"config.data.crop={given['data.crop']!r}: an ablation keeps whole images on the device, and can crop by "
            f"{' or '.join(CROPS)} there"
        )


def published(name: str, paper: ConfigDict) -> Published | None:
    """What config.paper says of a variant. Raises InputError for an entry of another form."""
    if name not in paper:
        return None
    entry = paper[name]
    if not isinstance(entry, ConfigDict) or set(entry) != {"error", "source"}:
        raise InputError(f"config.paper.{name} must be {{'error': number or words, 'source': where it is published}}")
    error = entry.error
    number = isinstance(error, int | float) and not isinstance(error, bool) and math.isfinite(error)
    if not number and not isinstance(error, str):
        raise InputError(
            f"config.paper.{name}.error={printable(str(error))} must be a number, in per cent, or words in quotes"
        )
    return Published(error, str(entry.source))
