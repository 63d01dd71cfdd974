"""A tfds dataset with random access: its images stay encoded, so that they go the way of files in a folder.

It must have been prepared on this machine in a format of random access (array_record); nothing is downloaded here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from input_pipeline.errors import InputError, printable
from input_pipeline.folder import SPLIT_NAMES
from input_pipeline.images import SPLITS, Listing
from input_pipeline.shell_words import shell_word


def find_examples(name: str, data_dir: str = "", exclude: tuple[str, ...] = ()) -> Listing:
    """List the examples of the tfds dataset `name` ('caltech101', 'imagenet2012:5.1.0' ...), train, val, then test.

    data_dir: tfds' data folder, '' for its default. exclude: classes to leave out. Class names are sorted, whatever
    order tfds numbers them in, as those of a folder are. A split without labels (ImageNet's test) is left out, and
    where there is no test but a validation split, that is the test split.
    Raises InputError for an unknown dataset, one not prepared, and one that is no image classification.
    """
    import tensorflow_datasets as tfds  # Here, not above: importing it takes seconds, and only this function needs it.

    where = f"tfds:{name}"
    folder = str(Path(data_dir).expanduser()) if data_dir else None
    try:
        builder = tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError as error:
        raise InputError(
            f"config.data.source={printable(where)!r}: unknown to tfds, and not found in {folder or 'its data folder'}"
        ) from error
    except (ValueError, TypeError, AssertionError) as error:
        raise InputError(f"config.data.source={printable(where)!r}: {_one_line(error)}") from error
    remedy = f"prepare it with: ./run.sh python -c {_preparing(name, folder)}"
    if not builder.is_prepared():
        raise InputError(f"{printable(where)}: not prepared under {printable(str(builder.data_dir))}; {remedy}")
    image_key, label_key = _keys(tfds, builder, where)
    try:
        sources = _open_splits(tfds, builder, image_key, label_key)
    except NotImplementedError as error:
        raise InputError(
            f"{printable(where)}: prepared in a format without random access; remove "
            f"{printable(str(builder.data_dir))}, and {remedy}"
        ) from error
    if "train" not in sources:
        raise InputError(f"{printable(where)}: has no train split with labels")
    return _listing(where, builder, sources, (image_key, label_key), exclude)


def _preparing(name: str, folder: str | None) -> str:
    """The program that prepares a dataset, quoted for a shell. Not `tfds build`: it imports apache_beam, which is not
    among our packages."""
    place = f", data_dir={folder!r}" if folder else ""
    builder = f"tfds.builder({name!r}{place}, file_format='array_record')"
    program = f"import tensorflow_datasets as tfds; {builder}.download_and_prepare()"
    return shell_word(program) if set(program) & set('"$`\\!') else f'"{program}"'


def _one_line(error: BaseException) -> str:
    return printable(" ".join(str(error).split())[:300])


def _keys(tfds: Any, builder: Any, where: str) -> tuple[str, str]:
    """Names of the image and of the label among the dataset's features."""
    features = builder.info.features
    keys = builder.info.supervised_keys or ("image", "label")
    image, label = (features[key] if key in features.keys() else None for key in keys[:2])  # noqa: SIM118 (no dict)
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise InputError(
            f"{printable(where)}: is not an image classification dataset: it has {', '.join(sorted(features))}"
        )
    return keys[0], keys[1]


def _open_splits(tfds: Any, builder: Any, image_key: str, label_key: str) -> dict[str, tuple[str, Any]]:
    """(tfds' name, random access) of each labelled split that we call 'train', 'val', 'test'."""
    opened: dict[str, tuple[str, Any]] = {}
    for theirs in builder.info.splits:
        ours = SPLIT_NAMES.get(theirs.lower())
        if ours is None or ours in opened:
            continue
        source = builder.as_data_source(split=theirs, decoders={image_key: tfds.decode.SkipDecoding()})
        if len(source) and int(source[0][label_key]) >= 0:  # tfds marks what has no label with -1
            opened[ours] = theirs, source
    if "test" not in opened and "val" in opened:
        opened["test"] = opened.pop("val")
    return {split: opened[split] for split in SPLITS if split in opened}


def _listing(
    where: str, builder: Any, sources: dict[str, tuple[str, Any]], keys: tuple[str, str], exclude: tuple[str, ...]
) -> Listing:
    image_key, label_key = keys
    theirs: list[str] = builder.info.features[label_key].names
    for name in exclude:
        if name not in theirs:
            raise InputError(f"{printable(where)}: no class {printable(name)!r} to exclude")
    class_names = tuple(sorted(set(theirs) - set(exclude)))
    position = {name: label for label, name in enumerate(class_names)}
    label_of = [position.get(name, -1) for name in theirs]
    rows: list[tuple[str, int]] = []
    for split, (_, source) in sources.items():
        # Labels stand in the records only: finding those to leave out takes a pass of its own over the data.
        kept = (i for i in range(len(source)) if not exclude or label_of[int(source[i][label_key])] >= 0)
        rows += ((split, i) for i in kept)

    def examine(i: int) -> tuple[bytes, int]:
        split, row = rows[i]
        example = sources[split][1][row]
        return bytes(example[image_key]), label_of[int(example[label_key])]

    return Listing(
        where=where,
        class_names=class_names,
        ids=tuple(f"{where}/{sources[split][0]}#{row}" for split, row in rows),
        split_names=tuple(split for split, _ in rows),
        paths=None,
        stamp=_stamp(builder, class_names),
        examine=examine,
    )


def _stamp(builder: Any, class_names: tuple[str, ...]) -> str:
    """sha256 (hex) over the dataset's name and version, the classes asked for, and its files' sizes and times."""
    digest = hashlib.sha256("\0".join((builder.info.full_name, *class_names)).encode())
    for path in sorted(Path(builder.data_dir).iterdir()):
        about = path.stat()
        digest.update(f"\0{path.name}\0{about.st_size}\0{about.st_mtime_ns}".encode())
    return digest.hexdigest()
