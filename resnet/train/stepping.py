"""The steps of a run: batches in, state and log lines out. `loop.Run` says what happens between them."""

import collections
import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline.sources import Source
from input_pipeline.stream import train_batches
from resnet.train import diagnosis, hosts, parallel, screen
from resnet.train.freezing import Stage, joined_state
from resnet.train.interruption import Interruption
from resnet.train.meta import Progress
from resnet.train.plan import Plan
from resnet.train.progress import DataWait, EpochBar
from resnet.train.state import TrainState
from resnet.train.steps import make_eval_step, make_train_step, reset_sums
from resnet.train.writers import MetricsWriter, SilentWriter

# Steps that may be under way on the device while the host prepares the next: enough to hide the host, few enough that
# progress, signals and the non-finite guard lag by a blink.
STEPS_IN_FLIGHT = 2


class Stepping:
    """A run's parts, and what happens at a step and at a log line."""

    bar: EpochBar
    writer: MetricsWriter | SilentWriter

    def __init__(
        self, config: ConfigDict, workdir: Path, mesh: Mesh, source: Source, plan: Plan, interruption: Interruption
    ) -> None:
        self.config, self.workdir, self.mesh, self.source, self.plan = config, workdir, mesh, source, plan
        self.interruption = interruption
        # Of several processes: whether one of them was asked to end, which all learn at the same step.
        self.asked_to_end = False
        patience = config.run.hang_timeout
        self.watchdog = hosts.Watchdog(patience if hosts.several() else 0)
        self.progress = Progress()
        self.wait = DataWait()
        self.begin(plan.stages[0])
        self.eval_step = parallel.compile_eval_step(make_eval_step(plan.network, plan.contract), mesh)
        self.reset = parallel.compile_placed(reset_sums, mesh, donate_argnums=0)
        # 'loss' is better when lower.
        self.sign = -1 if config.run.best_metric == "loss" else 1
        self.threads = config.data.threads or None
        self.feed: Iterator[dict[str, jax.Array]] | None = None
        self.pulses: collections.deque[dict[str, jax.Array]] = collections.deque()

    def begin(self, stage: Stage) -> None:
        """Take the train step of `stage`; compiled at its first call."""
        self.stage = stage
        step = make_train_step(stage.network, stage.optimizer, self.plan.recipe, learning=stage.learning)
        self.train_step = parallel.compile_train_step(step, self.mesh)

    def enter(self, stage: Stage, state: TrainState) -> TrainState:
        """The state with which `stage` begins: what joins gets an optimizer state."""
        self.begin(stage)
        self.bar.write(screen.entered(stage, self.plan))
        grow = parallel.compile_placed(partial(joined_state, stage), self.mesh)
        return dataclasses.replace(state, opt_state=grow(state.opt_state, state.params))

    def advance(self, step: int, state: TrainState) -> tuple[int, TrainState]:
        """One step on the next batch."""
        if (stage := self.plan.stage(step)) is not self.stage:
            state = self.enter(stage, state)
        if self.feed is None:
            self.feed = self.batches(step)
        with self.wait.waiting():
            batch = next(self.feed)
        state, pulse = self.train_step(state, batch)
        step += 1
        self.wait.count(self.plan.batch_size)
        self.pulses.append(pulse)
        if len(self.pulses) > STEPS_IN_FLIGHT:
            self.heed(jax.device_get(self.pulses.popleft()), step, state)
        if step % self.plan.log_every == 0 or step == self.plan.total_steps:
            state = self.log(step, state)
        return step, state

    def batches(self, step: int) -> Iterator[dict[str, jax.Array]]:
        """Training batches on the devices, from step `step` on."""
        shard = (jax.process_index(), jax.process_count())
        host = train_batches(
            self.source.splits["train"],
            self.plan.order,
            self.plan.train_crop,
            start_step=step,
            num_steps=self.plan.total_steps - step,
            shard=shard,
            threads=self.threads,
        )
        stop = (lambda: self.interruption.requested) if hosts.several() else None
        return parallel.put_batches(host, self.mesh, stop)

    def heed(self, pulse: dict[str, np.ndarray], step: int, state: TrainState, steps: int = 1) -> None:
        """Show the loss of the last of `steps` that are done; stop when too many in a row were not finite."""
        self.bar.update(step, steps * self.plan.batch_size, loss=float(pulse["loss"]))
        self.watchdog.beat(f"after step {step}")
        self.asked_to_end |= bool(pulse.get("stop", 0))
        limit = self.config.run.max_bad_steps
        if limit and int(pulse["bad_steps"]) >= limit:
            raise diagnosis.diverged(self, step - STEPS_IN_FLIGHT, state)

    def log(self, step: int, state: TrainState) -> TrainState:
        """Write a training line from the sums since the last one; the state with its sums at zero."""
        sums = jax.device_get(state.sums)
        count, steps = max(float(sums["count"]), 1.0), max(float(sums["steps"]), 1.0)
        interval = self.wait.interval()
        values = {name: float(sums[name]) / count for name in ("loss", "top1", "top5") if name in sums}
        values["gradient_norm"] = float(sums["gradient_norm"]) / steps
        values["bad_steps"] = int(jax.device_get(state.bad_steps_total))
        with jax.transfer_guard("allow"):
            # The optimizer counts updates, and a skipped step was none.
            values["learning_rate"] = float(self.plan.schedule(max(0, step - 1 - values["bad_steps"])))
        values["images_per_second"] = interval.images_per_second
        values["data_wait"] = interval.share
        self.writer.write(step, self.plan.epoch(step), "train", values)
        self.bar.update(step, 0, loss=values["loss"], top1=values["top1"], wait_share=interval.share)
        return self.reset(state)
