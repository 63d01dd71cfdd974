"""What the host does for a step of train_main.py's loop, beside the call of the compiled program.

    JAX_PLATFORMS=cpu python -m benchmarks.host_work [--steps=2000] [--batch_size=128] [--out=FILE]

ResNet-20's depth, one channel wide, on a resident set of 8 px noise, so that the program itself takes little; with one
step a call, then with ten. CPU time of the main thread, which a busy machine lengthens less than the clock's. `loop` is
a step of `loop.Run.steps`, training lines included; `call` is the compiled program alone, its start included, called
over and over with one batch. The difference is the host's work, during which an accelerator goes on with the steps that
are under way. Medians: over spans of a hundred steps, the first quarter left out, and over a hundred calls.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import record
from configs import cifar10
from input_pipeline.resident import Images, make_resident, write_arrays
from resnet import allocation, command
from resnet.train import loop
from resnet.train.state import TrainState

SIDE, CLASSES, EXAMPLES = 8, 10, 20_000
# Steps of a span and from one training line to the next, at which a call ends, and bare calls.
SPAN = 100
STEPS_PER_CALL = (1, 10)


class Timed(loop.Run):
    """A run that notes the main thread's CPU seconds after each span, and those of bare calls at its end."""

    def advance(self, step: int, state: TrainState) -> tuple[int, TrainState]:
        if step % SPAN == 0:
            self.marks.append(time.thread_time())
        return super().advance(step, state)

    def steps(self, step: int, state: TrainState) -> tuple[int, TrainState]:
        self.marks: list[float] = []
        step, state = super().steps(step, state)
        spans = np.diff(self.marks)
        self.loop_seconds = statistics.median(spans[len(spans) // 4 :]) / SPAN
        with jax.transfer_guard("allow"):
            self.call_seconds = self.bare(jax.tree.map(lambda leaf: leaf + 0, state)) / self.longest
        return step, state

    def bare(self, state: TrainState) -> float:
        """CPU seconds of a call of the compiled program, which gives up `state`."""
        inputs: tuple[Any, ...] = (next(self.batches(0)), *self.kept)
        program = self.train_step
        if self.longest > 1:
            inputs = (next(self.pieces(0)), jax.device_put(np.int32(self.longest)), *self.kept)
            program = self.train_steps
        taken = []
        for _ in range(SPAN):
            begun = time.thread_time()
            state, pulse = program(state, *inputs)
            jax.block_until_ready(pulse)
            taken.append(time.thread_time() - begun)
        return statistics.median(taken)


def config_for(arrays: Path, arguments: argparse.Namespace, steps_per_call: int) -> ConfigDict:
    """The recipe of configs/cifar10.py on a network of next to nothing."""
    config = cifar10.get_config()
    config.model.width = 1
    config.data.source, config.data.dir, config.data.feed = "arrays", str(arrays), "resident"
    config.data.image_size, config.data.batch_size = SIDE, arguments.batch_size
    config.run.steps, config.run.steps_per_call, config.run.log_every = arguments.steps, steps_per_call, SPAN
    # Only at the end.
    config.run.eval_every = config.run.checkpoint_every = 1e6
    return config


def write_noise(file: Path) -> None:
    generator = np.random.default_rng(0)

    def split(count: int) -> Images:
        pixels = generator.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
        return Images(pixels, np.arange(count, dtype=np.int32) % CLASSES)

    write_arrays(make_resident(tuple("abcdefghij"), {"train": split(EXAMPLES), "test": split(1000)}), file)


def measure(folder: Path, arguments: argparse.Namespace, steps_per_call: int) -> dict[str, Any]:
    """One run: {'steps_per_call', 'loop_seconds', 'call_seconds', 'host_seconds'}, all of one step."""
    made: list[Timed] = []

    def make(*parts: Any) -> Timed:
        made.append(Timed(*parts))
        return made[-1]

    loop.kind_of_run = lambda plan: make  # type: ignore[assignment,return-value]
    loop.train(config_for(folder / "set.npz", arguments, steps_per_call), folder / str(steps_per_call))
    run = made[-1]
    return {
        "steps_per_call": steps_per_call,
        "loop_seconds": run.loop_seconds,
        "call_seconds": run.call_seconds,
        "host_seconds": run.loop_seconds - run.call_seconds,
    }


def main() -> None:
    parser = command.Parser(__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--out", default="", help="the file of results; benchmarks/results/host_work_cpuN.json if left")
    arguments = parser.parse_args()
    allocation.keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        write_noise(Path(name) / "set.npz")
        rows = [measure(Path(name), arguments, steps_per_call) for steps_per_call in STEPS_PER_CALL]
    print("| steps a call | loop, ms a step | call, ms a step | host, ms a step |")
    print("| --- " * 4 + "|")
    for row in rows:
        figures = " | ".join(f"{1e3 * row[f'{what}_seconds']:.3f}" for what in ("loop", "call", "host"))
        print(f"| {row['steps_per_call']} | {figures} |")
    record.write("host_work", {"batch_size": arguments.batch_size, "rows": rows}, arguments.out)


if __name__ == "__main__":
    command.run(main)
