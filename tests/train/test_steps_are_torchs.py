"""Whole train steps against torch's modules, loss, clipping, optimizer and schedule: number for number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.augment import Augmentation
from input_pipeline.contract import CONTRACTS
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from resnet.train.optimizer import OptimizerSettings, make_optimizer
from resnet.train.schedules import ScheduleSettings, make_schedule
from resnet.train.state import create_state
from resnet.train.steps import Recipe, make_train_step, sum_names
from resnet.weights import mapping, names
from tests.networks import fresh_variables

# SiLU: beside ReLU's kink rounding decides whether a gradient is there, and torch computes in float64.
SPEC = ResNetSpec(block="basic", stage_sizes=(1,), width=4, stem="cifar", num_classes=3, activation="silu")
WEIGHTS, DECAY, CLIP, AVERAGED, STEPS, ROWS, SIDE = (0.5, 1.0, 2.0), 0.01, 0.2, 0.9, 3, 6, 8


def named(variables):
    """By the names of torch's state_dict, in its layout."""
    plain = dataclasses.replace(SPEC, activation="relu")
    return mapping.from_variables(jax.device_get(variables), plain, names.CIFAR, has_head=True)


def batch_of(number: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(number)
    return {
        "image": generator.integers(0, 256, (ROWS, SIDE, SIDE, 3)).astype(np.uint8),
        "label": generator.integers(0, 3, ROWS).astype(np.int32),
        "mask": np.ones(ROWS, np.float32),
        "index": np.arange(ROWS, dtype=np.int32),
    }


def test_steps_are_those_of_torch(monkeypatch):
    """Class weights, clipping that acts, warm-up and cosine, Nesterov, decay of kernels alone, averages, statistics."""
    torch = pytest.importorskip("torch", reason="parity needs torch, which is not installed here")
    from benchmarks.torch_twin import TorchResNet

    monkeypatch.setattr(torch, "relu", torch.nn.functional.silu)
    schedule = make_schedule(ScheduleSettings("cosine", 0.2, warmup_epochs=2.0), 1.0, 6)
    settings = OptimizerSettings("sgd", nesterov=True, weight_decay=DECAY, clip_norm=CLIP)
    optimizer = make_optimizer(settings, schedule)
    recipe = Recipe(0, CONTRACTS["torch"], Augmentation(), class_weights=WEIGHTS, ema=AVERAGED)
    step = jax.jit(make_train_step(ResNet(SPEC, backend=jax.lax.conv_general_dilated), optimizer, recipe))
    variables = jax.tree.map(jnp.asarray, fresh_variables(SPEC))
    state = create_state(variables, optimizer, ema=True, sum_names=sum_names(3))

    twin = TorchResNet("basic", (1,), width=4, num_classes=3, stem="cifar").double()
    # The published CIFAR ResNets, in whose names ours go out, call the head so.
    theirs = lambda name: name.replace("fc.", "linear.")  # noqa: E731
    start = named(variables)
    counters = {name for name in twin.state_dict() if name.endswith("num_batches_tracked")}
    twin.load_state_dict(
        {name: torch.tensor(0) if name in counters else torch.tensor(start[theirs(name)]) for name in twin.state_dict()}
    )
    twin.train()
    loss_of = torch.nn.CrossEntropyLoss(weight=torch.tensor(WEIGHTS).double())
    groups = [
        {"params": [p for p in twin.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in twin.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    sgd = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True)
    averages = {name: leaf.detach().clone() for name, leaf in twin.named_parameters()}
    mean, std = (torch.tensor(values).double() for values in (CONTRACTS["torch"].mean, CONTRACTS["torch"].std))
    norms = []
    for number in range(STEPS):
        batch = batch_of(number)
        state, _ = step(state, batch)
        images = (torch.tensor(batch["image"]).double() / 255 - mean) / std
        sgd.zero_grad()
        loss_of(twin(images.permute(0, 3, 1, 2)), torch.tensor(batch["label"]).long()).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(twin.parameters(), CLIP)))
        # Two steps up to 0.2, then half a cosine over the other four.
        rate = 0.2 * (number + 1) / 2 if number < 2 else 0.1 * (1 + np.cos(np.pi * (number - 2) / 4))
        for group in sgd.param_groups:
            group["lr"] = rate
        sgd.step()
        kept = min(AVERAGED, (1 + number) / (10 + number))
        for name, leaf in twin.named_parameters():
            averages[name].mul_(kept).add_(leaf.detach(), alpha=1 - kept)
    assert min(norms) > CLIP
    assert float(state.sums["gradient_norm"]) == pytest.approx(sum(norms), rel=1e-5)

    ours, averaged = named({"params": state.params, "batch_stats": state.batch_stats}), named(state.ema)
    for name, leaf in twin.state_dict().items():
        if name in counters:
            continue
        expected = leaf.numpy()
        if name.endswith("running_var"):
            # torch's is of the unbiased variances of n values each; what is left of the first one is 0.9 per step.
            values, left = ROWS * SIDE**2, 0.9**STEPS
            expected = left + (expected - left) * (values - 1) / values
        np.testing.assert_allclose(ours[theirs(name)], expected, rtol=1e-4, atol=2e-5, err_msg=name)
        if name in averages:
            np.testing.assert_allclose(averaged[theirs(name)], averages[name].numpy(), rtol=1e-4, atol=2e-5)
