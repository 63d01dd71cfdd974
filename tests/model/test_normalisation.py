"""Batch norm: flax' results, running statistics and gradients, whatever the dtype, the batch and the transformation."""

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.model.normalisation import BatchNorm

ONES = nn.initializers.ones


def norms(dtype, channels: int, running: bool = False) -> tuple[nn.Module, nn.Module]:
    """(ours, flax') of the same settings."""
    flax = nn.BatchNorm(use_running_average=running, momentum=0.9, epsilon=1e-5, dtype=dtype)
    return BatchNorm(channels, 0.9, 1e-5, dtype, ONES, use_running_average=running), flax


def variables(channels: int, seed: int) -> dict:
    random = np.random.default_rng(seed)
    draw = lambda low, high: jnp.asarray(random.uniform(low, high, channels), jnp.float32)  # noqa: E731
    return {
        "params": {"scale": draw(-2, 2), "bias": draw(-1, 1)},
        "batch_stats": {"mean": draw(-1, 1), "var": draw(0.5, 2)},
    }


def applied(norm: nn.Module, values: dict, x: jax.Array, weight: jax.Array) -> tuple:
    """(output, new statistics, gradients by parameters and input) of a norm followed by something curved."""

    def loss(params, x):
        y, new = norm.apply({**values, "params": params}, x, mutable="batch_stats")
        return (jnp.sin(y.astype(jnp.float32)) * weight).sum(), (y, new["batch_stats"])

    gradients, (y, stats) = jax.grad(loss, argnums=(0, 1), has_aux=True)(values["params"], x)
    return y, stats, gradients


@hypothesis.given(
    batch=st.integers(1, 4),
    size=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    offset=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 1000),
)
@hypothesis.settings(max_examples=8, deadline=None)
def test_equals_flax(batch, size, channels, offset, seed):
    random = np.random.default_rng(seed)
    x = jnp.asarray(offset + random.normal(size=(batch, size, size + 1, channels)), jnp.float32)
    weight = jnp.asarray(random.normal(size=x.shape), jnp.float32)
    ours, flax = norms(jnp.float32, channels)
    both = jax.jit(lambda v, x, w: [applied(norm, v, x, w) for norm in (ours, flax)])
    found, expected = both(variables(channels, seed), x, weight)
    # The variance itself is a difference: with an offset of 3 deviations it loses a digit, in flax as here.
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=2e-4, atol=2e-4), found, expected)


def test_double_precision_is_kept():
    """Against flax in float64, where the order of sums no longer shows."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 3, 2)))
        ours, flax = norms(jnp.float64, 2)
        found, expected = (applied(norm, variables(2, 0), x, jnp.cos(x)) for norm in (ours, flax))
        assert found[0].dtype == found[2][1].dtype == jnp.float64
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found[2][1], expected[2][1], rtol=1e-10, atol=1e-10)


def test_running_statistics_normalise_and_stay():
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    ours, flax = norms(jnp.float32, 4, running=True)
    found, expected = (applied(norm, variables(4, 0), x, jnp.ones(x.shape)) for norm in (ours, flax))
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-5, atol=1e-6), found, expected)
    jax.tree.map(np.testing.assert_array_equal, found[1], variables(4, 0)["batch_stats"])


def test_the_affine_map_is_what_the_running_statistics_do():
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    ours, _ = norms(jnp.float32, 4, running=True)
    scale, shift = ours.apply(variables(4, 0), method="affine")
    np.testing.assert_allclose(x * scale + shift, ours.apply(variables(4, 0), x), rtol=1e-5, atol=1e-6)


def test_bfloat16_in_bfloat16_out_and_statistics_in_float32():
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 4)).astype(jnp.bfloat16)
    weight = jax.random.normal(jax.random.key(1), x.shape)
    ours, flax = norms(jnp.bfloat16, 4)
    found, expected = (applied(norm, variables(4, 0), x, weight) for norm in (ours, flax))
    assert found[0].dtype == found[2][1].dtype == jnp.bfloat16
    assert found[1]["var"].dtype == jnp.float32
    close = lambda f, e: np.testing.assert_allclose(  # noqa: E731
        np.float32(f), np.float32(e), rtol=0.02, atol=0.02 * np.abs(np.float32(e)).max()
    )
    jax.tree.map(close, found, expected)


@pytest.mark.parametrize("transform", [jax.checkpoint, lambda f: jax.vmap(f, in_axes=(None, 0))])
def test_recomputed_and_mapped(transform):
    """vmap over a leading axis is what trains several seeds at once."""
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 5, 2))
    of = lambda norm: lambda v, x: applied(norm, v, x, jnp.ones(x.shape))[2][1]  # noqa: E731
    ours, flax = norms(jnp.float32, 2)
    found, expected = (jax.jit(transform(of(norm)))(variables(2, 0), x) for norm in (ours, flax))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
