"""What a checkpoint of ResNet-50 costs: how long a save blocks the run, how long until it is safe, and to read it back.

    python -m benchmarks.checkpoint [--rounds=5] [--out=FILE]

The state is that of SGD with momentum at 1,000 classes, about 205 MB. `safe` is what a signal waits for besides the
step under way: written, hashed, pushed to the disk and renamed. `verify` hashes it all again; `restore` includes that.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import optax

from benchmarks import record
from input_pipeline.contract import CONTRACTS
from resnet import command
from resnet.model.network import ResNet, initialise
from resnet.model.variants import variant
from resnet.train import integrity
from resnet.train.checkpoints import FOLDER, Checkpoints
from resnet.train.meta import Meta
from resnet.train.state import TrainState, create_state
from resnet.train.steps import sum_names


def resnet50_state() -> tuple[TrainState, Meta]:
    """A state of random numbers (zeros would be compressed) and its meta."""
    spec = variant("resnet50").spec
    shapes = jax.eval_shape(lambda key: initialise(ResNet(spec), key, 32), jax.random.key(0))
    generator = np.random.default_rng(0)
    draw = lambda shape: jax.numpy.asarray(generator.standard_normal(shape.shape, np.float32))  # noqa: E731
    state = create_state(
        jax.tree.map(draw, shapes), optax.sgd(0.1, momentum=0.9), ema=False, sum_names=sum_names(spec.num_classes)
    )
    state = dataclasses.replace(state, opt_state=jax.tree.map(draw, state.opt_state))
    names = tuple(str(number) for number in range(spec.num_classes))
    return state, Meta(spec, names, CONTRACTS["torch"], image_size=224, resize_shorter=256 / 224)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    state, meta = resnet50_state()
    seconds: dict[str, list[float]] = {"blocked": [], "safe": [], "verify": [], "restore": []}
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder, Checkpoints(Path(folder), keep=1) as checkpoints:
        for step in range(1, arguments.rounds + 1):
            start = time.perf_counter()
            checkpoints.save(state, Meta(**(vars(meta) | {"step": step})))
            seconds["blocked"].append(time.perf_counter() - start)
            checkpoints.wait()
            seconds["safe"].append(time.perf_counter() - start)
            start = time.perf_counter()
            integrity.fault(Path(folder) / FOLDER / str(step))
            seconds["verify"].append(time.perf_counter() - start)
            start = time.perf_counter()
            checkpoints.restore(step, state, sharding)
            seconds["restore"].append(time.perf_counter() - start)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    print(f"ResNet-50 with momentum, {size / 1e6:.0f} MB, median and greatest of {arguments.rounds}, seconds")
    for name, values in seconds.items():
        print(f"{name:8} {statistics.median(values):6.2f} {max(values):6.2f}")
    device = jax.devices()[0].device_kind
    record.write("checkpoint", {"bytes": size, "seconds": seconds}, arguments.out, device=device)
    return 0


if __name__ == "__main__":
    command.run(main)
