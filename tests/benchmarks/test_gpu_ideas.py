"""What is to be measured on a GPU computes what the network does: values, statistics and gradients, on this CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.gpu_idea_blocks import STEMS, both_ways, chains, stems
from benchmarks.gpu_idea_kernels import Tiles, product
from benchmarks.gpu_idea_network import IdeaNetwork, dots, space_to_depth, two_pass_norm
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from tests.compiling import FUSED
from tests.networks import by_name, random_variables

SPEC = ResNetSpec(stage_sizes=(2, 1), width=8, num_classes=3)
SMALL = Tiles(32, 8, 8, interpret=True)
# The same function, to float32's rounding: largest difference over largest value.
CLOSE = 1e-5


def difference(found, expected) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain_product(normed, x, scale, shift, w):
    read = jnp.maximum(x * scale + shift, 0) if normed else x
    y = jnp.dot(read, w, precision="highest")
    return y, y.sum(0), jnp.square(y).sum(0)


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(("m", "k", "n"), [(96, 16, 32), (49 * 4, 8, 8)])
def test_the_fused_product_is_norm_relu_product_and_sums_with_its_gradients(m, k, n, normed):
    arguments = (drawn(m, k), np.abs(drawn(k, seed=1)) + 0.5, drawn(k, seed=2), drawn(k, n, seed=3))
    gradients = (drawn(m, n, seed=4), drawn(n, seed=5), drawn(n, seed=6))
    results = []
    for function in (functools.partial(product, SMALL, normed), functools.partial(plain_product, normed)):
        values, back = jax.vjp(function, *arguments)
        results.append((*values, *back(gradients)))
    for found, expected in zip(*results, strict=True):
        assert difference(found, expected) < CLOSE


@pytest.mark.parametrize(
    ("backend", "shape", "kernel", "stride", "pad"),
    [
        (dots, (2, 6, 6, 5), (1, 1, 5, 4), 1, 0),
        (dots, (2, 7, 7, 5), (1, 1, 5, 4), 2, 0),
        (space_to_depth, (2, 16, 12, 3), (7, 7, 3, 4), 2, 3),
        # Not theirs: handed on.
        (space_to_depth, (2, 9, 9, 3), (7, 7, 3, 4), 2, 3),
        (dots, (2, 6, 6, 5), (3, 3, 5, 4), 1, 1),
    ],
)
def test_a_backend_is_the_convolution_with_its_gradients(backend, shape, kernel, stride, pad):
    x, w = drawn(*shape), drawn(*kernel, seed=1)
    window = {"window_strides": (stride, stride), "padding": [(pad, pad)] * 2}
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    results = []
    for convolve in (backend, jax.lax.conv_general_dilated):
        value, back = jax.vjp(lambda x, w, convolve=convolve: convolve(x, w, **window, **layout), x, w)
        results.append((value, *back(drawn(*value.shape, seed=2))))
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        assert difference(found, expected) < CLOSE


@pytest.mark.parametrize("relu", [True, False])
def test_the_norm_in_two_passes_has_the_gradient_of_the_norm(relu):
    x, gamma, beta, gradient = drawn(3, 5, 5, 8), drawn(8, seed=1), drawn(8, seed=2), drawn(3, 5, 5, 8, seed=3)

    def plain(x, gamma, beta):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        y = (x - mean) / jnp.sqrt(variance + 1e-5) * gamma + beta
        return jnp.maximum(y, 0) if relu else y

    results = []
    for function in (lambda *arguments: two_pass_norm(1e-5, relu, *arguments)[0], plain):
        value, back = jax.vjp(function, x, gamma, beta)
        results.append((value, *back(gradient)))
    for found, expected in zip(*results, strict=True):
        assert difference(found, expected) < CLOSE


def outcome(network, variables, images, weights):
    """Loss, new statistics and gradients of a training forward pass."""

    def loss(params):
        logits, new = network.apply(
            {"params": params, "batch_stats": variables["batch_stats"]}, images, train=True, mutable=["batch_stats"]
        )
        return (logits * weights).sum(), new["batch_stats"]

    both = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=FUSED)
    (value, statistics), gradient = both(variables["params"])
    return by_name({"loss": value, "statistics": statistics, "gradient": gradient})


@pytest.fixture(scope="module")
def given():
    """(variables, images, weights of the logits)."""
    return random_variables(SPEC), drawn(4, 32, 32, 3), drawn(4, 3, seed=1)


@pytest.fixture(scope="module")
def plain(given):
    """What the network of pieces, none of them exchanged, makes of it, in float64."""
    with jax.enable_x64(True):
        return outcome(IdeaNetwork(SPEC, dtype=jnp.float64), *given)


def test_the_network_of_pieces_is_the_network(given, plain):
    """Against float32, in which the norms of ResNet compute whatever its dtype: rounding shows in the layers before."""
    expected = outcome(ResNet(SPEC, backend=jax.lax.conv_general_dilated), *given)
    assert plain.keys() == expected.keys()
    for name, value in expected.items():
        assert difference(plain[name], value) < (1e-3 if name.startswith("gradient") else CLOSE), name


@pytest.mark.parametrize(
    "pieces",
    [
        {"one_by_one": "dot", "norm": "two_pass", "stem": "space_to_depth", "pool": "xla"},
        {"one_by_one": "fused", "tiles": SMALL},
        {"stem": "conv", "ends": "output"},
    ],
    ids=["dots, two passes, space to depth, XLA's pool", "fused products", "stem by pixels, ends by output"],
)
def test_exchanged_pieces_train_as_the_network_does(pieces, given, plain):
    """In float64, where rounding in one layer does not show as a per cent in another."""
    with jax.enable_x64(True):
        found = outcome(IdeaNetwork(SPEC, dtype=jnp.float64, **pieces), *given)
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        assert difference(found[name], value) < CLOSE, name


def test_the_fused_product_lowers_for_a_gpu():
    """Three Triton kernels, forward and the two gradients, with a norm before and without; nothing is run."""
    m, k, n = 256 * 7 * 7, 512, 2048
    like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16 if len(shape) == 2 else jnp.float32)  # noqa: E731

    def both_ways(arguments, gradients):
        values, back = jax.vjp(functools.partial(product, Tiles(), True), *arguments)
        return values, back(gradients)

    traced = jax.jit(both_ways).trace((like(m, k), like(k), like(k), like(k, n)), (like(m, n), like(n), like(n)))
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count("xla.gpu.triton") == 3


def test_all_stems_compute_the_same():
    given = (
        np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8), drawn(7, 7, 3, 64) * 0.1,
        np.abs(drawn(64, seed=1)) + 0.5, drawn(64, seed=2), drawn(2, 8, 8, 64, seed=3),
    )  # fmt: skip
    expected, *others = [jax.tree.leaves(jax.jit(both_ways(name))(*given)) for name in STEMS]
    for found in others:
        for one, other in zip(found, expected, strict=True):
            assert difference(one, other) < CLOSE


@pytest.mark.parametrize("part", [stems, chains], ids=["stems", "chains"])
def test_parts_that_are_timed_alone_run_anywhere(part):
    """On a CPU, whose traces hold no kernels of a device, in no time at all."""
    (row,) = part(True)["shapes"]
    assert set(row.values()) == {0.0}
