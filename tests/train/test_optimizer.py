"""Update rules against torch.optim and the papers' formulas, number for number; what decay leaves alone."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from input_pipeline.errors import InputError
from resnet.train.optimizer import (
    OF_ANY_SHAPE,
    OPTIMIZERS,
    OfAnyShape,
    OptimizerSettings,
    decayed,
    ema_update,
    make_optimizer,
)
from resnet.train.unread_keys import READ_BY_OPTIMIZERS

STEPS = 20
Params = dict[str, dict[str, np.ndarray]]


def parameters() -> Params:
    """A tree of the model's shape: convolution, batch norm, dense layer."""
    draw = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(np.float32)

    return {
        "conv1": {"kernel": normal(3, 3, 2, 4)},
        "bn1": {"scale": 1 + 0.1 * normal(4), "bias": normal(4)},
        "fc": {"kernel": normal(4, 3), "bias": normal(3)},
    }


def gradients(step: int) -> Params:
    """The same pseudo-random gradients for every optimizer."""
    draw = np.random.default_rng(100 + step)
    return jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), parameters())


def rate(step: Any) -> Any:
    """A rate that changes every step, so that its place before or after the momentum shows."""
    return 0.05 / (1.0 + 0.3 * step)


def run(settings: OptimizerSettings) -> Params:
    optimizer = make_optimizer(settings, rate)
    params = jax.tree.map(jnp.asarray, parameters())
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for index in range(STEPS):
        params, state = step(params, state, gradients(index))
    return jax.tree.map(np.asarray, params)


def run_torch(make: Callable[[Any, list[dict[str, Any]]], Any], weight_decay: float) -> Params:
    """The same steps by a torch optimizer, which decays kernels only, by parameter groups."""
    torch = pytest.importorskip("torch", reason="parity needs torch, which is not installed here")
    leaves, tree = jax.tree.flatten(parameters())
    tensors = [torch.nn.Parameter(torch.from_numpy(leaf.copy())) for leaf in leaves]
    groups = [
        {"params": [t for t in tensors if t.ndim > 1], "weight_decay": weight_decay},
        {"params": [t for t in tensors if t.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = make(torch.optim, groups)
    for index in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(index)
        for tensor, gradient in zip(tensors, jax.tree.leaves(gradients(index)), strict=True):
            tensor.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return jax.tree.unflatten(tree, [tensor.detach().numpy() for tensor in tensors])


def assert_same(ours: Params, theirs: Params) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), ours, theirs)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_torchs(momentum: float, nesterov: bool, weight_decay: float) -> None:
    ours = run(OptimizerSettings("sgd", momentum=momentum, nesterov=nesterov, weight_decay=weight_decay))
    theirs = run_torch(
        lambda optim, groups: optim.SGD(groups, lr=1.0, momentum=momentum, nesterov=nesterov), weight_decay
    )
    assert_same(ours, theirs)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_and_adamw_are_torchs(name: str, weight_decay: float) -> None:
    ours = run(OptimizerSettings(name, beta1=0.8, beta2=0.95, epsilon=1e-4, weight_decay=weight_decay))
    rule = {"adam": "Adam", "adamw": "AdamW"}[name]
    theirs = run_torch(
        lambda optim, groups: getattr(optim, rule)(groups, lr=1.0, betas=(0.8, 0.95), eps=1e-4), weight_decay
    )
    assert_same(ours, theirs)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_is_torchs(momentum: float, weight_decay: float) -> None:
    ours = run(OptimizerSettings("rmsprop", momentum=momentum, beta2=0.9, epsilon=1e-3, weight_decay=weight_decay))
    theirs = run_torch(
        lambda optim, groups: optim.RMSprop(groups, lr=1.0, alpha=0.9, eps=1e-3, momentum=momentum), weight_decay
    )
    assert_same(ours, theirs)


def test_lars_is_the_papers_algorithm() -> None:
    """You et al. 2017, algorithm 1: kernels by the local rate; one-dimensional leaves by plain momentum."""
    eta, beta, momentum = 0.02, 0.05, 0.9
    ours = run(OptimizerSettings("lars", momentum=momentum, weight_decay=beta, trust_coefficient=eta))
    weights, tree = jax.tree.flatten(parameters())
    weights = [leaf.astype(np.float64) for leaf in weights]
    velocity = [np.zeros_like(leaf) for leaf in weights]
    for step in range(STEPS):
        for i, g in enumerate(jax.tree.leaves(gradients(step))):
            w = weights[i]
            if w.ndim > 1:
                local = eta * np.linalg.norm(w) / (np.linalg.norm(g) + beta * np.linalg.norm(w))
                g = local * (g + beta * w)
            velocity[i] = momentum * velocity[i] + rate(step) * g
            weights[i] = w - velocity[i]
    assert_same(ours, jax.tree.unflatten(tree, weights))


def test_lars_moves_a_layer_of_zeros() -> None:
    optimizer = make_optimizer(OptimizerSettings("lars", weight_decay=0.1), lambda step: 0.5)
    params = {"kernel": jnp.zeros((2, 2))}
    updates, _ = optimizer.update({"kernel": jnp.ones((2, 2))}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5)
    still, _ = optimizer.update({"kernel": jnp.zeros((2, 2))}, optimizer.init(params), params)
    np.testing.assert_array_equal(still["kernel"], 0.0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_lamb_is_the_papers_algorithm(weight_decay: float) -> None:
    """You et al. 2020, algorithm 2, on a gradient clipped to norm 1 as timm's Lamb has it; one-dimensional leaves by
    Adam's step. float64, written out."""
    beta1, beta2, epsilon, clip = 0.8, 0.95, 1e-4, 1.0
    ours = run(
        OptimizerSettings("lamb", beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=weight_decay, clip_norm=clip)
    )
    weights, tree = jax.tree.flatten(parameters())
    weights = [leaf.astype(np.float64) for leaf in weights]
    m, v = [np.zeros_like(leaf) for leaf in weights], [np.zeros_like(leaf) for leaf in weights]
    for step in range(STEPS):
        found = [leaf.astype(np.float64) for leaf in jax.tree.leaves(gradients(step))]
        norm = np.sqrt(sum((g**2).sum() for g in found))
        for i, g in enumerate(found):
            w, g = weights[i], g / max(1.0, norm / clip)
            m[i], v[i] = beta1 * m[i] + (1 - beta1) * g, beta2 * v[i] + (1 - beta2) * g**2
            r = m[i] / (1 - beta1 ** (step + 1)) / (np.sqrt(v[i] / (1 - beta2 ** (step + 1))) + epsilon)
            if w.ndim > 1:
                r = r + weight_decay * w
                r = r * np.linalg.norm(w) / np.linalg.norm(r)
            weights[i] = w - rate(step) * r
    assert_same(ours, jax.tree.unflatten(tree, weights))


def test_lamb_moves_a_layer_of_zeros() -> None:
    optimizer = make_optimizer(OptimizerSettings("lamb", weight_decay=0.1), lambda step: 0.5)
    params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    # Adam's first step.
    np.testing.assert_allclose(updates["kernel"], -0.5, rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], -0.5, rtol=1e-5)
    still, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_array_equal(still["kernel"], 0.0)


def test_only_kernels_decay() -> None:
    assert decayed(parameters()) == {
        "conv1": {"kernel": True},
        "bn1": {"scale": False, "bias": False},
        "fc": {"kernel": True, "bias": False},
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_gradients_only_kernels_move(name: str) -> None:
    settings = OptimizerSettings(name, weight_decay=0.1)
    optimizer = make_optimizer(settings, lambda step: 0.1)
    params = jax.tree.map(jnp.asarray, parameters())
    # Not all zero: where |gradient| is 0, LARS takes the bare decay.
    gradient = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    moved = jax.tree.map(lambda update: bool(jnp.any(update != 0)), updates)
    assert moved == decayed(params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_reads_the_numbers_that_are_said_to_be_read(name: str) -> None:
    """And no others: READ_BY_OPTIMIZERS refuses those that would do nothing, and may refuse none that acts."""
    others = {"momentum": 0.5, "nesterov": True, "beta1": 0.5, "beta2": 0.6, "epsilon": 0.5, "trust_coefficient": 0.5}
    assert others.keys() == READ_BY_OPTIMIZERS.keys()
    plain = OptimizerSettings(name, beta2=0.9, weight_decay=0.1)
    found = {}
    for key, value in {**others, "weight_decay": 0.3}.items():
        same = jax.tree.map(np.array_equal, moved(plain), moved(dataclasses.replace(plain, **{key: value})))
        found[key] = not all(jax.tree.leaves(same))
    assert found.pop("weight_decay")
    assert found == {key: name in names for key, names in READ_BY_OPTIMIZERS.items()}


def moved(settings: OptimizerSettings, shape: Callable[[np.ndarray], np.ndarray] = np.asarray) -> Params:
    """The fourth update, of parameters and gradients in another shape."""
    optimizer = make_optimizer(settings, rate)
    params = jax.tree.map(lambda leaf: jnp.asarray(shape(leaf)), parameters())
    state = optimizer.init(params)
    for step in range(4):
        updates, state = optimizer.update(jax.tree.map(shape, gradients(step)), state, params)
    return updates


@pytest.mark.parametrize("name", OF_ANY_SHAPE)
def test_of_any_shape_the_updates_are_the_same_in_another(name: str) -> None:
    """As a step on the only CPU gives them (advancing.flat)."""
    settings = OptimizerSettings(name, weight_decay=0.1, clip_norm=1.0)
    assert isinstance(make_optimizer(settings, rate), OfAnyShape)
    lying = moved(settings, lambda leaf: leaf.reshape(1, -1) if leaf.ndim > 1 else leaf)
    for one, other in zip(jax.tree.leaves(moved(settings)), jax.tree.leaves(lying), strict=True):
        np.testing.assert_allclose(np.ravel(one), np.ravel(other), rtol=1e-5)


def test_clipping_comes_before_decay_and_bounds_the_global_norm() -> None:
    params = {"a": jnp.full((2, 2), 3.0), "b": jnp.zeros(4)}
    gradient = {"a": jnp.full((2, 2), 3.0), "b": jnp.full(4, 4.0)}  # norm 10
    settings = OptimizerSettings("sgd", momentum=0.0, weight_decay=0.5, clip_norm=1.0)
    optimizer = make_optimizer(settings, lambda step: 1.0)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], -(0.3 + 1.5), rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -0.4, rtol=1e-6)
    small = jax.tree.map(lambda leaf: leaf / 20, gradient)
    updates, _ = optimizer.update(small, optimizer.init(params), params)
    np.testing.assert_allclose(updates["b"], -0.2, rtol=1e-6)


def test_average_warms_up_then_follows_decay() -> None:
    ema, params = {"w": jnp.zeros(2), "n": jnp.asarray(3)}, {"w": jnp.ones(2), "n": jnp.asarray(4)}
    early = ema_update(ema, params, 0.999, 0)
    np.testing.assert_allclose(early["w"], 0.9, rtol=1e-6)
    assert int(early["n"]) == 4
    late = jax.jit(ema_update)(ema, params, 0.75, jnp.asarray(10_000))
    np.testing.assert_allclose(late["w"], 0.25, rtol=1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "adagrad"),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("beta1", 1.0),
        ("beta2", math.nan),
        ("epsilon", 0.0),
        ("weight_decay", -1e-4),
        ("weight_decay", math.inf),
        ("clip_norm", -1.0),
        ("trust_coefficient", 0.0),
    ],
)
def test_bad_values_are_named(key: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"config\.optim\.{key} "):
        make_optimizer(dataclasses.replace(OptimizerSettings(), **{key: value}), rate)


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(InputError, match=r"config\.optim\.nesterov"):
        make_optimizer(OptimizerSettings("sgd", momentum=0.0, nesterov=True), rate)
    make_optimizer(OptimizerSettings("adam", momentum=0.0, nesterov=True), rate)
