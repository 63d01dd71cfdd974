"""Photographs of full size out of small ones: four a file, two by two, with all the detail that photographs have.

    python -m benchmarks.mosaics FLOWERS_DIR OUT_DIR [--count=500]

For benchmarks/feed.py where only reduced photographs are at hand, as ../shared/data's flower_photos of 160 px: enlarged
ones would decode faster than real ones, for they have no fine detail. Of each class folder of FLOWERS_DIR the files are
taken in an order drawn from seed 0; upright ones are laid on their side, and all four cut to the least of their sides.
Written as JPEG of quality 84, that of flower_photos.
"""

import argparse
import random
from pathlib import Path

from PIL import Image

from input_pipeline.errors import InputError
from resnet.command import run

QUALITY = 84


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flowers_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--count", type=int, default=500, help="files in all, at most")
    given = parser.parse_args(arguments)
    classes = (
        sorted(path for path in given.flowers_dir.iterdir() if path.is_dir()) if given.flowers_dir.is_dir() else []
    )
    if not classes:
        raise InputError(f"{given.flowers_dir}: is not a folder of classes")
    made = sum(write(folder, given.out_dir / folder.name, given.count // len(classes)) for folder in classes)
    print(f"{made} files in {given.out_dir}")


def write(folder: Path, out: Path, count: int) -> int:
    """Write at most `count` mosaics of the JPEG files in `folder` into `out`; how many."""
    files = sorted(folder.glob("*.jpg"))
    random.Random(0).shuffle(files)
    out.mkdir(parents=True, exist_ok=True)
    groups = [files[start : start + 4] for start in range(0, min(4 * count, len(files) - 3), 4)]
    for number, group in enumerate(groups):
        mosaic([Image.open(file) for file in group]).save(out / f"{number:04}.jpg", quality=QUALITY)
    return len(groups)


def mosaic(images: list[Image.Image]) -> Image.Image:
    """Four images, two by two."""
    lying = [image.transpose(Image.Transpose.ROTATE_90) if image.height > image.width else image for image in images]
    width, height = min(image.width for image in lying), min(image.height for image in lying)
    whole = Image.new("RGB", (2 * width, 2 * height))
    for place, image in enumerate(lying):
        whole.paste(image.crop((0, 0, width, height)), (place % 2 * width, place // 2 * height))
    return whole


if __name__ == "__main__":
    run(main)
