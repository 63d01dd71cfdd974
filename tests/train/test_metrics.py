"""Sums that add up over any batches, and figures that agree with scikit-learn and with hand computation."""

import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from resnet.train import evaluation, metrics
from resnet.train.metrics import (
    auroc,
    calibration,
    eval_sums,
    summarise,
    train_sums,
    wilson_interval,
)

_eval_sums = jax.jit(eval_sums, static_argnums=3)


def example(num_classes: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, num_classes, count).astype(np.int32)
    logits = draw.normal(size=(count, num_classes)).astype(np.float32)
    logits[np.arange(count), labels] += 1.0
    return logits, labels


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.softmax(logits))


def whole(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    return jax.device_get(_eval_sums(logits, labels, np.ones(len(labels), np.float32), logits.shape[1]))


@given(data=st.data(), num_classes=st.sampled_from([2, 5, 9]), count=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_any_partition_with_padding_gives_the_same_totals(data: st.DataObject, num_classes: int, count: int) -> None:
    logits, labels = example(num_classes, count, seed=count)
    batch = 8
    sizes: list[int] = []
    while sum(sizes) < count:
        sizes.append(data.draw(st.integers(0, min(batch, count - sum(sizes)))))
        if len(sizes) > 100:
            sizes.append(min(batch, count - sum(sizes)))
    total: Any = None
    start = 0
    for size in sizes:
        rows = np.full((batch, num_classes), np.nan, np.float32)  # what stands in padding must not matter
        padded, mask = np.zeros(batch, np.int32), np.zeros(batch, np.float32)
        rows[:size], padded[:size], mask[:size] = logits[start : start + size], labels[start : start + size], 1.0
        sums = jax.device_get(_eval_sums(rows, padded, mask, num_classes))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
        start += size
    missing = 40 - count  # one shape, so that it compiles once
    at_once = (np.pad(logits, ((0, missing), (0, 0))), np.pad(labels, (0, missing)), np.arange(40) < count, num_classes)
    expected = jax.device_get(_eval_sums(*at_once))
    assert total.keys() == expected.keys()
    for key in total.keys() - {"loss"}:
        np.testing.assert_array_equal(total[key], expected[key], err_msg=key)
    np.testing.assert_allclose(total["loss"], expected["loss"], rtol=1e-5)


@pytest.mark.parametrize("num_classes", [2, 5, 7])
def test_summary_agrees_with_sklearn(num_classes: int) -> None:
    logits, labels = example(num_classes, 300)
    probabilities = softmax(logits)
    found = summarise(whole(logits, labels), probabilities, labels)
    predicted = logits.argmax(axis=1)
    np.testing.assert_array_equal(found["confusion"], reference.confusion_matrix(labels, predicted))
    assert found["top1"] == pytest.approx(reference.accuracy_score(labels, predicted))
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(labels, predicted))
    np.testing.assert_allclose(found["per_class_accuracy"], reference.recall_score(labels, predicted, average=None))
    assert found["loss"] == pytest.approx(reference.log_loss(labels, probabilities), rel=1e-5)
    if num_classes > 5:
        top5 = reference.top_k_accuracy_score(labels, logits, k=5)
        assert found["top5"] == pytest.approx(top5)
    else:
        assert "top5" not in found
    if num_classes == 2:
        assert found["auroc"] == pytest.approx(reference.roc_auc_score(labels, probabilities[:, 1]))
    else:
        assert found["auroc"] == pytest.approx(reference.roc_auc_score(labels, probabilities, multi_class="ovr"))
    json.dumps(found, allow_nan=False)


def test_of_very_many_classes_all_but_the_confusion_matrix_is_told(monkeypatch) -> None:
    """Rows without a softmax included, and more positives of a class than are compared one by one."""
    logits, labels = example(7, 300)
    logits[3], logits[5, 2] = np.nan, np.inf
    probabilities = softmax(logits)
    whole_summary = summarise(whole(logits, labels), probabilities, labels)
    subset = evaluation.summarise_subset(evaluation.Predictions(probabilities, labels, {}), np.arange(300) % 3 > 0)
    for module in (metrics, evaluation):
        monkeypatch.setattr(module, "MOST_CONFUSED", 6)
    monkeypatch.setattr(metrics, "_COLUMNS", 2)
    monkeypatch.setattr(metrics, "_SORTED_FROM", 1000)
    sums = jax.device_get(eval_sums(logits, labels, np.ones(300, np.float32), 7))
    assert sums["hits"].shape == (7,)
    told = [
        summarise(sums, probabilities, labels),
        evaluation.summarise_subset(evaluation.Predictions(probabilities, labels, {}), np.arange(300) % 3 > 0),
    ]
    for found, expected in zip(told, (whole_summary, subset), strict=True):
        assert expected.pop("confusion")
        assert str(found) == str(expected)  # NaN is no number


def test_absent_classes_are_left_out_of_means() -> None:
    logits, labels = example(4, 60)
    labels = np.where(labels == 3, 0, labels).astype(np.int32)
    found = summarise(whole(logits, labels), softmax(logits), labels)
    assert found["per_class_accuracy"][3] is None
    present = [value for value in found["per_class_accuracy"] if value is not None]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(present))
    areas = [reference.roc_auc_score(labels == c, softmax(logits)[:, c]) for c in range(3)]
    assert found["auroc"] == pytest.approx(np.mean(areas))
    assert auroc(softmax(logits), np.zeros(60, np.int32)) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_without_softmax_is_never_right(bad: float) -> None:
    logits, labels = example(7, 50)
    logits[:, :] = -1.0
    logits[np.arange(50), labels] = 4.0
    logits[3, labels[3]] = bad
    logits[8] = np.nan
    sums = whole(logits, labels)
    found = summarise(sums, softmax(logits), labels)
    assert (found["count"], found["invalid"]) == (50, 2)
    assert found["top1"] == pytest.approx(48 / 50)
    assert found["top5"] == pytest.approx(48 / 50)
    assert np.sum(found["confusion"]) == np.trace(found["confusion"]) == 48
    assert math.isnan(found["loss"])
    assert found["auroc"] < 1.0
    assert sum(part["count"] for part in found["calibration"]) == 48


def test_a_class_ruled_out_by_minus_infinity_is_no_fault() -> None:
    logits = np.asarray([[2.0, -np.inf, 1.0]], np.float32)
    sums = whole(logits, np.asarray([0], np.int32))
    assert (sums["top1"], sums["confusion"].sum()) == (1.0, 1)


def test_equal_logits_rank_by_index() -> None:
    logits = np.zeros((7, 7), np.float32)
    sums = whole(logits, np.arange(7, dtype=np.int32))
    assert (sums["top1"], sums["top5"]) == (1.0, 5.0)
    np.testing.assert_array_equal(sums["confusion"][:, 0], 1)


def test_top_k_is_that_of_lax_top_k() -> None:
    draw = np.random.default_rng(1)
    logits = draw.integers(0, 4, size=(200, 9)).astype(np.float32)  # full of ties
    labels = draw.integers(0, 9, 200).astype(np.int32)
    best = np.asarray(jax.lax.top_k(logits, 5)[1])
    sums = whole(logits, labels)
    assert sums["top5"] == (best == labels[:, None]).any(axis=1).sum()
    assert sums["top1"] == (best[:, 0] == labels).sum() == np.trace(sums["confusion"])


def test_training_counts_the_heaviest_class_of_a_mixed_image() -> None:
    logits = jnp.asarray([[0.0, 5.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 5.0], [0.0, 5.0, 0.0]])
    targets = jnp.asarray([[0.3, 0.7, 0.0], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    labels, mask = jnp.asarray([0, 1, 2, 1]), jnp.asarray([1.0, 1.0, 1.0, 0.0])
    loss = jnp.asarray([1.0, 2.0, 4.0, jnp.nan])
    sums = jax.jit(train_sums)(logits, targets, labels, mask, loss)
    # Row 0: class 1 weighs most. Rows 1 and 2: a draw, which the label decides: wrong, right. Row 3 is padding.
    assert {key: float(value) for key, value in sums.items()} == {"count": 3.0, "loss": 7.0, "top1": 2.0}
    assert all(value.dtype == jnp.float32 for value in sums.values())


def test_calibration_error_by_hand() -> None:
    # Bins of width 1/15: 0.62 and 0.65 in (0.6, 0.667], 0.95 and 1.0 in (0.933, 1].
    confidences = np.asarray([0.62, 0.65, 0.95, 1.0])
    probabilities = np.stack([confidences, 1 - confidences], axis=1)
    labels = np.asarray([0, 1, 0, 0], np.int32)
    error, bins = calibration(probabilities, labels)
    assert error == pytest.approx((2 * abs(0.5 - 0.635) + 2 * abs(1.0 - 0.975)) / 4)
    assert [part["count"] for part in bins] == [0] * 9 + [2] + [0] * 4 + [2]
    assert bins[9]["accuracy"] == 0.5
    assert bins[0]["confidence"] is None
    assert (bins[0]["lower"], bins[-1]["upper"]) == (0.0, 1.0)


def test_a_confidence_on_an_edge_belongs_to_the_lower_bin() -> None:
    probabilities = np.asarray([[1 / 3, 1 / 3, 1 / 3]])
    _, bins = calibration(probabilities, np.asarray([0], np.int32))
    assert [part["count"] for part in bins].index(1) == 4


def test_wilson_interval_by_hand() -> None:
    low, high = wilson_interval(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10) == (pytest.approx(0.7225, abs=1e-4), pytest.approx(1.0))


def test_inputs_of_different_examples_are_refused() -> None:
    logits, labels = example(3, 10)
    sums = whole(logits, labels)
    with pytest.raises(ValueError, match="10 examples"):
        summarise(sums, softmax(logits)[:9], labels[:9])
    empty = {key: np.zeros_like(value) for key, value in sums.items()}
    with pytest.raises(ValueError, match="0 examples"):
        summarise(empty, np.zeros((0, 3), np.float32), np.zeros(0, np.int32))


def test_a_thousand_classes() -> None:
    logits, labels = example(1000, 64)
    sums = whole(logits, labels)
    assert sums["confusion"].shape == (1000, 1000)
    assert sums["confusion"].dtype == np.int32
    assert sums["confusion"].sum() == 64
    np.testing.assert_array_equal(sums["confusion"].sum(axis=1), np.bincount(labels, minlength=1000))
