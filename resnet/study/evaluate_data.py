"""The data that a checkpoint is evaluated on: split as its run split them, labelled by its own classes."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from input_pipeline.carving import MAKE_NONE
from input_pipeline.errors import InputError, printable
from input_pipeline.leaks import without_leaks
from input_pipeline.sources import ARRAYS, Source, Split, open_source

if TYPE_CHECKING:
    from resnet.train.meta import Meta


def is_arrays(data: str) -> bool:
    """Whether `--data` is a file of arrays (input_pipeline.resident.write_arrays), or is called so and is no folder."""
    return Path(data).is_file() or (data.endswith(".npz") and not Path(data).is_dir())


def ran_on_arrays(meta: Meta) -> bool:
    """Whether the checkpoint is of a run over a file of arrays, which resized them where its keys say so.

    Weights of an ablation are not: its images were decoded to the network's size before it began.
    """
    return meta.config.get("data.source") == ARRAYS and "variant" not in meta.progress


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
        (MAKE_NONE, "--split=all makes no splits"),
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
            f"--data={printable(data)}: not the images that the run was given (files were added, removed or changed), "
            f"so the {name} split drawn from them is not the run's, and the run may have trained on any image of it; "
            "restore the folder, or, if the run never saw these images, use --split=all to score every one"
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
            f"class {printable(unknown[0])!r} of the data is not one of the checkpoint's {len(meta.class_names)} "
            f"classes ({known}); evaluate on the classes it was trained on"
        )
    return np.array([places[name] for name in source.class_names], np.int32)
