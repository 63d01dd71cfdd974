"""How good a model is: masked sums on the accelerator, and the figures made of them on the host.

Sums add up: whatever the batches and the padding, the totals count every example exactly once. A row of logits without
a softmax (any NaN, or no finite maximum) counts as wrong, never as right. Equal logits: the lower class index ranks
first, as in argmax, so that the top-1 count is the diagonal of the confusion matrix.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet.train.losses import ROW_LOSSES

CALIBRATION_BINS = 15
# Above so many classes there is no confusion matrix: of 21,841 each batch would bring 1.9 GB of it, each line 1.4 GB.
MOST_CONFUSED = 2_000
# A sort of N scores pays from so many positives on; and columns that are turned at a time.
_SORTED_FROM, _COLUMNS = 16, 256
_Z_95 = 1.959963984540054  # 97.5th percentile of the standard normal


def train_sums(
    logits: jax.Array, targets: jax.Array, labels: jax.Array, mask: jax.Array, loss: jax.Array
) -> dict[str, jax.Array]:
    """Masked sums over one training batch: float32 scalars 'count', 'loss', 'top1' and, above 5 classes, 'top5'.

    logits [B, C]; targets float32[B, C], what the loss was taken against (smoothed, mixed); labels int32[B]; mask
    float32[B], 0 for rows to leave out; loss float32[B], per example. A mixed image is right when its heaviest class
    is found; where the label weighs as much as any other class, the heaviest is the label.
    """
    label_weight = jnp.take_along_axis(targets, labels[:, None], axis=-1)[:, 0]
    heaviest = jnp.where(label_weight >= targets.max(axis=-1), labels, targets.argmax(axis=-1))
    return _common_sums(logits, heaviest, mask, loss)


def eval_sums(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, num_classes: int, loss: str = "softmax"
) -> dict[str, jax.Array]:
    """Masked sums over one evaluation batch: those of `train_sums` and 'confusion', int32[C, C] (true, predicted).

    Above MOST_CONFUSED classes, in place of 'confusion', its diagonal 'hits', int32[C], and its sum 'told', float32.
    logits [B, C] with C = num_classes, labels int32[B], mask float32[B] of 0 (padding) and 1. The loss is of the kind
    that was trained with (losses.LOSSES), against the bare labels: no smoothing, no class weights. Rows without a
    softmax are counted in 'count' but in no cell of 'confusion'.
    """
    losses = ROW_LOSSES[loss](logits, jax.nn.one_hot(labels, num_classes))
    # A product of 0/1 matrices, not a scatter: exact below 2**24 rows a batch, and it splits over a mesh by itself.
    weight = jnp.where(_has_softmax(logits), mask, 0.0)
    sums = _common_sums(logits, labels, mask, losses)
    true = jax.nn.one_hot(labels, num_classes) * weight[:, None]
    if num_classes > MOST_CONFUSED:
        right = logits.argmax(axis=-1) == labels
        return {**sums, "hits": (right.astype(jnp.float32) @ true).astype(jnp.int32), "told": weight.sum()}
    predicted = jax.nn.one_hot(logits.argmax(axis=-1), num_classes)
    return {**sums, "confusion": (true.T @ predicted).astype(jnp.int32)}


def summarise(sums: Mapping[str, Any], probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The figures of one evaluation as plain Python values, ready for JSON; shares lie in 0..1.

    sums: the total of `eval_sums` over the split. probabilities float32[N, C] and labels int32[N]: its examples without
    padding, in any order. Returned are

        count, invalid       examples, and those among them whose logits had no softmax
        loss, top1, top5     means over the examples ('top5' above 5 classes only)
        top1_low, top1_high  Wilson's 95 % interval of top1
        balanced_accuracy    mean of the accuracies of the classes that occur
        per_class_accuracy   one a class, None for a class that does not occur
        auroc                see `auroc`
        ece, calibration     see `calibration`
        confusion            rows true, columns predicted, as lists of int (up to MOST_CONFUSED classes)

    Raises ValueError if the three inputs are not of the same examples, or of none.
    """
    count = round(float(sums["count"]))
    if count == 0 or len(labels) != count or len(probabilities) != count:
        raise ValueError(f"{count} examples summed, {len(probabilities)} probabilities and {len(labels)} labels")
    confusion = np.asarray(sums["confusion"]).astype(np.int64) if "confusion" in sums else None
    hits = np.asarray(sums["hits"]).astype(np.int64) if confusion is None else np.diagonal(confusion)
    told = float(sums["told"]) if confusion is None else confusion.sum()
    support = np.bincount(labels, minlength=len(hits))
    present = support > 0
    per_class = [float(hit / total) if total else None for hit, total in zip(hits, support, strict=True)]
    low, high = wilson_interval(int(hits.sum()), count)
    ece, bins = calibration(probabilities, labels)
    return {
        "count": count,
        "invalid": count - int(told),
        "loss": float(sums["loss"]) / count,
        **{key: float(sums[key]) / count for key in ("top1", "top5") if key in sums},
        "top1_low": low,
        "top1_high": high,
        "balanced_accuracy": float(np.mean(hits[present] / support[present])),
        "per_class_accuracy": per_class,
        "auroc": auroc(probabilities, labels),
        "ece": ece,
        "calibration": bins,
        **({} if confusion is None else {"confusion": confusion.tolist()}),
    }


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion, 0..1 (Wilson 1927); sound near 0 and 1 and for few trials."""
    share = successes / trials
    scale = 1 + _Z_95**2 / trials
    centre = (share + _Z_95**2 / (2 * trials)) / scale
    margin = _Z_95 / scale * np.sqrt(share * (1 - share) / trials + _Z_95**2 / (4 * trials**2))
    return max(0.0, float(centre - margin)), min(1.0, float(centre + margin))


def auroc(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Area under the ROC curve: for two classes that of class 1, else the mean of one-versus-rest over the classes.

    probabilities float32[N, C], labels int32[N]. A class without a positive or without a negative example has no curve
    and is left out of the mean; None if no class has one. A row with NaN ranks last wherever it is the positive and
    first wherever it is a negative.
    """
    num_classes = probabilities.shape[1]
    invalid = ~all_finite_rows(probabilities)
    areas = []
    for start in range(0, num_classes, _COLUMNS) if num_classes != 2 else (1,):
        # A copy, whose columns lie together.
        columns = np.array(probabilities[:, start : start + _COLUMNS].T, order="C")
        for index, scores in enumerate(columns, start):
            positive = labels == index
            count = int(positive.sum())
            if 0 < count < len(labels):
                scores[invalid] = np.where(positive[invalid], -1.0, 2.0)
                # Mann and Whitney: the share of (positive, negative) pairs in the right order, a draw for half. The
                # same number as sklearn's roc_auc_score in a seventh of its time (50,000 x 1000: 2.1 s against 15.6).
                below = _not_above(scores, scores[positive])
                areas.append((below - count**2) / (2 * count * (len(labels) - count)))
    return float(np.mean(areas)) if areas else None


def _not_above(scores: np.ndarray, own: np.ndarray) -> int:
    """How many of N scores lie below each of `own`, and how many not above it, summed up."""
    if len(own) < _SORTED_FROM:
        return sum(int(np.count_nonzero(scores < one)) + int(np.count_nonzero(scores <= one)) for one in own)
    ordered = np.sort(scores)
    return int(sum(np.searchsorted(ordered, own, side=side).sum() for side in ("left", "right")))


def all_finite_rows(probabilities: np.ndarray) -> np.ndarray:
    """bool[N] of float32[N, C], without an array of its size."""
    return np.asarray(np.isfinite(probabilities.max(axis=1)) & np.isfinite(probabilities.min(axis=1)))


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float | None, list[dict[str, Any]]]:
    """Expected calibration error, 0..1, and the 15 bins of a reliability diagram (Guo et al. 2017, section 2).

    probabilities float32[N, C], labels int32[N]. The confidence of a row is its greatest probability; bin m of M holds
    the confidences in ((m - 1) / M, m / M], and the error is the mean over the examples of |accuracy - confidence| of
    their bin; so it is of sigmoids too, whose rows do not add up to 1. Each bin: 'lower', 'upper', 'count', and its
    'accuracy' and mean 'confidence' (None when empty). Rows with NaN state no confidence and are left out; the error is
    None if that leaves none.
    """
    valid = all_finite_rows(probabilities)
    confidence = probabilities.max(axis=1)[valid].astype(np.float64)
    right = (probabilities.argmax(axis=1) == labels)[valid]
    edges = np.linspace(0.0, 1.0, CALIBRATION_BINS + 1)
    # side='left' puts a confidence that equals an edge into the bin below it; rounding may lift a softmax above 1.
    members = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, CALIBRATION_BINS - 1)
    bins: list[dict[str, Any]] = []
    gap = 0.0
    for index in range(CALIBRATION_BINS):
        inside = members == index
        count = int(inside.sum())
        accuracy = float(right[inside].mean()) if count else None
        mean = float(confidence[inside].mean()) if count else None
        bins.append(
            {
                "lower": float(edges[index]),
                "upper": float(edges[index + 1]),
                "count": count,
                "accuracy": accuracy,
                "confidence": mean,
            }
        )
        if accuracy is not None and mean is not None:
            gap += count * abs(accuracy - mean)
    return (gap / len(right) if len(right) else None), bins


def _common_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array, loss: jax.Array) -> dict[str, jax.Array]:
    """'count', 'loss', 'top1' and, above 5 classes, 'top5', as masked float32 sums."""
    mask = mask.astype(jnp.float32)
    rank = _rank(logits, labels)

    def masked_sum(values: jax.Array) -> jax.Array:
        # where, not a bare product: a padding row may well be NaN, and 0 * NaN is NaN.
        return jnp.sum(jnp.where(mask > 0, mask * values.astype(jnp.float32), 0.0))

    sums = {"count": jnp.sum(mask), "loss": masked_sum(loss), "top1": masked_sum(rank < 1)}
    if logits.shape[-1] > 5:
        sums["top5"] = masked_sum(rank < 5)
    return sums


def _rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """int32[B]: how many classes stand before the label's; equal logits stand by index; C for a row without softmax."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    lower_index = jnp.arange(logits.shape[-1]) < labels[:, None]
    before = jnp.sum((logits > own) | ((logits == own) & lower_index), axis=-1)
    return jnp.where(_has_softmax(logits), before, logits.shape[-1])


def _has_softmax(logits: jax.Array) -> jax.Array:
    """bool[B]: the greatest logit is finite. max hands NaN on; -inf (a class ruled out) may stand beside others."""
    return jnp.isfinite(logits.max(axis=-1))
