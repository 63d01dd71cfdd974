"""Where examples come from: an image folder, a tfds dataset or the drawn demo, opened as one `Source` of splits.
(A file of arrays is opened by `resident.read_arrays`, and is a `Source` too.)

The walk: list the candidates (`folder`, `demo`, `tfds_source`), read and decode each once (`images.audit`), leave out
or refuse what cannot be read, carve the splits that are missing, fingerprint what is left. Nobody downstream asks
again where an image came from.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from input_pipeline.carving import carve, few_of_each
from input_pipeline.doctor import Doctor
from input_pipeline.errors import InputError, printable
from input_pipeline.findings import Report
from input_pipeline.folder import find_images
from input_pipeline.folds import check_folds, take_fold
from input_pipeline.images import SPLITS, Audit, Listing, audit
from input_pipeline.leaks import families, without_leaks
from input_pipeline.retries import patiently

DEMO_DIR = ".data/demo"
# The `config.data.source` of a file of arrays.
ARRAYS = "arrays"


@dataclass(frozen=True)
class Split:
    """The examples of one split, in a fixed order.

    name: 'train', 'val' or 'test'. labels: int32[N], index into `Source.class_names`. ids: N unique names (path
    relative to the data folder, or 'tfds:caltech101/train#17'). sizes: int32[N, 2], height and width in pixels, upright
    (after the EXIF orientation is applied). orientations: int8[N], EXIF orientation 1..8, 1 = upright as stored.
    paths: absolute file paths, None where an example is no file of its own. contents: S32[N], equal where the encoded
    bytes are (`images.content_of`). read: encoded bytes of example i, through hiccups of the disk (`retries`); raises
    OSError. pixels: uint8[N, S, S, 3], RGB, of examples that were arrays to begin with; `read` encodes these.
    """

    name: str
    labels: np.ndarray
    ids: tuple[str, ...]
    sizes: np.ndarray
    orientations: np.ndarray
    paths: tuple[str, ...] | None
    contents: np.ndarray
    read: Callable[[int], bytes]
    pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Iterable[int] | np.ndarray, name: str | None = None) -> Split:
        """The examples at `indices` (ints, in that order) as a split of their own, called `name` (default: as this)."""
        rows = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices), np.int64)
        read = self.read
        return Split(
            name=name or self.name,
            labels=self.labels[rows],
            ids=tuple(self.ids[i] for i in rows),
            sizes=self.sizes[rows],
            orientations=self.orientations[rows],
            paths=None if self.paths is None else tuple(self.paths[i] for i in rows),
            contents=self.contents[rows],
            read=lambda i: read(int(rows[i])),
            pixels=None if self.pixels is None else self.pixels[rows],
        )

    def digest(self) -> str:
        """sha256 (hex) over the contents in order: all that what is computed from the images alone depends on."""
        return hashlib.sha256(self.contents.tobytes()).hexdigest()


@dataclass(frozen=True)
class Source:
    """An opened dataset.

    name: what was asked for ('folder', 'demo', 'tfds:...'). class_names: one sorted list for all splits. splits: by
    name, 'train' always, 'val' and 'test' where there are any. fingerprint: sha256 (hex) over class names, split
    membership, ids, labels and what the images hold. by_sizes: the same over their sizes in bytes instead, as
    fingerprints were until November 2026 ('' where nobody took it). skipped: (id, reason) of what was left out under
    on_error='skip'. report: what the doctor found, None where it was not asked or examples are no files. dropped: by
    split, the ids that drop_leaks left out, under 'exact' and 'near' as in `leaks.Leaks`. made: the names of the splits
    that were drawn out of the training images here; the data brought the others.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    fingerprint: str
    skipped: tuple[tuple[str, str], ...]
    report: Report | None = None
    dropped: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    made: tuple[str, ...] = ()
    by_sizes: str = ""

    def is_of(self, fingerprint: str) -> bool:
        """Whether a run that noted this fingerprint had these very images in these splits."""
        return fingerprint != "" and fingerprint in (self.fingerprint, self.by_sizes)


def open_source(
    source: str,
    data_dir: str = "",
    *,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    per_class: int = 0,
    folds: int = 0,
    fold: int = 0,
    split_seed: int = 0,
    on_error: str = "fail",
    cache_dir: str | None = None,
    progress: bool = True,
    leading: bool = True,
    exclude: tuple[str, ...] = (),
    doctor: bool = False,
    drop_leaks: bool = False,
    keep_copies_together: bool = False,
    for_test: bool = False,
) -> Source:
    """Open a dataset, each image of which has been read and decoded once: now, or by an earlier call on the same files.

    source: 'folder' (images under `data_dir`), 'demo' (drawn into `data_dir`, default .data/demo, when not there) or
    'tfds:NAME' (prepared under `data_dir`, default tfds' own). test_fraction, val_fraction: share, 0 <= f < 1, of the
    training images, per class, that becomes the test or validation split where the dataset has none (test first; val
    out of the rest); 0 makes none. per_class: training images to keep of each class, validation included; the others
    become the test split where the dataset has none (whatever test_fraction), else are left out; 0 keeps all.
    folds, fold: a test split that the dataset has not is part number `fold`, from 0, of so many of the training images
    (`folds.take_fold`; whatever test_fraction); 0 folds: it is not.
    on_error: 'fail' refuses a dataset with an unreadable image, 'skip' leaves such images out and lists them.
    cache_dir: where audits and the doctor's looks are kept (default under $XDG_CACHE_HOME or ~/.cache). progress: on
    standard error, where the set is large (`bars`). leading: false in all but one of several processes: of these only
    the one that audits, which may be any, shows how far it is. exclude: class folders to leave out.
    doctor: whether the doctor looks the files over, or recalls that it did; not for tfds. drop_leaks: leave out of val
    and test what stands in an earlier split too: the very bytes and, with the doctor, near copies.
    keep_copies_together: a split that is made here puts no two of the doctor's copies on different sides.
    for_test: only the test split is asked for: where the dataset brings one, no validation split is made.

    Raises InputError for everything that the user can mend.
    """
    _check(val_fraction=val_fraction, test_fraction=test_fraction, split_seed=split_seed, on_error=on_error)
    check_folds(folds, fold)
    listing = _list(source, data_dir, exclude)
    looking = Doctor(listing, cache_dir=cache_dir) if doctor and listing.paths is not None else None
    with looking.quietly() if looking else contextlib.nullcontext():
        # What the audit reads the doctor looks at as well: files may lie on a slow disk.
        also = looking.take if looking else None
        found = audit(listing, _decode, cache_dir=cache_dir, progress=progress, announce=leading, also=also)
    skipped = _unreadable(listing, found, on_error)
    splits = brought = _splits(listing, found)
    _check_classes(listing, splits)
    report = looking.look_over(progress=progress and leading) if looking else None
    if keep_copies_together and report is None:
        raise InputError("keep_copies_together: only the doctor finds copies, and it checks only folders of images")
    copies = families(report) if keep_copies_together and report else []
    if per_class:
        # What is left out, where the dataset brings a test split, is on no side.
        heeded = [] if "test" in splits else copies
        few = few_of_each(splits["train"], per_class, split_seed, listing.class_names, heeded)
        splits = few | splits | {"train": few["train"]}
    if folds and "test" not in splits:
        # Of two images of a class one trains and one is for validation.
        left = 2 if "val" not in splits and val_fraction > 0 else 1
        splits = splits | take_fold(splits["train"], folds, fold, split_seed, listing.class_names, copies, left)
    for missing, fraction in (("test", test_fraction), ("val", val_fraction)):
        if missing not in splits and fraction > 0 and not (for_test and "test" in brought):
            splits = splits | carve(splits["train"], missing, fraction, split_seed, listing.class_names, copies)
    ordered = {name: splits[name] for name in SPLITS if name in splits}
    prints = [_fingerprint(listing, ordered, each) for each in (found.contents.tolist(), found.byte_sizes.tolist())]
    made = tuple(name for name in ordered if name not in brought)
    opened = Source(source, listing.class_names, ordered, prints[0], skipped, report, made=made, by_sizes=prints[1])
    return without_leaks(opened) if drop_leaks else opened


def _check(*, val_fraction: float, test_fraction: float, split_seed: int, on_error: str) -> None:
    for key, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= fraction < 1:
            raise InputError(f"config.data.{key}={fraction}: give a share of the training images, 0 <= share < 1")
    if not 0 <= split_seed < 2**64:
        raise InputError(f"config.data.split_seed={split_seed}: give a number from 0 to 2**64 - 1")
    if on_error not in ("fail", "skip"):
        raise InputError(f"config.data.on_error={on_error!r}: choose 'fail' or 'skip'")


def check_place(source: str, data_dir: str) -> None:
    """What opening these would say at once: raises InputError for an unknown source or a missing folder or file."""
    if source == "folder":
        if not data_dir:
            raise InputError("config.data.dir is empty: name the folder of images")
        if not os.path.isdir(data_dir):
            raise InputError(f"{printable(data_dir)}: no such folder; name a folder of images with --config.data.dir")
    elif source == ARRAYS:
        if not data_dir:
            raise InputError("config.data.dir is empty: name the .npz file of arrays")
        if not os.path.isfile(data_dir):
            raise InputError(f"{printable(data_dir)}: no such file; name a file of arrays with --config.data.dir")
    elif source != "demo" and not source.startswith("tfds:"):
        raise InputError(
            f"config.data.source={source!r}: choose 'folder', 'demo', 'tfds:NAME' (tfds:caltech101) or 'arrays'"
        )


def _list(source: str, data_dir: str, exclude: tuple[str, ...]) -> Listing:
    check_place(source, data_dir)
    if source == "folder":
        return find_images(Path(data_dir), exclude)
    if source == "demo":
        # Here, not above: a run on one's own images needs no drawing.
        from input_pipeline.demo import write_demo

        folder = Path(data_dir or DEMO_DIR)
        write_demo(folder)
        return find_images(folder, exclude)
    # Here, not above: importing tensorflow_datasets takes seconds.
    from input_pipeline.tfds_source import find_examples

    return find_examples(source.removeprefix("tfds:"), data_dir, exclude)


def _decode(data: bytes, name: str) -> tuple[int, int]:
    """Decode as the feed does: height and width in pixels, as stored."""
    # Here, not above: everything but the audit and the tf.data feed works on a machine without TensorFlow.
    from input_pipeline.stream import decode

    height, width, _ = decode(data, name).shape
    return height, width


def _unreadable(listing: Listing, found: Audit, on_error: str) -> tuple[tuple[str, str], ...]:
    """(id, reason) of every example that the audit could not read; raises InputError where on_error is 'fail'."""
    bad = tuple((name, reason) for name, reason in zip(listing.ids, found.reasons, strict=True) if reason)
    if bad and on_error == "fail":
        name, reason = bad[0]
        rest = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise InputError(
            f"{printable(name)}: {reason}{rest}; fix or remove it, or skip such images with --config.data.on_error=skip"
        )
    return bad


def _splits(listing: Listing, found: Audit) -> dict[str, Split]:
    """The readable examples of each split that the dataset itself has; 'train' even where nothing of it is left."""
    readable = np.array([not reason for reason in found.reasons], bool)
    membership = np.array(listing.split_names)
    read = lambda i: patiently(lambda: listing.examine(i)[0])  # noqa: E731
    whole = Split("", found.labels, listing.ids, found.sizes, found.orientations, listing.paths, found.contents, read)
    names = [name for name in SPLITS if name == "train" or np.any(membership == name)]
    return {name: whole.take(np.flatnonzero(readable & (membership == name)), name) for name in names}


def _check_classes(listing: Listing, splits: Mapping[str, Split]) -> None:
    """Every class needs an image to learn from; a class without images in val or test is allowed."""
    where = printable(listing.where)
    if len(listing.class_names) < 2:
        raise InputError(f"{where}: only one class, {printable(listing.class_names[0])!r}: a classifier needs two")
    counts = {name: np.bincount(split.labels, minlength=len(listing.class_names)) for name, split in splits.items()}
    for label, class_name in enumerate(listing.class_names):
        if counts["train"][label]:
            continue
        elsewhere = [name for name in splits if counts[name][label]]
        if elsewhere:
            raise InputError(
                f"{where}: class {printable(class_name)!r} is in {elsewhere[-1]} but has no image in train: add some, "
                "remove the class, or correct the spelling of its folder"
            )
        raise InputError(
            f"{where}: class {printable(class_name)!r} has no readable image: add some or remove its folder"
        )


def _fingerprint(listing: Listing, splits: Mapping[str, Split], images: Sequence[object]) -> str:
    """sha256 (hex) over class names, split names and (id, label, what `images` says of it) of every example in order.

    images: of each of the listing's examples, in its order.
    """
    digest = hashlib.sha256()

    def add(*fields: object) -> None:
        # NUL ends a field: no file name holds one, so no two lists of fields give the same bytes.
        digest.update("".join(f"{field}\0" for field in fields).encode("utf-8", "surrogateescape"))

    said_of = dict(zip(listing.ids, images, strict=True))
    add(len(listing.class_names), *listing.class_names)
    for name, split in splits.items():
        add(name, len(split))
        for example, label in zip(split.ids, split.labels.tolist(), strict=True):
            add(example, label, said_of[example])
    return digest.hexdigest()
