"""A probe: the backbone runs once per image and view, the head learns on the features it left, in seconds.

An ordinary run in all else: the same optimizer, schedule, validation, checkpoints (of the whole network) and test.
"""

from collections.abc import Iterator
from typing import Any, cast

import jax
import numpy as np

from input_pipeline.augment import soft_targets
from input_pipeline.errors import InputError
from input_pipeline.order import evaluation_batches
from input_pipeline.sources import Split
from resnet.model.network import Head, ResNet
from resnet.model.spec import HEAD
from resnet.out_of_memory import ADVICE_OF_PROBE, out_of_memory
from resnet.train import parallel
from resnet.train.dispatch import Dispatch, repeat
from resnet.train.evaluation import predict_batches
from resnet.train.features import FeatureStep, Pass, compile_step, features
from resnet.train.freezing import Stage
from resnet.train.loop import Run
from resnet.train.pretrained import digest_of
from resnet.train.state import TrainState, Variables
from resnet.train.steps import DROPOUT, Batch, Recipe, batch_loss, eval_results, make_train_step

# Bytes of features that go to the device at a time: many steps in one call, however large the set.
PIECE_BYTES = 1 << 26


class ProbeRun(Run):
    """A run whose steps see features in place of images; several of them are one call of a compiled loop."""

    def go(self, state: TrainState) -> int:
        """As any run. Raises InputError where memory runs out, with what helps a probe."""
        try:
            return super().go(state)
        except Exception as error:
            said = out_of_memory(error, ADVICE_OF_PROBE)
            if said is None:
                raise
            raise InputError(said) from error

    def begin(self, stage: Stage) -> None:
        self.stage = stage
        step = make_train_step(
            stage.network, stage.optimizer, self.plan.recipe, learning=stage.learning, loss=head_loss_sum
        )
        self.train_steps = parallel.compile_train_step(step, self.mesh, repeat)
        self.head_step = parallel.compile_eval_step(
            make_head_eval_step(stage.network, self.plan.recipe.loss.kind), self.mesh
        )

    def prepare(self, step: int, state: TrainState) -> TrainState:
        """The statistics, and the features of training and validation images."""
        state = super().prepare(step, state)
        # A finished run has nothing left to learn.
        if step < self.plan.total_steps:
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            digest = digest_of({**variables, "params": {k: v for k, v in state.params.items() if k not in HEAD}})
            views = [("train", view) for view in range(self.plan.transfer.views)]
            self.feature_steps: dict[int, FeatureStep] = {}
            self.features = {
                (name, view): self.pass_over(self.source.splits[name], view, variables, digest)
                for name, view in [*views, ("val", 0)]
                if name in self.source.splits
            }
        return state

    def pass_over(self, split: Split, view: int, variables: Variables, digest: str) -> np.ndarray:
        wanted = Pass(self.plan, split, view, digest)
        # Training and validation images share a program: compiling a deep network takes longer than a small split.
        step = self.feature_steps.setdefault(view, compile_step(self.plan, view, self.mesh))
        return features(
            wanted, step, variables, self.mesh, threads=self.threads, stop=lambda: self.interruption.requested
        )

    def advance(self, step: int, state: TrainState) -> tuple[int, TrainState]:
        """All steps up to the next one at which something is due, but no more than a piece."""
        count = self.dispatch_at(step).steps
        with self.wait.waiting():
            piece = self.piece(step, count)
        state, pulses = self.train_steps(state, piece, parallel.put_count(count, self.mesh))
        step += count
        self.wait.count(count * self.plan.batch_size)
        self.heed(pulses, Dispatch(step - count, step), step, state)
        if step % self.plan.log_every == 0 or step == self.plan.total_steps:
            state = self.log(step, state)
        return step, state

    @property
    def longest(self) -> int:
        """Steps whose features are at most PIECE_BYTES."""
        row_bytes = self.features["train", 0].shape[1] * 4
        plan = self.plan
        longest = min(plan.log_every, plan.eval_every, plan.checkpoint_every, plan.total_steps)
        return max(1, min(longest, PIECE_BYTES // (row_bytes * plan.batch_size)))

    def piece(self, step: int, count: int) -> Batch:
        """'features' float32[K, B, C], 'label' int32[K, B], 'mask' float32[K, B] of `count` steps; the rest is zero.

        Epoch e shows view e mod views of each image.
        """
        order, views, size = self.plan.order, self.plan.transfer.views, self.plan.batch_size
        index = np.stack([order.indices(step + i) for i in range(count)])
        view = np.stack([order.epochs(step + i) for i in range(count)]) % views
        rows = np.zeros((self.longest, size, self.features["train", 0].shape[1]), np.float32)
        for number in range(views):
            here = np.nonzero(view == number)
            rows[here] = self.features["train", number][index[here]]
        labels = np.zeros(rows.shape[:2], np.int32)
        labels[:count] = self.source.splits["train"].labels[index]
        host = {"features": rows, "label": labels, "mask": np.ones(rows.shape[:2], np.float32)}
        return jax.device_put(host, parallel.replicated(self.mesh))

    def predict(self, name: str, state: TrainState) -> Any:
        """The validation split from its features; any other through the whole network."""
        if name != "val" or ("val", 0) not in getattr(self, "features", {}):
            return super().predict(name, state)
        split, rows = self.source.splits[name], self.features[name, 0]
        host = feature_batches(rows, split.labels, parallel.round_up(self.plan.eval_batch_size, self.mesh))
        batches = parallel.put_batches(host, self.mesh)
        return predict_batches(self.head_step, state.evaluated(), batches, len(split), loss=self.plan.recipe.loss.kind)


def head_loss_sum(
    network: ResNet, recipe: Recipe, params: Variables, batch_stats: Variables, batch: Batch, key: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, Variables, Batch]]:
    """As steps.loss_sum, for a batch of features in place of images."""
    targets = soft_targets(batch["label"], recipe.augmentation, network.spec.num_classes)
    logits = classify(
        network, params, batch["features"], train=True, rngs={"dropout": jax.random.fold_in(key, DROPOUT)}
    )
    loss, weight, sums = batch_loss(recipe, logits, targets, batch)
    return loss, (weight, batch_stats, sums)


def make_head_eval_step(network: ResNet, loss: str = "softmax") -> Any:
    """As steps.make_eval_step, for batches of features in place of images."""

    def eval_step(variables: Variables, batch: Batch) -> tuple[Batch, Batch]:
        logits = classify(network, variables["params"], batch["features"])
        return eval_results(logits, batch, loss)

    return eval_step


def classify(network: ResNet, params: Variables, features: jax.Array, **options: Any) -> jax.Array:
    """Logits of features by the head among the network's `params`."""
    head = {name: params[name] for name in HEAD if name in params}
    return cast(jax.Array, Head(network.spec).apply({"params": head}, features, **options))


def feature_batches(rows: np.ndarray, labels: np.ndarray, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every row once, padded and masked as input_pipeline.stream.eval_batches does."""
    for index, mask in evaluation_batches(len(rows), batch_size):
        yield {
            "features": np.asarray(rows[index]),
            "label": labels[index].astype(np.int32),
            "mask": mask,
            "index": index.astype(np.int32),
        }
