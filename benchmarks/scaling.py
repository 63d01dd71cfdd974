"""How the train step scales over the devices there are: weak and strong, with the share of communication.

    python -m benchmarks.scaling [--model=resnet50] [--image_size=224] [--batch_size=256] [--dtype=bfloat16]
    JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m benchmarks.scaling \
        --model=cifar_resnet20 --image_size=32 --batch_size=32 --dtype=float32

Weak: --batch_size images on each device. Strong: --batch_size images in all. Efficiency is speed over the number of
devices times the speed of one. Virtual CPU devices share the machine's cores: there the figures say that it works, not
how well, and the most that weak scaling can show is cores over devices. All devices are this process'.

Communication: the operations of the compiled program that cross devices, with their bytes, and their share of the time
that a profile shows work on a device (waiting for the others is in it, overlap with other work is not taken off).
Writes benchmarks/results/scaling_MODEL_DEVICE.json.
"""

import argparse
import dataclasses
import math
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import record
from input_pipeline.augment import Augmentation
from input_pipeline.contract import contract_by_name
from input_pipeline.errors import InputError
from resnet import command
from resnet.model.network import ResNet, initialise
from resnet.model.variants import variant
from resnet.train import parallel
from resnet.train.optimizer import OptimizerSettings, make_optimizer
from resnet.train.state import TrainState, create_state
from resnet.train.steps import Recipe, make_train_step, sum_names

# Their names in profiles of CPU, TPU and GPU.
COLLECTIVE = re.compile(r"^(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)|AllReduce|nccl")
INSTRUCTION = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(.*?(?:op_name=\"(.*?)\"|$)"
)
SHAPE = re.compile(r"(f32|bf16|f16|s32|u32|pred|u8)\[([0-9,]*)\]")
WIDTH = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1}
Intervals = list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Collective:
    """An operation of a compiled program that crosses devices.

    shapes: of its results on one device, several where XLA has joined messages; size: their bytes; source: the
    operation of the traced program it stems from, as a path of layers.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    size: int
    source: str


def main() -> int:
    parser = command.Parser(__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--mesh", default="data=-1", help="as config.run.mesh")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each row")
    parser.add_argument(
        "--out", default="", help="the JSON file (default: benchmarks/results/scaling_MODEL_DEVICE.json)"
    )
    arguments = parser.parse_args()
    for name in ("image_size", "batch_size", "steps"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name}={getattr(arguments, name)} must be at least 1")
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= jax.device_count()]
    rows = [measure(arguments, kind, count) for kind in ("weak", "strong") for count in counts]
    for row in rows:
        one = next(other for other in rows if other["kind"] == row["kind"] and other["devices"] == 1)
        row["efficiency"] = row["images_per_second"] / (row["devices"] * one["images_per_second"])
    report(arguments, rows)
    return 0


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
    sent = collectives(compiled.as_text())
    median = statistics.median(seconds[2:])
    return {
        "kind": kind,
        "devices": devices,
        "global_batch": batch_size,
        "step_milliseconds": 1e3 * median,
        "images_per_second": batch_size / median,
        "collectives": len(sent),
        "collective_bytes": sum(each.size for each in sent),
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


def collectives(program: str) -> list[Collective]:
    """The operations of a compiled program (its text) that cross devices, in its order; one in a loop counts once."""
    found = []
    for line in program.splitlines():
        match = INSTRUCTION.search(line)
        if not match:
            continue
        results = [
            (kind, tuple(int(word) for word in sizes.split(",") if word)) for kind, sizes in SHAPE.findall(match[1])
        ]
        if match[3] and match[2] != "all-reduce":
            # The first half of an operation in two parts names what goes in and what comes out.
            results = results[len(results) // 2 :]
        size = sum(WIDTH[kind] * math.prod(shape) for kind, shape in results)
        found.append(Collective(match[2], tuple(shape for _, shape in results), size, match[4] or ""))
    return found


def profile(compiled: Any, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, float | None]:
    """(state, share of the devices' working time that is communication) over three steps; None where no trace tells."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(3):
                state, _ = compiled(state, batch)
            jax.block_until_ready(state)
        files = list(Path(folder).rglob("*.xplane.pb"))
        data = jax.profiler.ProfileData.from_file(str(files[0])) if files else None
        planes = list(data.planes) if data else []
        total = sent = 0.0
        for events in (each for plane in planes for each in timelines(plane)):
            total += covered([interval for _, interval in events])
            sent += covered([interval for name, interval in events if COLLECTIVE.search(name)])
    return state, (sent / total if total else None)


def timelines(plane: Any) -> Iterable[list[tuple[str, tuple[float, float]]]]:
    """The timelines of a profile's plane on which a device works, each as events (name, (start, end) in ns).

    A GPU has one, of the kernels of all its streams; on CPU each thread that runs XLA's operations is one.
    """
    events_of = lambda line: [(e.name, (e.start_ns, e.start_ns + e.duration_ns)) for e in line.events]  # noqa: E731
    if plane.name.startswith("/device:"):
        lines = list(plane.lines)
        # A GPU's lines of kernels; a TPU has one line of operations. Other lines show the same time once more.
        wanted = [line for line in lines if line.name.startswith("Stream")] or [
            line for line in lines if line.name == "XLA Ops"
        ]
        yield [event for line in wanted for event in events_of(line)]
    else:
        yield from (events_of(line) for line in plane.lines if line.name.startswith("tf_XLAEigen"))


def covered(intervals: Intervals) -> float:
    """Length of the union: events lie in each other, and streams run side by side."""
    length, end = 0.0, -math.inf
    for start, stop in sorted(intervals):
        length += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return length


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
    virtual = kind == "cpu" and jax.device_count() > 1
    device = f"virtual_cpu{os.cpu_count()}" if virtual else f"{kind}x{jax.device_count()}"
    name = re.sub(r"[^a-z0-9]+", "_", f"scaling_{device}" if virtual else f"scaling_{arguments.model}_{device}")
    note = f"{jax.device_count()} virtual devices on {os.cpu_count()} cores measure correctness, not speed"
    if virtual:
        print(f"\n{note}.")
    figures = {
        "devices": jax.device_count(),
        **({"note": note} if virtual else {}),
        **{key: value for key, value in vars(arguments).items() if key != "out"},
        "rows": rows,
    }
    record.write("scaling", figures, arguments.out or record.RESULTS / f"{name.lower()}.json", device=kind)


if __name__ == "__main__":
    command.run(main)
