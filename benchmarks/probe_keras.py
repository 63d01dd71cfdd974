"""Claim: a linear probe takes one pass of the backbone where Keras' usual recipe takes one per epoch.

    python -m benchmarks.probe_keras --data=PATH/flower_photos --weights=FILE [--images=300] [--tests=100] [--out=FILE]

Each round runs, one after the other, in processes of their own and with every cache empty (compiled programs, audits,
features): ours, `configs/transfer.py:probe`, and Keras on TensorFlow with the same ResNet-50 (benchmarks/keras_twin.py)
and the same weights, trainable=False under a Dense layer, fitted with Adam. Both see the same files (of each class in
turn the first for training, the next for the test) at the same size, batch and number of epochs, learn at the same
rate and are tested once at the end. What is timed is the whole command: imports, compilation, the audit of the files
and the checkpoints (ours), decoding, all epochs, the test.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from input_pipeline.errors import InputError
from resnet import command
from resnet.weights import mapping, names
from resnet.weights.convert import convert

PEERS = ("ours", "keras")
EXTENSIONS = (".jpg", ".jpeg", ".png")
BATCH = 32
LEARNING_RATE = 0.003
WEIGHTS = "weights.npz"


def main() -> int:
    parser = command.Parser(description=__doc__)
    parser.add_argument("--data", required=True, help="a folder of class folders")
    parser.add_argument("--weights", required=True, help="our probe's weights: what config.transfer.weights takes")
    parser.add_argument("--images", type=int, default=300, help="for training")
    parser.add_argument("--tests", type=int, default=100, help="for the test")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", default="", help="the JSON file (default: benchmarks/results/probe_keras_DEVICE.json)")
    parser.add_argument("--keras_child", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.images < BATCH:
        raise InputError(f"--images={arguments.images} must be at least a batch of {BATCH}")
    if arguments.keras_child:
        accuracy = fit_keras(Path(arguments.keras_child), arguments.image_size, arguments.epochs)
        print(json.dumps({"top1": accuracy}))
        return 0
    with tempfile.TemporaryDirectory(prefix="probe-keras-") as folder:
        place = Path(folder)
        counts = copy_subset(Path(arguments.data), place / "data", arguments.images, arguments.tests)
        save_for_keras(arguments.weights, place / "data" / WEIGHTS)
        seconds: dict[str, list[float]] = {peer: [] for peer in PEERS}
        top1: dict[str, list[float]] = {peer: [] for peer in PEERS}
        for _ in range(arguments.rounds):
            for peer in PEERS:
                took, accuracy = timed(peer, place, arguments)
                seconds[peer].append(took)
                top1[peer].append(accuracy)
                print(f"{peer:6} {took:7.1f} s, {accuracy:.1%} of {counts[1]} test images", flush=True)
    medians = {peer: statistics.median(values) for peer, values in seconds.items()}
    ratio = medians["keras"] / medians["ours"]
    print(
        f"{counts[0]} images at {arguments.image_size} px, {arguments.epochs} epochs: "
        f"Keras takes {ratio:.1f} times as long"
    )
    figures = {
        "claim": "one pass of the backbone for a probe, against one per epoch",
        "images": dict(zip(("train", "test"), counts, strict=True)),
        "image_size": arguments.image_size,
        "epochs": arguments.epochs,
        "seconds": seconds,
        "test_top1": top1,
        "median": medians,
        "keras_over_ours": ratio,
    }
    record.write("probe_keras", figures, arguments.out)
    return 0


def copy_subset(data: Path, target: Path, images: int, tests: int) -> tuple[int, int]:
    """Copy files of each class in turn to target/train, then target/test; how many there were for each."""
    classes = sorted(folder for folder in data.iterdir() if folder.is_dir())
    found = [sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS) for folder in classes]
    longest = max(map(len, found), default=0)
    chosen = [paths[row] for row in range(longest) for paths in found if row < len(paths)][: images + tests]
    if len(chosen) < images + tests:
        raise InputError(f"--data={data}: has {len(chosen)} images in class folders, {images + tests} are needed")
    for index, path in enumerate(chosen):
        folder = target / ("train" if index < images else "test") / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return images, tests


def save_for_keras(source: str, target: Path) -> None:
    """Write the backbone's arrays under Keras' names, so that Keras' time holds nothing of ours."""
    converted = convert(source, model="resnet50")
    tensors = mapping.from_variables(converted.variables, converted.meta.spec, names.KERAS, has_head=False)
    contract = converted.meta.contract
    numbers: dict[str, Any] = {"mean": contract.mean, "std": contract.std, "scale": contract.scale, **tensors}
    np.savez(target, **numbers)


def timed(peer: str, place: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """(seconds, share of the test images that it gets right) of one peer's whole command, with empty caches."""
    with tempfile.TemporaryDirectory(dir=place) as cache:
        environment = os.environ | {
            "XDG_CACHE_HOME": cache,
            "JAX_COMPILATION_CACHE_DIR": f"{cache}/xla",
            "KERAS_BACKEND": "tensorflow",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        start = time.perf_counter()
        done = subprocess.run(
            command_of(peer, place, Path(cache), arguments), env=environment, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise InputError(f"{peer} ended with code {done.returncode}: {done.stderr[-500:]}")
        said = done.stdout if peer == "keras" else (Path(cache) / "run" / "metrics.jsonl").read_text(encoding="utf-8")
        return seconds, float(json.loads(said.splitlines()[-1])["top1"])


def command_of(peer: str, place: Path, cache: Path, arguments: argparse.Namespace) -> list[str]:
    if peer == "keras":
        sizes = [f"--image_size={arguments.image_size}", f"--epochs={arguments.epochs}"]
        child = [f"--keras_child={place / 'data'}", "--data=.", "--weights=.", *sizes]
        return [sys.executable, "-m", "benchmarks.probe_keras", *child]
    return [
        sys.executable,
        "train_main.py",
        "--config=configs/transfer.py:probe",
        f"--workdir={cache / 'run'}",
        f"--config.data.dir={place / 'data'}",
        f"--config.data.image_size={arguments.image_size}",
        f"--config.data.batch_size={BATCH}",
        "--config.data.val_fraction=0.0",
        "--config.run.best_metric=top1",
        f"--config.optim.lr={LEARNING_RATE}",
        "--config.optim.schedule=constant",
        f"--config.transfer.weights={arguments.weights}",
        f"--config.run.epochs={float(arguments.epochs)}",
    ]


def fit_keras(data: Path, image_size: int, epochs: int) -> float:
    """The recipe of Keras' transfer-learning guide: a frozen backbone in inference mode under a new Dense layer."""
    import keras

    from benchmarks import keras_twin

    train, test = (
        keras.utils.image_dataset_from_directory(
            data / split,
            image_size=(image_size, image_size),
            batch_size=BATCH,
            crop_to_aspect_ratio=True,
            shuffle=split == "train",
            verbose=False,
        )
        for split in ("train", "test")
    )
    tensors = np.load(data / WEIGHTS)
    backbone = keras_twin.backbone(image_size)
    keras_twin.load(backbone, tensors)
    backbone.trainable = False
    inputs = keras.Input((image_size, image_size, 3))
    contract = keras.layers.Normalization(mean=tensors["mean"], variance=tensors["std"] ** 2)
    pooled = backbone(contract(keras.layers.Rescaling(float(tensors["scale"]))(inputs)), training=False)
    model = keras.Model(inputs, keras.layers.Dense(len(train.class_names))(pooled))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(LEARNING_RATE), loss, metrics=["accuracy"])
    model.fit(train.prefetch(2), epochs=epochs, verbose=0)
    return float(model.evaluate(test.prefetch(2), verbose=0)[1])


if __name__ == "__main__":
    command.run(main)
