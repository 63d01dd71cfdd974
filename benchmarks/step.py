"""images/s of the train and evaluation step of ResNet-50: ours, plain flax, torch, Keras, interleaved in one run.

    ./run.sh bench [--image_size=64] [--batch_size=32] [--rounds=5] [--peers=ours,linen,torch,keras]

Every peer trains the same network (25.6 M parameters, 1,000 classes, SGD with momentum, float32) on the same random
batch in this one process. A round runs each peer once, so that a noisy machine disturbs all alike; medians are quoted.
Writes benchmarks/results/step_SIZE_DEVICE.json.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
NUM_CLASSES = 1000
Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default="ours,linen,torch,torch_compiled,keras")
    parser.add_argument("--out", default="", help="the JSON file (default: benchmarks/results/step_SIZE_DEVICE.json)")
    arguments = parser.parse_args()
    batch = make_batch(arguments.batch_size, arguments.image_size)
    peers: dict[str, dict[str, Step]] = {}
    first_call: dict[str, float] = {}
    for name in arguments.peers.split(","):
        start = time.perf_counter()
        try:
            steps = MAKERS[name](batch, arguments.image_size)
        except ImportError as error:
            print(f"{name}: left out, {error.name} is not installed (./run.sh setup bench)")
            continue
        steps["train"]()
        first_call[name] = time.perf_counter() - start
        steps["eval"]()
        peers[name] = steps
        print(f"{name}: first train step after {first_call[name]:.1f} s", flush=True)
    seconds = measure(peers, arguments.rounds)
    report(arguments, seconds, first_call)


def make_batch(batch_size: int, image_size: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8),
        "label": random.integers(0, NUM_CLASSES, batch_size, np.int32),
        "mask": np.ones(batch_size, np.float32),
        "index": np.arange(batch_size, dtype=np.int32),
    }


def jax_peer(backend: Any) -> Callable[[dict[str, np.ndarray], int], dict[str, Step]]:
    """Our own train and evaluation steps, with the given convolution."""

    def make(batch: dict[str, np.ndarray], image_size: int) -> dict[str, Step]:
        import jax

        from input_pipeline.augment import Augmentation
        from input_pipeline.contract import contract_by_name
        from resnet.model.convolution import conv_general_dilated
        from resnet.model.network import ResNet, initialise
        from resnet.model.variants import variant
        from resnet.train.optimizer import OptimizerSettings, make_optimizer
        from resnet.train.state import create_state
        from resnet.train.steps import Recipe, make_eval_step, make_train_step, sum_names

        contract = contract_by_name("torch")
        convolution = conv_general_dilated if backend == "ours" else jax.lax.conv_general_dilated
        network = ResNet(variant("resnet50").spec, backend=convolution)
        optimizer = make_optimizer(OptimizerSettings(), lambda step: 1e-3)
        recipe = Recipe(0, contract, Augmentation(flip="horizontal"))
        variables = initialise(network, jax.random.key(0), image_size)
        holder = [create_state(variables, optimizer, ema=False, sum_names=sum_names(NUM_CLASSES))]
        train_step = jax.jit(make_train_step(network, optimizer, recipe), donate_argnums=0)
        eval_step = jax.jit(make_eval_step(network, contract))

        def train() -> None:
            holder[0], pulse = train_step(holder[0], batch)
            jax.block_until_ready(pulse)

        def evaluate() -> None:
            jax.block_until_ready(eval_step(holder[0].evaluated(), batch))

        return {"train": train, "eval": evaluate}

    return make


def torch_peer(compiled: bool) -> Callable[[dict[str, np.ndarray], int], dict[str, Step]]:
    """torch, channels_last: SGD with momentum, flip and normalisation left out in its favour."""

    def make(batch: dict[str, np.ndarray], image_size: int) -> dict[str, Step]:
        import torch

        from benchmarks.torch_twin import TorchResNet

        torch.set_num_threads(os.cpu_count() or 1)
        network: Any = TorchResNet()
        network.to(memory_format=torch.channels_last)
        images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).float() / 255
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(batch["label"]).long()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
        forward = torch.compile(network) if compiled else network

        def train() -> None:
            network.train()
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(forward(images), labels).backward()
            optimizer.step()

        def evaluate() -> None:
            network.eval()
            with torch.no_grad():
                forward(images)

        return {"train": train, "eval": evaluate}

    return make


def keras_peer(batch: dict[str, np.ndarray], image_size: int) -> dict[str, Step]:
    """keras.applications.ResNet50 on TensorFlow: compiled train_on_batch and predict_on_batch."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    network = keras.applications.ResNet50(weights=None, input_shape=(image_size, image_size, 3), classes=NUM_CLASSES)
    network.compile(keras.optimizers.SGD(1e-3, momentum=0.9), keras.losses.SparseCategoricalCrossentropy())
    images = batch["image"].astype(np.float32) / 255

    def train() -> None:
        network.train_on_batch(images, batch["label"])

    def evaluate() -> None:
        network.predict_on_batch(images)

    return {"train": train, "eval": evaluate}


MAKERS: dict[str, Callable[[dict[str, np.ndarray], int], dict[str, Step]]] = {
    "ours": jax_peer("ours"),
    "linen": jax_peer("lax"),
    "torch": torch_peer(compiled=False),
    "torch_compiled": torch_peer(compiled=True),
    "keras": keras_peer,
}


def measure(peers: dict[str, dict[str, Step]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each peer's steps, one of each kind per round."""
    seconds: dict[str, dict[str, list[float]]] = {name: {"train": [], "eval": []} for name in peers}
    for _ in range(rounds):
        for kind in ("train", "eval"):
            for name, steps in peers.items():
                start = time.perf_counter()
                steps[kind]()
                seconds[name][kind].append(time.perf_counter() - start)
    return seconds


def report(arguments: argparse.Namespace, seconds: dict[str, dict[str, list[float]]], first: dict[str, float]) -> None:
    """Print the table and write the JSON file."""
    rate = {
        name: {kind: arguments.batch_size / statistics.median(values) for kind, values in kinds.items()}
        for name, kinds in seconds.items()
    }
    reference = rate.get("ours")
    print(
        f"\nResNet-50, {arguments.image_size} px, batch {arguments.batch_size}, float32, median of {arguments.rounds}"
    )
    print(f"{'':16}{'train':>8}{'ours /':>8}{'eval':>8}{'ours /':>8}{'first':>8}   (images/s, ratio, s)")
    for name, kinds in rate.items():
        ratios = {kind: reference[kind] / kinds[kind] if reference else float("nan") for kind in kinds}
        print(
            f"{name:16}{kinds['train']:8.1f}{ratios['train']:8.2f}{kinds['eval']:8.1f}{ratios['eval']:8.2f}{first[name]:8.1f}"
        )
    device = f"{os.cpu_count()}-core {platform.machine()} CPU"
    result = {
        "benchmark": "step",
        "date": datetime.date.today().isoformat(),
        "device": device,
        "image_size": arguments.image_size,
        "batch_size": arguments.batch_size,
        "rounds": arguments.rounds,
        "images_per_second": rate,
        "first_call_seconds": first,
        "seconds": seconds,
    }
    out = Path(arguments.out) if arguments.out else RESULTS / f"step_{arguments.image_size}_cpu{os.cpu_count()}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
