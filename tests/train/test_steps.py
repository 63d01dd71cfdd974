"""The train step: it learns with every kind of block, adds up exactly, and a bad batch leaves no trace."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from input_pipeline.augment import Augmentation, prepare
from input_pipeline.contract import CONTRACTS
from resnet.model import onednn_library
from resnet.model.network import ResNet, evaluate
from resnet.model.spec import CHOICES, ResNetSpec
from resnet.train import parallel
from resnet.train.losses import balanced_weights
from resnet.train.optimizer import OfAnyShape, OptimizerSettings, make_optimizer
from resnet.train.state import TrainState, create_state
from resnet.train.steps import (
    Recipe,
    accumulate,
    loss_sum,
    make_eval_step,
    make_train_step,
    sum_names,
)
from tests.commands import with_eight_devices
from tests.networks import by_name, fresh_variables, random_variables

LAX = jax.lax.conv_general_dilated
TINY = ResNetSpec(block="basic", stage_sizes=(1, 1), width=8, stem="cifar", norm_groups=4, num_classes=4)
ROOT = Path(__file__).resolve().parent.parent.parent


def batch_of(rows: int, size: int = 8, num_classes: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "image": generator.integers(0, 256, (rows, size, size, 3)).astype(np.uint8),
        "label": (np.arange(rows) % num_classes).astype(np.int32),
        "mask": np.ones(rows, np.float32),
        "index": np.arange(rows, dtype=np.int32),
    }


def recipe(**changes) -> Recipe:
    return Recipe(**{"seed": 0, "contract": CONTRACTS["torch"], "augmentation": Augmentation(), **changes})


def state_for(spec: ResNetSpec, optimizer: optax.GradientTransformation, ema: bool = False) -> TrainState:
    variables = jax.tree.map(jnp.asarray, fresh_variables(spec))
    variables.setdefault("batch_stats", {})
    return create_state(variables, optimizer, ema=ema, sum_names=sum_names(spec.num_classes))


# block, shortcut, order, norm: each value of each at least twice (but bn_after_addition), in combinations that are odd.
LEARNERS = [
    ("basic", "none", "original", "batch"),
    ("basic", "A", "original", "batch"),
    ("basic", "B", "original", "group"),
    ("basic", "D", "original", "none"),
    ("basic", "C", "bn_after_addition", "batch"),
    ("basic", "A", "relu_before_addition", "none"),
    ("basic", "B", "full_preactivation", "none"),
    ("bottleneck", "none", "original", "group"),
    ("bottleneck", "B", "original", "batch"),
    ("bottleneck", "B", "relu_before_addition", "group"),
    ("bottleneck", "C", "relu_only_preactivation", "batch"),
    ("bottleneck", "A", "relu_only_preactivation", "none"),
    ("bottleneck", "D", "full_preactivation", "batch"),
]


def test_learners_cover_every_choice():
    for place, field in enumerate(("block", "shortcut", "order", "norm")):
        assert {learner[place] for learner in LEARNERS} == set(CHOICES[field])


@pytest.mark.parametrize("learner", LEARNERS, ids="-".join)
def test_one_batch_is_learnt_by_heart(learner):
    block, shortcut, order, norm = learner
    # One bottleneck changes its channels; a basic block changes nothing but at a second stage.
    stage_sizes = (1,) if block == "bottleneck" else (1, 1)
    changes = {"stage_sizes": stage_sizes, "shortcut": shortcut, "order": order, "norm": norm}
    spec = dataclasses.replace(TINY, block=block, **changes)
    optimizer = make_optimizer(OptimizerSettings(name="adam", weight_decay=0.0), optax.constant_schedule(0.01))
    step = jax.jit(make_train_step(ResNet(spec, backend=LAX), optimizer, recipe()), donate_argnums=0)
    state, batch = state_for(spec, optimizer), jax.device_put(batch_of(8))
    losses = []
    for _ in range(60):
        state, pulse = step(state, batch)
        losses.append(float(pulse["loss"]))
        if losses[-1] < 0.05:
            break
    assert losses[0] > 1.0
    assert losses[-1] < 0.05, losses[::10]
    assert int(state.bad_steps_total) == 0
    assert int(state.step) == len(losses) == float(state.sums["steps"])
    assert float(state.sums["loss"]) == pytest.approx(8 * sum(losses), rel=1e-4)


def test_only_an_optimizer_that_is_known_may_be_given_kernels_in_another_shape():
    """A rule by output channels computed another update on a CPU than on a GPU."""
    seen = []

    def update(updates, state, params=None):
        seen.append({leaf.ndim for leaf in jax.tree.leaves(updates)})
        return updates, state

    spec = dataclasses.replace(TINY, stage_sizes=(1,))
    for kind in (optax.GradientTransformation, OfAnyShape):
        optimizer = kind(lambda params: (), update)
        step = make_train_step(ResNet(spec, backend=LAX), optimizer, recipe())
        jax.eval_shape(step, state_for(spec, optimizer), batch_of(4))
    assert seen == [{1, 2, 4}, {1, 2}]


def test_parts_of_a_batch_add_up_to_the_whole():
    """Without batch statistics accumulation changes nothing, class weights and masked rows included."""
    spec = dataclasses.replace(TINY, stage_sizes=(1,), norm="group")
    network = ResNet(spec, backend=LAX)
    state = state_for(spec, optax.identity())
    state = state.replace(params=jax.tree.map(jnp.asarray, random_variables(spec)["params"]))
    batch = batch_of(8) | {"mask": np.array([1, 1, 0, 1, 1, 1, 1, 0], np.float32)}
    results = []
    for parts in (1, 4):
        settings = recipe(accumulation=parts, class_weights=(0.5, 1.0, 2.0, 3.0))
        run = jax.jit(lambda s, b, settings=settings: accumulate(network, settings, s, b, jax.random.key(0)))
        total, weight, statistics, sums = jax.device_get(run(state, batch))
        assert statistics == {}
        results.append((jax.tree.map(lambda leaf, weight=weight: leaf / weight, total), sums))
    (whole, whole_sums), (parts, parts_sums) = results
    for name, value in by_name(whole).items():
        np.testing.assert_allclose(by_name(parts)[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    assert whole_sums["count"] == parts_sums["count"] == 6
    for name, value in whole_sums.items():
        assert parts_sums[name] == pytest.approx(value, rel=1e-5), name


def test_parts_run_no_convolution_that_is_slow_in_loops(monkeypatch):
    """Parts go through a loop, where XLA has fast code for one order of dimensions only (see convolution_forms)."""
    monkeypatch.setattr(onednn_library, "missing", lambda: "left out by this test")
    spec = dataclasses.replace(TINY, stage_sizes=(1, 2))
    network, optimizer = ResNet(spec), optax.sgd(0.1)
    step = jax.jit(make_train_step(network, optimizer, recipe(accumulation=2)))
    compiled = step.lower(state_for(spec, optimizer), batch_of(4, size=20)).compile().as_text()
    orders = re.findall(r" convolution\(.*dim_labels=(\S+?),", compiled)
    assert len(orders) >= 3 * 6 - 1
    assert set(orders) == {"b01f_01io->b01f"}


def test_loss_with_class_weights_and_smoothing_is_the_formula():
    """Per row -Σ_c w_c t_c log p_c over Σ_c w_c t_c, t = (1 - ε) one-hot + ε / C; by hand from the logits."""
    weights, smoothing = np.array([0.5, 1.0, 2.0, 3.0]), 0.2
    spec = dataclasses.replace(TINY, stage_sizes=(1,), norm="group")
    network, batch = ResNet(spec, backend=LAX), batch_of(6) | {"mask": np.array([1, 1, 1, 0, 1, 1], np.float32)}
    params = random_variables(spec)["params"]
    settings = recipe(class_weights=tuple(weights), augmentation=Augmentation(label_smoothing=smoothing))

    @jax.jit
    def run(params, batch):
        total, (weight, _, sums) = loss_sum(network, settings, params, {}, batch, jax.random.key(0))
        mean, std = np.array(settings.contract.mean), np.array(settings.contract.std)
        images = (batch["image"] / 255.0 - mean) / std
        return total, weight, sums, network.apply({"params": params}, images.astype(jnp.float32), train=True)

    total, weight, sums, logits = jax.device_get(run(params, batch))
    logits = logits.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = np.eye(4)[batch["label"]] * (1 - smoothing) + smoothing / 4
    real = batch["mask"] > 0
    assert total == pytest.approx(-(weights * targets * log_p)[real].sum(), rel=1e-5)
    assert weight == pytest.approx((weights * targets)[real].sum(), rel=1e-6)
    assert sums["count"] == 5
    assert sums["top1"] == (logits.argmax(1) == batch["label"])[real].sum()


def test_balanced_weights_are_inverse_frequencies_of_mean_one_over_the_examples():
    labels = np.array([0, 0, 0, 0, 1, 2, 2, 2])
    weights = np.array(balanced_weights(labels, 3))
    np.testing.assert_allclose(weights, 8 / (3 * np.array([4, 1, 3])))
    assert weights[labels].mean() == pytest.approx(1.0)
    # Each class has the same say.
    np.testing.assert_allclose(np.bincount(labels, weights[labels]), np.full(3, 8 / 3))


GUARDED = dataclasses.replace(TINY, stage_sizes=(1,), dropout=0.3)


@pytest.fixture(scope="module")
def stepper():
    """(step without donation, state), all on that has a state; for images that are floats, so that they can be NaN."""
    optimizer = make_optimizer(OptimizerSettings(name="sgd", clip_norm=1.0), optax.linear_schedule(0.1, 0.0, 50))
    settings = recipe(
        ema=0.9, class_weights=(0.5, 1.0, 2.0, 3.0), augmentation=Augmentation(flip="both", label_smoothing=0.1)
    )
    step = jax.jit(make_train_step(ResNet(GUARDED, backend=LAX), optimizer, settings))
    return step, state_for(GUARDED, optimizer, ema=True)


def floats(seed: int = 0) -> dict[str, np.ndarray]:
    batch = batch_of(8, seed=seed)
    return batch | {"image": batch["image"].astype(np.float32)}


def guarded(state: TrainState) -> list[bytes]:
    trees = (state.params, state.batch_stats, state.opt_state, state.ema, state.sums)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(trees)]


def test_a_batch_with_nan_changes_nothing_but_the_counters(stepper):
    step, state = stepper
    state, _ = step(state, floats())
    broken = floats(seed=1)
    broken["image"][3, 2, 2, 1] = np.nan
    after, pulse = step(state, broken)
    assert guarded(after) == guarded(state)
    assert (int(after.step), int(after.bad_steps), int(after.bad_steps_total)) == (2, 1, 1)
    assert int(pulse["bad_steps"]) == 1
    after, pulse = step(after, broken)
    assert (int(after.bad_steps), int(after.bad_steps_total)) == (2, 2)
    assert guarded(after) == guarded(state)
    # The next good batch goes on, and does what it would have done at that step without the bad ones before it.
    gone_on, pulse = step(after, floats(seed=2))
    assert guarded(gone_on) != guarded(state)
    assert (int(gone_on.step), int(gone_on.bad_steps), int(gone_on.bad_steps_total)) == (4, 0, 2)
    assert np.isfinite(float(pulse["loss"]))
    straight, _ = step(state.replace(step=jnp.asarray(3, jnp.int32)), floats(seed=2))
    assert guarded(gone_on) == guarded(straight)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((gone_on.params, gone_on.batch_stats)))


def test_statistics_that_overflow_are_a_bad_step_too(stepper):
    """Their variance is infinite, so the net's output, its loss and its gradient would be finite, and zero for ever."""
    step, state = stepper
    # Squares beyond float32, but not squares of means: from there on the gradient is NaN and seen as such.
    kernels = {"conv1": {"kernel": state.params["conv1"]["kernel"] * 1e19}}
    huge = state.replace(params={**state.params, **kernels})
    after, pulse = step(huge, floats())
    assert np.isfinite(float(pulse["loss"]))
    assert int(after.bad_steps) == 1
    assert guarded(after) == guarded(huge)


@pytest.mark.parametrize("at", [0, 3, 200])
def test_averages_follow_their_formula(stepper, at):
    """ema <- d ema + (1 - d) new with d = min(0.9, (1 + step) / (10 + step)), statistics included."""
    step, state = stepper
    state = state.replace(step=jnp.asarray(at, jnp.int32))
    new, _ = step(state, floats())
    d = min(0.9, (1 + at) / (10 + at))
    assert set(new.ema) == {"params", "batch_stats"}
    values = by_name({"params": new.params, "batch_stats": new.batch_stats})
    for name, average in by_name(new.ema).items():
        expected = d * np.asarray(by_name(state.ema)[name], np.float64) + (1 - d) * np.asarray(values[name], np.float64)
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-7, err_msg=name)


def test_randomness_is_a_function_of_the_seed_and_the_step(stepper):
    step, state = stepper
    at = lambda number: float(step(state.replace(step=jnp.asarray(number, jnp.int32)), floats())[1]["loss"])  # noqa: E731
    fifth, sixth = at(5), at(6)
    assert fifth != sixth
    # The step alone: not how often it was asked, nor what came in between.
    assert at(5) == fifth


def test_another_seed_draws_other_numbers():
    optimizer = make_optimizer(OptimizerSettings(), optax.constant_schedule(0.1))
    spec = dataclasses.replace(GUARDED, stage_sizes=(1,), width=4, norm="group", norm_groups=2)
    losses = []
    for seed in (0, 1):
        step = jax.jit(make_train_step(ResNet(spec, backend=LAX), optimizer, recipe(seed=seed)))
        losses.append(float(step(state_for(spec, optimizer), batch_of(8))[1]["loss"]))
    assert losses[0] != losses[1]


def test_a_step_transfers_nothing_that_was_not_put_there(stepper):
    step, state = stepper
    state, batch = jax.device_put((state, floats()))
    step(state, batch)
    with jax.transfer_guard("disallow"):
        state, pulse = step(state, batch)
    assert np.isfinite(float(pulse["loss"]))


def test_the_evaluation_step_has_no_randomness_and_leaves_padding_out():
    spec = dataclasses.replace(GUARDED, norm="batch", num_classes=7)
    step = jax.jit(make_eval_step(ResNet(spec, backend=LAX), CONTRACTS["torch"]))
    variables, batch = random_variables(spec), batch_of(6, num_classes=7)
    sums, rows = jax.device_get(step(variables, batch))
    assert {name: value.shape for name, value in rows.items()} == {
        "probabilities": (6, 7),
        "label": (6,),
        "mask": (6,),
        "index": (6,),
    }
    np.testing.assert_allclose(rows["probabilities"].sum(1), 1.0, rtol=1e-5)
    own = rows["probabilities"][np.arange(6), batch["label"]].astype(np.float64)
    assert sums["loss"] == pytest.approx(-np.log(own).sum(), rel=1e-5)
    padded = batch | {"mask": np.array([1, 0, 1, 1, 0, 1], np.float32)}
    fewer, _ = jax.device_get(step(variables, padded))
    assert fewer["count"] == 4 == fewer["confusion"].sum()
    assert fewer["loss"] == pytest.approx(-np.log(own)[padded["mask"] > 0].sum(), rel=1e-5)


def test_evaluation_with_flip_is_the_mean_over_both_sides():
    spec = dataclasses.replace(TINY, num_classes=7)
    network, variables, batch = ResNet(spec, backend=LAX), random_variables(spec), batch_of(6, num_classes=7)
    step = jax.jit(make_eval_step(network, CONTRACTS["torch"], flip=True))
    logits = lambda pixels: evaluate(network, variables, prepare(pixels, CONTRACTS["torch"]))  # noqa: E731
    expected = jax.nn.softmax((logits(batch["image"]) + logits(batch["image"][:, :, ::-1])) / 2)
    assert np.abs(jax.nn.softmax(logits(batch["image"])) - expected).max() > 0.01
    sums, rows = jax.device_get(step(variables, batch))
    np.testing.assert_allclose(rows["probabilities"], expected, atol=1e-5)
    assert sums["top1"] == (np.argmax(expected, 1) == batch["label"]).sum()
    mirrored = batch | {"image": batch["image"][:, :, ::-1]}
    np.testing.assert_allclose(step(variables, mirrored)[1]["probabilities"], rows["probabilities"], atol=1e-5)


def three_steps() -> dict[str, np.ndarray]:
    """Parameters, statistics, averages and sums after three steps with everything on, over however many devices."""
    optimizer = make_optimizer(OptimizerSettings(), optax.constant_schedule(0.05))
    spec = dataclasses.replace(TINY, stage_sizes=(1,), dropout=0.2)
    settings = recipe(ema=0.9, accumulation=2)
    mesh = parallel.make_mesh()
    step = parallel.compile_train_step(make_train_step(ResNet(spec, backend=LAX), optimizer, settings), mesh)
    state = jax.device_put(state_for(spec, optimizer, ema=True), parallel.replicated(mesh))
    for batch in parallel.put_batches([batch_of(16, seed=seed) for seed in range(3)], mesh):
        state, _ = step(state, batch)
    trees = {"params": state.params, "batch_stats": state.batch_stats, "ema": state.ema, "sums": state.sums}
    return by_name(jax.device_get(trees)) | {"devices": np.asarray(mesh.size)}


EIGHT = "import sys, numpy; from tests.train.test_steps import three_steps; numpy.savez(sys.argv[1], **three_steps())"


def test_eight_devices_compute_what_one_does(tmp_path):
    out = tmp_path / "eight.npz"
    subprocess.run([sys.executable, "-c", EIGHT, str(out)], cwd=ROOT, env=with_eight_devices(), check=True, timeout=300)
    eight, one = dict(np.load(out)), three_steps()
    assert (eight.pop("devices"), one.pop("devices")) == (8, 1)
    assert eight.keys() == one.keys()
    for name, value in one.items():
        np.testing.assert_allclose(eight[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
