"""A run, from configuration to figures. Read `train` as the recipe; everything it names is a pure part or a writer."""

import collections
import contextlib
import dataclasses
import io
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline.configured import open_data
from input_pipeline.errors import InputError
from input_pipeline.sources import Source
from input_pipeline.stream import train_batches
from resnet.train import diagnosis, hosts, parallel, screen
from resnet.train.beginning import initial_state, start_directory
from resnet.train.checkpoints import Checkpoints, room_needed
from resnet.train.configuration import flatten, validate
from resnet.train.evaluation import Interrupted, evaluate_split
from resnet.train.figures import confusion_pixels, write_curves
from resnet.train.freezing import Stage, joined_state, partition
from resnet.train.interruption import Interruption
from resnet.train.meta import Meta, Progress
from resnet.train.plan import Plan, make_plan
from resnet.train.profiling import Profiler
from resnet.train.progress import DataWait, EpochBar
from resnet.train.recalibration import recalibrated
from resnet.train.result import test_run
from resnet.train.shown_inputs import first_shown
from resnet.train.state import TrainState
from resnet.train.steps import make_eval_step, make_train_step, reset_sums
from resnet.train.workdir import check_room, check_workdir, claimed, room_told
from resnet.train.writers import TENSORBOARD_FOLDER, MetricsWriter, SilentWriter

# Steps that may be under way on the device while the host prepares the next: enough to hide the host, few enough that
# progress, signals and the non-finite guard lag by a blink.
STEPS_IN_FLIGHT = 2
# Left out of the validation lines of metrics.jsonl: megabytes per evaluation at 1,000 classes. The test line has them.
LARGE = ("confusion", "calibration", "per_class_accuracy")


def train(config: ConfigDict, workdir: Path) -> int:
    """Train, or go on with, the run that `config` describes in `workdir`; exit code 0, or 128 + a signal's number.

    Raises InputError or SpecError for what the user can mend; then nothing was written.
    """
    validate(config)
    flat = dict(flatten(config))
    check_workdir(workdir, flat)
    mesh = parallel.make_mesh(config.run.mesh)
    parallel.check_batch_size("config.data.batch_size", config.data.batch_size, mesh, config.optim.accumulation)
    source = open_data(config)
    plan = make_plan(config, source)
    state = initial_state(config, plan, mesh)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    needed = room_needed(workdir, keep=config.run.keep, total_steps=plan.total_steps, state_bytes=state_bytes)
    check_room(workdir, needed)
    with Interruption() as interruption, claimed(workdir) if hosts.primary() else contextlib.nullcontext():
        begun = check_workdir(workdir, flat)
        run = kind_of_run(plan)(config, workdir, mesh, source, plan, interruption)
        if config.run.debug:
            diagnosis.check_debug(plan, workdir, begun=begun)
            return diagnosis.replay(run, state)
        if hosts.primary():
            start_directory(workdir, flat, source, plan.pretrained)
            print(screen.start(config, plan, source, state, workdir))
        hosts.barrier("run directory")  # Before it the others may not look for checkpoints.
        with room_told(workdir, state_bytes):
            return run.go(state)


def kind_of_run(plan: Plan) -> type["Run"]:
    """The class that carries out a plan."""
    # Here, not above: that file is about a kind of Run.
    from resnet.train.probe import ProbeRun

    return ProbeRun if plan.transfer.mode == "probe" else Run


class Run:
    """A run that is under way: its parts, its loop, and what happens at an evaluation, a log line and a stop."""

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
        # Of several processes one traces; they do the same.
        self.profiler = Profiler(config.run.profile if hosts.primary() else "", workdir / TENSORBOARD_FOLDER)
        # 'loss' is better when lower.
        self.sign = -1 if config.run.best_metric == "loss" else 1
        self.threads = config.data.threads or None

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

    def like(self, step: int, state: TrainState) -> TrainState:
        """Shapes of a checkpoint of `step` steps: its optimizer's state is that of the last step done."""
        stage = self.plan.stage(max(step - 1, 0))
        learning = partition(state.params, stage.learning)[0]
        return dataclasses.replace(state, opt_state=jax.eval_shape(stage.optimizer.init, learning))

    def go(self, state: TrainState) -> int:
        """Train from `state`, or from the newest checkpoint, to the end; the exit code."""
        with Checkpoints(self.workdir, keep=self.config.run.keep) as checkpoints:
            self.checkpoints = checkpoints
            step, state = self.resume(state)
            # Of an earlier start, which this one replaces.
            (self.workdir / diagnosis.FILE).unlink(missing_ok=True)
            try:
                state = self.prepare(step, state)
            except Interrupted:
                print(f"Stopped before step {step + 1}. The same command goes on from there.")
                return self.interruption.exit_code
            settings = dict(flatten(self.config))
            opened = MetricsWriter(self.workdir, step, settings) if hosts.primary() else SilentWriter()
            with opened as self.writer, self.watchdog:
                quiet = None if hosts.primary() else io.StringIO()
                bar = EpochBar(self.plan.total_steps, self.plan.steps_per_epoch, start_step=step, stream=quiet)
                with bar as self.bar, jax.transfer_guard("disallow"):
                    step, state = self.steps(step, state)
                self.checkpoints.wait()
                outcome = None
                if not self.stopping:
                    with contextlib.suppress(Interrupted):
                        outcome = test_run(self, step, state)
                if self.stopping:
                    done = f"step {step} of {self.plan.total_steps}"
                    when = f" {self.interruption.seconds:.1f} s after the signal" if self.interruption.requested else ""
                    hosts.say(f"Stopped at {done}, saved{when}. The same command goes on from there.")
                    return self.interruption.exit_code
                self.writer.finish()
            if hosts.primary():
                write_curves(self.workdir, self.config.run.best_metric)
        validated = outcome is not None and outcome.step == self.progress.best_step
        hosts.say(screen.end(self.workdir, outcome, self.config.data.source, validated=validated))
        return 0

    @property
    def stopping(self) -> bool:
        """Whether the run is to save and end now: a signal has arrived, here or at any of several processes."""
        return self.asked_to_end if hosts.several() else self.interruption.requested

    def resume(self, fresh: TrainState) -> tuple[int, TrainState]:
        """(step, state) to start from: the newest checkpoint's, or 0 and `fresh`."""
        for line in self.checkpoints.set_aside:
            hosts.say(line)
        newest = self.checkpoints.latest_step()
        if newest is None:
            return 0, fresh
        like = self.like(newest, fresh)
        state, meta = self.checkpoints.restore(newest, like, parallel.state_shardings(self.mesh, like))
        if meta.fingerprint != self.source.fingerprint:
            raise InputError(
                f"{self.workdir}: the data changed since this run began (other files, labels or splits); "
                "restore them or give --workdir a new folder"
            )
        self.progress = Progress(**meta.progress)
        self.begin(self.plan.stage(max(newest - 1, 0)))
        hosts.say(f"Going on from step {newest} of {self.plan.total_steps}.")
        return newest, state

    def prepare(self, step: int, state: TrainState) -> TrainState:
        """What comes before the first step. Raises Interrupted when a signal arrives; nothing was saved then."""
        if step > 0 or self.plan.transfer.norms != "recalibrate":
            return state
        train, stop = self.source.splits["train"], lambda: self.interruption.requested
        return recalibrated(self.plan, state, train, self.mesh, threads=self.threads, stop=stop)

    def steps(self, step: int, state: TrainState) -> tuple[int, TrainState]:
        """The loop: evaluate, save, stop or step, until the plan is done."""
        self.feed: Iterator[dict[str, jax.Array]] | None = None
        self.pulses: collections.deque[dict[str, jax.Array]] = collections.deque()
        saved = step
        while True:
            if self.due(step, self.plan.eval_every) and self.progress.evaluated_step != step:
                state, evaluated = self.evaluate(step, state)
                if evaluated:
                    saved = step
            elif step != saved and self.due(step, self.plan.checkpoint_every):
                self.save(step, state)
                saved = step
            if self.stopping and step != saved:
                self.save(step, state)
            if self.stopping or step == self.plan.total_steps or self.stopped_early():
                self.profiler.end(state)
                return step, state
            step, state = self.advance(step, state)

    def advance(self, step: int, state: TrainState) -> tuple[int, TrainState]:
        """One step on the next batch."""
        if (stage := self.plan.stage(step)) is not self.stage:
            state = self.enter(stage, state)
        if self.feed is None:
            self.feed = self.batches(step)
        with self.profiler.during(step, state):
            with self.wait.waiting():
                batch = next(self.feed)
            state, pulse = self.train_step(state, batch)
        step += 1
        self.profiler.after(step, state)
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
        host = first_shown(self, host) if step == 0 and hosts.primary() else host
        stop = (lambda: self.interruption.requested) if hosts.several() else None
        return parallel.put_batches(host, self.mesh, stop)

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens every `every` steps, and at the end, happens after `step` steps."""
        return step > 0 and (step % every == 0 or step == self.plan.total_steps)

    def stopped_early(self) -> bool:
        patience = self.config.run.early_stopping
        return patience > 0 and self.progress.since_best >= patience

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

    def evaluate(self, step: int, state: TrainState) -> tuple[TrainState, bool]:
        """Evaluate on the validation split, note whether it is the best, save. False if a signal came in between."""
        if "val" in self.source.splits:
            with self.wait.paused(), self.bar.paused():
                try:
                    summary = self.predict("val", state).summary
                except Interrupted:
                    return state, False
            value = float(summary[self.config.run.best_metric])
            best = self.note(step, value)
            brief = {name: value for name, value in summary.items() if name not in LARGE}
            self.writer.write(step, self.plan.epoch(step), "val", brief)
            if best:
                # Not of every evaluation: of hundreds the event files would grow by megabytes.
                self.writer.show(step, "val/confusion", confusion_pixels(summary["confusion"], self.source.class_names))
            self.bar.write(screen.evaluation(step, self.plan.epoch(step), "val", summary, best))
        self.progress.evaluated_step = step
        with self.wait.paused(), self.bar.paused():
            self.save(step, state)
        return state, True

    def note(self, step: int, value: float) -> bool:
        """Whether `value` is the best so far (of equal ones the latest); remember it."""
        best_so_far = self.progress.best_value
        best = best_so_far is None or self.sign * value >= self.sign * best_so_far
        strictly = best_so_far is None or self.sign * value > self.sign * best_so_far
        if best:
            self.progress.best_step, self.progress.best_value = step, value
        self.progress.since_best = 0 if strictly else self.progress.since_best + 1
        return best

    def predict(self, name: str, state: TrainState) -> Any:
        """Predictions for a split with the variables that evaluation uses."""
        return evaluate_split(
            self.eval_step,
            state.evaluated(),
            self.source.splits[name],
            self.plan.eval_crop,
            batch_size=self.plan.eval_batch_size,
            mesh=self.mesh,
            threads=self.threads or 0,
            stop=lambda: self.stopping,
            watch=self.guarded,
        )

    def guarded(self, batches: Iterable[Any]) -> Iterator[Any]:
        """`batches` with the watchdog fed at each; off until the second, for the first compiles."""
        self.watchdog.rest()
        for number, batch in enumerate(batches):
            if number > 1:
                self.watchdog.beat(f"batch {number} of an evaluation")
            yield batch
        self.watchdog.rest()

    def save(self, step: int, state: TrainState) -> None:
        meta = Meta(
            spec=self.plan.network.spec,
            class_names=self.source.class_names,
            contract=self.plan.contract,
            image_size=self.config.data.image_size,
            resize_shorter=self.plan.eval_crop.resize_shorter,
            step=step,
            config=dict(flatten(self.config)),
            progress=dataclasses.asdict(self.progress),
            fingerprint=self.source.fingerprint,
        )
        self.writer.sync()
        self.checkpoints.save(state, meta)
