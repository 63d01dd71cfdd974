"""What rematerialisation and several steps a call cost and save: seconds a step, and memory of the compiled step.

    JAX_PLATFORMS=cpu python -m benchmarks.step_costs [--rounds=3] [--only=resnet50]

Of ResNet-50 at 64 px and of CIFAR ResNet-20, float32, batch 32: the whole train step (augmentation, gradient, SGD) with
config.run.remat none, block, stage; and several steps in one call, in a compiled loop. All programs of a network are
compiled first, then timed in turn. Kept: what jax.vjp hands from the forward to the backward pass, parameters left out.
Temporary: compiled.memory_analysis(). Writes benchmarks/results/step_costs_DEVICE.json.
"""

import argparse
import datetime
import math
import os
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import record
from input_pipeline.augment import Augmentation
from input_pipeline.contract import contract_by_name
from resnet.model.network import REMAT, ResNet, initialise
from resnet.model.variants import variant
from resnet.train.dispatch import repeat
from resnet.train.optimizer import OptimizerSettings, make_optimizer
from resnet.train.state import TrainState, create_state
from resnet.train.steps import Recipe, loss_sum, make_train_step, sum_names

NETWORKS = {"resnet50": 64, "cifar_resnet20": 32}
# A loop is for small networks: of the large one enough to see what it costs.
STEPS_PER_CALL = {"resnet50": (1, 4), "cifar_resnet20": (1, 4, 16)}
RECIPE = Recipe(seed=0, contract=contract_by_name("torch"), augmentation=Augmentation(flip="horizontal"))
OPTIMIZER = make_optimizer(OptimizerSettings(), optax.constant_schedule(1e-3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=NETWORKS)
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else list(NETWORKS)
    prepared = {name: prepare(name, arguments.batch_size) for name in names}
    rows = [row for name in names for row in measure(name, *prepared[name], arguments.rounds)]
    report(rows, arguments)


def prepare(name: str, batch_size: int) -> tuple[TrainState, list[dict[str, Any]]]:
    """(a state, the compiled programs of a network): {'what', 'steps', 'call', 'kept_bytes', 'temporary_bytes'}."""
    spec, size = variant(name).spec, NETWORKS[name]
    network = ResNet(spec)
    variables = initialise(network, jax.random.key(0), size)
    state = create_state(variables, OPTIMIZER, ema=False, sum_names=sum_names(spec.num_classes))
    generator = np.random.default_rng(0)
    batch = {
        "image": generator.integers(0, 256, (batch_size, size, size, 3)).astype(np.uint8),
        "label": generator.integers(0, spec.num_classes, batch_size).astype(np.int32),
        "mask": np.ones(batch_size, np.float32),
    }
    programs = []
    for remat in REMAT:
        again = network.clone(remat=remat)
        call, temporary = compiled(make_train_step(again, OPTIMIZER, RECIPE), state, batch)
        kept = kept_bytes(again, state, batch)
        programs.append(
            {"what": f"remat={remat}", "steps": 1, "call": call, "temporary_bytes": temporary, "kept": kept}
        )
    for count in STEPS_PER_CALL[name]:
        stacked = jax.tree.map(lambda rows, count=count: np.stack([rows] * count), batch)
        many = repeat(make_train_step(network, OPTIMIZER, RECIPE))
        call, temporary = compiled(many, state, stacked, np.int32(count))
        what = f"steps_per_call={count}, in a loop"
        programs.append({"what": what, "steps": count, "call": call, "temporary_bytes": temporary, "kept": None})
    return state, programs


def compiled(step: Callable[..., Any], state: TrainState, *inputs: Any) -> tuple[Callable[..., Any], int]:
    """(state -> state after the inputs, bytes of the program's temporary memory)."""
    inputs = jax.device_put(inputs)
    program = jax.jit(step, donate_argnums=0).lower(state, *inputs).compile()
    memory = program.memory_analysis()
    return lambda state: program(state, *inputs)[0], memory.temp_size_in_bytes if memory else 0


def kept_bytes(network: ResNet, state: TrainState, batch: dict[str, Any]) -> int:
    """Bytes that the forward pass hands to the backward pass, without the parameters themselves."""

    def backward(params: Any) -> Any:
        loss = lambda p: loss_sum(network, RECIPE, p, state.batch_stats, batch, jax.random.key(0))  # noqa: E731
        return jax.vjp(loss, params, has_aux=True)[1]

    bytes_of = lambda tree: sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))  # noqa: E731
    return bytes_of(jax.eval_shape(backward, state.params)) - bytes_of(state.params)


def measure(name: str, state: TrainState, programs: list[dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """A row per program: seconds a step, the least of `rounds`, the programs in turn; and its memory."""
    seconds: dict[str, list[float]] = {program["what"]: [] for program in programs}
    # The state is given up to each call: one of its own for each program.
    copy = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 0, tree))
    for number in range(rounds + 1):
        for program in programs:
            own = jax.block_until_ready(copy(state))
            start = time.perf_counter()
            jax.block_until_ready(program["call"](own))
            # The first round warms up.
            if number:
                seconds[program["what"]].append((time.perf_counter() - start) / program["steps"])
    return [
        {
            "network": name,
            "image_size": NETWORKS[name],
            "what": program["what"],
            "seconds_a_step": min(seconds[program["what"]]),
            "median_seconds_a_step": statistics.median(seconds[program["what"]]),
            "kept_bytes": program["kept"],
            "temporary_bytes": program["temporary_bytes"],
        }
        for program in programs
    ]


def report(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print the table and write the JSON file."""
    print("| network | | seconds a step | kept, MB | temporary, MB |")
    print("| --- " * 5 + "|")
    for row in rows:
        kept = "" if row["kept_bytes"] is None else f"{row['kept_bytes'] / 1e6:.0f}"
        print(
            f"| {row['network']}, {row['image_size']} px | {row['what']} | {row['seconds_a_step']:.3f} | {kept} | "
            f"{row['temporary_bytes'] / 1e6:.0f} |"
        )
    device = jax.devices()[0]
    kind = (
        f"cpu{os.cpu_count()}" if device.platform == "cpu" else re.sub(r"[^a-z0-9]+", "_", device.device_kind.lower())
    )
    how = {"device": kind, "date": str(datetime.date.today()), "jax": jax.__version__, "rounds": arguments.rounds}
    rows = [{**row, "batch_size": arguments.batch_size, **how} for row in rows]
    file = record.RESULTS / f"step_costs_{kind}.json"
    # What an earlier call measured of another network stays.
    measured = {row["network"] for row in rows}
    before = record.read(file).figures["programs"] if file.exists() else []
    rows = [row for row in before if row["network"] not in measured] + rows
    record.write("step_costs", {"programs": rows}, file, device=device.device_kind)


if __name__ == "__main__":
    main()
