"""Both losses against torch and by hand: values, gradients, targets of mixed images, class weights, probabilities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs import default
from input_pipeline.augment import AUGMENT, Augmentation, augment
from input_pipeline.contract import CONTRACTS
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from resnet.train.losses import (
    LOSSES,
    OUTPUTS,
    ROW_LOSSES,
    Loss,
    losses_of_probabilities,
    probabilities,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from resnet.train.metrics import eval_sums
from resnet.train.plan import make_recipe
from resnet.train.probe import head_loss_sum, make_head_eval_step
from resnet.train.steps import Recipe, batch_loss, eval_results, loss_sum
from tests.networks import random_variables
from tests.train.test_plan import source_with

ROWS, CLASSES = 6, 4
SPEC = ResNetSpec(
    block="basic", stage_sizes=(1,), width=8, stem="cifar", norm="group", norm_groups=4, num_classes=CLASSES
)


def example(scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """(logits, shares of mixed images), both float32[ROWS, CLASSES]."""
    draw = np.random.default_rng(0)
    first, second = np.eye(CLASSES, dtype=np.float32)[draw.permutation(ROWS) % CLASSES], np.eye(CLASSES)[[1] * ROWS]
    share = draw.uniform(size=(ROWS, 1)).astype(np.float32)
    logits = draw.normal(scale=scale, size=(ROWS, CLASSES)).astype(np.float32)
    return logits, (first * share + second * (1 - share)).astype(np.float32)


def binary(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The binary cross-entropies by hand, float64[B, C]."""
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -targets * np.log(p) - (1 - targets) * np.log(1 - p)


@pytest.mark.parametrize("scale", [3.0, 60.0])
def test_the_sigmoid_loss_and_its_gradient_are_torchs(scale):
    torch = pytest.importorskip("torch", reason="parity needs torch, which is not installed here")
    logits, targets = example(scale)
    ours, gradient = jax.value_and_grad(lambda z: sigmoid_cross_entropy(z, targets).mean())(jnp.asarray(logits))
    tensor = torch.from_numpy(logits).requires_grad_()
    theirs = torch.nn.BCEWithLogitsLoss()(tensor, torch.from_numpy(targets))
    theirs.backward()
    assert float(ours) == pytest.approx(theirs.item(), rel=1e-6)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-5, atol=1e-8)


def test_the_sigmoid_loss_is_the_mean_over_classes_as_well():
    logits, targets = example()
    found = sigmoid_cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(found, binary(logits, targets).mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_of_bfloat16_logits_is_taken_in_float32(kind):
    logits, targets = example()
    rough = jnp.asarray(logits, jnp.bfloat16)
    found = ROW_LOSSES[kind](rough, jnp.asarray(targets))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, ROW_LOSSES[kind](rough.astype(jnp.float32), jnp.asarray(targets)))


def test_the_softmax_loss_traces_to_nothing_but_its_formula():
    """A run without the keys of the sigmoid is, to the last operation, what it was before there were any."""
    logits, targets = map(jnp.asarray, example())
    batch = {"label": jnp.zeros(ROWS, jnp.int32), "mask": jnp.ones(ROWS)}
    for weights in ((), (0.5, 1.0, 2.0, 3.0)):
        recipe = Recipe(0, CONTRACTS["torch"], Augmentation(), class_weights=weights)

        def written_out(logits, targets, mask, weights=weights):
            weighted = targets * jnp.asarray(np.asarray(weights, np.float32)) if weights else targets
            losses = -jnp.sum(weighted * jax.nn.log_softmax(logits), axis=-1)
            weight = jnp.sum(mask * jnp.sum(weighted, axis=-1))
            return jnp.sum(losses * mask), weight

        def ours(logits, targets, mask, recipe=recipe):
            losses, weights = recipe.loss.rows(logits, targets, recipe.class_weights)
            weight = jnp.sum(mask * weights)
            return jnp.sum(losses * mask), weight

        arguments = (logits, targets, batch["mask"])
        assert str(jax.make_jaxpr(ours)(*arguments)) == str(jax.make_jaxpr(written_out)(*arguments))
        assert batch_loss(recipe, logits, targets, batch)[:2] == ours(*arguments)


def test_targets_of_mixed_images():
    shares = jnp.asarray([[1.0, 0.0, 0.0, 0.0], [0.7, 0.3, 0.0, 0.0], [0.0, 1e-7, 0.0, 1.0], [0.5, 0.0, 0.5, 0.0]])
    # As they are, as timm without a threshold.
    np.testing.assert_array_equal(Loss("sigmoid").binary_targets(shares), shares)
    # Each class of the image, however little of it is seen.
    both = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    np.testing.assert_array_equal(Loss("sigmoid", target_threshold=0.0).binary_targets(shares), both)
    seen = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 1, 0]]
    np.testing.assert_array_equal(Loss("sigmoid", target_threshold=0.2).binary_targets(shares), seen)
    # timm: off = ε / C, on = 1 - ε + ε / C, also behind the threshold.
    smoothed = Loss("sigmoid", 0.1, target_threshold=0.0).binary_targets(shares)
    np.testing.assert_allclose(smoothed, np.where(np.array(both), 0.925, 0.025), rtol=1e-6)
    # Smoothed and then mixed, or mixed and then smoothed: the same.
    np.testing.assert_allclose(Loss("sigmoid", 0.1).binary_targets(shares), shares * 0.9 + 0.025, rtol=1e-6)


def config_with(**optim) -> ConfigDict:
    config = default.get_config()
    config.data.mixup, config.optim.label_smoothing = 0.4, 0.2
    config.optim.update(optim)
    return config


def test_a_configuration_smooths_once():
    soft = make_recipe(config_with(), source_with("train"), CONTRACTS["torch"])
    assert (soft.augmentation.label_smoothing, soft.loss) == (0.2, Loss())
    own = make_recipe(config_with(loss="sigmoid", target_threshold=0.1), source_with("train"), CONTRACTS["torch"])
    assert (own.augmentation.label_smoothing, own.loss) == (0.0, Loss("sigmoid", 0.2, 0.1))


def test_a_step_takes_the_loss_of_the_images_as_they_were_mixed():
    """loss_sum against the formula on the very images and shares that augmentation gives for its key."""
    config = config_with(loss="sigmoid", target_threshold=0.0)
    recipe = dataclasses.replace(
        make_recipe(config, source_with("train"), CONTRACTS["torch"]), class_weights=(0.5, 1.0, 2.0, 3.0)
    )
    network, params = ResNet(SPEC, backend=jax.lax.conv_general_dilated), random_variables(SPEC)["params"]
    draw = np.random.default_rng(1)
    batch = {
        "image": draw.integers(0, 256, (ROWS, 8, 8, 3)).astype(np.uint8),
        "label": (np.arange(ROWS) % CLASSES).astype(np.int32),
        "mask": np.array([1, 1, 0, 1, 1, 1], np.float32),
    }
    key = jax.random.key(5)

    @jax.jit
    def run(params, batch):
        total, (weight, _, sums) = loss_sum(network, recipe, params, {}, batch, key)
        images, shares = augment(
            jax.random.fold_in(key, AUGMENT), batch["image"], batch["label"], recipe.augmentation, recipe.contract, 4
        )
        return total, weight, sums, shares, network.apply({"params": params}, images, train=True)

    total, weight, sums, shares, logits = jax.device_get(run(params, batch))
    assert np.all((shares > 0).sum(axis=1) == 2)
    targets = (shares > 0) * 0.8 + 0.05
    rows = shares @ np.array([0.5, 1.0, 2.0, 3.0])
    assert weight == pytest.approx((rows * batch["mask"]).sum(), rel=1e-5)
    assert total == pytest.approx((binary(logits, targets).mean(axis=1) * rows * batch["mask"]).sum(), rel=1e-5)
    assert sums["loss"] == pytest.approx(total, rel=1e-5)


def test_a_probe_takes_the_sigmoid_loss_of_its_heads_logits():
    recipe = make_recipe(config_with(loss="sigmoid"), source_with("train"), CONTRACTS["torch"])
    network, params = ResNet(SPEC), random_variables(SPEC)["params"]
    features = np.random.default_rng(2).normal(size=(ROWS, 8)).astype(np.float32)
    labels = (np.arange(ROWS) % CLASSES).astype(np.int32)
    batch = {"features": features, "label": labels, "mask": np.ones(ROWS, np.float32), "index": np.arange(ROWS)}
    total, (weight, _, _) = head_loss_sum(network, recipe, params, {}, batch, jax.random.key(0))
    logits = features @ params["fc"]["kernel"] + params["fc"]["bias"]
    targets = np.eye(CLASSES)[labels] * 0.8 + 0.05
    assert float(total) == pytest.approx(binary(logits, targets).mean(axis=1).sum(), rel=1e-5)
    assert float(weight) == ROWS
    _, rows = make_head_eval_step(network, "sigmoid")({"params": params}, batch)
    np.testing.assert_allclose(rows["probabilities"], 1 / (1 + np.exp(-logits)), rtol=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_class_of_weight_two_counts_as_if_its_images_were_there_twice(kind):
    logits, _ = example()
    labels, weights = np.array([0, 1, 2, 3, 0, 0]), (1.0, 2.0, 1.0, 3.0)
    repeated = np.repeat(np.arange(ROWS), np.asarray(weights, int)[labels])

    def mean(rows: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
        targets = jnp.eye(CLASSES)[labels[rows]]

        def of(logits: jax.Array) -> jax.Array:
            losses, weight = Loss(kind).rows(logits[rows], targets, weights)
            return losses.sum() / weight.sum()

        value, gradient = jax.jit(jax.value_and_grad(of))(jnp.asarray(logits))
        return np.append(gradient, value)

    np.testing.assert_allclose(mean(np.arange(ROWS), weights), mean(repeated, ()), rtol=1e-5, atol=1e-7)


def test_rows_without_class_weights_weigh_exactly_one():
    logits, shares = example()
    np.testing.assert_array_equal(Loss("sigmoid").rows(logits, shares, ())[1], np.ones(ROWS))


@pytest.mark.parametrize("kind", LOSSES)
def test_evaluation_reports_the_loss_that_was_trained_with(kind):
    logits, _ = example()
    labels = (np.arange(ROWS) % CLASSES).astype(np.int32)
    batch = {"label": labels, "mask": np.array([1, 1, 1, 0, 1, 1], np.float32), "index": np.arange(ROWS)}
    sums, rows = jax.jit(eval_results, static_argnums=2)(logits, batch, kind)
    real, hot = batch["mask"] > 0, np.eye(CLASSES)[labels]
    soft = np.asarray(optax.softmax_cross_entropy(logits, hot))
    by_hand = {"softmax": soft, "sigmoid": binary(logits, hot).mean(axis=1)}
    expected = by_hand[kind] if kind in by_hand else np.asarray(ROW_LOSSES[kind](logits, jnp.asarray(hot, jnp.float32)))
    assert float(sums["loss"]) == pytest.approx(expected[real].sum(), rel=1e-5)
    np.testing.assert_allclose(losses_of_probabilities(np.asarray(rows["probabilities"]), labels, kind), expected, 1e-4)
    # What is right is a matter of the logits' order, which both keep.
    plain = jax.jit(eval_sums, static_argnums=3)(logits, labels, batch["mask"], CLASSES)
    assert {name: np.asarray(sums[name]).tolist() for name in ("top1", "confusion", "count")} == {
        name: np.asarray(plain[name]).tolist() for name in ("top1", "confusion", "count")
    }
    np.testing.assert_array_equal(np.argmax(rows["probabilities"], axis=1), logits.argmax(axis=1))


def test_a_sure_answer_has_a_finite_loss():
    rows = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], np.float32)
    found = losses_of_probabilities(rows, np.array([0, 2]), "sigmoid")
    np.testing.assert_allclose(found, [0.0, (2 * np.log(2**24) - np.log(np.finfo(np.float32).tiny)) / 3], atol=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_row_that_says_nothing_has_no_probabilities(kind):
    logits = np.array([[1.0, 2.0], [np.nan, 2.0], [np.inf, 2.0], [-np.inf, 2.0], [-np.inf, -np.inf]], np.float32)
    found = np.asarray(jax.jit(probabilities, static_argnums=1)(logits, kind))
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), [False, True, True, False, True])
    expected = [1 / (1 + np.e), np.e / (1 + np.e)] if OUTPUTS[kind] == "softmax" else 1 / (1 + np.exp(-logits[0]))
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    assert found[3, 0] == 0.0


def test_the_kinds_are_those_of_evaluation():
    assert tuple(ROW_LOSSES) == LOSSES
    assert ROW_LOSSES["softmax"] is softmax_cross_entropy
