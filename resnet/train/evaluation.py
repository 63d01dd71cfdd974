"""Evaluation of a split: every example exactly once, whatever the batch size and the number of devices."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline.crops import Crop
from input_pipeline.sources import Split
from input_pipeline.stream import eval_batches
from resnet.train import parallel
from resnet.train.losses import losses_of_probabilities
from resnet.train.metrics import MOST_CONFUSED, all_finite_rows, summarise
from resnet.train.state import Variables

_ROWS = 1024
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
    raised, in all of several processes at the same batch, whichever of them was told. `watch` wraps the batches (a
    progress bar).
    """
    shard = (jax.process_index(), jax.process_count())
    host_batches = eval_batches(split, parallel.round_up(batch_size, mesh), crop, shard=shard, threads=threads or None)
    several = shard[1] > 1
    batches = watch(parallel.put_batches(host_batches, mesh, stop if several else None))
    own = {} if several else {"stop": stop}
    return predict_batches(eval_step, variables, batches, len(split), loss=loss, **own)


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

    def answers() -> Iterator[dict[str, np.ndarray]]:
        for batch in batches:
            if stop():
                raise Interrupted
            batch_sums, batch_rows = jax.device_get(eval_step(variables, batch))
            if batch_rows.pop("stop", np.zeros(1)).any():
                raise Interrupted
            # float64 and int64 on the host: sums stay exact however many batches there are.
            for name, value in batch_sums.items():
                counts = name in ("confusion", "hits")
                sums[name] = sums.get(name, 0) + value.astype(np.int64 if counts else np.float64)
            yield batch_rows

    probabilities, labels = in_order(answers(), count)
    return Predictions(probabilities, labels, summarise(sums, probabilities, labels), loss)


def in_order(rows: Iterable[dict[str, np.ndarray]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities, labels) of `count` examples by their index, padding left out. No batch is held on to."""
    came, total = np.zeros(count, np.int64), 0
    probabilities, labels = np.zeros((count, 0), np.float32), np.zeros(count, np.int32)
    for row in rows:
        if not total:
            probabilities = np.empty((count, row["probabilities"].shape[1]), row["probabilities"].dtype)
            labels = np.empty(count, row["label"].dtype)
        real = (row["mask"] > 0) & (row["index"] < count)
        index = row["index"][real]
        np.add.at(came, index, 1)
        total += int(np.count_nonzero(row["mask"]))
        probabilities[index], labels[index] = row["probabilities"][real], row["label"][real]
    if total != count or np.any(came != 1):
        raise AssertionError(f"{count} examples were to be evaluated once each, {total} rows came back")
    return probabilities, labels


def summarise_subset(predictions: Predictions, keep: np.ndarray) -> dict[str, Any]:
    """The summary over the examples where bool[N] `keep` is true, from predictions made already."""
    probabilities, labels = predictions.probabilities[keep], predictions.labels[keep]
    num_classes = probabilities.shape[1]
    valid = all_finite_rows(probabilities)
    ranks, first = label_ranks(probabilities, labels), probabilities.argmax(axis=1)
    ranks[~valid] = num_classes
    sums: dict[str, Any] = {
        "count": float(len(labels)),
        "loss": float(losses_of_probabilities(probabilities, labels, predictions.loss).sum()),
        "top1": float(np.sum(ranks < 1)),
    }
    if num_classes > MOST_CONFUSED:
        sums |= {"hits": np.bincount(labels[ranks < 1], minlength=num_classes), "told": float(valid.sum())}
    else:
        sums["confusion"] = np.zeros((num_classes, num_classes), np.int64)
        np.add.at(sums["confusion"], (labels[valid], first[valid]), 1)
    if num_classes > 5:
        sums["top5"] = float(np.sum(ranks < 5))
    return summarise(sums, probabilities, labels)


def label_ranks(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int64[N]: how many classes of float32[N, C] stand before the label's; equal ones stand by index."""
    ranks = np.zeros(len(labels), np.int64)
    # In parts: a sort of all takes three times the array's bytes again.
    for start in range(0, len(labels), _ROWS):
        rows, part = slice(start, start + _ROWS), labels[start : start + _ROWS, None]
        own = np.take_along_axis(probabilities[rows], part, axis=1)
        lower = np.arange(probabilities.shape[1]) < part
        ranks[rows] = np.sum((probabilities[rows] > own) | ((probabilities[rows] == own) & lower), axis=1)
    return ranks
