"""Converted weights and torch on real photographs: on how many images the two give the same class, and how far apart.

    python -m benchmarks.pretrained_agreement --source=resnet50.pth --images=FOLDER [--limit=200]

Claim: the same class on every image. Peer: the same state_dict evaluated by torch on the same decoded pixels. Images
need no labels; with --limit they are taken evenly from the sorted list of files.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from benchmarks.pretrained_cifar import predict_by_torch
from input_pipeline.augment import prepare
from input_pipeline.crops import Crop
from resnet import command
from resnet.model.network import ResNet
from resnet.study.inference import Model, padded
from resnet.study.predict import image_files, read_image
from resnet.weights.convert import convert

BATCH = 20


def main() -> None:
    parser = command.Parser(description=__doc__)
    parser.add_argument("--source", required=True, help="a torch file, or a known name such as torchvision:resnet50_v1")
    parser.add_argument("--images", required=True, help="folder of images, searched through")
    parser.add_argument("--limit", type=int, default=200, help="images to take, evenly (default: 200)")
    arguments = parser.parse_args()
    converted = convert(arguments.source)
    meta = converted.meta
    network = ResNet(meta.spec)
    crop = Crop("none", meta.image_size, resize_shorter=meta.resize_shorter, interpolation=meta.contract.interpolation)
    model = Model(network, converted.variables, meta, crop)
    answer = jax.jit(lambda images: network.apply(converted.variables, prepare(images, meta.contract), train=False))
    same, total, error = 0, 0, 0.0
    for pixels in batches(model, Path(arguments.images), arguments.limit):
        batch, count = next(padded(pixels, BATCH))
        ours = np.asarray(answer(batch))[:count]
        theirs = predict_by_torch(converted.file.tensors, meta, pixels)
        same += int((ours.argmax(1) == theirs.argmax(1)).sum())
        total += count
        error = max(error, float(np.abs(ours - theirs).max() / theirs.std()))
    result = {"images": total, "same_top1": same, "largest_error": float(f"{error:.2g}")}
    print(json.dumps({"source": arguments.source, "set": arguments.images, **result}))


def batches(model: Model, folder: Path, limit: int) -> Iterator[np.ndarray]:
    """uint8[b, S, S, 3] of the chosen files, cropped as the weights are evaluated."""
    files = list(image_files([str(folder)]))
    chosen = [files[index] for index in np.linspace(0, len(files) - 1, min(limit, len(files))).astype(int)]
    for start in range(0, len(chosen), BATCH):
        yield np.stack([read_image(model, path) for path in chosen[start : start + BATCH]])


if __name__ == "__main__":
    command.run(main)
