"""Batch norm's statistics re-estimated over the training images: for weights that meet pictures of another kind."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from input_pipeline.augment import prepare
from input_pipeline.bars import over_batches
from input_pipeline.contract import Contract
from input_pipeline.crops import Crop
from input_pipeline.errors import InputError
from input_pipeline.order import Order
from input_pipeline.sources import Split
from input_pipeline.stream import eval_batches
from resnet.model.network import ResNet
from resnet.train import parallel
from resnet.train.evaluation import Interrupted
from resnet.train.plan import Plan
from resnet.train.state import TrainState, Variables

# Each batch is normalised by its own statistics on the way to the next norm, so it must not be small.
BATCH = 64
ALONE = "config.transfer.bn='recalibrate' runs in one process only; give the converted weights of such a run"


def recalibrated(
    plan: Plan, state: TrainState, split: Split, mesh: Mesh, *, threads: int | None, stop: Callable[[], bool]
) -> TrainState:
    """`state` with the running statistics of `split`; see `recalibrate`.

    Raises InputError in one of several processes.
    """
    if jax.process_count() > 1:
        raise InputError(ALONE)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    statistics = recalibrate(plan, variables, split, threads=threads, stop=stop)
    # Two copies: the step donates the state's buffers, and no buffer may be donated twice.
    put = lambda: jax.device_put(statistics, parallel.replicated(mesh))  # noqa: E731
    return dataclasses.replace(state, batch_stats=put(), ema=state.ema and {**state.ema, "batch_stats": put()})


def recalibrate(
    plan: Plan, variables: Variables, split: Split, *, threads: int | None, stop: Callable[[], bool] = lambda: False
) -> Variables:
    """The running statistics of all of `split` for these variables, each image seen once as evaluation crops it.

    Wu and Johnson 2021 (arXiv 2105.07576), Section 3.1: over batches of n_b images with mean m_b and variance v_b,
    mean = Σ n_b m_b / N and variance = Σ n_b (v_b + m_b²) / N - mean²; no momentum. For the first norm these are the
    mean and the biased variance over all images and places; each later norm sees what the norms before it make of their
    own batch. Images come in an order drawn from the run's seed, since splits are sorted by class; the last batch is
    as large as what is left. Returns {'layer1_0': {'bn1': {'mean', 'var'}}, …} as float32 NumPy arrays. Raises
    Interrupted when `stop` says so.
    """
    step = jax.jit(make_statistics_step(plan.network, plan.contract))
    order = Order(len(split), len(split), plan.recipe.seed).indices(0)
    sums: dict[str, np.ndarray] = {}
    batches = whole_batches(split, order, plan.eval_crop, threads)
    for images in over_batches(batches, "statistics", len(split), min(BATCH, len(split))):
        if stop():
            raise Interrupted
        found = flatten_dict(jax.device_get(step(variables, images)), sep="/")
        for name, values in moments(found).items():
            sums[name] = sums.get(name, 0) + values * (len(images) / len(split))
    return unflatten_dict({name: values.astype(np.float32) for name, values in of_moments(sums).items()}, sep="/")


def whole_batches(split: Split, order: np.ndarray, crop: Crop, threads: int | None) -> Iterator[np.ndarray]:
    """uint8[B, S, S, 3] of each batch in this order (int64[N]), without the rows that fill up the last."""
    for batch in eval_batches(split, min(BATCH, len(split)), crop, threads=threads, order=order):
        yield batch["image"][batch["mask"] > 0]


def make_statistics_step(network: ResNet, contract: Contract) -> Callable[[Variables, np.ndarray], Any]:
    """(variables, uint8[B, S, S, 3]) -> the mean and biased variance of what enters each norm, laid out as
    'batch_stats'."""
    # With nothing kept of the old, a training step's new statistics are its batch's own.
    spec = dataclasses.replace(network.spec, norm_momentum=0.0, ghost_batch_size=0)
    spec = dataclasses.replace(spec, stochastic_depth=0.0, dropout=0.0, shortcut_dropout=0.0)
    fresh = network.clone(spec=spec, frozen=frozenset())

    def step(variables: Variables, images: np.ndarray) -> Any:
        key = jax.random.key(0)
        inputs = prepare(images, contract)
        return fresh.apply(variables, inputs, train=True, mutable=["batch_stats"], rngs={"dropout": key})[1][
            "batch_stats"
        ]

    return step


def moments(statistics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Means as they are, variances as means of squares; float64, in which both add up over batches."""
    exact = {name: np.asarray(values, np.float64) for name, values in statistics.items()}
    return {name: values + square_of_mean(exact, name) for name, values in exact.items()}


def of_moments(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `moments`."""
    # Rounding may leave a variance of zero a little below it.
    return {
        name: np.maximum(values - square, 0) if name.endswith("/var") else values
        for name, values in sums.items()
        for square in [square_of_mean(sums, name)]
    }


def square_of_mean(values: dict[str, np.ndarray], name: str) -> np.ndarray | float:
    return values[name.removesuffix("var") + "mean"] ** 2 if name.endswith("/var") else 0.0
