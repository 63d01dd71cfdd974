"""The steps of a run: batches in, state and log lines out. `loop.Run` says what happens between them."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline.sources import Source
from input_pipeline.stream import train_batches
from resnet.train import diagnosis, hosts, parallel, peers, screen
from resnet.train.configuration import BEST_METRICS
from resnet.train.dispatch import Dispatch, loops_pay, next_dispatch, repeat
from resnet.train.feeding import Kept, put_blocks
from resnet.train.freezing import Stage, joined_state
from resnet.train.interruption import Interruption
from resnet.train.meta import Progress
from resnet.train.plan import Plan
from resnet.train.profiling import Profiler, read_span
from resnet.train.progress import DataWait, EpochBar
from resnet.train.shown_inputs import show_inputs
from resnet.train.state import TrainState
from resnet.train.steps import make_eval_step, make_train_step, reset_sums
from resnet.train.writers import TENSORBOARD_FOLDER, MetricsWriter, SilentWriter

# Calls that may be under way on the device while the host prepares the next: enough to hide the host, few enough that
# progress, signals and the non-finite guard lag by a blink.
CALLS_IN_FLIGHT = 2


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
        self.watchdog = peers.Watchdog(patience if hosts.several() else 0)
        self.progress = Progress()
        self.wait = DataWait()
        self.begin(plan.stages[0])
        self.eval_step = parallel.compile_eval_step(
            make_eval_step(plan.network, plan.contract, flip=plan.eval_flip, loss=plan.recipe.loss.kind), mesh
        )
        self.reset = parallel.compile_placed(reset_sums, mesh, donate_argnums=0)
        # Of several processes one traces; they do the same.
        self.profiler = Profiler(config.run.profile if hosts.primary() else "", workdir / TENSORBOARD_FOLDER)
        self.sign = -1 if BEST_METRICS[config.run.best_metric] else 1
        self.threads = config.data.threads or None
        self.feed: Iterator[dict[str, jax.Array]] | None = None
        # Images on the devices, where the feed is resident; put there before the first batch.
        self.kept: tuple[Kept, ...] = ()
        # The numbers of steps of a call are few, and each crosses once.
        self.put_count = cache(partial(parallel.put_count, mesh=mesh))
        self.pulses: collections.deque[tuple[dict[str, jax.Array], Dispatch]] = collections.deque()

    def begin(self, stage: Stage) -> None:
        """Take the train step of `stage`; compiled at its first call."""
        self.stage = stage
        streamed = make_train_step(stage.network, stage.optimizer, self.plan.recipe, learning=stage.learning)
        step: Callable[..., Any] = streamed
        if (resident := self.plan.resident) is not None:
            step = resident.step_on_rows(streamed)
        self.train_step = parallel.compile_train_step(step, self.mesh)
        self.train_steps = parallel.compile_train_step(step, self.mesh, repeat)

    def enter(self, stage: Stage, state: TrainState) -> TrainState:
        """The state with which `stage` begins: what joins gets an optimizer state."""
        self.begin(stage)
        self.bar.write(screen.entered(stage, self.plan))
        grow = parallel.compile_placed(partial(joined_state, stage), self.mesh)
        return dataclasses.replace(state, opt_state=grow(state.opt_state, state.params))

    def advance(self, step: int, state: TrainState) -> tuple[int, TrainState]:
        """One call: the next step, or the next few, up to one after which something is due."""
        if step == 0 and hosts.primary():
            show_inputs(self)
        state, dispatch = self.staged(step, state), self.dispatch_at(step)
        with self.profiler.during(step, state):
            state, pulse = self.call(dispatch, state)
        step = dispatch.last
        self.profiler.after(step, state)
        self.wait.count(dispatch.steps * self.plan.batch_size)
        self.pulses.append((pulse, dispatch))
        # A line waits for all steps before it in any case, and none may go unseen behind the last.
        line = step % self.plan.log_every == 0 or step == self.plan.total_steps
        while len(self.pulses) > (0 if line else CALLS_IN_FLIGHT):
            self.heed(*self.pulses.popleft(), step, state)
        if line:
            state = self.log(step, state)
        return step, state

    def staged(self, step: int, state: TrainState) -> TrainState:
        """`state` for step number `step` (from 0), whose stage is entered if it begins there."""
        stage = self.plan.stage(step)
        return state if stage is self.stage else self.enter(stage, state)

    def call(self, dispatch: Dispatch, state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        """(state after the next steps of the feed, their pulse, or pulses stacked)."""
        if self.feed is None:
            self.feed = self.batches(dispatch.first) if self.longest == 1 else self.pieces(dispatch.first)
        with self.wait.waiting():
            batch = next(self.feed)
        if self.longest == 1:
            return self.train_step(state, batch, *self.kept)
        return self.train_steps(state, batch, self.put_count(dispatch.steps), *self.kept)

    @cached_property
    def longest(self) -> int:
        """Steps that one call of the device does at most."""
        wanted = min(self.config.run.steps_per_call, self.plan.total_steps)
        return wanted if loops_pay(self.mesh.devices.flat[0].platform, self.config.run.dtype) else 1

    def dispatch_at(self, step: int) -> Dispatch:
        """The steps of the call that begins at `step`, up to one after which something is due."""
        if self.longest == 1:
            return Dispatch(step, step + 1)
        plan = self.plan
        # The profiler's steps are no others' either, in the processes that do not trace too.
        ends = [*(stage.start for stage in plan.stages), *(read_span(self.config.run.profile) or ())]
        end = min([plan.total_steps, *(end for end in ends if end > step)])
        # A replay looks at every step, and the count changes no bit (`dispatch.repeat`).
        longest = 1 if self.config.run.debug else self.longest
        return next_dispatch(step, end, (plan.log_every, plan.eval_every, plan.checkpoint_every), longest)

    def batches(self, step: int) -> Iterator[dict[str, jax.Array]]:
        """Training batches on the devices, one a step, from step `step` on."""
        if (resident := self.plan.resident) is not None:
            self.load()
            return put_blocks(resident.blocks(step), self.mesh)
        return parallel.put_batches(self.streamed_batches(step), self.mesh, self.stop_of_batches)

    def pieces(self, step: int) -> Iterator[dict[str, jax.Array]]:
        """Training batches on the devices, those of a call stacked and filled up with zeros to the longest."""
        self.load()
        stacked = self.streamed_pieces(step) if self.plan.resident is None else self.resident_pieces(step)
        return parallel.put_batches(stacked, self.mesh, self.stop_of_batches, rows_axis=1)

    def resident_pieces(self, step: int) -> Iterator[dict[str, np.ndarray]]:
        """What `pieces` sends of a resident feed."""
        assert self.plan.resident is not None
        while step < self.plan.total_steps:
            dispatch = self.dispatch_at(step)
            fill = (0, self.longest - dispatch.steps)
            rows = self.plan.resident.rows_of(dispatch.first, dispatch.steps)
            yield {name: np.pad(values, (fill, *((0, 0),) * (values.ndim - 1))) for name, values in rows.items()}
            step = dispatch.last

    def streamed_pieces(self, step: int) -> Iterator[dict[str, np.ndarray]]:
        """What `pieces` sends of a streamed feed."""
        host = iter(self.streamed_batches(step))
        while step < self.plan.total_steps:
            dispatch = self.dispatch_at(step)
            group = [next(host) for _ in range(dispatch.steps)]
            group += [jax.tree.map(np.zeros_like, group[0])] * (self.longest - dispatch.steps)
            yield jax.tree.map(lambda *rows: np.stack(rows), *group)
            step = dispatch.last

    @property
    def stop_of_batches(self) -> Callable[[], bool] | None:
        """What batches carry from each of several processes to the others: whether it was asked to end."""
        return (lambda: self.interruption.requested) if hosts.several() else None

    def streamed_batches(self, step: int) -> Iterable[dict[str, np.ndarray]]:
        """This process' rows of the training batches of a streamed feed, from step `step` on."""
        return train_batches(
            self.source.splits["train"],
            self.plan.order,
            self.plan.train_crop,
            start_step=step,
            num_steps=self.plan.total_steps - step,
            shard=(jax.process_index(), jax.process_count()),
            threads=self.threads,
        )

    def load(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Put the training images on the devices, once, if the feed is resident. Raises Interrupted as `stop` says."""
        if self.plan.resident is not None and not self.kept:
            self.kept = (self.plan.resident.load(self.mesh, stop),)

    def streamed(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of either feed as the stream gives it, with its images."""
        if self.plan.resident is None:
            return batch
        return dict(jax.jit(self.plan.resident.whole)(*self.kept, batch))

    def heed(self, pulse: dict[str, jax.Array], done: Dispatch, step: int, state: TrainState) -> None:
        """Show the loss of a call that is done; stop when too many steps in a row were not finite.

        pulse: of its one step, or stacked over all. `step` steps are under way, `state` is what they lead to.
        """
        seen = {name: np.atleast_1d(values)[: done.steps] for name, values in jax.device_get(pulse).items()}
        # Not `step`: seconds and images are those of the steps that are done.
        self.bar.update(done.last, done.steps * self.plan.batch_size, loss=float(seen["loss"][-1]))
        self.watchdog.beat(f"after step {step}")
        self.asked_to_end |= "stop" in seen and bool(seen["stop"].any())
        limit = self.config.run.max_bad_steps
        if limit > 0 and seen["bad_steps"].max() >= limit:
            raise diagnosis.diverged(self, done.first + 1 + int(np.argmax(seen["bad_steps"] >= limit)), state)

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
        values |= {"data_wait": interval.share, **parallel.peak_memory()}
        self.writer.write(step, self.plan.epoch(step), "train", values)
        self.bar.update(step, 0, loss=values["loss"], top1=values["top1"], wait_share=interval.share)
        return self.reset(state)
