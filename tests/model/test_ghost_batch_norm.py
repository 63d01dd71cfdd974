"""Batch norm over groups of the batch: the formula, torch's batch norm group by group, and where it acts."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.model.errors import SpecError
from resnet.model.layers import norm
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from tests.networks import random_variables, variable_shapes

SPEC = ResNetSpec(block="basic", stage_sizes=(1, 1), width=8, stem="cifar", num_classes=4)
GROUPED = dataclasses.replace(SPEC, ghost_batch_size=2)
MOMENTUM = 0.75


def layer_inputs(rows: int = 6) -> tuple[dict, np.ndarray]:
    generator = np.random.default_rng(0)
    draw = lambda low: generator.uniform(low, low + 1, 3).astype(np.float32)  # noqa: E731
    variables = {
        "params": {"scale": draw(0.5), "bias": draw(-0.5)},
        "batch_stats": {"mean": draw(-1), "var": draw(0.5)},
    }
    # Groups that differ: the whole batch's statistics would be none of theirs.
    offsets = np.repeat(np.arange(rows // 2), 2)[:, None, None, None]
    return variables, (generator.normal(size=(rows, 3, 2, 3)) * (1 + offsets) + offsets).astype(np.float32)


def layer(variables: dict, x: np.ndarray, spec: ResNetSpec, train: bool = True) -> tuple[np.ndarray, dict]:
    """(output, new running statistics) of one norm with these variables."""

    class Alone(nn.Module):
        @nn.compact
        def __call__(self, x):
            return norm(spec, x.shape[-1], name="bn", train=train, dtype=jnp.float32)(x)

    wrapped = {collection: {"bn": values} for collection, values in variables.items()}
    y, new = Alone().apply(wrapped, x, mutable=["batch_stats"])
    return y, new["batch_stats"]["bn"]


def test_each_group_is_normalised_by_itself_and_the_running_statistics_move_by_their_mean():
    variables, x = layer_inputs()
    y, new = layer(variables, x, dataclasses.replace(GROUPED, norm_momentum=MOMENTUM))
    params = variables["params"]
    means, variances = [], []
    for start in range(0, len(x), 2):
        group = x[start : start + 2].astype(np.float64)
        mean, var = group.mean((0, 1, 2)), group.var((0, 1, 2))
        expected = (group - mean) / np.sqrt(var + SPEC.norm_epsilon) * params["scale"] + params["bias"]
        np.testing.assert_allclose(y[start : start + 2], expected, rtol=1e-5, atol=1e-5)
        means.append(mean)
        variances.append(var)
    for name, found in (("mean", means), ("var", variances)):
        expected = MOMENTUM * variables["batch_stats"][name] + (1 - MOMENTUM) * np.mean(found, 0)
        np.testing.assert_allclose(new[name], expected, rtol=1e-5, atol=1e-6)


def test_its_gradients_are_those_of_torch_group_by_group():
    torch = pytest.importorskip("torch", reason="torch is not installed (./run.sh setup bench)")
    variables, x = layer_inputs()
    weights = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)

    def loss(params, x):
        return jnp.sum(layer({**variables, "params": params}, x, GROUPED)[0] * weights)

    gradient, by_input = jax.grad(loss, (0, 1))(variables["params"], jnp.asarray(x))
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in variables["params"].items()}
    images = torch.tensor(x, requires_grad=True)
    for group, own in zip(images.split(2), torch.tensor(weights).split(2), strict=True):
        out = torch.nn.functional.batch_norm(
            group.permute(0, 3, 1, 2),
            None,
            None,
            tensors["scale"],
            tensors["bias"],
            training=True,
            eps=SPEC.norm_epsilon,
        )
        (out.permute(0, 2, 3, 1) * own).sum().backward()
    np.testing.assert_allclose(by_input, images.grad, rtol=1e-4, atol=1e-5)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(gradient[name], tensor.grad, rtol=1e-4, atol=1e-5)


def test_one_group_is_the_whole_batch_and_evaluation_knows_no_groups():
    variables, x = layer_inputs()
    for spec, train in ((dataclasses.replace(SPEC, ghost_batch_size=len(x)), True), (GROUPED, False)):
        (got, new), (expected, old) = layer(variables, x, spec, train), layer(variables, x, SPEC, train)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        for name in ("mean", "var"):
            np.testing.assert_allclose(new[name], old[name], rtol=1e-5, atol=1e-6)


def test_a_group_sees_nothing_of_the_others():
    """Other images in the second group leave every activation of the first as it is, bit for bit."""
    network = ResNet(GROUPED, backend=jax.lax.conv_general_dilated)
    variables = random_variables(SPEC)
    run = jax.jit(lambda x: network.apply(variables, x, train=True, mutable=["batch_stats"])[0])
    generator = np.random.default_rng(2)
    images = generator.normal(size=(4, 8, 8, 3)).astype(np.float32)
    others = images.copy()
    others[2:] = generator.normal(3.0, 2.0, size=(2, 8, 8, 3))
    first, second = run(images), run(others)
    np.testing.assert_array_equal(first[:2], second[:2])
    assert np.abs(first[2:] - second[2:]).max() > 0.01


def test_it_has_the_variables_of_the_plain_network():
    assert variable_shapes(GROUPED) == variable_shapes(SPEC)
    network = ResNet(GROUPED, backend=jax.lax.conv_general_dilated)
    images = jnp.zeros((2, 8, 8, 3))
    own = jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=True, mutable=["params", "batch_stats"]))
    assert own == variable_shapes(SPEC)


def test_groups_that_do_not_divide_the_batch_are_refused():
    variables, x = layer_inputs()
    with pytest.raises(SpecError, match="ghost_batch_size=4 does not divide a batch of 6 images"):
        layer(variables, x, dataclasses.replace(SPEC, ghost_batch_size=4))
