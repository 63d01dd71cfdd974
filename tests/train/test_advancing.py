"""A step that is not finite changes nothing, whichever way the platform takes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from resnet.train.advancing import advanced_if, by_branch, by_selection

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
