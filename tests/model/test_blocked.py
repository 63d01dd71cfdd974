"""Convolutions and pooling by blocks of pixels are those by pixels: values, gradients, whole networks."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.model import blocked, convolution
from resnet.model.errors import SpecError
from resnet.model.network import ResNet
from resnet.model.pooling import max_pool_by_xla
from resnet.model.spec import ResNetSpec
from tests.networks import random_variables

NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Every network and convolution takes the way that it would take on a GPU, whatever its dtype."""
    monkeypatch.setattr(blocked, "_suits", lambda x: True)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def both_ways(function, *arguments):
    """The result and the gradients of its weighted sum."""
    y, back = jax.vjp(function, *arguments)
    return y, *back(jnp.asarray(drawn(*y.shape, seed=9)))


def close(found, expected, *, within: float = 1e-5) -> None:
    """To a part of each array's largest value; as good is what is 0 but for rounding, as a bias' gradient at a norm."""
    for one, other in zip(found, expected, strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert np.abs(one - other).max() <= within * max(np.abs(other).max(), 0.1)


def test_blocks_hold_every_pixel_and_give_it_back():
    x = drawn(2, 8, 12, 3)
    cut = blocked.into_blocks(x, 4)
    assert cut.shape == (2, 2, 3, 48)
    np.testing.assert_array_equal(cut[1, 1, 2].reshape(4, 4, 3), x[1, 4:8, 8:12])
    np.testing.assert_array_equal(blocked.out_of_blocks(cut, 4), x)
    with pytest.raises(SpecError, match="blocks of 4 pixels do not divide maps of 8×10"):
        blocked.into_blocks(x[:, :, :10], 4)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 16), (16, 16), (8, 5)])
@pytest.mark.parametrize("sides", [(8, 8), (2, 6)])
def test_a_small_convolution_is_lax_own(inputs, outputs, sides):
    x, kernel = drawn(2, *sides, inputs), drawn(3, 3, inputs, outputs, seed=1)
    plain = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), [(1, 1)] * 2, dimension_numbers=NHWC)  # noqa: E731
    close(both_ways(blocked.convolution, x, kernel), both_ways(plain, x, kernel))


@pytest.mark.parametrize("sides", [(4, 4), (16, 8)])
@pytest.mark.parametrize("fill", [-np.inf, 0.0])
def test_the_stem_is_lax_own_and_so_is_its_pooling(sides, fill):
    images, kernel = drawn(2, *sides, 3), drawn(7, 7, 3, 8, seed=1)

    def by_blocks(images, kernel):
        return blocked.max_pool(blocked.stem(images, kernel), fill=fill)

    def by_pixels(images, kernel):
        y = jax.lax.conv_general_dilated(images, kernel, (2, 2), [(3, 3)] * 2, dimension_numbers=NHWC)
        if fill == 0:
            return max_pool_by_xla(jnp.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0))), padding=0)
        return max_pool_by_xla(y)

    close(both_ways(by_blocks, images, kernel), both_ways(by_pixels, images, kernel))


@hypothesis.given(
    high=st.integers(1, 4), wide=st.integers(1, 4), levels=st.sampled_from([1, 2, 1000]), seed=st.integers(0, 2**32 - 1)
)
@hypothesis.settings(max_examples=10, deadline=None)
def test_pooling_is_xlas_to_the_bit_ties_included(high, wide, levels, seed):
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.integers(-levels, 1, (2, 2 * high, 2 * wide, 3)), jnp.bfloat16)
    g = jnp.asarray(random.integers(-8, 9, (2, high, wide, 3)), jnp.bfloat16)
    expected, back = jax.vjp(max_pool_by_xla, x)
    cut = blocked.into_blocks(x, 2).reshape(2, high, wide, 4, 3)
    found, back_again = jax.vjp(functools.partial(blocked.max_pool, fill=-np.inf), cut)
    np.testing.assert_array_equal(found, expected)
    by_blocks = back_again(g)[0].reshape(2, high, wide, 12)
    np.testing.assert_array_equal(blocked.out_of_blocks(by_blocks, 2), back(g)[0])


@pytest.mark.parametrize(
    "spec",
    [
        ResNetSpec(stage_sizes=(1,), width=8, num_classes=3),
        ResNetSpec(stage_sizes=(1,), width=8, num_classes=3, conv_bias=True),
        ResNetSpec(stage_sizes=(1,), width=8, num_classes=3, norm="group", norm_groups=2),
        ResNetSpec(stage_sizes=(1,), width=8, num_classes=3, norm="none"),
        ResNetSpec(stage_sizes=(1,), width=8, num_classes=3, order="full_preactivation", stem_norm=False),
        ResNetSpec(stage_sizes=(1,), width=8, num_classes=3, stem="cifar", block="basic"),
        ResNetSpec(stage_sizes=(1,), width=8, num_classes=3, ghost_batch_size=2),
    ],
    ids=["plain", "bias", "group", "none", "preactivation", "cifar", "ghost"],
)
def test_a_network_by_blocks_is_the_same_network(spec, monkeypatch):
    # oneDNN, which no GPU has, would take convolutions away together with their norms.
    monkeypatch.setattr(convolution, "_is_possible_by_onednn", lambda *given: False)
    images = jnp.asarray(drawn(4, 32, 32, 3))
    network = ResNet(spec)
    variables = random_variables(spec)

    def results() -> list:
        def loss(params):
            given = {**variables, "params": params}
            logits, new = network.apply(given, images, train=True, mutable=["batch_stats"])
            return (logits * drawn(*logits.shape, seed=4)).sum(), (logits, new.get("batch_stats", {}))

        (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return jax.tree.leaves((found, gradient, network.apply(variables, images, train=False)))

    expected = results()
    took = []
    monkeypatch.setattr(blocked, "_suits", lambda x: took.append(x.shape) or True)
    close(results(), expected, within=2e-4)
    assert took


def test_nothing_but_what_pays_goes_by_blocks(as_on_a_gpu):
    x, w = jax.ShapeDtypeStruct((2, 8, 8, 16), jnp.bfloat16), jax.ShapeDtypeStruct((3, 3, 16, 16), jnp.bfloat16)
    pays = functools.partial(blocked.convolution_pays, x, w)
    assert pays((1, 1), [(1, 1), (1, 1)], 1)
    assert not pays((2, 2), [(1, 1), (1, 1)], 1)
    assert not pays((1, 1), "SAME", 1)
    assert not pays((1, 1), [(1, 1), (1, 1)], 2)
    wide = jax.ShapeDtypeStruct((3, 3, 16, 32), jnp.bfloat16)
    assert not blocked.convolution_pays(x, wide, (1, 1), [(1, 1), (1, 1)], 1)
    odd = jax.ShapeDtypeStruct((2, 7, 8, 16), jnp.bfloat16)
    assert not blocked.convolution_pays(odd, w, (1, 1), [(1, 1), (1, 1)], 1)
    assert blocked.stem_pays(jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.bfloat16))
    assert not blocked.stem_pays(jax.ShapeDtypeStruct((2, 225, 224, 3), jnp.bfloat16))


def test_on_a_cpu_nothing_goes_by_blocks():
    assert not blocked.stem_pays(jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.bfloat16))
