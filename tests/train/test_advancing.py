"""A step that is not finite changes nothing, whichever way the platform takes; the norm that tells it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from resnet.train.advancing import advanced_if, by_branch, by_selection, norm_of

OLD = {"params": jnp.asarray([1.0, -2.0]), "trace": jnp.asarray([0.5, 0.25]), "count": jnp.asarray(3)}


def advance(old: dict, gradient: jax.Array) -> dict:
    trace = 0.9 * old["trace"] + gradient
    return {"params": old["params"] - 0.1 * trace, "trace": trace, "count": old["count"] + 1}


@pytest.mark.parametrize("way", [by_branch, by_selection])
def test_either_way_advances_or_leaves_all_as_it_was(way):
    """A CPU takes the one, GPUs the other, and here both run."""
    step = jax.jit(partial(way, advance))
    gradient = jnp.asarray([0.3, -0.4])
    jax.tree.map(np.testing.assert_array_equal, step(True, OLD, gradient), jax.jit(advance)(OLD, gradient))
    jax.tree.map(np.testing.assert_array_equal, step(False, OLD, gradient * jnp.nan), OLD)


def test_a_gpu_is_given_no_branch():
    """It would have to ask the host which one to take."""
    step = jax.jit(lambda finite, gradient: advanced_if(finite, advance, OLD, gradient))
    shapes = jax.ShapeDtypeStruct((), bool), jax.ShapeDtypeStruct((2,), jnp.float32)
    cuda, cpu = (export.export(step, platforms=[name])(*shapes).mlir_module() for name in ("cuda", "cpu"))
    # Two, over constants, are what is left of the choice of platform.
    assert (cuda.count("stablehlo.case"), "stablehlo.select" in cuda) == (2, True)
    assert (cpu.count("stablehlo.case"), "stablehlo.select" in cpu) == (3, False)


def test_only_an_optimizer_of_any_shape_is_given_kernels_as_rows():
    """One that looks at output channels computed another update where a CPU is the only device."""
    gradient = {"kernel": jnp.arange(12.0).reshape(3, 4)}
    zeros = jax.tree.map(jnp.zeros_like, gradient)
    by_hand = gradient["kernel"].mean(axis=1, keepdims=True) - gradient["kernel"]
    optimizer = optax.chain(optax.centralize(), optax.sgd(1.0))
    update = lambda old, g: optimizer.update(g, optimizer.init(old), old)[0]  # noqa: E731
    found = [advanced_if(jnp.asarray(True), update, zeros, gradient, of_any_shape=known) for known in (False, True)]
    np.testing.assert_allclose(found[0]["kernel"], by_hand, rtol=1e-6)
    assert not np.allclose(found[1]["kernel"], by_hand)


@pytest.mark.parametrize("sizes", [(3, 5), (5000,), (7, 6000, 1, 4096), ()])
def test_the_norm_is_that_of_all_leaves_together(sizes):
    leaves = [np.random.default_rng(size).normal(size=(size, 1)).astype(np.float32) for size in sizes]
    whole = np.concatenate([np.zeros(1), *(leaf.ravel() for leaf in leaves)])
    assert float(norm_of(leaves)) == pytest.approx(float(np.linalg.norm(whole)), rel=1e-6)
    assert not np.isfinite(float(norm_of([*leaves, np.float32([np.nan])])))
