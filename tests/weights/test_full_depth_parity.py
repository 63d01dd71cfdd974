"""The published depths and widths, random weights and statistics: every block as keras.applications and torch have it.

No files: variables are drawn here, handed over by the table of names, and the other side's arrays are assigned one by
one. The images are small, because what is compared is the whole network and not its speed.
"""

import importlib.util

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from resnet.model.network import ResNet
from resnet.model.variants import variant
from resnet.train.state import Variables
from resnet.weights import keras_writing, mapping, names
from resnet.weights.compare import first_difference, layer_errors
from tests.networks import trained

# As the issue states it: the largest difference over the spread of the values.
TOLERANCE = 1e-4
# Blocks of the largest network that is one program here: a ResNet-50's.
MOST_COMPILED = 16


def draw(name: str, side: int) -> tuple[Variables, np.ndarray, dict[str, np.ndarray]]:
    """(variables, images, our features with the logits) of a named network."""
    spec = variant(name).spec
    generator = np.random.default_rng(0)
    # By the table's own shapes, which are traced anyhow: tracing 50 blocks takes seconds.
    shapes = names.variable_shapes(spec)
    variables = unflatten_dict({path: trained(path[-1], shape, generator) for path, shape in shapes.items()})
    variables = jax.tree.map(lambda array: array.astype(np.float32), variables)
    images = np.random.default_rng(1).normal(size=(2, side, side, 3)).astype(np.float32)

    def apply(weights: Variables, x: np.ndarray) -> tuple[jax.Array, dict[str, jax.Array]]:
        return ResNet(spec).apply(weights, x, train=False, return_features=True)

    # XLA takes 5 to 9 s of a core to compile a hundred blocks into a program that runs once; by themselves their
    # operations are compiled once for each shape, of which the deepest has no more than the shallowest.
    run = apply if sum(spec.stage_sizes) > MOST_COMPILED else jax.jit(apply)
    logits, features = jax.device_get(run(variables, images))
    return variables, images, {**features, "logits": logits}


def assert_every_layer_agrees(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], blocks: int) -> None:
    errors = layer_errors(ours, theirs)
    # The stem, the blocks, the pooling and the logits.
    assert len(errors) == blocks + 3
    assert first_difference(errors, TOLERANCE) is None, errors


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="keras is not installed; it is the peer here")
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet50_keras", 64),
        ("resnet101_keras", 32),
        ("resnet152_keras", 32),
        ("resnet50_v2_keras", 64),
        ("resnet101_v2_keras", 32),
        ("resnet152_v2_keras", 32),
    ],
)
def test_keras_applications_at_full_depth(name: str, side: int) -> None:
    from resnet.weights.compare import keras_network, keras_outputs

    spec = variant(name).spec
    variables, images, ours = draw(name, side)
    network = keras_network(spec, images.shape[1:], has_head=True)
    dialect = names.KERAS_V2 if spec.preactivated else names.KERAS
    tensors = mapping.from_variables(variables, spec, dialect, has_head=True)
    for layer in network.layers:
        if layer.weights:
            layer.set_weights(
                [tensors.pop(f"{layer.name}/{leaf}") for leaf in keras_writing.leaves_of(layer.name, tensors)]
            )
    assert not tensors
    assert_every_layer_agrees(ours, keras_outputs(network, spec, images, has_head=True), sum(spec.stage_sizes))


@pytest.mark.parametrize(
    ("name", "side"), [("resnet18", 64), ("resnet34", 64), ("resnet50", 64), ("resnet101", 32), ("resnet152", 32)]
)
def test_torch_at_full_depth(name: str, side: int) -> None:
    pytest.importorskip("torch", reason="torch is not installed; it is the peer here")
    from resnet.weights.compare import torch_features

    spec = variant(name).spec
    variables, images, ours = draw(name, side)
    tensors = mapping.from_variables(variables, spec, names.TORCH, has_head=True)
    assert_every_layer_agrees(ours, torch_features(tensors, spec.stride_place, images), sum(spec.stage_sizes))
