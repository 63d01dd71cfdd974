"""Evaluation of a split: every example exactly once, whatever the batch size and the number of devices."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline.crops import Crop
from input_pipeline.sources import Split
from input_pipeline.stream import eval_batches
from resnet.train import parallel
from resnet.train.losses import losses_of_probabilities
from resnet.train.metrics import summarise
from resnet.train.state import Variables

EvalStep = Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]


class Interrupted(Exception):
    """A signal arrived while a split was evaluated: no error, somebody asked the run to stop."""


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model said of a split, in the split's order: probabilities float32[N, C], labels int32[N], the summary.

    loss: the kind that the model was trained with, one of losses.LOSSES.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    summary: dict[str, Any]
    loss: str = "softmax"


def evaluate_split(
    eval_step: EvalStep,
    variables: Variables,
    split: Split,
    crop: Crop,
    *,
    batch_size: int,
    mesh: Mesh,
    loss: str = "softmax",
    threads: int = 0,
    stop: Callable[[], bool] = lambda: False,
    watch: Callable[[Iterable], Iterable] = lambda batches: batches,
) -> Predictions:
    """Feed `split` once through `eval_step` and summarise. `batch_size` is the global one; the last batch is padded.

    loss: the kind that `eval_step` was made for. `stop` is asked between batches; when it says yes Interrupted is
    raised. `watch` wraps the batches (a progress bar).
    """
    shard = (jax.process_index(), jax.process_count())
    host_batches = eval_batches(split, parallel.round_up(batch_size, mesh), crop, shard=shard, threads=threads or None)
    batches = watch(parallel.put_batches(host_batches, mesh))
    return predict_batches(eval_step, variables, batches, len(split), loss=loss, stop=stop)


def predict_batches(
    eval_step: EvalStep,
    variables: Variables,
    batches: Iterable[dict[str, jax.Array]],
    count: int,
    *,
    loss: str = "softmax",
    stop: Callable[[], bool] = lambda: False,
) -> Predictions:
    """Feed padded batches that hold each of `count` examples once through `eval_step` and summarise."""
    sums: dict[str, Any] = {}
    rows: list[dict[str, np.ndarray]] = []
    for batch in batches:
        if stop():
            raise Interrupted
        batch_sums, batch_rows = jax.device_get(eval_step(variables, batch))
        # float64 and int64 on the host: sums stay exact however many batches there are.
        for name, value in batch_sums.items():
            sums[name] = sums.get(name, 0) + value.astype(np.int64 if name == "confusion" else np.float64)
        rows.append(batch_rows)
    probabilities, labels = in_order(rows, count)
    return Predictions(probabilities, labels, summarise(sums, probabilities, labels), loss)


def in_order(rows: list[dict[str, np.ndarray]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities, labels) of `count` examples by their index, padding left out."""
    real = np.concatenate([row["mask"] for row in rows]) > 0
    index = np.concatenate([row["index"] for row in rows])[real]
    if not np.array_equal(np.sort(index), np.arange(count)):
        raise AssertionError(f"{count} examples were to be evaluated once each, {len(index)} rows came back")
    place = np.argsort(index)
    probabilities = np.concatenate([row["probabilities"] for row in rows])[real][place]
    return probabilities, np.concatenate([row["label"] for row in rows])[real][place]


def summarise_subset(predictions: Predictions, keep: np.ndarray) -> dict[str, Any]:
    """The summary over the examples where bool[N] `keep` is true, from predictions made already."""
    probabilities, labels = predictions.probabilities[keep], predictions.labels[keep]
    num_classes = probabilities.shape[1]
    valid = np.isfinite(probabilities).all(axis=1)
    ranks = np.argsort(-probabilities, axis=1, kind="stable")
    right = (ranks == labels[:, None]) & valid[:, None]
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (labels[valid], ranks[valid, 0]), 1)
    sums: dict[str, Any] = {
        "count": float(len(labels)),
        "loss": float(losses_of_probabilities(probabilities, labels, predictions.loss).sum()),
        "top1": float(right[:, 0].sum()),
        "confusion": confusion,
    }
    if num_classes > 5:
        sums["top5"] = float(right[:, :5].sum())
    return summarise(sums, probabilities, labels)
