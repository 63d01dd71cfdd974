"""Evaluate a checkpoint on a split of a dataset, with and without test images that also stand in training.

python -m resnet.study.evaluate --checkpoint=DIR --data=DATA_DIR [--split=test] [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from input_pipeline.carving import MAKE_NONE
from input_pipeline.errors import InputError, printable
from input_pipeline.sources import Source, Split, open_source
from resnet import command

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
    parser.add_argument("--data", required=True, help="a folder of images, or tfds:NAME")
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="all: every image of the dataset (default: test)"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images per step (default: 64)")
    parser.add_argument(
        "--on_error", choices=("fail", "skip"), default="fail", help="what an unreadable image does (default: fail)"
    )
    parser.add_argument(
        "--drop_leaks", action="store_true", help="leave out what also stands in an earlier split, copies included"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    arguments = parser.parse_args()
    check(arguments)
    # Here, not above: they take seconds to import, and a slip in the flags is told at once.
    from resnet.study.inference import load_model
    from resnet.train import screen

    model = load_model(arguments.checkpoint)
    source = open_like(
        model.meta,
        arguments.data,
        arguments.on_error,
        drop_leaks=arguments.drop_leaks,
        whole=arguments.split == "all",
    )
    outcome = evaluate(model, source, arguments.split, arguments.batch_size)
    if arguments.json:
        report = {"checkpoint": str(arguments.checkpoint), "data": arguments.data, "split": arguments.split}
        print(json.dumps({**report, "classes": list(model.meta.class_names), **outcome.values()}))
    else:
        print(f"Checkpoint of step {model.meta.step}, contract {model.meta.contract.name}, {describe_crop(model)}")
        print(screen.figures(outcome))
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Raise InputError for what can be told from the flags alone."""
    if arguments.batch_size < 1:
        raise InputError(f"--batch_size={arguments.batch_size} must be at least 1")
    if arguments.drop_leaks and arguments.split not in ("val", "test"):
        raise InputError(f"--drop_leaks does nothing with --split={arguments.split}; it acts on val and test")
    if not arguments.data.startswith("tfds:") and not Path(arguments.data).is_dir():
        raise InputError(f"--data={printable(arguments.data)}: no such folder; name a folder of images or tfds:NAME")
    if not Path(arguments.checkpoint).is_dir():
        raise InputError(
            f"--checkpoint={printable(arguments.checkpoint)}: no such folder; name a run's workdir, a step's folder or "
            "converted weights"
        )


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
    # The norms stay norms (predict folds them): these figures are those that the run logged, to the last bit.
    predictions = evaluate_split(
        parallel.compile_eval_step(make_eval_step(model.network, model.meta.contract, flip=flip), mesh),
        model.variables,
        split,
        model.crop,
        batch_size=size,
        mesh=mesh,
        watch=lambda batches: tqdm(batches, total=-(-len(split) // size), unit="batch", leave=False, disable=None),
    )
    return judge(source, name, model.meta.step, predictions)


def open_like(meta: Meta, data: str, on_error: str, *, drop_leaks: bool = False, whole: bool = False) -> Source:
    """The dataset, split as the run of the checkpoint split it (by the defaults where the checkpoint is of no run).

    drop_leaks: leave out of val and test what also stands in an earlier split, whatever the run did. whole: every image
    of the classes that the run took, in the splits that the data bring; nothing is held out or left out, so that data
    which cannot be split do as well.
    Raises InputError for what the user can mend, in this command's flags.
    """
    config = meta.config
    splitting: dict[str, Any] = {"val_fraction": 0.0, "test_fraction": 0.0}
    if not whole:
        splitting = {
            "val_fraction": config.get("data.val_fraction", 0.1),
            "test_fraction": config.get("data.test_fraction", 0.2),
            "per_class": config.get("data.per_class", 0),
            "split_seed": config.get("data.split_seed", 0),
            "doctor": config.get("data.doctor", True),
            "drop_leaks": drop_leaks or config.get("data.drop_leaks", False),
            "keep_copies_together": config.get("data.keep_copies_together", False),
        }
    try:
        return open_source(
            data if data.startswith("tfds:") else "folder",
            "" if data.startswith("tfds:") else data,
            on_error=on_error,
            exclude=tuple(name for name in config.get("data.exclude", ()) if has_class(data, name)),
            **splitting,
        )
    except InputError as error:
        # The advice names training's flags; here they are called otherwise.
        advice = str(error).replace("--config.data.on_error", "--on_error").replace("--config.data.dir", "--data")
        raise InputError(advice.replace(MAKE_NONE, "--split=all makes none")) from error


def has_class(data: str, name: str) -> bool:
    """Whether a class that the run left out is in this dataset at all; another dataset need not have it."""
    return data.startswith("tfds:") or any(name in folders for _, folders, _ in os.walk(data))


def choose(source: Source, name: str) -> Split:
    """A split by name, or all of them as one. Raises InputError that lists what there is."""
    if name == "all":
        whole = list(source.splits.values())
        return join(whole)
    if name not in source.splits:
        raise InputError(f"--split={name}: the data has {', '.join(source.splits)}; choose one of these or all")
    return source.splits[name]


def join(splits: list[Split]) -> Split:
    """One split of all the examples of several, in order."""
    starts = np.cumsum([0, *(len(split) for split in splits)])

    def read(index: int) -> bytes:
        which = int(np.searchsorted(starts, index, side="right")) - 1
        return splits[which].read(index - int(starts[which]))

    from_files = [split.paths for split in splits if split.paths is not None]
    return Split(
        name="all",
        labels=np.concatenate([split.labels for split in splits]),
        ids=tuple(name for split in splits for name in split.ids),
        sizes=np.concatenate([split.sizes for split in splits]),
        orientations=np.concatenate([split.orientations for split in splits]),
        paths=tuple(path for paths in from_files for path in paths) if len(from_files) == len(splits) else None,
        contents=np.concatenate([split.contents for split in splits]),
        read=read,
    )


def with_labels_of(meta: Meta, source: Source, split: Split) -> Split:
    """`split` with labels that index the checkpoint's classes. Raises InputError for a class it does not know.

    ImageNet's weights know their classes by WordNet id as well (n01440764), as ImageNet's folders are called.
    """
    from resnet.weights import classes

    places = {name: index for index, name in enumerate(meta.class_names)}
    imagenet = classes.imagenet()
    if meta.class_names == tuple(name for _, name in imagenet):
        places |= {wordnet_id: index for index, (wordnet_id, _) in enumerate(imagenet)}
    unknown = [name for name in source.class_names if name not in places]
    if unknown:
        known = ", ".join(printable(name) for name in meta.class_names[:10]) + (
            ", …" if len(meta.class_names) > 10 else ""
        )
        raise InputError(
            f"class {printable(unknown[0])!r} of the data is none of the checkpoint's {len(meta.class_names)} classes "
            f"({known}); evaluate on the classes it was trained on"
        )
    place = np.array([places[name] for name in source.class_names], np.int32)
    return dataclasses.replace(split, labels=place[split.labels])


def describe_crop(model: Model) -> str:
    crop = model.crop
    how = "squashed" if crop.resize_shorter == 0 else f"shorter side {crop.shorter_side}, centre"
    return f"{how} {crop.image_size} x {crop.image_size}"


if __name__ == "__main__":
    command.run(main)
