"""Gradients of gradients of whole networks in training, by oneDNN as by lax; and networks without jit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.model.network import ResNet
from resnet.model.variants import variant
from tests.compiling import FUSED
from tests.model.test_onednn import needs_onednn


def of(name, size, **fields):
    """(our network, the same by lax, variables of no special values, eight images)."""
    spec = dataclasses.replace(variant(name).spec, num_classes=3, width=8, **fields)
    x = jax.random.normal(jax.random.key(0), (8, size, size, 3))
    by_lax = ResNet(spec, backend=jax.lax.conv_general_dilated)
    shapes = jax.eval_shape(by_lax.init, jax.random.key(1), x)
    shapes = {kind: shapes[kind] for kind in ("params", "batch_stats")}
    draws = np.random.default_rng(2)

    def drawn(path, leaf):
        name, fan_in = path[-1].key, max(1, np.prod(leaf.shape[:-1]))
        spread = (2 / fan_in) ** 0.5 if name == "kernel" else 0.1
        return (draws.normal(0, spread, leaf.shape) + (name in ("scale", "var"))).astype(np.float32)

    return ResNet(spec), by_lax, jax.tree_util.tree_map_with_path(drawn, shapes), x


def trained(network, params, stats, x):
    """The loss of a step, and the running statistics behind it."""
    logits, moved = network.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
    return jnp.square(logits).mean() - jax.nn.log_softmax(logits)[:, 0].mean(), moved["batch_stats"]


def square(tree):
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))


def penalty(loss, params, x):
    """The gradient by the parameters of a penalty on that by the images (Gulrajani et al. 2017)."""
    return jax.grad(lambda params: square(jax.grad(loss, 1)(params, x)))(params)


def product(loss, params, x):
    """The Hessian with a vector, forward over reverse."""
    return jax.jvp(jax.grad(loss), (params, x), (params, x))[1]


def adapted(loss, params, x, network, stats):
    """The gradient of what a step of gradient descent leads to (MAML, Finn et al. 2017), in training and evaluation."""

    def outer(params):
        by_step, moved = jax.grad(lambda params: trained(network, params, stats, x), has_aux=True)(params)
        params = jax.tree.map(lambda old, by: old - 0.1 * by, params, by_step)
        return loss(params, x) + square(network.apply({"params": params, "batch_stats": moved}, x))

    return jax.grad(outer)(params)


def partly(loss, params, x, part):
    """The gradient by all parameters of a penalty on that by those of one block or layer alone."""
    block, *layer = part.split("/")

    def inner(params):
        with_layer = lambda one: params[block] | {layer[0]: one} if layer else one  # noqa: E731
        one = params[block][layer[0]] if layer else params[block]
        return square(jax.grad(lambda one: loss(params | {block: with_layer(one)}, x))(one))

    return jax.grad(inner)(params)


def second_orders(network, variables, x, kinds):
    params, stats = variables["params"], variables["batch_stats"]
    loss = lambda params, x: trained(network, params, stats, x)[0]  # noqa: E731
    ways = {"penalty": penalty, "product": product}
    found = {kind: ways[kind](loss, params, x) for kind in kinds if kind in ways}
    if "adapted" in kinds:
        found["adapted"] = adapted(loss, params, x, network, stats)
    return found | {kind: partly(loss, params, x, kind) for kind in kinds if kind not in {*ways, "adapted"}}


@needs_onednn
@pytest.mark.parametrize(
    ("name", "size", "stages", "kinds"),
    [
        ("cifar_resnet20", 16, (2, 1), ("adapted", "layer1_1")),
        # The stem's pooling, and a block whose end adds a projection, which is not differentiated twice.
        ("resnet50", 32, (1, 1), ("penalty", "layer1_0/conv3")),
        ("resnet18_v2", 32, (1,), ("product",)),
    ],
)
def test_gradients_of_gradients_are_those_by_lax(name, size, stages, kinds):
    *networks, variables, x = of(name, size, stage_sizes=stages)

    def found(network):
        program = jax.jit(lambda variables, x: second_orders(network, variables, x, kinds)).lower(variables, x)
        return program.compile(compiler_options=FUSED)(variables, x)

    ours, theirs = map(found, networks)
    for kind in kinds:
        apart = square(jax.tree.map(jnp.subtract, ours[kind], theirs[kind])) / square(theirs[kind])
        assert apart**0.5 < 1e-4, kind


@needs_onednn
def test_without_jit_networks_are_what_they_are():
    network, _, variables, x = of("resnet18", 32, stage_sizes=(1,))

    def both(variables, x):
        loss = lambda params: trained(network, params, variables["batch_stats"], x)  # noqa: E731
        return jax.value_and_grad(loss, has_aux=True)(variables["params"]), network.apply(variables, x)

    expected = jax.jit(both).lower(variables, x).compile(compiler_options=FUSED)(variables, x)
    with jax.disable_jit():
        found = both(variables, x)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_forward_mode_alone_of_training_is_refused():
    network, _, variables, x = of("cifar_resnet20", 16, stage_sizes=(1,))
    loss = lambda x: trained(network, variables["params"], variables["batch_stats"], x)[0]  # noqa: E731
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jit(lambda x: jax.jvp(loss, (x,), (x,))).lower(x)
