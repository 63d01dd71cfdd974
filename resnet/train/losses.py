"""What a run minimises, and the probabilities that its logits then mean: softmax or sigmoid cross-entropy.

A loss of one's own is a function, its line in ROW_LOSSES and its line in OUTPUTS (docs/extending.md).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from input_pipeline.errors import InputError

_ROWS = 1024
# By kind: the probabilities that logits trained with it mean, a softmax over the classes or each class' own sigmoid.
OUTPUTS: Mapping[str, Literal["softmax", "sigmoid"]] = {"softmax": "softmax", "sigmoid": "sigmoid"}
LOSSES = tuple(OUTPUTS)


@dataclasses.dataclass(frozen=True)
class Loss:
    """The part of `config.optim` that decides the loss; static under jit.

    kind: one of LOSSES. 'softmax': cross-entropy in nats against the target as a distribution. 'sigmoid': one binary
    cross-entropy a class (Beyer et al. 2020, Section 5; Wightman et al. 2021, "ResNet strikes back", Section 3), their
    mean over the classes, as in timm's BinaryCrossEntropy, with which the latter's rates and decays go; big_vision's
    sigmoid_xent is their sum, C times as much. Others are what ROW_LOSSES says. Raises InputError for none of these.
    label_smoothing, target_threshold: of 'sigmoid' alone, see `binary_targets`. The targets that the others get are
    smoothed already (input_pipeline.augment).
    """

    kind: str = "softmax"
    label_smoothing: float = 0.0
    target_threshold: float = -1.0

    def __post_init__(self) -> None:
        if self.kind not in OUTPUTS or self.kind not in ROW_LOSSES:
            where = "OUTPUTS and ROW_LOSSES of resnet/train/losses.py"
            raise InputError(f"config.optim.loss is {self.kind!r}: {where} must have a line for it, and have not")

    def binary_targets(self, shares: jax.Array) -> jax.Array:
        """What each class' binary cross-entropy is taken against, float32[B, C] of the shares of a mixed image.

        Below a target_threshold of 0 the shares themselves; from 0 on 1 for each class whose share is above it and 0
        for the others (timm's bce_target_thresh; 0 is the paper's: each class of a mixed image is there). Then
        t (1 - ε) + ε / C: as timm smooths, whose threshold, applied behind that, would undo it.
        """
        targets = (shares > self.target_threshold).astype(jnp.float32) if self.target_threshold >= 0 else shares
        if self.label_smoothing:
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / targets.shape[-1]
        return targets

    def rows(
        self, logits: jax.Array, targets: jax.Array, class_weights: tuple[float, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """(loss, weight) of each row, both float32[B]: the sum of the former over that of the latter is the mean loss.

        logits [B, C]; targets float32[B, C] as augmentation makes them; class_weights w, or () for all 1. Of 'softmax'
        -Σ_c w_c t_c log p_c and Σ_c w_c t_c. (torch's CrossEntropyLoss divides by the sum of the labels' own weights,
        of targets that are shares by the number of rows: other numbers where targets are smoothed or mixed.)
        Of 'sigmoid' a row's weight is Σ_c w_c t_c too, of its unsmoothed shares, and its loss the mean over the classes
        times that: a class counts by its images, as if they were drawn as often as w says. (Weights on the columns, as
        torch's BCEWithLogitsLoss(weight=…) has them, would leave each class' images as rare among the others' as they
        are.) So are those of every other kind.
        """
        weighted = targets
        if class_weights:
            weighted = targets * jnp.asarray(np.asarray(class_weights, np.float32))
        if self.kind == "softmax":
            return softmax_cross_entropy(logits, weighted), jnp.sum(weighted, axis=-1)
        binary = self.binary_targets(targets) if self.kind == "sigmoid" else targets
        losses = ROW_LOSSES[self.kind](logits, binary)
        # Shares add up to 1 but for rounding, and without weights every row has exactly 1.
        weight = jnp.sum(weighted, axis=-1) if class_weights else jnp.ones_like(losses)
        return losses * weight, weight


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-Σ_c t_c log softmax(z)_c in nats of each row: logits z [B, C], targets t [B, C] -> float32[B]."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean over c of -t_c log σ(z_c) - (1 - t_c) log σ(-z_c), in nats: logits z, targets t [B, C] -> float32[B]."""
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets), axis=-1)


# By kind: the loss of each row, float32[B], of logits [B, C] and targets float32[B, C]. Evaluation's are one-hot.
ROW_LOSSES: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "softmax": softmax_cross_entropy,
    "sigmoid": sigmoid_cross_entropy,
}


def probabilities(logits: jax.Array, kind: str) -> jax.Array:
    """float32[B, C] of logits by the loss that they were trained with, as OUTPUTS says.

    'softmax': of the classes, one of which it is; a row adds up to 1. 'sigmoid': of each class by itself; a row adds up
    to anything. The order of the classes is the logits' in both. A row with NaN, or whose greatest logit is not finite,
    is NaN in both.
    """
    if OUTPUTS[kind] == "softmax":
        return jax.nn.softmax(logits)
    # A sigmoid makes 0 or 1 of an infinite logit; 0 times the greatest adds nothing, or NaN.
    return jax.nn.sigmoid(logits) + 0.0 * jnp.max(logits, axis=-1, keepdims=True)


def losses_of_probabilities(rows: np.ndarray, labels: np.ndarray, kind: str) -> np.ndarray:
    """Evaluation's loss of each row, float64[N], by probabilities float32[N, C] and labels int32[N] alone.

    As good as these are rounded: a probability of 0 counts as the least float32, and under sigmoids one of 1 as the
    greatest float32 below. A kind of one's own is asked about logits of which these are the probabilities.
    """
    if kind not in ("softmax", "sigmoid"):
        return _losses_of_own(rows, labels, kind)
    own = rows[np.arange(len(labels)), labels].astype(np.float64)
    right = -np.log(np.maximum(own, np.finfo(np.float32).tiny))
    if kind == "softmax":
        return right
    others = np.minimum(rows.astype(np.float64), 1 - 2.0**-24)
    others[np.arange(len(labels)), labels] = 0.0
    return (right - np.log1p(-others).sum(axis=1)) / rows.shape[1]


def _losses_of_own(rows: np.ndarray, labels: np.ndarray, kind: str) -> np.ndarray:
    losses = [np.zeros(0)]
    # In parts: logits and targets are as large as `rows`.
    for start in range(0, len(labels), _ROWS):
        part, own = rows[start : start + _ROWS], labels[start : start + _ROWS]
        logits = np.log(np.maximum(part, np.finfo(np.float32).tiny))
        if OUTPUTS[kind] == "sigmoid":
            logits -= np.log1p(-np.minimum(part, np.float32(1 - 2.0**-24)))
        losses.append(np.asarray(ROW_LOSSES[kind](logits, np.eye(part.shape[1], dtype=np.float32)[own]), np.float64))
    return np.concatenate(losses)


def balanced_weights(labels: np.ndarray, num_classes: int) -> tuple[float, ...]:
    """One weight per class, N / (C · n_c): the inverse of its frequency, 1 on average over the examples.

    Every class must occur in `labels`.
    """
    counts = np.bincount(labels, minlength=num_classes)
    return tuple(float(weight) for weight in len(labels) / (num_classes * counts))
