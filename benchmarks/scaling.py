"""How the train step scales over the devices there are: weak and strong, with the share of communication.

    python -m benchmarks.scaling [--model=resnet50] [--image_size=224] [--batch_size=256] [--dtype=bfloat16]
    JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m benchmarks.scaling \
        --model=cifar_resnet20 --image_size=32 --batch_size=32 --dtype=float32

Weak: --batch_size images on each device. Strong: --batch_size images in all. Efficiency is speed over the number of
devices times the speed of one. Virtual CPU devices share the same cores: there the figures say that it works, not how
well. Communication: operations and bytes of the compiled program, and their share of the device time of a profile.
Writes benchmarks/results/scaling_MODEL_DEVICE.json.
"""

import argparse
import datetime
import json
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from input_pipeline.augment import Augmentation
from input_pipeline.contract import contract_by_name
from resnet.model.network import ResNet, initialise
from resnet.model.variants import variant
from resnet.train import parallel
from resnet.train.optimizer import OptimizerSettings, make_optimizer
from resnet.train.state import TrainState, create_state
from resnet.train.steps import Recipe, make_train_step, sum_names

RESULTS = Path(__file__).parent / "results"
COLLECTIVE = re.compile(r"all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|AllReduce|ncclDevKernel")
INSTRUCTION = re.compile(r"= (.*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all)(?:-start)?\(")
SHAPE = re.compile(r"(f32|bf16|f16|s32|u32|pred|u8)\[([0-9,]*)\]")
WIDTH = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--mesh", default="data=-1", help="as config.run.mesh")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each row")
    arguments = parser.parse_args()
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= jax.device_count()]
    rows = [measure(arguments, kind, count) for kind in ("weak", "strong") for count in counts]
    for row in rows:
        one = next(other for other in rows if other["kind"] == row["kind"] and other["devices"] == 1)
        row["efficiency"] = row["images_per_second"] / (row["devices"] * one["images_per_second"])
    report(arguments, rows)


def measure(arguments: argparse.Namespace, kind: str, devices: int) -> dict[str, Any]:
    """One row: the median step over the first `devices` devices, and what it sends."""
    batch_size = arguments.batch_size * (devices if kind == "weak" else 1)
    mesh = parallel.make_mesh(arguments.mesh, jax.devices()[:devices])
    parallel.check_batch_size("--batch_size", batch_size, mesh)
    step, state, batch = build(arguments, mesh, batch_size)
    compiled = step.lower(state, batch).compile()
    seconds = []
    for _ in range(arguments.steps + 2):
        start = time.perf_counter()
        state, _ = compiled(state, batch)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    state, share = profile(compiled, state, batch)
    operations, size = messages(compiled.as_text())
    median = statistics.median(seconds[2:])
    return {
        "kind": kind,
        "devices": devices,
        "global_batch": batch_size,
        "step_milliseconds": 1e3 * median,
        "images_per_second": batch_size / median,
        "collectives": operations,
        "collective_bytes": size,
        "collective_share_of_profile": share,
    }


def build(arguments: argparse.Namespace, mesh: Any, batch_size: int) -> tuple[Any, TrainState, dict[str, jax.Array]]:
    """(jitted step, state, batch) of synthetic data, placed on the mesh."""
    spec = variant(arguments.model).spec
    network = ResNet(spec, dtype=np.dtype(arguments.dtype) if arguments.dtype == "float32" else jax.numpy.bfloat16)
    optimizer = make_optimizer(OptimizerSettings(), optax.constant_schedule(0.1))

    def create(key: jax.Array) -> TrainState:
        variables = initialise(network, key, arguments.image_size)
        return create_state(variables, optimizer, ema=False, sum_names=sum_names(spec.num_classes))

    shardings = parallel.state_shardings(mesh, jax.eval_shape(create, jax.random.key(0)))
    state = jax.jit(create, out_shardings=shardings)(jax.random.key(0))
    recipe = Recipe(seed=0, contract=contract_by_name("torch"), augmentation=Augmentation())
    step = parallel.compile_train_step(make_train_step(network, optimizer, recipe), mesh)
    random = np.random.default_rng(0)
    side = arguments.image_size
    host = {
        "image": random.integers(0, 256, (batch_size, side, side, 3), np.uint8),
        "label": random.integers(0, spec.num_classes, batch_size, np.int32),
        "mask": np.ones(batch_size, np.float32),
        "index": np.arange(batch_size, dtype=np.int32),
    }
    return step, state, next(parallel.put_batches([host], mesh))


def messages(program: str) -> tuple[int, int]:
    """(operations, bytes) that the compiled program of one device exchanges with others."""
    operations = size = 0
    for line in program.splitlines():
        match = INSTRUCTION.search(line)
        if match:
            operations += 1
            for kind, dimensions in SHAPE.findall(match[1]):
                size += WIDTH[kind] * int(
                    np.prod([int(word) for word in dimensions.split(",") if word], dtype=np.int64)
                )
    return operations, size


def profile(compiled: Any, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, float | None]:
    """(state, share of the traced device time that is communication) over three steps; None where no trace tells."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(3):
                state, _ = compiled(state, batch)
            jax.block_until_ready(state)
        files = list(Path(folder).rglob("*.xplane.pb"))
        data = jax.profiler.ProfileData.from_file(str(files[0])) if files else None
    total = sent = 0.0
    for plane in data.planes if data else ():
        # Devices have planes of their own; on CPU the threads that run XLA's operations stand in the host's.
        device = plane.name.startswith("/device:")
        for line in plane.lines:
            if device and "XLA Ops" not in line.name and "Stream" not in line.name:
                continue
            if not device and "tf_XLA" not in line.name:
                continue
            for event in line.events:
                total += event.duration_ns
                sent += event.duration_ns if COLLECTIVE.search(event.name) else 0.0
    return state, (sent / total if total else None)


def report(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Print the table and write the JSON file."""
    kind = jax.devices()[0].device_kind
    print(f"{arguments.model}, {arguments.image_size} px, {arguments.dtype}, mesh {arguments.mesh}, {kind}\n")
    print("| | devices | batch | step ms | images/s | efficiency | messages | MB | share of profile |")
    print("| --- " * 9 + "|")
    for row in rows:
        share = row["collective_share_of_profile"]
        print(
            f"| {row['kind']} | {row['devices']} | {row['global_batch']} | {row['step_milliseconds']:.1f} | "
            f"{row['images_per_second']:,.0f} | {row['efficiency']:.1%} | {row['collectives']} | "
            f"{row['collective_bytes'] / 1e6:.1f} | {'' if share is None else f'{share:.1%}'} |"
        )
    name = re.sub(r"[^a-z0-9]+", "_", f"scaling_{arguments.model}_{kind}x{jax.device_count()}".lower())
    RESULTS.mkdir(exist_ok=True)
    record = {**vars(arguments), "device": kind, "devices": jax.device_count(), "date": str(datetime.date.today())}
    (RESULTS / f"{name}.json").write_text(json.dumps({**record, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
