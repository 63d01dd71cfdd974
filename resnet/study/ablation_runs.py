"""One variant of an ablation, from its configuration to its record: trained, evaluated, saved, gone on with."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from input_pipeline.order import Order
from input_pipeline.resident import ResidentData, evaluation_rows, step_rows
from resnet.allocation import Heap
from resnet.model.counts import count
from resnet.study import ablation_program as program
from resnet.study.ablation_config import Study, Variant
from resnet.study.ablation_diagnostics import collect, make_diagnosis
from resnet.study.ablation_records import (
    DIVERGED,
    OK,
    Curves,
    Diagnosis,
    Record,
    check_identity,
    diverged_reason,
    identity_of,
    remove_checkpoints,
)
from resnet.study.ablation_statistics import mean, present
from resnet.train.checkpoints import Checkpoints, Meta
from resnet.train.code_digests import code_digest
from resnet.train.dispatch import Dispatch, next_dispatch
from resnet.train.plan import Plan, make_plan
from resnet.train.progress import EpochBar
from resnet.train.provenance import revision
from resnet.train.state import TrainState
from resnet.train.steps import reset_sums
from resnet.train.workdir import without_nan

# Rows of the batch that a network is diagnosed on: the first of the test split, the same for every variant and seed.
DIAGNOSED = 128


@dataclasses.dataclass(frozen=True)
class OnDevice:
    """The data as every variant uses them, on the device once: training set, test batches, the diagnosed batch."""

    host: ResidentData
    device: jax.Device
    images: jax.Array
    labels: jax.Array
    test: list[dict[str, jax.Array]]
    diagnosed: dict[str, jax.Array]


def put_data(data: ResidentData, eval_batch_size: int, device: jax.Device) -> OnDevice:
    """Put a dataset, which has a test split, on a device."""
    train, test = data.splits["train"], data.splits["test"]
    batches = evaluation_rows(test, min(eval_batch_size, len(test)))
    diagnosed = {"image": test.images[:DIAGNOSED], "label": test.labels[:DIAGNOSED]}
    put = lambda tree: jax.device_put(tree, device)  # noqa: E731
    return OnDevice(data, device, put(train.images), put(train.labels), put(batches), put(diagnosed))


@dataclasses.dataclass(frozen=True)
class Manner:
    """How seeds go together (a key of ablation_program.TOGETHER) and how many steps one dispatch does at most."""

    together: str
    steps_per_dispatch: int


class VariantRun:
    """A variant that is under way: its parts, its loop, and what happens at an evaluation and at a stop."""

    def __init__(
        self, variant: Variant, study: Study, data: OnDevice, folder: Path, manner: Manner, stop: Callable[[], bool]
    ) -> None:
        """study: its seeds are trained. folder: of the checkpoints. stop: whether to save and leave."""
        self.variant, self.study, self.data, self.manner, self.stop = variant, study, data, manner, stop
        self.folder = folder
        self.plan: Plan = make_plan(variant.config, data.host.as_source(variant.config.data.source))
        train = data.host.splits["train"]
        self.orders = [Order(len(train), self.plan.batch_size, seed) for seed in study.seeds]
        self.longest = max(1, min(manner.steps_per_dispatch, self.plan.total_steps))
        self.identity = identity_of(variant, study, data.host.fingerprint)
        self.curves = Curves(diverged=[None] * len(study.seeds))
        self.reset = jax.jit(reset_sums, donate_argnums=0)

    def go(self) -> Record | None:
        """Train to the end, from the newest checkpoint where there is one; None when stopped before, and saved."""
        with Checkpoints(self.folder, keep=1) as checkpoints:
            self.checkpoints = checkpoints
            step, state = self.begin()
            self.compile(state)
            plan, place = self.plan, self.study.variants.index(self.variant) + 1
            label = f"{self.variant.name} ({place} of {len(self.study.variants)})"
            with (
                EpochBar(plan.total_steps, plan.steps_per_epoch, start_step=step, label=label) as self.bar,
                jax.transfer_guard("disallow"),
            ):
                step, state = self.steps(step, state)
            if step < plan.total_steps and not self.all_diverged():
                return None
        return self.record(step, state)

    def discard(self) -> None:
        """Remove the checkpoints, once the record that takes their place is on the disk."""
        remove_checkpoints(self.folder)

    def begin(self) -> tuple[int, TrainState]:
        """(step, states) to start from: the newest checkpoint's or fresh ones; what code goes on is noted."""
        size = self.variant.config.data.image_size
        newest = self.checkpoints.latest_step()
        if newest is None:
            self.curves.code = [code_digest()]
            return 0, jax.device_put(program.first_states(self.plan, self.study.seeds, size), self.data.device)
        state = self.restore(newest)
        if newest < self.plan.total_steps and self.curves.code[-1:] not in ([], [code_digest()]):
            print(f"{self.variant.name}: the code has changed since the {newest:,} steps done; table.md will say so.")
            self.curves.code.append(code_digest())
        print(f"{self.variant.name}: resuming from step {newest} of {self.plan.total_steps}.")
        return newest, state

    def finished(self) -> TrainState | None:
        """The states after the last step, by the checkpoint that lies there until `discard`; None without one."""
        if not self.folder.is_dir():
            return None
        with Checkpoints(self.folder, keep=1) as self.checkpoints:
            newest = self.checkpoints.latest_step()
            return self.restore(newest) if newest == self.plan.total_steps else None

    def restore(self, step: int) -> TrainState:
        """The states of a checkpoint, and its curves. Raises InputError where it is of another configuration."""
        size = self.variant.config.data.image_size
        like = jax.eval_shape(lambda: program.first_states(self.plan, self.study.seeds, size))
        sharding = jax.sharding.SingleDeviceSharding(self.data.device)
        state, meta = self.checkpoints.restore(step, like, sharding, Curves)
        check_identity(f"the unfinished variant {self.variant.name}", self.folder, meta.config, self.identity)
        self.curves = Curves(**meta.progress)
        return state

    def compile(self, state: TrainState) -> None:
        """Compile what is called again and again; before the clock runs."""
        together, loop = self.manner.together, self.longest > 1
        self.keys = jax.device_put(program.seed_keys(self.study.seeds), self.data.device)
        rows, number = self.rows(Dispatch(0, 1))
        advance = program.make_advance(self.plan, together, loop=loop)
        shared = (self.data.images, self.data.labels, number)
        self.advance = program.compile_for_all(advance, together, state, (self.keys, rows), shared)
        evaluation = program.make_evaluation(self.plan, together)
        self.evaluation = program.compile_for_all(evaluation, together, (), state.evaluated(), self.data.test[0])
        self.diagnosis = jax.jit(make_diagnosis(self.plan))

    def rows(self, dispatch: Dispatch) -> tuple[dict[str, jax.Array], jax.Array]:
        """(rows of a dispatch for `make_advance`, filled up to the longest; the number of steps in it)."""
        number = dispatch.steps
        each = [step_rows(order, self.plan.train_crop, dispatch.first, number) for order in self.orders]
        fill = [(0, 0), (0, self.longest - number), (0, 0)]
        rows = {
            "index": np.pad(np.stack([one["index"] for one in each]), fill),
            "offset": np.pad(np.stack([one["offset"] for one in each]), [*fill, (0, 0)]),
        }
        return jax.device_put((rows, np.int32(number)), self.data.device)

    def dispatch_at(self, step: int) -> Dispatch:
        plan = self.plan
        marks = (plan.log_every, plan.eval_every, plan.checkpoint_every)
        return next_dispatch(step, plan.total_steps, marks, self.longest)

    def steps(self, step: int, state: TrainState) -> tuple[int, TrainState]:
        """The loop: evaluate, save, stop or dispatch, until the plan is done or every seed has diverged."""
        plan, saved, heap = self.plan, step, Heap()
        if step == 0:
            self.curves.start = self.diagnose(state)
        upcoming = self.rows(self.dispatch_at(step)) if step < plan.total_steps else None
        while True:
            if self.due(step, plan.eval_every) and step not in self.curves.test_step[-1:]:
                with self.bar.paused():
                    self.evaluate(step, state)
                    self.save(step, state)
                saved = step
            done = step == plan.total_steps or self.all_diverged()
            stopping = not done and self.stop()
            if step != saved and (stopping or self.due(step, plan.checkpoint_every)):
                with self.bar.paused():
                    self.save(step, state)
                saved = step
            if done or stopping or upcoming is None:
                return step, state
            dispatch, begun = self.dispatch_at(step), time.perf_counter()
            rows, number = upcoming
            state, news = self.advance(state, (self.keys, rows), (self.data.images, self.data.labels, number))
            # While the device is at work.
            upcoming = self.rows(self.dispatch_at(dispatch.last)) if dispatch.last < plan.total_steps else None
            news = jax.device_get(news)
            step = dispatch.last
            self.heed(dispatch, news, time.perf_counter() - begun)
            heap.heed()
            means = {}
            if step % plan.log_every == 0 or step == plan.total_steps:
                means = self.log(step, news["sums"])
                state = self.reset(state)
            self.bar.update(step, dispatch.steps * len(self.orders) * plan.batch_size, **means)

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens every `every` steps, and at the end, happens after `step` steps."""
        return step > 0 and (step % every == 0 or step == self.plan.total_steps)

    def all_diverged(self) -> bool:
        return all(step is not None for step in self.curves.diverged)

    def heed(self, dispatch: Dispatch, news: dict[str, Any], seconds: float) -> None:
        """Note what a dispatch took, and which seeds had too many non-finite steps in a row in it."""
        images = dispatch.steps * len(self.orders) * self.plan.batch_size
        self.curves.seconds += seconds
        self.curves.images += images
        limit = self.variant.config.run.max_bad_steps
        for seed, bad_steps in enumerate(news["bad_steps"].tolist()):
            if limit and bad_steps >= limit and self.curves.diverged[seed] is None:
                self.curves.diverged[seed] = dispatch.last

    def log(self, step: int, sums: dict[str, np.ndarray]) -> dict[str, float | None]:
        """Note training loss and accuracy since the line before; None for a seed without one finite step.

        Returns the means over the seeds that have not diverged, of which the bar shows the last ones it was given.
        """
        counts = np.where(sums["count"] > 0, sums["count"], np.nan)
        self.curves.train_step.append(step)
        self.curves.train_loss.append(without_nan((sums["loss"] / counts).tolist()))
        self.curves.train_top1.append(without_nan((sums["top1"] / counts).tolist()))
        latest = {"loss": self.curves.train_loss[-1], "top1": self.curves.train_top1[-1]}
        return {name: mean(self.curves.well(values)) for name, values in latest.items()}

    def evaluate(self, step: int, state: TrainState) -> None:
        """Note test loss and accuracy of every seed."""
        variables = state.evaluated()
        means = program.add_up([jax.device_get(self.evaluation((), variables, batch)) for batch in self.data.test])
        self.curves.test_step.append(step)
        self.curves.test_loss.append(without_nan(means["loss"].tolist()))
        self.curves.test_top1.append(without_nan(means["top1"].tolist()))
        errors = [100 * (1 - share) for share in present(self.curves.well(self.curves.test_top1[-1]))]
        if errors:
            told = f" ({min(errors):.2f} to {max(errors):.2f}, {len(errors)} seeds)" if len(errors) > 1 else ""
            at = f"{self.variant.name}: step {step:,} of {self.plan.total_steps:,}"
            self.bar.write(f"{at}: test error {mean(errors):.2f} %{told}")

    def diagnose(self, state: TrainState) -> Diagnosis:
        """Branches and gradients of every seed; one at a time, as it happens twice in a run."""
        found = []
        for seed in range(len(self.orders)):
            with jax.transfer_guard("allow"):
                own = {
                    name: jax.tree.map(lambda leaf, seed=seed: leaf[seed], getattr(state, name))
                    for name in ("params", "batch_stats")
                }
                found.append(jax.device_get(self.diagnosis(own, self.data.diagnosed)))
        return without_nan(collect(found))

    def save(self, step: int, state: TrainState) -> None:
        self.checkpoints.save(state, self.meta(step))

    def meta(self, step: int) -> Meta:
        """What a checkpoint of all seeds says of itself."""
        config = self.variant.config
        return Meta(
            spec=self.plan.network.spec,
            class_names=self.data.host.class_names,
            contract=self.plan.contract,
            image_size=config.data.image_size,
            resize_shorter=self.plan.eval_crop.resize_shorter,
            step=step,
            config=self.identity,
            progress=dataclasses.asdict(self.curves),
            fingerprint=self.data.host.fingerprint,
        )

    def record(self, step: int, state: TrainState) -> Record:
        """What is known of the variant now that it is done."""
        reason = diverged_reason(self.curves.diverged, self.variant.config.run.max_bad_steps)
        counts = count(self.plan.network.spec, self.variant.config.data.image_size)
        return Record(
            name=self.variant.name,
            status=DIVERGED if reason else OK,
            reason=reason,
            identity=self.identity,
            parameters=counts.parameters,
            multiply_adds=counts.multiply_adds,
            together=self.manner.together,
            device=self.data.device.device_kind,
            revision=revision(),
            curves=self.curves,
            end=self.diagnose(state),
        )
