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
from input_pipeline.leaks import without_leaks
from input_pipeline.sources import ARRAYS, Source, Split, open_source
from resnet import command
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
    parser.add_argument("--data_dir", default="", help="where tfds:NAME lies (default: as in the run, else tfds' own)")
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="all: every image of the dataset (default: test)"
    )
    parser.add_argument(
        "--image_size", type=int, default=0, help="side of the crop in pixels (default: the checkpoint's)"
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
            raise InputError(f"--image_size={arguments.image_size}: the file's images are of one size; leave it away")
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


def is_arrays(data: str) -> bool:
    """Whether `--data` is a file of arrays (input_pipeline.resident.write_arrays), or is called so and is no folder."""
    return Path(data).is_file() or (data.endswith(".npz") and not Path(data).is_dir())


def ran_on_arrays(meta: Meta) -> bool:
    """Whether the checkpoint is of a run over a file of arrays, which resized them where its keys say so.

    Weights of an ablation are not: its images were decoded to the network's size before it began.
    """
    return meta.config.get("data.source") == ARRAYS and "variant" not in meta.progress


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
        watch=lambda batches: tqdm(batches, total=-(-len(split) // size), unit="batch", leave=False, disable=None),
    )
    return judge(source, name, model.meta.step, predictions)


def dtype_of(meta: Meta) -> str:
    """What the run computed in: 'bfloat16' or 'float32', which is also that of converted weights."""
    return "bfloat16" if meta.config.get("run.dtype") == "bfloat16" else "float32"


def open_like(
    meta: Meta, data: str, on_error: str, *, split: str = "test", data_dir: str = "", drop_leaks: bool = False
) -> Source:
    """The dataset, split as the run of the checkpoint split it (by the defaults where the checkpoint is of no run).

    split: what is asked for. 'all': every image of the classes that the run took, in the splits that the data bring;
    nothing is held out or left out, so that data which cannot be split do as well. data_dir: of tfds, '' for the run's
    where that had the same dataset, else tfds' own. drop_leaks: leave out of val and test what also stands in an
    earlier split, whatever the run did. For 'test' of data that bring one, no validation split is drawn.
    Raises InputError for what the user can mend, in this command's flags, and for a split that cannot be the run's.
    """
    config, from_tfds = meta.config, data.startswith("tfds:")
    if from_tfds and config.get("data.source") == data:
        data_dir = data_dir or config.get("data.dir", "")
    splitting: dict[str, Any] = {"val_fraction": 0.0, "test_fraction": 0.0}
    if split != "all":
        splitting = {
            "val_fraction": config.get("data.val_fraction", 0.1),
            "test_fraction": config.get("data.test_fraction", 0.2),
            "per_class": config.get("data.per_class", 0),
            "folds": config.get("data.folds", 0),
            "fold": config.get("data.fold", 0),
            "split_seed": config.get("data.split_seed", 0),
            "doctor": config.get("data.doctor", True),
            "drop_leaks": config.get("data.drop_leaks", False),
            "keep_copies_together": config.get("data.keep_copies_together", False),
            "for_test": split == "test",
        }
    try:
        if is_arrays(data):
            # config.data.eval_image_size, which meta.image_size is then, is no size of the file's images.
            side = config.get("data.image_size", meta.image_size) if ran_on_arrays(meta) else meta.image_size
            # Here, not above: it imports jax.
            from input_pipeline.resident import read_arrays

            source = read_arrays(Path(data), side).as_source(ARRAYS)
        else:
            source = open_source(
                data if from_tfds else "folder",
                data_dir if from_tfds else data,
                on_error=on_error,
                exclude=tuple(name for name in config.get("data.exclude", ()) if has_class(data, name)),
                **splitting,
            )
    except InputError as error:
        raise InputError(in_these_flags(str(error))) from error
    require_runs_split(meta, source, split, data)
    # Behind the comparison: what is left out changes the fingerprint.
    done = splitting.get("drop_leaks") and not is_arrays(data)
    return without_leaks(source) if drop_leaks and not done else source


def in_these_flags(advice: str) -> str:
    """What opening the data advises, which names training's flags; here they are called otherwise."""
    for theirs, ours in (
        ("--config.data.on_error", "--on_error"),
        ("--config.data.dir a file", "--data a folder of images, tfds:NAME or a file"),
        ("--config.data.dir", "--data"),
        ("set --config.data.image_size=", "the checkpoint is of another size, not of "),
        ("config.data.source=", "--data="),
        (MAKE_NONE, "--split=all makes none"),
    ):
        advice = advice.replace(theirs, ours)
    return advice


def require_runs_split(meta: Meta, source: Source, name: str, data: str) -> None:
    """Raise InputError where the split `name` was drawn here and is not known to be the one that the run drew.

    The draw hangs on all images: with one more or less it takes others, most of which the run trained on. Data that
    the run never saw cannot be told from that, for a checkpoint holds no list of its images; all of those are test.
    """
    if name == "all" or not meta.fingerprint or source.is_of(meta.fingerprint):
        return
    # For a class that it does not know, this is the plainer word.
    places_of(meta, source)
    drawn_train = name == "train" and (source.made or meta.config.get("data.per_class"))
    if name in source.made or drawn_train:
        raise InputError(
            f"--data={printable(data)}: not the images that the run was given (files came, went or changed), so the "
            f"{name} split drawn of them is not the run's, and the run may have trained on any image of it; give the "
            "folder as it was, or, if the run never saw these images, --split=all scores every one"
        )


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

    arrays = [split.pixels for split in splits if split.pixels is not None]
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
        # Up to 8 GiB: no copy of a single split.
        pixels=(arrays[0] if len(arrays) == 1 else np.concatenate(arrays)) if len(arrays) == len(splits) else None,
    )


def with_labels_of(meta: Meta, source: Source, split: Split) -> Split:
    """`split` with labels that index the checkpoint's classes. Raises InputError for a class it does not know."""
    return dataclasses.replace(split, labels=places_of(meta, source)[split.labels])


def places_of(meta: Meta, source: Source) -> np.ndarray:
    """int32 per class of the data, its index among the checkpoint's. Raises InputError for one it does not know.

    ImageNet's weights know their classes by WordNet id as well (n01440764), as ImageNet's folders are called, and data
    whose classes are called 0 to 999, as ImageNet-V2's folders are, by their place.
    """
    from resnet.weights import classes

    places = {name: index for index, name in enumerate(meta.class_names)}
    ids, words = zip(*classes.imagenet(), strict=True)
    if meta.class_names == words:
        places |= {wordnet_id: index for index, wordnet_id in enumerate(ids)}
    numbers = {str(index): index for index in range(len(ids))}
    # All of them: the ten folders of a set of digits, say, are none of these classes.
    if meta.class_names in (words, ids) and set(source.class_names) == numbers.keys():
        places = numbers
    unknown = [name for name in source.class_names if name not in places]
    if unknown:
        known = ", ".join(printable(name) for name in meta.class_names[:10]) + (
            ", …" if len(meta.class_names) > 10 else ""
        )
        raise InputError(
            f"class {printable(unknown[0])!r} of the data is none of the checkpoint's {len(meta.class_names)} classes "
            f"({known}); evaluate on the classes it was trained on"
        )
    return np.array([places[name] for name in source.class_names], np.int32)


def describe_crop(model: Model) -> str:
    crop = model.crop
    how = "squashed" if crop.resize_shorter == 0 else f"shorter side {crop.shorter_side}, centre"
    return f"{how} {crop.image_size} x {crop.image_size}"


if __name__ == "__main__":
    command.run(main)
