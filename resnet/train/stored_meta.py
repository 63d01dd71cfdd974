"""What a checkpoint says of itself, checked before anything acts on it: a file may say anything.

A checkpoint may come from elsewhere. Its JSON steers what is built and allocated, so each value has to have its type
and to lie in a range that some network could have; ResNetSpec and Contract look after theirs.
"""

import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline.errors import InputError, printable

# Beyond every published network (ResNet-1202 has 600 blocks); tracing 4,000 blocks would take a minute.
MOST_BLOCKS, MOST_CHANNELS, MOST_CLASSES = 1_000, 1 << 16, 10_000_000
MOST_PIXELS = 4096
# Of the crop. An image that is resized to a square of 16,384 pixels takes 0.8 GB.
MOST_RESIZED, MOST_RESIZED_PIXELS = 16, 4 * MOST_PIXELS

FIELDS: dict[str, type] = {
    "spec": dict,
    "class_names": list,
    "contract": dict,
    "image_size": int,
    "resize_shorter": float,
    "step": int,
    "config": dict,
    "progress": dict,
    "fingerprint": str,
}
READ_KEYS: dict[str, type] = {
    "data.source": str,
    "data.dir": str,
    "data.exclude": list,
    "data.val_fraction": float,
    "data.test_fraction": float,
    "data.image_size": int,
    "data.per_class": int,
    "data.folds": int,
    "data.fold": int,
    "data.split_seed": int,
    "data.doctor": bool,
    "data.drop_leaks": bool,
    "data.keep_copies_together": bool,
    "optim.loss": str,
    "run.eval_flip": bool,
}


def check(stored: Any) -> dict[str, Any]:
    """`stored` (JSON values, without 'format') as it is, if it can be a Meta's.

    Raises InputError that names the first field that is missing, unknown, of another type or out of range.
    """
    if not isinstance(stored, Mapping):
        raise fault("it is not a JSON object")
    for name in sorted(FIELDS.keys() ^ stored.keys(), key=str):
        raise fault(f"{printable(str(name)[:80])} is {'missing' if name in FIELDS else 'unknown'}")
    for name, kind in FIELDS.items():
        value = stored[name]
        if kind is float and type(value) is int:
            value = float(value) if abs(value) < 1 << 53 else math.inf
        if type(value) is not kind:
            raise fault(f"{name} must be of type {kind.__name__}, not {type(value).__name__}")
    in_range("image_size", stored["image_size"], 1, MOST_PIXELS)
    if stored["resize_shorter"] != 0:
        in_range("resize_shorter", stored["resize_shorter"], 1, MOST_RESIZED)
        resized = stored["image_size"] * stored["resize_shorter"]
        in_range("image_size x resize_shorter", resized, 1, MOST_RESIZED_PIXELS)
    in_range("step", stored["step"], 0, (1 << 63) - 1)
    check_config(stored["config"])
    check_spec(stored["spec"])
    check_classes(stored["class_names"], stored["spec"])
    return dict(stored)


def check_config(config: dict[str, Any]) -> None:
    """The keys by which evaluation finds and splits the data as the run did; the others are only shown and compared."""
    for key, kind in READ_KEYS.items():
        value = config.get(key, kind())
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise fault(f"config.{key} must be of type {kind.__name__}, not {type(value).__name__}")
    if not all(isinstance(name, str) for name in config.get("data.exclude", [])):
        raise fault("config.data.exclude must be a list of strings")
    in_range("config.data.per_class", config.get("data.per_class", 0), 0, 1 << 30)
    in_range("config.data.image_size", config.get("data.image_size", 1), 1, MOST_PIXELS)


def check_spec(spec: dict[str, Any]) -> None:
    """What ResNetSpec leaves open, because who writes a recipe may: sizes that no machine holds."""
    sizes = spec.get("stage_sizes")
    if not isinstance(sizes, list) or not all(type(size) is int for size in sizes):
        raise fault("stage_sizes must be a list of whole numbers")
    in_range("the number of stages", len(sizes), 1, 12)
    for size in sizes:
        in_range("stage_sizes", size, 1, MOST_BLOCKS)
    in_range("the number of blocks", sum(sizes), 1, MOST_BLOCKS)
    for name in ("width", "base_width", "groups", "in_channels"):
        in_range(name, spec.get(name), 1, MOST_CHANNELS)
    # Older checkpoints have no such field.
    in_range("stem_width", spec.get("stem_width", 0), 0, MOST_CHANNELS)
    in_range("num_classes", spec.get("num_classes"), 1, MOST_CLASSES)
    for name, value in spec.items():
        if type(value) in (int, float):
            in_range(printable(name[:80]), value, -MOST_CLASSES, MOST_CLASSES)


def check_classes(names: list[Any], spec: dict[str, Any]) -> None:
    if not all(isinstance(name, str) for name in names):
        raise fault("class_names must be a list of strings")
    if len(set(names)) != len(names):
        raise fault("a class name occurs twice")
    if len(names) != spec["num_classes"]:
        raise fault(f"{len(names)} class names for {spec['num_classes']} outputs")


def check_files(folder: Path) -> None:
    """Raise InputError where a checkpoint's folder holds anything but folders and ordinary files of its own.

    Reading a pipe would wait for ever, and a link could lead anywhere.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            mode = os.lstat(os.path.join(place, name)).st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                where = printable(os.path.join(place, name))
                raise InputError(f"{where}: a link, pipe or device, which no checkpoint holds; remove it")


def in_range(name: str, value: Any, low: float, high: float) -> None:
    if type(value) not in (int, float) or not low <= value <= high:
        raise fault(f"{name} must lie between {low} and {high}, not be {printable(str(value)[:40])}")


def fault(what: str) -> InputError:
    """The error for a meta that says something impossible."""
    return InputError(f"its metadata is damaged: {what}")
