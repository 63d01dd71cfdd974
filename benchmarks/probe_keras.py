"""Claim: a linear probe takes one pass of the backbone where Keras' usual recipe takes one per epoch.

    python -m benchmarks.probe_keras --data=PATH/flower_photos --weights=FILE [--images=400] [--rounds=3] [--out=FILE]

Each round runs, one after the other, in processes of their own and with every cache empty (compiled programs, audits,
features): ours, `configs/transfer.py:probe`, and keras.applications.ResNet50 with trainable=False under a Dense layer,
fitted with Adam on the same images at the same size for the same number of epochs. Both see the same files (the first
of each class, in turn), no validation and no test. What is timed is the whole command: imports, compilation, the audit
of the files (ours), decoding, all epochs. Keras' weights are random, which does not change its time.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from input_pipeline.errors import InputError
from resnet import command

PEERS = ("ours", "keras")
EXTENSIONS = (".jpg", ".jpeg", ".png")
BATCH = 32


def main() -> int:
    parser = command.Parser(description=__doc__)
    parser.add_argument("--data", required=True, help="a folder of class folders")
    parser.add_argument("--weights", required=True, help="our probe's weights: what config.transfer.weights takes")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="", help="write the figures there as JSON")
    parser.add_argument("--keras_child", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.images < BATCH:
        raise InputError(f"--images={arguments.images} must be at least a batch of {BATCH}")
    if arguments.keras_child:
        fit_keras(Path(arguments.keras_child), arguments.image_size, arguments.epochs)
        return 0
    with tempfile.TemporaryDirectory(prefix="probe-keras-") as folder:
        place = Path(folder)
        count = copy_subset(Path(arguments.data), place / "data", arguments.images)
        seconds: dict[str, list[float]] = {peer: [] for peer in PEERS}
        for _ in range(arguments.rounds):
            for peer in PEERS:
                seconds[peer].append(timed(peer, place, arguments))
                print(f"{peer:6} {seconds[peer][-1]:7.1f} s", flush=True)
    medians = {peer: statistics.median(values) for peer, values in seconds.items()}
    ratio = medians["keras"] / medians["ours"]
    print(
        f"{count} images at {arguments.image_size} px, {arguments.epochs} epochs: Keras takes {ratio:.1f} times as long"
    )
    if arguments.out:
        report = {
            "claim": "one pass of the backbone for a probe, against one per epoch",
            "command": " ".join([Path(sys.executable).name, "-m", "benchmarks.probe_keras", *sys.argv[1:]]),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "images": count,
            "image_size": arguments.image_size,
            "epochs": arguments.epochs,
            "seconds": seconds,
            "median": medians,
            "keras_over_ours": ratio,
        }
        Path(arguments.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def copy_subset(data: Path, target: Path, images: int) -> int:
    """Copy the first images of each class, in turn, until there are `images`; how many there were."""
    classes = sorted(folder for folder in data.iterdir() if folder.is_dir())
    found = [sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS) for folder in classes]
    chosen = [path for row in range(images) for paths in found if row < len(paths) for path in [paths[row]]][:images]
    if not chosen:
        raise InputError(f"--data={data}: no class folders with images in them")
    for path in chosen:
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / path.parent.name)
    return len(chosen)


def timed(peer: str, place: Path, arguments: argparse.Namespace) -> float:
    """Seconds of one peer's whole command, with empty caches."""
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
    return seconds


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
        "--config.data.test_fraction=0.0",
        f"--config.transfer.weights={arguments.weights}",
        f"--config.run.epochs={float(arguments.epochs)}",
    ]


def fit_keras(data: Path, image_size: int, epochs: int) -> None:
    """The recipe of Keras' transfer-learning guide: a frozen backbone in inference mode under a new Dense layer."""
    import keras

    images = keras.utils.image_dataset_from_directory(
        data, image_size=(image_size, image_size), batch_size=BATCH, crop_to_aspect_ratio=True, verbose=False
    )
    backbone = keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=(image_size, image_size, 3), pooling="avg"
    )
    backbone.trainable = False
    inputs = keras.Input((image_size, image_size, 3))
    pooled = backbone(keras.applications.resnet50.preprocess_input(inputs), training=False)
    model = keras.Model(inputs, keras.layers.Dense(len(images.class_names))(pooled))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(images.prefetch(2), epochs=epochs, verbose=0)


if __name__ == "__main__":
    command.run(main)
