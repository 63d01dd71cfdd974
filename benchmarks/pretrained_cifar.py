"""Published CIFAR-10 ResNets, converted: accuracy on all 10,000 test images beside the published figure and torch's.

    python -m benchmarks.pretrained_cifar --weights=FOLDER --data=FOLDER/cifar10

Claim: converted weights classify as the original ones do. Peer: the same state_dict evaluated by torch on the same
pixels. The weights (Y. Idelbayev's resnet20-12fca82f.th and resnet32-d509ac18.th) and CIFAR-10 as PNG are the user's.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from input_pipeline.errors import InputError
from resnet import command
from resnet.study.inference import Model
from resnet.train.checkpoints import Meta
from resnet.train.state import Variables
from resnet.weights import torch_network
from resnet.weights.convert import convert

# File -> (model, published top-1 in percent).
PUBLISHED = {"resnet20-12fca82f.th": ("cifar_resnet20", 91.73), "resnet32-d509ac18.th": ("cifar_resnet32", 92.63)}
BATCH = 250


def main() -> None:
    parser = command.Parser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the two .th files")
    parser.add_argument("--data", type=Path, required=True, help="folder with test/CLASS/*.png")
    arguments = parser.parse_args()
    images, labels = read_test_images(arguments.data / "test")
    for name, (model, published) in PUBLISHED.items():
        print(
            json.dumps(
                {"weights": name, "published": published, **measure(arguments.weights / name, model, images, labels)}
            ),
            flush=True,
        )


def read_test_images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8[N, 32, 32, 3] and int32[N], classes in the order of their names (which is CIFAR's)."""
    files = sorted(folder.rglob("*.png"))
    if not files:
        raise InputError(f"{folder}: no PNG files; give the folder that holds test/CLASS/*.png")
    classes = sorted({file.parent.name for file in files})
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return images, np.array([classes.index(file.parent.name) for file in files], np.int32)


def measure(path: Path, model: str, images: np.ndarray, labels: np.ndarray) -> dict[str, object]:
    """Top-1 in percent here and in torch, images that the two classify differently, seconds of each."""
    converted = convert(str(path), model=model)
    start = time.perf_counter()
    ours = predict(converted.variables, converted.meta, images)
    middle = time.perf_counter()
    theirs = predict_by_torch(converted.file.tensors, converted.meta, images).argmax(1)
    end = time.perf_counter()
    return {
        "images": len(labels),
        "top1": round(100 * float((ours == labels).mean()), 2),
        "torch_top1": round(100 * float((theirs == labels).mean()), 2),
        "different_answers": int((ours != theirs).sum()),
        "seconds": round(middle - start, 1),
        "torch_seconds": round(end - middle, 1),
    }


def predict(variables: Variables, meta: Meta, images: np.ndarray) -> np.ndarray:
    """The class of each image by the path that `predict` and `evaluate` take."""
    from input_pipeline.crops import Crop
    from resnet.model.network import ResNet

    crop = Crop(kind="none", image_size=meta.image_size, resize_shorter=meta.resize_shorter)
    return Model(ResNet(meta.spec), variables, meta, crop).probabilities(images, BATCH).argmax(1)


def predict_by_torch(tensors: Mapping[str, np.ndarray], meta: Meta, images: np.ndarray) -> np.ndarray:
    """uint8[N, S, S, 3] -> logits float32[N, C] of a torch file's own tensors, run in torch."""
    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    answers = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            pixels = (images[start : start + BATCH] * np.float32(1 / 255) - meta.contract.mean) / meta.contract.std
            batch = torch.from_numpy(pixels.astype(np.float32).transpose(0, 3, 1, 2).copy())
            answers.append(torch_network.features(state, batch)["logits"].numpy())
    return np.concatenate(answers)


if __name__ == "__main__":
    command.run(main)
