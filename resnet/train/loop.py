"""A run, from configuration to figures. Read `train` as the recipe; everything it names is a pure part or a writer."""

import contextlib
import dataclasses
import io
import math
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline.configured import open_data
from resnet.allocation import Heap
from resnet.train import agreement, diagnosis, hosts, parallel, screen
from resnet.train.beginning import initial_state, start_directory
from resnet.train.checkpoints import Checkpoints, room_needed
from resnet.train.configuration import flatten, validate
from resnet.train.continuing import changed_data, go_on
from resnet.train.evaluation import Interrupted, evaluate_split
from resnet.train.feeding import require_decoder
from resnet.train.figures import confusion_pixels, write_curves
from resnet.train.freezing import partition
from resnet.train.interruption import SIGNALS, Handler, Interruption, waiting_handler
from resnet.train.meta import Meta, Progress
from resnet.train.plan import Plan, make_plan
from resnet.train.predictions import room_of_predictions
from resnet.train.progress import EpochBar
from resnet.train.recalibration import recalibrated
from resnet.train.result import test_run
from resnet.train.state import TrainState
from resnet.train.stepping import Stepping
from resnet.train.unread_keys import check_splits
from resnet.train.workdir import check_room, check_workdir, claimed, room_told
from resnet.train.writers import MetricsWriter, SilentWriter

# Left out of the validation lines of metrics.jsonl: megabytes per evaluation at 1,000 classes. The test line has them.
LARGE = ("confusion", "calibration", "per_class_accuracy")


def train(
    config: ConfigDict,
    workdir: Path,
    *,
    new_length: bool = False,
    flagged: Collection[str] = (),
    afterwards: Handler | None = None,
) -> int:
    """Train, or go on with, the run that `config` describes in `workdir`; exit code 0, or 128 + a signal's number.

    new_length: a run that is there may have had another length (configuration.LENGTH). flagged: the keys of `config`
    that were given as flags, and so for these very data. afterwards: the handler that Ctrl-C gets when the run ends, in
    whatever way; None: the caller's own comes back. Runs of several processes take interruption.waiting_handler.
    Raises InputError or SpecError for what the user can mend; then nothing was written.
    """
    validate(config)
    flat = flatten(config)
    begun = check_workdir(workdir, flat, new_length=new_length)
    mesh = parallel.make_mesh(config.run.mesh)
    parallel.check_batch_size("config.data.batch_size", config.data.batch_size, mesh, config.optim.accumulation)
    source = open_data(config, leading=hosts.primary())
    check_splits(config, source, flagged)
    plan = make_plan(config, source)
    require_decoder(source, plan.resident, plan.seen_crop, plan.eval_crop)
    agreement.check_transfer(plan.transfer, begun=begun)
    agreement.check_alike(flat, source, plan.pretrained)
    state = initial_state(config, plan, mesh)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    needed = room_needed(workdir, keep=config.run.keep, total_steps=plan.total_steps, state_bytes=state_bytes)
    tested = source.splits["test"].ids if "test" in source.splits else ()
    check_room(workdir, needed, room_of_predictions(workdir, tested, len(source.class_names)))
    several = hosts.several()
    interruption = (
        Interruption(afterwards=waiting_handler(), of=SIGNALS) if several else Interruption(afterwards=afterwards)
    )
    with interruption, claimed(workdir) if hosts.primary() else contextlib.nullcontext():
        begun = check_workdir(workdir, flat, new_length=new_length)
        run = kind_of_run(plan)(config, workdir, mesh, source, plan, interruption)
        if config.run.debug:
            diagnosis.check_debug(plan, workdir, begun=begun)
            return diagnosis.replay(run, state)
        if hosts.primary():
            notes: list[str] = []
            if begun:
                notes = go_on(config, workdir, source, plan)
            else:
                start_directory(workdir, flat, source, plan.pretrained)
            print("\n".join((screen.start(config, plan, source, state, workdir), *notes)))
        hosts.barrier("run directory")  # Before it the others may not look for checkpoints.
        with room_told(workdir, state_bytes):
            agreement.check_shared(workdir)
            return run.go(state)


def kind_of_run(plan: Plan) -> type["Run"]:
    """The class that carries out a plan."""
    # Here, not above: that file is about a kind of Run.
    from resnet.train.probe import ProbeRun

    return ProbeRun if plan.transfer.mode == "probe" else Run


class Run(Stepping):
    """A run that is under way: its loop, and what happens at an evaluation and a stop."""

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
                hosts.say(f"Stopped before step {step + 1}. Run the same command to resume.")
                return self.interruption.exit_code
            settings = {**flatten(self.config), "run.writers": tuple(self.config.run.writers)}
            evaluated = self.progress.evaluated_step == step
            writer = partial(MetricsWriter, self.workdir, step, settings, evaluated=evaluated)
            with writer() if hosts.primary() else SilentWriter() as self.writer, self.watchdog:
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
                    hosts.say(f"Stopped at {done}, saved{when}. Run the same command to resume.")
                    return self.interruption.exit_code
                self.writer.finish()
            if hosts.primary():
                write_curves(self.workdir, self.config.run.best_metric)
        validated = outcome is not None and outcome.step == self.progress.best_step
        hosts.say(screen.end(self.workdir, outcome, self.config.data, validated=validated))
        return 0

    @property
    def stopping(self) -> bool:
        """Whether the run is to save and end now: a signal has arrived, here or at any of several processes."""
        return self.asked_to_end if hosts.several() else self.interruption.requested

    def resume(self, fresh: TrainState) -> tuple[int, TrainState]:
        """(step, state) to start from: the newest checkpoint's, or 0 and `fresh`."""
        for line in self.checkpoints.set_aside:
            hosts.say(line)
        newest = agreement.newest_step(self.checkpoints)
        if newest is None:
            return 0, fresh
        like = self.like(newest, fresh)
        state, meta = self.checkpoints.restore(newest, like, parallel.state_shardings(self.mesh, like))
        if not self.source.is_of(meta.fingerprint):
            raise changed_data(self.workdir)
        self.progress = Progress(**meta.progress)
        self.begin(self.plan.stage(max(newest - 1, 0)))
        if newest > self.plan.total_steps:
            # Rounding gave runs begun up to 2026-11-27 a step more than this plan may have: such a one is done.
            self.plan = dataclasses.replace(self.plan, total_steps=newest)
        hosts.say(f"Resuming from step {newest} of {self.plan.total_steps}.")
        if newest < self.plan.total_steps and self.stopped_early():
            hosts.say(
                f"It had stopped early, after {self.progress.since_best} evaluations without a new best: "
                "--new_length --config.run.early_stopping=0 lets it continue."
            )
        return newest, state

    def prepare(self, step: int, state: TrainState) -> TrainState:
        """What comes before the first step. Raises Interrupted when a signal arrives; nothing was saved then."""
        if step < self.plan.total_steps:
            self.load(stop=lambda: self.interruption.requested)
        if step > 0 or self.plan.transfer.norms != "recalibrate":
            return state
        train, stop = self.source.splits["train"], lambda: self.interruption.requested
        return recalibrated(self.plan, state, train, self.mesh, threads=self.threads, stop=stop)

    def steps(self, step: int, state: TrainState) -> tuple[int, TrainState]:
        """The loop: evaluate, save, stop or step, until the plan is done."""
        saved, heap = step, Heap()
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
            heap.heed()

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens every `every` steps, and at the end, happens after `step` steps."""
        return step > 0 and (step % every == 0 or step == self.plan.total_steps)

    def stopped_early(self) -> bool:
        patience = self.config.run.early_stopping
        return patience > 0 and self.progress.since_best >= patience

    def evaluate(self, step: int, state: TrainState) -> tuple[TrainState, bool]:
        """Evaluate on the validation split, note whether it is the best, save. False if a signal came in between."""
        if "val" in self.source.splits:
            with self.wait.paused(), self.bar.paused():
                try:
                    summary = self.predict("val", state).summary
                except Interrupted:
                    return state, False
            metric = self.config.run.best_metric
            value = summary.get(metric)
            best = self.note(step, math.nan if value is None else float(value))
            brief = {name: value for name, value in summary.items() if name not in LARGE}
            self.writer.write(step, self.plan.epoch(step), "val", brief)
            if best and "confusion" in summary:
                # Not of every evaluation: of hundreds the event files would grow by megabytes.
                self.writer.show(step, "val/confusion", confusion_pixels(summary["confusion"], self.source.class_names))
            self.bar.write(screen.evaluation(step, self.plan.epoch(step), "val", summary, best, metric))
        self.progress.evaluated_step = step
        with self.wait.paused(), self.bar.paused():
            self.save(step, state)
        return state, True

    def note(self, step: int, value: float) -> bool:
        """Whether `value` is the best so far (of equal ones the latest; any number is better than NaN); remember it."""
        best_so_far = self.progress.best_value
        if best_so_far is not None and math.isnan(best_so_far):
            best_so_far = None
        best = best_so_far is None or self.sign * value >= self.sign * best_so_far
        strictly = best_so_far is None or self.sign * value > self.sign * best_so_far
        if best:
            self.progress.best_step, self.progress.best_value = step, value
        self.progress.since_best = 0 if strictly else self.progress.since_best + 1
        return best

    def predict(self, name: str, state: TrainState) -> Any:
        """Predictions for a split with the variables that evaluation uses."""
        try:
            return evaluate_split(
                self.eval_step,
                state.evaluated(),
                self.source.splits[name],
                self.plan.eval_crop,
                batch_size=self.plan.eval_batch_size,
                mesh=self.mesh,
                loss=self.plan.recipe.loss.kind,
                threads=self.threads or 0,
                stop=lambda: self.interruption.requested,
                watch=self.guarded,
            )
        except Interrupted:
            # Also in those of several processes that had no signal themselves.
            self.asked_to_end = True
            raise

    def guarded(self, batches: Iterable[Any]) -> Iterator[Any]:
        """`batches` with the watchdog fed at each; it is patient until the second, for the first compiles."""
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
            image_size=self.plan.eval_crop.image_size,
            resize_shorter=self.plan.eval_crop.resize_shorter,
            step=step,
            config=flatten(self.config),
            progress=dataclasses.asdict(self.progress),
            fingerprint=self.source.fingerprint,
        )
        self.writer.sync()
        self.checkpoints.save(state, meta)
