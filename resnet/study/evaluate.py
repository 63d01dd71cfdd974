"""Evaluate a checkpoint on a split of a dataset, with and without test images that are also in training.

python -m resnet.study.evaluate --checkpoint=DIR --data=DATA_DIR [--split=test] [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from input_pipeline.bars import over_batches
from input_pipeline.errors import InputError, printable
from input_pipeline.sources import Source
from resnet import command
from resnet.study.evaluate_data import choose, is_arrays, open_like, ran_on_arrays, with_labels_of
from resnet.train.stored_meta import MOST_PIXELS, MOST_RESIZED_PIXELS

if TYPE_CHECKING:
    from resnet.study.inference import Model
    from resnet.train.checkpoints import Meta
    from resnet.train.result import Outcome

SPLITS = ("train", "val", "test", "all")


def main() -> int:
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "--checkpoint", required=True, help="a run's workdir (best checkpoint), a step's folder, or converted weights"
    )
    parser.add_argument("--data", required=True, help="a folder of images, tfds:NAME, or an .npz file of arrays")
    parser.add_argument(
        "--data_dir", default="", help="where tfds:NAME is stored (default: as in the run, else tfds' own)"
    )
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="all: every image of the dataset (default: test)"
    )
    parser.add_argument(
        "--image_size", type=int, default=0, help="side of the crop in pixels (default: the checkpoint's)"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images per step (default: 64)")
    parser.add_argument(
        "--on_error",
        choices=("fail", "skip"),
        default="fail",
        help="what to do with an unreadable image (default: fail)",
    )
    parser.add_argument(
        "--drop_leaks", action="store_true", help="leave out images that are also in an earlier split, copies included"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    arguments = parser.parse_args()
    check(arguments)
    # Here, not above: they take seconds to import, and a slip in the flags is told at once.
    from resnet.study.inference import load_model
    from resnet.train import screen

    model = at_size(load_model(arguments.checkpoint), arguments.image_size)
    model = uncut(model) if is_arrays(arguments.data) and not ran_on_arrays(model.meta) else model
    source = open_like(
        model.meta,
        arguments.data,
        arguments.on_error,
        split=arguments.split,
        data_dir=arguments.data_dir,
        drop_leaks=arguments.drop_leaks,
    )
    outcome = evaluate(model, source, arguments.split, arguments.batch_size)
    dtype = dtype_of(model.meta)
    if arguments.json:
        report = {"checkpoint": str(arguments.checkpoint), "data": arguments.data, "split": arguments.split}
        skipped = [{"name": name, "reason": reason} for name, reason in source.skipped]
        more = {
            "image_size": model.crop.image_size,
            "dtype": dtype,
            "loss_kind": model.meta.loss,
            "classes": list(model.meta.class_names),
            "skipped": skipped,
        }
        print(json.dumps({**report, **more, **outcome.values()}))
    else:
        unusual = "" if dtype == "float32" else f", {dtype}"
        contract = printable(model.meta.contract.name)
        print(f"Checkpoint of step {model.meta.step}, contract {contract}, {describe_crop(model)}{unusual}")
        print(*screen.skipped(source, "--json lists all"), screen.figures(outcome), sep="\n")
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Raise InputError for what can be told from the flags alone."""
    if arguments.batch_size < 1:
        raise InputError(f"--batch_size={arguments.batch_size} must be at least 1")
    if not 0 <= arguments.image_size <= MOST_PIXELS:
        raise InputError(f"--image_size={arguments.image_size} must be from 1 to {MOST_PIXELS}")
    if arguments.drop_leaks and arguments.split not in ("val", "test"):
        raise InputError(f"--drop_leaks does nothing with --split={arguments.split}; it acts on val and test")
    if is_arrays(arguments.data):
        if arguments.image_size:
            raise InputError(f"--image_size={arguments.image_size}: the file's images are of one size; omit it")
    elif not arguments.data.startswith("tfds:") and not Path(arguments.data).is_dir():
        raise InputError(f"--data={printable(arguments.data)}: no such folder; name a folder of images or tfds:NAME")
    if arguments.data_dir and not arguments.data.startswith("tfds:"):
        raise InputError(
            f"--data_dir={printable(arguments.data_dir)} is for --data=tfds:NAME; --data is a folder already"
        )
    command.check_checkpoint(arguments.checkpoint)


def at_size(model: Model, image_size: int) -> Model:
    """The model, shown images of another size; 0: of the checkpoint's. SpecError where they are too small for it."""
    if not image_size:
        return model
    model.meta.spec.check_image_size(image_size)
    crop = dataclasses.replace(model.crop, image_size=image_size)
    if crop.shorter_side > MOST_RESIZED_PIXELS:
        raise InputError(f"--image_size={image_size} makes the shorter side {crop.shorter_side:,} pixels; lower it")
    return dataclasses.replace(model, crop=crop)


def uncut(model: Model) -> Model:
    """The model, shown images that are at its size already: as they are."""
    return dataclasses.replace(model, crop=dataclasses.replace(model.crop, resize_shorter=1.0))


def evaluate(model: Model, source: Source, name: str, batch_size: int) -> Outcome:
    """The model's figures on the split `name` ('all': every image) of a dataset, `batch_size` images a step.

    Raises InputError for a split that the dataset has not, and for a class that the model does not know.
    """
    from resnet.train import parallel
    from resnet.train.evaluation import evaluate_split
    from resnet.train.result import judge
    from resnet.train.steps import make_eval_step

    split = with_labels_of(model.meta, source, choose(source, name))
    size = min(batch_size, len(split))
    mesh = parallel.make_mesh()
    flip = model.meta.config.get("run.eval_flip", False)
    # In the run's own dtype, and the norms stay norms (predict folds them): in batches of the run's size, on its kind
    # of device, these figures are those that it logged, to the last bit.
    network = model.network.clone(dtype=np.dtype(dtype_of(model.meta)))
    step = make_eval_step(network, model.meta.contract, flip=flip, loss=model.meta.loss)
    predictions = evaluate_split(
        parallel.compile_eval_step(step, mesh),
        model.variables,
        split,
        model.crop,
        batch_size=size,
        mesh=mesh,
        loss=model.meta.loss,
        watch=lambda batches: over_batches(batches, f"evaluating {name}", len(split), size),
    )
    return judge(source, name, model.meta.step, predictions)


def dtype_of(meta: Meta) -> str:
    """What the run computed in: 'bfloat16' or 'float32', which is also that of converted weights."""
    return "bfloat16" if meta.config.get("run.dtype") == "bfloat16" else "float32"


def describe_crop(model: Model) -> str:
    crop = model.crop
    how = "squashed" if crop.resize_shorter == 0 else f"shorter side {crop.shorter_side}, centre"
    return f"{how} {crop.image_size} x {crop.image_size}"


if __name__ == "__main__":
    command.run(main)
