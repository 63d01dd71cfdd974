"""Chains of convolutions by oneDNN: values, gradients, transformations, ends of blocks that are left open."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.model import onednn_training
from resnet.model.onednn_chain import Chain, End, before, close, trained
from resnet.model.onednn_training import BLOCK, PROJECTED, RELU, Trained
from tests.model.test_convolution import arrays, assert_near
from tests.model.test_onednn import needs_onednn, square

EPSILON = 1e-3


@needs_onednn
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_no_number_is_not_hidden(number):
    """A step that is not finite is skipped and told, so no ReLU may make a 0 of it."""
    x, kernels, scales, biases, _ = of_chain(2, True, "nothing")
    x = x.at[2, 3, 3, 1].set(number)
    for form in (chain, chain_in_parts):
        y, statistics = jax.jit(partial(form, True))(x, kernels, scales, biases, None)
        assert not jnp.isfinite(y).any()
        assert not jnp.isfinite(jnp.stack(statistics)).any()


def chain(last_norm, x, kernels, scales, biases, addend, *, relu=True, residual=False):
    y, _, found = ours(x, kernels, scales, biases, addend, last_norm=last_norm, relu=relu, residual=residual)
    return y, found


def ours(x, kernels, scales, biases, addend=None, *, last_norm=True, relu=True, residual=False, left_open=False):
    last = len(kernels) - 1
    forms = [
        Trained(square(1, k.shape[0] // 2), RELU if i else before(x), i < last or last_norm, EPSILON)
        for i, k in enumerate(kernels)
    ]
    return trained(Chain(tuple(forms), relu, residual, left_open), x, kernels, scales, biases, addend)


def chain_in_parts(last_norm, x, kernels, scales, biases, addend, *, relu=True, residual=False):
    """The definition, by lax."""
    y, found = x, []
    for number, w in enumerate(kernels):
        y = jax.lax.conv_general_dilated(y, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        last = number == len(kernels) - 1
        if last_norm or not last:
            mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
            found.append(jax.lax.stop_gradient(jnp.stack([mean, var])))
            y = (y - mean) / jnp.sqrt(var + EPSILON) * scales[number] + biases[number]
            y = y if last else jax.nn.relu(y)
    added = x if residual else addend
    y = y if added is None else y + added
    return jax.nn.relu(y) if relu else y, found


def of_chain(count, last_norm, added, wide=8):
    kernels = [w / 4 for w in arrays(*[(1 + 2 * (i % 2),) * 2 + (wide, wide) for i in range(count)])]
    norms = count if last_norm else count - 1
    # ReLUs whose inputs are never near 0 pass or stop whole channels.
    biases = [jnp.where(jnp.arange(wide) % 3 == i % 3, -9.0, 9.0) for i in range(norms)]
    x, addend = arrays((5, 7, 6, wide), (5, 7, 6, wide))
    scales = [1 + 0.1 * scale for scale in arrays(*[(wide,)] * norms)]
    return x, kernels, scales, biases, addend if added == "operand" else None


@needs_onednn
@pytest.mark.parametrize("added", ["nothing", "operand", "residual"])
@pytest.mark.parametrize(("count", "last_norm"), [(1, True), (2, True), (2, False), (3, True), (3, False)])
def test_a_chain_and_its_gradients_by_everything(count, last_norm, added):
    given = of_chain(count, last_norm, added)
    (weight,) = arrays((5, 7, 6, 8))

    def slopes(form, *given):
        def loss(*given):
            y, found = form(last_norm, *given, relu=last_norm, residual=added == "residual")
            return jnp.sum(weight * y), (y, found)

        return jax.value_and_grad(loss, argnums=tuple(range(5)), has_aux=True)(*given)

    ours, theirs = (jax.jit(partial(slopes, form))(*given) for form in (chain, chain_in_parts))
    # Some gradients are 0 but for roundings: a bias before a convolution and a norm changes nothing. Hence all by one.
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs[1]))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5 * largest), ours, theirs)


def two_blocks(how, x, first, second, projection):
    """The first one's end is left to the second one, or is closed before."""
    residual, addend = how != "plain", None
    if how == "projections":
        addend, residual = ours(x, *projection, relu=False, left_open=True)[0], False
    end, *_ = ours(x, *first, addend, residual=residual, left_open=True)
    assert isinstance(end, End)
    if "projection" in how:
        addend, end, _ = ours(end, *projection, relu=False, left_open=how == "projections")
        return ours(end, *second, addend)[0]
    return ours(close(end) if how == "closed" else end, *second, residual=residual)[0]


def two_blocks_in_parts(how, x, first, second, projection):
    for number, block in enumerate((first, second)):
        projects = how == "projections" or (how == "projection" and number)
        addend = chain_in_parts(True, x, *projection, None, relu=False)[0] if projects else None
        x, _ = chain_in_parts(True, x, *block, addend, residual=how != "plain" and not projects)
    return x


def of_blocks(count):
    """Operands of two blocks of `count` convolutions and of a projection."""
    x, *first, _ = of_chain(count, True, "nothing")
    # The signs of what lies between channels of +9 and -9 stay what they are, whatever is added to them.
    second = [[leaf[::-1] for leaf in part] for part in first]
    return x, first, second, [part[:1] for part in first]


@needs_onednn
@pytest.mark.parametrize("how", ["residual", "projection", "projections", "closed", "plain"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_end_left_to_the_next_block_is_the_same(how, count):
    given = of_blocks(count)
    (weight,) = arrays((5, 7, 6, 8))
    losses = [
        jax.value_and_grad(lambda *given, of=of: jnp.sum(weight * of(how, *given)), argnums=(0, 1, 2, 3))
        for of in (two_blocks, two_blocks_in_parts)
    ]
    ours, theirs = (jax.jit(loss)(*given) for loss in losses)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs[1]))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5 * largest), ours, theirs)
    program = str(jax.make_jaxpr(losses[0])(*given))
    # Forth and back; a single convolution cannot add to its own gradient what it finds in the same call.
    closes_itself = how == "projection" or (how == "residual" and count > 1)
    assert program.count(f"before={BLOCK}") == 2 * closes_itself
    assert program.count(f"before={PROJECTED}") == 2 * (how == "projections")


@needs_onednn
def test_nothing_is_found_for_a_first_block_that_is_not_learned():
    x, first, second, projection = of_blocks(2)
    loss = lambda second: jnp.sum(two_blocks("residual", x, first, second, projection) ** 2)  # noqa: E731
    in_parts = lambda second: jnp.sum(two_blocks_in_parts("residual", x, first, second, projection) ** 2)  # noqa: E731
    assert_near(jax.jit(jax.grad(loss))(second), jax.jit(jax.grad(in_parts))(second), 1e-4)
    equations = jax.make_jaxpr(jax.grad(loss))(second).eqns
    last = [e for e in equations if e.primitive is onednn_training._GRADIENT][-1]
    assert not last.params["ending"].by_image


@needs_onednn
@pytest.mark.parametrize("what", ["mapped", "twice"])
def test_open_ends_mapped_and_differentiated_twice(what):
    x, first, second, projection = of_blocks(2)
    several = jnp.stack([first[0][0], 2 * first[0][0]])

    def slope(of, kernel):
        def loss(kernel):
            changed = [[kernel, first[0][1]], *first[1:]]
            return jnp.sum(jnp.sin(of("residual", x, changed, second, projection)))

        return jax.grad(loss)(kernel)

    def curvature(of, kernel):
        return jax.grad(lambda kernel: jnp.sum(slope(of, kernel) ** 2))(kernel)

    of = curvature if what == "twice" else slope
    mapped = [jax.jit(jax.vmap(partial(of, form)))(several) for form in (two_blocks, two_blocks_in_parts)]
    assert_near(*mapped, 2e-3 if what == "twice" else 1e-4)


@needs_onednn
def test_mapped_differentiated_twice_and_outside_jit():
    x, kernels, scales, biases, _ = of_chain(2, True, "nothing")
    several = jnp.stack([kernels[0], 2 * kernels[0], kernels[0] - 1])

    def loss(form, first, x):
        return jnp.sum(jnp.sin(form(True, x, [first, kernels[1]], scales, biases, None)[0]))

    def by_both(form, first, x):
        return jax.grad(partial(loss, form), (0, 1))(first, x)

    def curvature(form, first, x):
        return jax.grad(lambda first: sum(jnp.sum(slope**2) for slope in by_both(form, first, x)))(first)

    for of in (by_both, curvature):
        mapped = [jax.jit(jax.vmap(partial(of, form), (0, None)))(several, x) for form in (chain, chain_in_parts)]
        assert_near(*mapped, 2e-3 if of is curvature else 1e-4)
    assert_near(by_both(chain, several[2], x), by_both(chain_in_parts, several[2], x), 1e-4)


@needs_onednn
def test_what_is_given_is_not_differentiated():
    """Of the network's images no gradient is asked for, so the stem's call does not compute it."""
    x, kernels, scales, biases, _ = of_chain(1, True, "nothing")
    loss = lambda kernels, x: jnp.sum(chain(True, x, kernels, scales, biases, None)[0] ** 2)  # noqa: E731

    def results(*by):
        equations = jax.make_jaxpr(jax.grad(loss, by))(kernels, x).eqns
        return next(len(e.outvars) for e in equations if e.primitive is onednn_training._GRADIENT)

    assert results(0, 1) == results(0) + 1
