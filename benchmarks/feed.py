"""images/s of feeding: bare decoding, our two feeds, what others would use, and training on each; interleaved.

    python -m benchmarks.feed DATA_DIR [--image_size=224] [--batch_size=32] [--rounds=3] [--batches=20]
                              [--model=resnet18] [--train_steps=4] [--peers=...]

A folder of classes is fed with random-resized crops and flips, as training does, with all cores. Feeding alone:

decode          libjpeg-turbo through TensorFlow, whole images, nothing else
stream          config.data.feed=stream: partial decoding, crop and resize on the host, uint8 (the flip is the step's)
resident        config.data.feed=resident: the crop alone, out of decoded images that stay on the device
torch           torch's DataLoader over Pillow (uint8 tensors), a worker a core
tf_data         decode_jpeg, random crop, tf.image.resize to float32, flip: a tf.data pipeline as tutorials have it
keras           keras.utils.image_dataset_from_directory, then RandomCrop and RandomFlip layers

Training (images/s of whole steps of --model): `synthetic` repeats one batch that lies on the device, then each feed.
"How slow is input" is the share of synthetic that is reached. Writes benchmarks/results/feed_SIZE_DEVICE.json.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
CORES = os.cpu_count() or 1
# Batches and steps ahead of the clock: as many as any feed makes ahead (torch: two a worker).
WARM, WARM_STEPS = 8, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=20, help="of each feed in a round")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument(
        "--train_steps", type=int, default=4, help="in a round, behind three that are not counted; 0: none"
    )
    parser.add_argument("--peers", default=",".join(MAKERS))
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    feeds: dict[str, Iterator[Any]] = {}
    for name in arguments.peers.split(","):
        try:
            feeds[name] = MAKERS[name](arguments)
            next(feeds[name])
        except ImportError as error:
            print(f"{name}: left out, {error.name} is not installed (./run.sh setup bench)")
    fed = measure({name: taking(feed, arguments.batches) for name, feed in feeds.items()}, arguments.rounds)
    rates = {
        name: arguments.batches * arguments.batch_size / statistics.median(seconds) for name, seconds in fed.items()
    }
    trained: dict[str, float] = {}
    if arguments.train_steps:
        steps = training(arguments)
        taken = measure(steps, arguments.rounds)
        images = arguments.train_steps * arguments.batch_size
        trained = {name: images / statistics.median(seconds) for name, seconds in taken.items()}
    report(arguments, rates, trained)


def taking(feed: Iterator[Any], batches: int) -> Callable[[], float]:
    """Seconds of so many batches, behind as many that may have been made ahead while others had their turn."""

    def take() -> float:
        for _ in range(WARM):
            next(feed)
        start = time.perf_counter()
        for _ in range(batches):
            next(feed)
        return time.perf_counter() - start

    return take


def measure(works: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each work says it took, once a round, so that a noisy machine disturbs all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(work())
    return seconds


def opened(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """(the training split of the whole folder, its fingerprint, order)."""
    from input_pipeline.order import Order
    from input_pipeline.sources import open_source

    source = open_source("folder", arguments.data_dir, val_fraction=0.0, test_fraction=0.0, progress=False)
    split = source.splits["train"]
    return split, source.fingerprint, Order(len(split), arguments.batch_size, 0)


def bare_decoding(arguments: argparse.Namespace) -> Iterator[Any]:
    import tensorflow as tf

    paths = list(opened(arguments)[0].paths)
    files = tf.data.Dataset.from_tensor_slices(paths).repeat().map(tf.io.read_file)
    images = files.map(lambda data: tf.shape(tf.io.decode_jpeg(data, channels=3)), num_parallel_calls=CORES)
    return iter(images.batch(arguments.batch_size).prefetch(2).as_numpy_iterator())


def stream(arguments: argparse.Namespace) -> Iterator[Any]:
    from input_pipeline.crops import Crop
    from input_pipeline.stream import train_batches

    split, _, order = opened(arguments)
    return train_batches(split, order, Crop("random_resized", arguments.image_size))


def resident(arguments: argparse.Namespace) -> Iterator[Any]:
    import jax

    from input_pipeline.crops import Crop
    from resnet.train.feeding import choose_feed
    from resnet.train.parallel import make_mesh

    split, fingerprint, order = opened(arguments)
    crop = Crop("random_resized", arguments.image_size)
    feed = choose_feed("resident", split, order, crop, processes=1, epochs=2.0, platform="any")
    assert feed is not None
    kept, whole = feed.load(fingerprint, make_mesh()), jax.jit(feed.whole)
    step = 0
    while True:
        yield jax.block_until_ready(whole(kept, feed.rows(step)))
        step += 1


def torch_loader(arguments: argparse.Namespace) -> Iterator[Any]:
    import torch
    from PIL import Image

    from input_pipeline.crops import Crop, boxes

    split = opened(arguments)[0]
    crop, size = Crop("random_resized", arguments.image_size), arguments.image_size

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(split)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            seed = int(torch.randint(1 << 30, ()))
            ((top, left, height, width),) = boxes(crop, seed, np.zeros(1, int), np.array([i]), split.sizes[i : i + 1])
            box = (left, top, left + width, top + height)
            image = Image.open(split.paths[i]).convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box)
            pixels = torch.from_numpy(np.array(image))
            return (pixels.flip(1) if seed % 2 else pixels), int(split.labels[i])

    options = {"batch_size": arguments.batch_size, "shuffle": True, "num_workers": CORES, "drop_last": True}
    loader = torch.utils.data.DataLoader(Pictures(), persistent_workers=True, **options)
    while True:
        yield from loader


def tf_data(arguments: argparse.Namespace) -> Iterator[Any]:
    import tensorflow as tf

    split = opened(arguments)[0]
    size = (arguments.image_size, arguments.image_size)

    def example(path: Any, label: Any) -> tuple[Any, Any]:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image), tf.zeros((1, 0, 4)), area_range=(0.08, 1.0), use_image_if_no_bounding_boxes=True
        )
        image = tf.image.resize(tf.slice(image, begin, extent), size)
        return tf.image.random_flip_left_right(image), label

    files = tf.data.Dataset.from_tensor_slices((list(split.paths), split.labels)).shuffle(len(split)).repeat()
    examples = files.map(example, num_parallel_calls=tf.data.AUTOTUNE)
    return iter(examples.batch(arguments.batch_size).prefetch(tf.data.AUTOTUNE).as_numpy_iterator())


def keras_directory(arguments: argparse.Namespace) -> Iterator[Any]:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    size = arguments.image_size
    whole = keras.utils.image_dataset_from_directory(
        arguments.data_dir, image_size=(size * 8 // 7, size * 8 // 7), batch_size=arguments.batch_size, verbose=False
    )
    layers = keras.Sequential([keras.layers.RandomCrop(size, size), keras.layers.RandomFlip("horizontal")])
    varied = whole.map(lambda images, labels: (layers(images, training=True), labels), num_parallel_calls=CORES)
    return iter(varied.repeat().prefetch(tf.data.AUTOTUNE).as_numpy_iterator())


MAKERS: dict[str, Callable[[argparse.Namespace], Iterator[Any]]] = {
    "decode": bare_decoding,
    "stream": stream,
    "resident": resident,
    "torch": torch_loader,
    "tf_data": tf_data,
    "keras": keras_directory,
}


def training(arguments: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """A few training steps on a batch that is there already, on streamed and on resident batches."""
    import dataclasses

    import jax

    from input_pipeline.augment import Augmentation
    from input_pipeline.contract import contract_by_name
    from input_pipeline.crops import Crop
    from resnet.model.network import ResNet, initialise
    from resnet.model.variants import variant
    from resnet.train import parallel
    from resnet.train.feeding import choose_feed
    from resnet.train.optimizer import OptimizerSettings, make_optimizer
    from resnet.train.state import create_state
    from resnet.train.steps import Recipe, make_train_step, sum_names

    split, fingerprint, order = opened(arguments)
    classes = int(split.labels.max()) + 1
    network = ResNet(dataclasses.replace(variant(arguments.model).spec, num_classes=classes))
    optimizer = make_optimizer(OptimizerSettings(), lambda step: 1e-3)
    recipe = Recipe(0, contract_by_name("torch"), Augmentation(flip="horizontal"))
    step, mesh = make_train_step(network, optimizer, recipe), parallel.make_mesh()
    feed = choose_feed(
        "resident", split, order, Crop("random_resized", arguments.image_size), processes=1, epochs=2.0, platform="any"
    )
    assert feed is not None
    kept = feed.load(fingerprint, mesh)
    plain = parallel.compile_train_step(step, mesh)
    on_rows = parallel.compile_train_step(feed.step_on_rows(step), mesh)
    streamed = parallel.put_batches(stream(arguments), mesh)
    rows = parallel.put_batches((feed.rows(number) for number in range(1 << 30)), mesh)
    one = next(streamed)
    works = {
        "synthetic": lambda state: plain(state, one),
        "stream": lambda state: plain(state, next(streamed)),
        "resident": lambda state: on_rows(state, next(rows), kept),
    }

    def work(advance: Callable[[Any], Any]) -> Callable[[], float]:
        variables = initialise(network, jax.random.key(0), arguments.image_size)
        names = sum_names(classes)
        state = [
            jax.device_put(create_state(variables, optimizer, ema=False, sum_names=names), parallel.replicated(mesh))
        ]

        def steps() -> float:
            for number in range(WARM_STEPS + arguments.train_steps):
                state[0], pulse = advance(state[0])
                if number < WARM_STEPS:
                    jax.block_until_ready(pulse)
                    start = time.perf_counter()
            jax.block_until_ready(pulse)
            return time.perf_counter() - start

        steps()
        return steps

    return {name: work(advance) for name, advance in works.items()}


def report(arguments: argparse.Namespace, rates: dict[str, float], trained: dict[str, float]) -> None:
    """Print the tables and write the JSON file."""
    print(f"\nFeeding {arguments.data_dir} at {arguments.image_size} px, batch {arguments.batch_size}, {CORES} cores")
    for name, rate in rates.items():
        beside = f"   stream / it {rates['stream'] / rate:5.2f}" if "stream" in rates else ""
        print(f"{name:12}{rate:9.0f} images/s{beside}")
    if trained:
        print(f"\nTraining {arguments.model}")
        for name, rate in trained.items():
            print(f"{name:12}{rate:9.1f} images/s   {rate / trained['synthetic']:6.1%} of synthetic")
    result = {
        "benchmark": "feed",
        "date": datetime.date.today().isoformat(),
        "device": f"{CORES}-core {platform.machine()} CPU",
        "command": "python -m benchmarks.feed " + " ".join(a if "/" not in a else Path(a).name for a in sys.argv[1:]),
        "fed_images_per_second": rates,
        "trained_images_per_second": trained,
        "model": arguments.model,
        "image_size": arguments.image_size,
        "batch_size": arguments.batch_size,
    }
    out = Path(arguments.out) if arguments.out else RESULTS / f"feed_{arguments.image_size}_cpu{CORES}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
