"""images/s of feeding: bare decoding, our two feeds, what others would use, and training on each; interleaved.

    python -m benchmarks.feed [DATA_DIR] [--image_size=224] [--batch_size=32] [--rounds=3] [--seconds=3]
                              [--model=resnet18] [--train_steps=2] [--peers=...]

A folder of classes (without DATA_DIR: drawn flowers of 320 to 500 px, under .data) is fed with random-resized crops and
flips, as training does, with all cores. Feeding alone:

decode          libjpeg-turbo through TensorFlow, whole images, nothing else
stream          config.data.feed=stream: partial decoding, crop and resize on the host, uint8 (the flip is the step's)
resident        config.data.feed=resident: the crop alone, out of decoded images that stay on the device
torch           torch's DataLoader over Pillow (uint8 tensors), a worker a core
tf_data         decode_jpeg, random crop, tf.image.resize to float32, flip: a tf.data pipeline as tutorials have it
keras           keras.utils.image_dataset_from_directory, then RandomCrop and RandomFlip layers

A feed is opened for each of its turns and closed after it, so that no other works meanwhile and nothing was made ahead;
its batches count from when its rate has settled, for --seconds. Training (images/s of whole steps of --model):
`synthetic` repeats one batch that lies on the device, then each feed. "How slow is input" is the share of synthetic
that is reached. Medians over the rounds. Writes benchmarks/results/feed_SIZE_DEVICE.json.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.feed_peers import CORES, MAKERS, Setting, opened, resident_feed, stream

DRAWN = Path(__file__).resolve().parent.parent / ".data" / "demo_large"
# A rate has settled when two windows of so many seconds differ by less than this share; after so many it counts as is.
WINDOW, SETTLED, MOST_WINDOWS = 1.0, 0.1, 6
# Steps ahead of the clock: the stream makes two batches ahead of the step and has one under way.
WARM_STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", nargs="?", default="", help="a folder of classes; default: drawn flowers")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each feed in a round")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument(
        "--train_steps", type=int, default=2, help="in a round, behind three that are not counted; 0: none"
    )
    parser.add_argument("--peers", default=",".join(MAKERS))
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    setting = opened(arguments.data_dir or drawn(), arguments.image_size, arguments.batch_size)
    figures: dict[str, Any] = {"data": Path(arguments.data_dir or DRAWN).name, **about(setting), "left_out": {}}
    feeds: dict[str, Callable[[], float]] = {}
    settled: dict[str, list[bool]] = {}
    for name in arguments.peers.split(","):
        try:
            next(MAKERS[name](setting))
        except ImportError as error:
            figures["left_out"][name] = f"{error.name} is not installed"
            print(f"{name}: left out, {error.name} is not installed (./run.sh setup bench)")
            continue
        settled[name] = []
        feeds[name] = turn(MAKERS[name], setting, arguments.seconds, settled[name])
    fed = measure(feeds, arguments.rounds)
    works = training(setting, arguments.model, arguments.train_steps) if arguments.train_steps else {}
    trained = measure(works, arguments.rounds)
    report(arguments, {**figures, "settled": settled}, fed, trained)


def drawn() -> str:
    """The folder of drawn flowers as large as photographs are, drawn now if it is not there."""
    from input_pipeline.demo import write_demo

    print(f"flowers of 320 to 500 px are drawn into {DRAWN} unless they are there", flush=True)
    write_demo(DRAWN, per_class=(100, 1), size_range=(320, 500))
    return str(DRAWN)


def about(setting: Setting) -> dict[str, Any]:
    """Of the images that are fed: how many, and the means of their sides and of their files."""
    split = setting.split
    high, wide = split.sizes.mean(0)
    size = statistics.fmean(Path(path).stat().st_size for path in split.paths)
    return {"images": len(split), "mean_height": float(high), "mean_width": float(wide), "mean_bytes": size}


def turn(
    make: Callable[[Setting], Iterator[Any]], setting: Setting, seconds: float, settled: list[bool]
) -> Callable[[], float]:
    """images/s of a feed that is opened for it; whether its rate settled goes into `settled`."""

    def take() -> float:
        feed = make(setting)
        next(feed)
        settled.append(settle(lambda: rate_over(feed, WINDOW)))
        return setting.batch_size * rate_over(feed, seconds)

    return take


def settle(rate: Callable[[], float]) -> bool:
    """Call `rate` until two in a row agree; whether they did."""
    before = rate()
    for _ in range(MOST_WINDOWS - 1):
        now = rate()
        if abs(now - before) < SETTLED * before:
            return True
        before = now
    return False


def rate_over(feed: Iterator[Any], seconds: float) -> float:
    """Batches a second, of as many whole ones as take so long."""
    start, batches = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < seconds:
        next(feed)
        batches += 1
    return batches / taken


def measure(works: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The rates of each work, one a round, so that a noisy machine disturbs all alike."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            rates[name].append(work())
            print(f"{name:12}{rates[name][-1]:9.1f} images/s", flush=True)
    return rates


def training(setting: Setting, model: str, counted: int) -> dict[str, Callable[[], float]]:
    """images/s of a few training steps on a batch that is there already, on streamed and on resident batches."""
    import dataclasses

    import jax

    from input_pipeline.augment import Augmentation
    from input_pipeline.contract import contract_by_name
    from resnet.model.network import ResNet, initialise
    from resnet.model.variants import variant
    from resnet.train import parallel
    from resnet.train.optimizer import OptimizerSettings, make_optimizer
    from resnet.train.state import create_state
    from resnet.train.steps import Recipe, make_train_step, sum_names

    classes = int(setting.split.labels.max()) + 1
    network = ResNet(dataclasses.replace(variant(model).spec, num_classes=classes))
    optimizer = make_optimizer(OptimizerSettings(), lambda step: 1e-3)
    recipe = Recipe(0, contract_by_name("torch"), Augmentation(flip="horizontal"))
    step, mesh = make_train_step(network, optimizer, recipe), parallel.make_mesh()
    feed = resident_feed(setting)
    kept = feed.load(mesh)
    plain = parallel.compile_train_step(step, mesh)
    on_rows = parallel.compile_train_step(feed.step_on_rows(step), mesh)
    streamed = parallel.put_batches(stream(setting), mesh)
    rows = parallel.put_batches((feed.rows(number) for number in range(1 << 30)), mesh)
    one = next(streamed)
    works = {
        "synthetic": lambda state: plain(state, one),
        "stream": lambda state: plain(state, next(streamed)),
        "resident": lambda state: on_rows(state, next(rows), kept),
    }

    def work(advance: Callable[[Any], Any]) -> Callable[[], float]:
        variables = initialise(network, jax.random.key(0), setting.image_size)
        names = sum_names(classes)
        state = [
            jax.device_put(create_state(variables, optimizer, ema=False, sum_names=names), parallel.replicated(mesh))
        ]

        def steps() -> float:
            for number in range(WARM_STEPS + counted):
                state[0], pulse = advance(state[0])
                if number < WARM_STEPS:
                    jax.block_until_ready(pulse)
                    start = time.perf_counter()
            jax.block_until_ready(pulse)
            return setting.batch_size * counted / (time.perf_counter() - start)

        # Compiles it.
        state[0], _ = advance(state[0])
        return steps

    return {name: work(advance) for name, advance in works.items()}


def report(
    arguments: argparse.Namespace,
    figures: dict[str, Any],
    fed: dict[str, list[float]],
    trained: dict[str, list[float]],
) -> None:
    """Print the tables and write the record."""
    rates, steps = ({name: statistics.median(each) for name, each in rates.items()} for rates in (fed, trained))
    print(
        f"\nFeeding {figures['data']} ({figures['mean_width']:.0f}×{figures['mean_height']:.0f} px, "
        f"{figures['mean_bytes'] / 1e3:.0f} kB on average) at {arguments.image_size} px, batch {arguments.batch_size}, "
        f"{CORES} cores"
    )
    for name, rate in rates.items():
        beside = f"   stream / it {rates['stream'] / rate:5.2f}" if "stream" in rates else ""
        unsettled = "" if all(figures["settled"][name]) else "   (its rate did not settle)"
        print(f"{name:12}{rate:9.0f} images/s{beside}{unsettled}")
    if steps:
        print(f"\nTraining {arguments.model}")
        for name, rate in steps.items():
            print(f"{name:12}{rate:9.1f} images/s   {rate / steps['synthetic']:6.1%} of synthetic")
    found = {
        "fed_images_per_second": rates,
        "trained_images_per_second": steps,
        "rounds": {"fed": fed, "trained": trained},
        "model": arguments.model,
        "image_size": arguments.image_size,
        "batch_size": arguments.batch_size,
    }
    record.write("feed", {**figures, **found}, arguments.out or record.default_file(f"feed_{arguments.image_size}"))


if __name__ == "__main__":
    # Not by command.run, whose setting of the allocator (resnet/allocation.py) would be the peers' as well.
    main()
