"""Max pooling: XLA's output and gradient to the last bit, for any shape, ties and batch."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.model.pooling import max_pool
from resnet.model.pooling import max_pool_by_xla as reference


@hypothesis.given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    padding=st.integers(0, 1),
    levels=st.sampled_from([1, 2, 1000]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    seed=st.integers(0, 2**32 - 1),
)
@hypothesis.settings(max_examples=20, deadline=None)
def test_output_and_gradient_are_xlas_to_the_bit(height, width, padding, levels, dtype, seed):
    """Few levels make ties: with one level every element of every window is a largest one."""
    hypothesis.assume(min(height, width) + 2 * padding >= 3)
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.integers(-levels, 1, (2, height, width, 3)), dtype)
    out = [(side + 2 * padding - 3) // 2 + 1 for side in (height, width)]
    # Whole numbers: sums of up to four are exact in any order.
    g = jnp.asarray(random.integers(-8, 9, (2, *out, 3)), dtype)

    @jax.jit
    def both(x: jax.Array, g: jax.Array) -> list:
        pools = (lambda x: reference(x, padding=padding), lambda x: max_pool(x, padding=padding))
        return [(y, back(g)[0]) for y, back in (jax.vjp(pool, x) for pool in pools)]

    expected, found = both(x, g)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    # Where nothing is differentiated, the padded input is not made.
    np.testing.assert_array_equal(jax.jit(lambda x: max_pool(x, padding=padding))(x), expected[0])


@pytest.mark.parametrize("transform", [jax.jit, jax.checkpoint])
def test_gradient_of_a_gradient_and_of_what_is_recomputed(transform):
    x = jax.random.normal(jax.random.key(0), (2, 7, 8, 3))

    def loss(pool):
        return lambda x: (transform(pool)(x) ** 3).sum()

    once = [jax.jit(jax.grad(loss(pool)))(x) for pool in (max_pool, lambda x: reference(x))]
    np.testing.assert_allclose(*once, rtol=1e-6)
    norm = lambda pool: jax.jit(jax.grad(lambda x: (jax.grad(loss(pool))(x) ** 2).sum()))(x)  # noqa: E731
    np.testing.assert_allclose(norm(max_pool), norm(lambda x: reference(x)), rtol=1e-5)


def test_a_batch_of_no_fixed_size_can_be_exported():
    batch = jax.export.symbolic_shape("b, 8, 8, 3")
    exported = jax.export.export(jax.jit(max_pool))(jax.ShapeDtypeStruct(batch, jnp.float32))
    x = jax.random.normal(jax.random.key(0), (5, 8, 8, 3))
    np.testing.assert_array_equal(exported.call(x), reference(x))
