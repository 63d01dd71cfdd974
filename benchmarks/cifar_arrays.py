"""CIFAR-10 cut out of lossless mosaics into one file of arrays: 40 images of 32 px a row, {train,test}_CLASS.webp."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

COLUMNS, SIDE = 40, 32
# CIFAR-10's classes, and the images of each in a split.
CLASSES, IMAGES = 10, {"train": 5000, "test": 1000}


def write_cifar(folders: Sequence[str], file: Path) -> None:
    """Cut the mosaics into arrays, in the order in which the folder source lists the images: by class, then number.

    Raises InputError unless all of CIFAR-10 is there: of half of its classes everything runs, and learns far better.
    """
    from PIL import Image

    from input_pipeline.errors import InputError
    from input_pipeline.resident import Images, make_resident, write_arrays

    Image.MAX_IMAGE_PIXELS = COLUMNS * SIDE * 200 * SIDE  # 8,000 images of a class
    sheets = {path.stem: path for folder in folders for path in Path(folder).glob("*_*.webp")}
    names = tuple(sorted({stem.partition("_")[2] for stem in sheets}))
    missing = {f"{split}_{name}" for split in IMAGES for name in names} - sheets.keys()
    if len(names) != CLASSES or missing:
        raise InputError(
            f"{', '.join(map(str, folders))}: holds mosaics of {len(names)} classes, {len(sheets)} files; CIFAR-10 has "
            f"{CLASSES} classes, each as train_CLASS.webp and test_CLASS.webp"
        )
    splits = {}
    for split, images in IMAGES.items():
        tiles = []
        for name in names:
            pixels = np.asarray(Image.open(sheets[f"{split}_{name}"], formats=("WEBP",)).convert("RGB"))
            cells = pixels.reshape(pixels.shape[0] // SIDE, SIDE, COLUMNS, SIDE, 3)
            tiles.append(cells.transpose(0, 2, 1, 3, 4).reshape(-1, SIDE, SIDE, 3))
        if any(len(tile) != images for tile in tiles):
            raise InputError(
                f"{', '.join(map(str, folders))}: each {split}_CLASS.webp of CIFAR-10 holds {images} images"
            )
        labels = np.repeat(np.arange(len(names), dtype=np.int32), [len(tile) for tile in tiles])
        splits[split] = Images(np.concatenate(tiles), labels)
    write_arrays(make_resident(names, splits), file)
