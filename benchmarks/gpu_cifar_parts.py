"""The parts of benchmarks/gpu_cifar.py: `python -m benchmarks.gpu_cifar_parts OUT.json NAME ARRAYS.npz [small]`."""

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_cifar_torch import MEASURED_SECONDS, torch_peer
from benchmarks.gpu_kernels import KEEP
from benchmarks.gpu_parts import kept_kernels, of_jax
from benchmarks.part_processes import wait_for_turn

SEEDS = 10
# Steps before the clock of a measurement of speed runs.
WARM_STEPS = 800
# What CUDA graphs hold by XLA's default, and convolutions and loops.
IN_GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,DYNAMIC_SLICE_FUSION,CONVOLUTION,WHILE"
# After so many seconds no further seed is begun.
LAST_BEGIN = 140.0
# Name -> what configs/cifar10_fast.py is to say instead, as 'section.key': value.
CANDIDATES: dict[str, dict[str, Any]] = {
    # What it said until 2026-11-28: of this are the 93.06 % of benchmarks/results/gpu_cifar_nvidia_h200.json.
    "former": {
        "model.shortcut": "B", "model.activation": "relu", "transfer.lr_multipliers": ("bn[0-9]*/bias=64",)
    },
    # More depth at the same widths.
    "resnet18": {"model.stage_sizes": (2, 2, 2, 2)},
    # Three stages, twice as wide, each halving the map in its first convolution: little is done at 32×32 pixels.
    "early": {"model.stage_sizes": (1, 1, 1), "model.width": 128, "model.stride_block": "last"},
    "longer": {"run.epochs": 24.0, "optim.warmup_epochs": 6.0, "run.eval_every": 24.0, "run.checkpoint_every": 24.0},
    "shorter": {"run.epochs": 10.0, "optim.warmup_epochs": 2.5, "run.eval_every": 10.0, "run.checkpoint_every": 10.0},
    "batch1024": {"data.batch_size": 1024, "optim.lr": 2.0, "model.norm_momentum": 0.6},
    "cool": {"optim.lr": 0.5},
    # Norms' biases learn faster than all else, by airbench's factor.
    "biases": {"transfer.lr_multipliers": ("bn[0-9]*/bias=64",)},
    "ghosts": {"model.ghost_batch_size": 64},
    "averaged": {"optim.ema": 0.99},
}  # fmt: skip


def main() -> None:
    out, name, arrays, small = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), "small" in sys.argv[4:]
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    family, _, candidate = name.partition("_")
    if family == "fast":
        fast(out, arrays, small, CANDIDATES[candidate] if candidate else {}, 2 if candidate or small else SEEDS)
    else:
        out.write_text(json.dumps(RATES[name](arrays, small)))


def resnet20(small: bool) -> Any:
    """configs/cifar10.py with option B, which torch's twin has, in bfloat16."""
    from configs.cifar10 import get_config

    config = get_config()
    config.model.name, config.run.dtype = "cifar_resnet20_b", "bfloat16"
    if small:
        config.model.stage_sizes, config.model.width, config.data.batch_size = (1,), 8, 32
    return config


class Trainer:
    """A recipe over data that lie on the device, compiled for so many seeds at once: many steps of them a call.

    The program of an ablation (resnet/study/ablation_program.py): each seed does what an ordinary run with it does.
    """

    def __init__(
        self, config: Any, arrays: Path, seeds_at_once: int = 1, steps_per_call: int = 0, together: str = "vmap"
    ) -> None:
        import jax

        from input_pipeline.resident import evaluation_rows, read_arrays
        from resnet.study import ablation_program as program
        from resnet.train.plan import make_plan

        begun = time.perf_counter()
        data = read_arrays(arrays, config.data.image_size)
        self.plan = make_plan(config, data.as_source("arrays"))
        self.together = "unrolled" if seeds_at_once == 1 else together
        self.steps_per_call = min(steps_per_call or config.run.steps_per_call, self.plan.total_steps)
        train, test = data.splits["train"], data.splits["test"]
        batches = evaluation_rows(test, min(self.plan.eval_batch_size, len(test)))
        self.images, self.labels, self.test = jax.device_put((train.images, train.labels, batches))
        jax.block_until_ready((self.images, self.labels, self.test))
        self.data_seconds = time.perf_counter() - begun

        begun, seeds = time.perf_counter(), tuple(range(seeds_at_once))
        state = self.first_states(seeds)
        keys, (rows, count) = program.seed_keys(seeds), next(self.calls(seeds, 0))
        advance = program.make_advance(self.plan, self.together, loop=True)
        shared = (self.images, self.labels, count)
        self.advance = program.compile_for_all(advance, self.together, state, (keys, rows), shared)
        evaluation = program.make_evaluation(self.plan, self.together)
        self.evaluation = program.compile_for_all(evaluation, self.together, (), state.evaluated(), self.test[0])
        self.compile_seconds = time.perf_counter() - begun

    def first_states(self, seeds: tuple[int, ...]) -> Any:
        """The states before step 0, stacked."""
        from resnet.study import ablation_program as program

        return program.first_states(self.plan, seeds, self.plan.train_crop.image_size)

    def calls(self, seeds: tuple[int, ...], step: int, last: int | None = None) -> Iterator[tuple[Any, Any]]:
        """What each call from `step` on is given: (rows of all its steps, their number), to step `last` or for ever."""
        import jax

        from input_pipeline.resident import step_rows

        orders = [dataclasses.replace(self.plan.order, seed=seed) for seed in seeds]
        while last is None or step < last:
            count = self.steps_per_call if last is None else min(self.steps_per_call, last - step)
            each = [step_rows(order, self.plan.train_crop, step, count) for order in orders]
            fill = [(0, 0), (0, self.steps_per_call - count), (0, 0)]
            rows = {
                "index": np.pad(np.stack([one["index"] for one in each]), fill),
                "offset": np.pad(np.stack([one["offset"] for one in each]), [*fill, (0, 0)]),
            }
            yield jax.device_put((rows, np.int32(count)))
            step += count

    def train(self, seeds: tuple[int, ...], state: Any, last: int | None = None) -> Iterator[Any]:
        """The state after each call, to step `last` or for ever; nothing is waited for."""
        from resnet.study import ablation_program as program

        keys = program.seed_keys(seeds)
        for rows, count in self.calls(seeds, 0, last):
            state, _ = self.advance(state, (keys, rows), (self.images, self.labels, count))
            yield state

    def accuracy(self, state: Any) -> np.ndarray:
        """Test accuracy of each seed, 0..1."""
        import jax

        from resnet.study import ablation_program as program

        sums = [self.evaluation((), state.evaluated(), batch) for batch in self.test]
        return program.add_up(jax.device_get(sums))["top1"]


def ours(arrays: Path, small: bool, seeds_at_once: int = 1, together: str = "vmap") -> dict[str, Any]:
    """Images/s of all seeds, from what the host draws to the last update; two calls are under way at a time."""
    import jax

    trainer = Trainer(resnet20(small), arrays, seeds_at_once, 5 if small else 400, together)
    wait_for_turn()
    seeds, batch = tuple(range(seeds_at_once)), trainer.plan.batch_size
    warm, seconds = (5, 0.5) if small else (WARM_STEPS, MEASURED_SECONDS)
    done, begun, previous = 0, 0.0, None
    for state in trainer.train(seeds, trainer.first_states(seeds)):
        # Steps are donated their state: what is waited for is a number that they leave behind.
        now, previous = previous, state.step + 0
        if now is not None:
            jax.block_until_ready(now)
        done += trainer.steps_per_call
        if begun and time.perf_counter() - begun > seconds:
            break
        if not begun and done >= warm:
            jax.block_until_ready(previous)
            done, begun = 0, time.perf_counter()
    jax.block_until_ready(previous)
    took = time.perf_counter() - begun
    kernels = {"kernels": kernels_of_steps(trainer, seeds, state)} if os.environ.get(KEEP) else {}
    return {
        **kernels,
        "batch_size": batch,
        "seeds": seeds_at_once,
        "images_per_second": done * batch * seeds_at_once / took,
        "step_milliseconds": 1e3 * took / done,
        "measured_steps": done,
        "compile_seconds": trainer.compile_seconds,
        "data_seconds": trainer.data_seconds,
        **of_jax(),
    }


def ours_without_blocks(arrays: Path, small: bool) -> dict[str, Any]:
    """`ours` with 16 channels by pixels."""
    from resnet.model import blocked

    blocked.FEW_CHANNELS = 0
    return ours(arrays, small)


def ours_in_graphs(arrays: Path, small: bool) -> dict[str, Any]:
    """`ours` with convolutions and loops in CUDA graphs, which holds only where XLA times the kernels anew."""
    import jax

    from resnet.study import ablation_program as program

    if jax.default_backend() == "gpu":
        program.compiler_options = lambda: {"xla_gpu_enable_command_buffer": IN_GRAPHS}
    return ours(arrays, small)


def kernels_of_steps(trainer: Trainer, seeds: tuple[int, ...], state: Any) -> dict[str, Any]:
    """A trace of one call of twenty steps, from `state` on; figures are of a step."""
    import jax

    rows, _ = next(trainer.calls(seeds, 0))
    steps = min(20, trainer.steps_per_call)
    own, shared = (jax.random.split(jax.random.key(0), len(seeds)), rows), (trainer.images, trainer.labels)
    last = [state]

    def call() -> None:
        last[0], _ = trainer.advance(last[0], own, (*shared, jax.device_put(np.int32(steps))))

    call()
    name = f"cifar_{len(seeds)}_{trainer.together}"
    found = kept_kernels(trainer.advance, call, lambda: jax.block_until_ready(last[0]), name, calls=1)
    found |= {key: found[key] / steps for key in ("span_ms", "busy_ms", "launches")}
    found["rows"] = [row | {"count": row["count"] / steps, "ms": row["ms"] / steps} for row in found["rows"]]
    return found


def fast(out: Path, arrays: Path, small: bool, changes: dict[str, Any], seeds: int) -> None:
    """cifar10_fast, changed, for so many seeds one after the other; written after each."""
    import jax

    from configs.cifar10_fast import get_config
    from resnet.train.configuration import validate

    config = get_config()
    for key, value in changes.items():
        section, name = key.split(".")
        config[section][name] = value
    if small:
        config.model.stage_sizes, config.model.width, config.data.batch_size = (1,), 8, 32
        config.run.epochs, config.optim.warmup_epochs, config.optim.lr = 2.0, 0.5, 0.1
        config.run.steps_per_call = 10
    validate(config)
    trainer = Trainer(config, arrays)
    wait_for_turn()
    states, total = trainer.first_states(tuple(range(seeds))), trainer.plan.total_steps
    told: dict[str, list[float]] = {"seconds": [], "evaluation_seconds": [], "accuracy": []}
    entered = time.perf_counter()
    # The first seed is done twice: a device's first run of a program is slower, and not counted.
    for number in [0, *range(seeds)]:
        state = jax.tree.map(lambda leaf, number=number: leaf[number : number + 1] + 0, states)
        jax.block_until_ready(state)
        begun = time.perf_counter()
        for newest in trainer.train((number,), state, total):
            state = newest
        jax.block_until_ready(state)
        trained = time.perf_counter()
        accuracy = float(trainer.accuracy(state)[0])
        evaluated = time.perf_counter()
        if number == 0 and "first" not in told:
            told["first"] = [trained - begun]
            continue
        told["seconds"].append(trained - begun)
        told["evaluation_seconds"].append(evaluated - trained)
        told["accuracy"].append(100 * accuracy)
        found = {
            **told,
            "batch_size": trainer.plan.batch_size,
            "steps": total,
            "epochs": total / trainer.plan.steps_per_epoch,
            "seeds": len(told["seconds"]),
            "changes": {key: str(value) for key, value in changes.items()},
            "compile_seconds": trainer.compile_seconds,
            "data_seconds": trainer.data_seconds,
            **mean_and_deviation("seconds", told["seconds"]),
            **mean_and_deviation("accuracy", told["accuracy"]),
            **of_jax(),
        }
        out.write_text(json.dumps(found))
        if evaluated - entered > LAST_BEGIN:
            break


def mean_and_deviation(name: str, values: list[float]) -> dict[str, float]:
    """Of a sample, under NAME_mean and NAME_std; the deviation of one value is 0."""
    return {
        f"{name}_mean": statistics.mean(values),
        f"{name}_std": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


RATES: dict[str, Callable[[Path, bool], dict[str, Any]]] = {
    "ours": ours,
    "ours_without_blocks": ours_without_blocks,
    "ours_in_graphs": ours_in_graphs,
    "ours_seeds": lambda arrays, small: ours(arrays, small, 2 if small else 8),
    "five_vmap": lambda arrays, small: ours(arrays, small, 2 if small else 5, "vmap"),
    "five_unrolled": lambda arrays, small: ours(arrays, small, 2 if small else 5, "unrolled"),
    "five_map": lambda arrays, small: ours(arrays, small, 2 if small else 5, "map"),
    "torch": lambda arrays, small: torch_peer(arrays, small, compiled=False),
    "torch_compiled": lambda arrays, small: torch_peer(arrays, small, compiled=True),
    "torch_resident": lambda arrays, small: torch_peer(arrays, small, compiled=not small, resident=True),
}


if __name__ == "__main__":
    main()
