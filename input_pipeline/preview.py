"""A picture of a training batch as the network sees it, each image with its label.

    python -m input_pipeline.preview --config=configs/flowers.py --out=batch.png [--config.data.mixup=0.2] [--step=0]

The batch that a run of this recipe trains on at that step: order, crops and every draw are functions of the seed.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from configs.default import get_config as default_config
from input_pipeline import recipe, recipe_values
from input_pipeline.errors import InputError, printable
from input_pipeline.whole_files import beside

# Weights bring a contract of their own (config.data.contract='auto'); without any it is this one.
USUAL_CONTRACT = "torch"
IMAGES = 32
# What is read besides config.data.
READ = ("optim.accumulation", "optim.label_smoothing", "run.seed", "transfer.mode")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    # Before jax is imported: TensorFlow's notes come by way of a library that both share.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    given_arguments = list(arguments or sys.argv)
    values = make_flags(given_arguments)
    known = recipe.flatten(default_config())
    try:
        recipe.parse(values, given_arguments, __doc__ or "", known=known, required=("config", "out"))
        given = values.flag_values_dict()
        out = Path(given["out"])
        if os.path.isdir(out) or not os.path.isdir(out.parent):
            raise InputError(f"--out={printable(str(out))}: name a file in a folder that exists")
        missing = {"data", "optim", "run", "transfer"} - set(given["config"])
        if missing:
            raise InputError(f"--config: it has no config.{min(missing)}; name the recipe of a run")
        check(given["config"])
        count = write(given["config"], out, step=given["step"], images=given["images"])
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    print(f"{printable(str(out))}: {count} images")
    return 0


def check(config: ConfigDict) -> None:
    """Raise InputError, one line that names the key, for a value that no run would take among those that are read."""
    given, default = recipe.flatten(config), recipe.flatten(default_config())
    recipe_values.check_fed(given, default, READ)
    group = given.get("model.ghost_batch_size") or 1
    if type(group) is not int or group < 1:
        raise InputError(f"config.model.ghost_batch_size={group!r} must be a number of images")
    recipe_values.check_parts(given, group)


def make_flags(arguments: list[str]) -> flags.FlagValues:
    """The command's flags, in a set of their own."""
    values = flags.FlagValues()
    recipe.define(values, arguments, "The recipe, such as configs/demo.py; configs/default.py explains every key.")
    flags.DEFINE_string("out", None, "The picture, a PNG file.", flag_values=values)
    flags.DEFINE_integer("step", 0, "The step whose batch is shown.", 0, flag_values=values)
    flags.DEFINE_integer("images", IMAGES, "The most images of the batch to show.", 1, 1000, flag_values=values)
    return values


def write(config: ConfigDict, out: Path, *, step: int = 0, images: int = IMAGES) -> int:
    """Draw the first `images` of the batch of `step` into `out`; how many there are. Raises InputError."""
    # Here, not above: they import jax, and a slip in the flags is told at once.
    from input_pipeline.augment import Augmentation
    from input_pipeline.batch_pictures import as_seen, sheet
    from input_pipeline.configured import make_augmentation, make_crop, open_data
    from input_pipeline.contract import contract_by_name
    from input_pipeline.order import Order
    from input_pipeline.stream import train_batches

    data = config.data
    contract = contract_by_name(USUAL_CONTRACT if data.contract == "auto" else data.contract)
    # A probe's first view of an image is evaluation's.
    plain = config.transfer.mode == "probe"
    crop = make_crop(config, contract, "none" if plain else data.crop, contract.resize_shorter)
    augmentation = Augmentation() if plain else make_augmentation(config)
    source = open_data(config)
    train = source.splits["train"]
    if data.batch_size > len(train):
        raise InputError(
            f"config.data.batch_size={data.batch_size} is larger than the training set of {len(train)} images"
        )
    order = Order(len(train), data.batch_size, config.run.seed)
    batches = train_batches(train, order, crop, start_step=step, num_steps=1, threads=data.threads or None)
    pictures, targets = as_seen(
        next(iter(batches)),
        augmentation,
        contract,
        seed=config.run.seed,
        step=step,
        num_classes=len(source.class_names),
        parts=config.optim.accumulation,
        group=config.model.ghost_batch_size or 1,
        num_examples=len(train),
    )
    shown = pictures[:images]
    title = describe(config, f"step {step}, {len(shown)} of {data.batch_size} images", plain=plain)
    save(sheet(shown, targets[:images], source.class_names, title), out)
    return len(shown)


def describe(config: ConfigDict, which: str, *, plain: bool) -> str:
    """The recipe in a line: what was done to these images, and nothing that is off."""
    data = config.data
    parts = [f"{data.source}, {which}, {data.image_size} px"]
    if plain:
        parts.append("probe: cropped as in evaluation")
    else:
        low, high = data.crop_scale
        more = {"random_resized": f" {low:g} to {high:g} of the area", "pad": f" {data.crop_padding}"}
        parts.append(f"crop {data.crop}{more.get(data.crop, '')}")
        parts += [f"flip {data.flip}"] if data.flip != "none" else []
        parts += [_operations(data)] if data.auto_augment != "none" else []
        parts += [f"{name} {data[name]:g}" for name in _kinds() if data[name]]
    smoothing = config.optim.label_smoothing
    parts += [f"label smoothing {smoothing:g}"] if smoothing and not plain else []
    own = " (or the weights' own)" if data.contract == "auto" and config.transfer.mode != "scratch" else ""
    parts.append(f"contract {USUAL_CONTRACT if data.contract == 'auto' else data.contract}{own}")
    return "; ".join(parts)


def _kinds() -> list[str]:
    """The kinds of augmentation whose strength is a number of config.data, a reader's own too, as they are declared."""
    # Here, not above: that file imports jax.
    from input_pipeline.augment import Augmentation

    own = [name for name in Augmentation.__annotations__ if name != "label_smoothing"]
    return [field.name for field in dataclasses.fields(Augmentation) if field.name in own and field.type is float]


def _operations(data: ConfigDict) -> str:
    if data.auto_augment == "trivialaugment":
        return data.auto_augment
    strength = f"{data.randaugment_magnitude:g}" + (f" ± {data.randaugment_noise:g}" if data.randaugment_noise else "")
    often = f", each with {data.randaugment_probability:g}" if data.randaugment_probability < 1 else ""
    return f"randaugment {data.randaugment_ops} of {data.randaugment_set}'s at {strength}{often}"


def save(page: np.ndarray, out: Path) -> None:
    """Write a picture as PNG beside its place and rename it. Raises InputError where the disk refuses."""
    from PIL import Image

    try:
        with beside(out) as part:
            Image.fromarray(page).save(part, "PNG")
    except OSError as error:
        raise InputError(f"{printable(str(out))}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
