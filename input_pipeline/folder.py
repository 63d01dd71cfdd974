"""A folder of images: which sub-folders are splits, which are classes, and which files are images.

Understood are DATA_DIR/CLASS/... and DATA_DIR/{train,val,test}/CLASS/... under the usual names, also below single
wrapping folders (caltech101/101_ObjectCategories/CLASS). Nothing is opened here: whether a file is what its name claims
is for `images.audit` to say.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline.encoded_files import read_encoded
from input_pipeline.errors import InputError, printable
from input_pipeline.images import SPLITS, Listing

# The refused are listed all the same: the audit names them, with a hint; left out here, nobody would miss them.
SUPPORTED_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp")
_REFUSED = (".tif", ".tiff", ".heic", ".heif", ".avif", ".ppm", ".pgm")
IMAGE_EXTENSIONS = frozenset((*SUPPORTED_EXTENSIONS, *_REFUSED))
_SPLIT_STEMS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
SPLIT_NAMES = {
    stem + suffix: split
    for split, stems in _SPLIT_STEMS.items()
    for stem in stems
    for suffix in ("", "_set", "set", "-set", "_data", "_images")
}
# What archivers and file servers leave beside the data; hidden names (.git, .ipynb_checkpoints, ._x.jpg) go anyway.
_JUNK = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"))


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    size: int
    mtime_ns: int


def find_images(data_dir: Path, exclude: tuple[str, ...] = ()) -> Listing:
    """List the images under `data_dir`, sorted by split, class and path, without opening one.

    exclude: names of class folders to leave out. Ids are paths relative to `data_dir`.
    Raises InputError for a folder that is missing, empty or without images, for split folders that contradict each
    other, and for an excluded class that does not exist.
    """
    top = os.fspath(data_dir)
    if not os.path.isdir(top):
        raise InputError(f"{printable(top)}: no such folder; name a folder of images with --config.data.dir")
    root = _unwrap(top)
    splits = _split_folders(root) or {"train": root}
    classes = {split: {os.path.basename(path): path for path in _folders(top)} for split, top in splits.items()}
    class_names = sorted({name for folders in classes.values() for name in folders})
    for name in exclude:
        if name not in class_names:
            raise InputError(f"{printable(root)}: no class folder {printable(name)!r} to exclude")
    class_names = [name for name in class_names if name not in exclude]
    files: list[_File] = []
    labels: list[int] = []
    split_names: list[str] = []
    for split, folders in classes.items():
        for label, name in enumerate(class_names):
            found = sorted(_images(folders[name]), key=lambda file: file.path.split("/")) if name in folders else []
            files += found
            labels += [label] * len(found)
            split_names += [split] * len(found)
    if not files:
        raise InputError(f"{printable(top)}: no images; expected {{CLASS}}/*.jpg or {{train,val,test}}/{{CLASS}}/*.jpg")
    # Cut off and put before, for os.path's own relpath and abspath take half of the whole listing's time.
    above, absolute = len(os.path.join(top, "")), os.path.join(os.path.abspath(top), "")
    ids = tuple(file.path[above:].replace(os.sep, "/") for file in files)
    stamp = _stamp(class_names, ids, files)
    paths = tuple(absolute + file.path[above:] for file in files)

    def examine(i: int) -> tuple[bytes, int]:
        return read_encoded(paths[i]), labels[i]

    about = np.array([(file.size, file.mtime_ns) for file in files], np.int64)

    def known(i: int) -> tuple[str, int]:
        size, mtime_ns = about[i].tolist()
        return hashlib.sha256(os.fsencode(f"{ids[i]}\0{size}\0{mtime_ns}")).hexdigest()[:32], labels[i]

    return Listing(top, tuple(class_names), ids, tuple(split_names), paths, stamp, examine, known)


def _stamp(class_names: list[str], ids: tuple[str, ...], files: list[_File]) -> str:
    """sha256 (hex) over the classes, which number the labels, and each file's relative path, size and time."""
    digest = hashlib.sha256(os.fsencode("\0".join(class_names) + "\0\0"))
    for name, file in zip(ids, files, strict=True):
        digest.update(os.fsencode(f"{name}\0{file.size}\0{file.mtime_ns}\0"))
    return digest.hexdigest()


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What a folder holds, sorted by name, but for hidden names and known junk; InputError where it may not be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry for entry in entries if entry.name[0] != "." and entry.name not in _JUNK),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise InputError(f"{printable(folder)}: cannot be listed ({error.strerror})") from error


def _folders(folder: str) -> list[str]:
    return [entry.path for entry in _entries(folder) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself: it leads nowhere.
        return False


def _named_as_image(entry: os.DirEntry[str]) -> bool:
    return os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS


def _images(folder: str) -> Iterator[_File]:
    """Every image file below `folder`, each real folder visited once: a loop of links ends.

    A link that leads nowhere is listed as it stands, for the audit to name; pipes and devices are left alone.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        about = os.stat(current)
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        for entry in _entries(current):
            if _is_folder(entry):
                waiting.append(entry.path)
            elif _named_as_image(entry):
                try:
                    about = entry.stat()
                except OSError:
                    about = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(about.st_mode) or stat.S_ISLNK(about.st_mode):
                    yield _File(entry.path, about.st_size, about.st_mtime_ns)


def supported_images(folder: str) -> list[str]:
    """Paths, sorted, of the images below `folder` that `find_images` would list, but for the formats that are refused.

    Raises InputError for a folder in it that may not be read.
    """
    found = (file.path for file in _images(folder))
    supported = (path for path in found if os.path.splitext(path)[1].lower() in SUPPORTED_EXTENSIONS)
    return sorted(supported, key=lambda path: path.split(os.sep))


def any_image(folder: str) -> bool:
    """Whether `find_images` would list anything below `folder`. Raises InputError for one that may not be read."""
    return next(_images(folder), None) is not None


def _image_folders(folder: str) -> list[str]:
    """The sub-folders of `folder` below which there is an image."""
    return [path for path in _folders(folder) if any_image(path)]


def _split_of(folder: str) -> str | None:
    return SPLIT_NAMES.get(os.path.basename(folder).lower())


def _unwrap(folder: str) -> str:
    """`folder`, or the only one below it, and so on, as long as that is neither a split nor a class by itself."""
    while True:
        below = _folders(folder)
        if len(below) != 1 or _split_of(below[0]) or any(_named_as_image(entry) for entry in _entries(folder)):
            return folder
        # A class has images right in it; so a lone folder with none, but with folders of images, wraps the rest.
        if any(_named_as_image(entry) for entry in _entries(below[0])) or not _image_folders(below[0]):
            return folder
        folder = below[0]


def _split_folders(root: str) -> Mapping[str, str] | None:
    """Folder of each split of `root`, train first; None where its sub-folders are classes.

    A class may be called "train" (the vehicle): split folders are those with class folders of images in them.
    """
    named = [path for path in _folders(root) if _split_of(path)]
    others = [path for path in _image_folders(root) if path not in named]
    if not any(_image_folders(path) for path in named):
        if others or not any(any_image(path) for path in named):
            return None
        shown = printable(named[0])
        raise InputError(f"{shown}: images, but no class folders; expected {shown}/{{CLASS}}/*.jpg")
    splits: dict[str, str] = {}
    for path in named:
        name = _split_of(path) or ""
        if name in splits:
            shown = f"{printable(os.path.basename(splits[name]))!r} and {printable(os.path.basename(path))!r}"
            raise InputError(f"{printable(root)}: {shown} both name the {name} split: keep one")
        if not _image_folders(path):
            raise InputError(f"{printable(path)}: no class folders with images: add them or remove the folder")
        splits[name] = path
    if others:
        raise InputError(
            f"{printable(others[0])}: images next to {'/'.join(splits)}, but not named like a split: move it away"
        )
    if "train" not in splits:
        raise InputError(f"{printable(root)}: {' and '.join(sorted(splits))}, but no train folder: add one")
    return {name: splits[name] for name in SPLITS if name in splits}
