"""How far a streamed random-resized crop is from Pillow's: whole decoding, crop, bilinear resize.

    python -m benchmarks.crop_agreement DATA_DIR [--sizes=32,64,112,224] [--images=64]

DATA_DIR is a folder of classes of JPEG files; of each of --images of them, evenly spread, the crops of the first two
epochs are cut. Levels are of 255. Beside ours, on the crops for which it reduces too: what Pillow itself makes when it
has libjpeg reduce (`draft` to twice the size of the crop, then `resize(box=..., reducing_gap=2)`).
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.crops import Crop, boxes
from input_pipeline.cuts import LEAST_REDUCTION, Cut, cuts
from input_pipeline.errors import InputError
from resnet.command import run

_EPOCHS = 2
_BILINEAR = Image.Resampling.BILINEAR


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--sizes", default="32,64,112,224", help="sides of the crop in pixels")
    parser.add_argument("--images", type=int, default=64)
    given = parser.parse_args(arguments)
    files = sorted(given.data_dir.glob("*/*.jpg"))
    if not files:
        raise InputError(f"{given.data_dir}: holds no JPEG files in folders of classes")
    chosen = np.linspace(0, len(files) - 1, min(given.images, len(files))).astype(int)
    for size in (int(word) for word in given.sizes.split(",")):
        found: dict[str, list[np.ndarray]] = {}
        for number in chosen:
            for name, difference in differences(files[number].read_bytes(), int(number), size):
                found.setdefault(name, []).append(difference)
        for name, all_of_them in found.items():
            levels = np.concatenate([difference.ravel() for difference in all_of_them])
            print(
                f"{size:4} px  {name:30} {len(all_of_them):4} crops  mean {levels.mean():.2f}  max {levels.max()}  "
                f"more than 1: {(levels > 1).mean():.1%}",
                flush=True,
            )


def differences(data: bytes, number: int, size: int) -> Iterator[tuple[str, np.ndarray]]:
    """What was compared, and |level - Pillow's level| of each of its values: int[size, size, 3]."""
    crop = Crop("random_resized", size)
    image = Image.open(io.BytesIO(data))
    whole, sizes = image.convert("RGB"), np.array([[image.height, image.width]] * _EPOCHS)
    drawn = boxes(crop, 0, np.arange(_EPOCHS), np.full(_EPOCHS, number), sizes)
    planned = cuts(crop, drawn, sizes)
    for row, (top, left, height, width) in enumerate(drawn.tolist()):
        piece = whole.crop((left, top, left + width, top + height))
        expected = np.asarray(piece.resize((size, size), _BILINEAR)).astype(int)
        ours = np.abs(streamed(data, Cut(*(part[row] for part in planned)), crop) - expected)
        halvings = int(planned.halvings[row])
        yield ("ours, decoded at 1/1" if halvings == 0 else "ours, decoded smaller"), ours
        if halvings:
            yield "Pillow's draft and resize", np.abs(drafted(data, drawn[row].tolist(), size) - expected)


def streamed(data: bytes, cut: Cut, crop: Crop) -> np.ndarray:
    """The crop as the feed makes it."""
    from input_pipeline.decode import training_image
    from input_pipeline.stream import _tensorflow

    tf = _tensorflow()
    tensors = Cut(*(tf.constant(part) for part in cut))
    return training_image(tf, tf.constant(data), tf.constant(1), tensors, crop).numpy().astype(int)


def drafted(data: bytes, box: list[int], size: int) -> np.ndarray:
    """The crop by Pillow, which asks libjpeg for LEAST_REDUCTION times the pixels that it needs."""
    top, left, height, width = box
    image = Image.open(io.BytesIO(data))
    full = image.size
    wanted = LEAST_REDUCTION * size
    image.draft("RGB", (-(-full[0] * wanted // width), -(-full[1] * wanted // height)))
    ratio = round(full[0] / image.width)
    edges = (left / ratio, top / ratio, (left + width) / ratio, (top + height) / ratio)
    reduced = image.convert("RGB").resize((size, size), _BILINEAR, box=edges, reducing_gap=LEAST_REDUCTION)
    return np.asarray(reduced).astype(int)


if __name__ == "__main__":
    run(main)
