"""A design of one's own, a field or a value that nothing here knows, is computed as it is written: never left out."""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.model import layers, links
from resnet.model.blocks import Block
from resnet.model.convolution import with_kernels_ahead
from resnet.model.counts import count
from resnet.model.errors import SpecError
from resnet.model.folding import fold, folded_norms
from resnet.model.network import ResNet
from resnet.model.proven import FIELDS, VALUES, is_proven
from resnet.model.spec import CHOICES, ResNetSpec
from resnet.study.ablation_alike import network_of
from tests.networks import by_name, random_variables


@dataclasses.dataclass(frozen=True)
class OwnSpec(ResNetSpec):
    """A spec with a field more, as an ablation of one's own adds it."""

    halved: bool = False


SMALL = {"block": "basic", "stage_sizes": (1, 1), "width": 8, "stem": "cifar", "num_classes": 3}
OWN = OwnSpec(**SMALL, halved=True)


def test_what_is_proven_exists_and_all_that_there_is_else_is_not():
    fields = {field.name for field in dataclasses.fields(ResNetSpec)}
    assert set(FIELDS) | set(VALUES) <= fields
    assert not set(FIELDS) & set(VALUES)
    assert all(set(values) <= set(CHOICES[field]) for field, values in VALUES.items())
    assert is_proven(OwnSpec(**SMALL))
    assert not is_proven(OWN)


@pytest.mark.parametrize("field", VALUES)
def test_a_new_value_of_a_known_field_is_not_proven(field, monkeypatch):
    monkeypatch.setitem(CHOICES, field, (*CHOICES[field], "own"))
    assert not is_proven(ResNetSpec(**{"order": "full_preactivation", field: "own"}))


def halve_kernels(monkeypatch) -> None:
    """The field's meaning, put where a newcomer would: into the convolution's call and behind the branch."""
    called, branch = layers.Conv.__call__, Block._branch
    monkeypatch.setattr(layers.Conv, "__call__", lambda self, x: 0.5 * called(self, x))

    def with_gain(self, x, train, **rest):
        y = branch(self, x, train, **rest)
        # What `Block` does behind its branch; where the branch closes the block it would come too late.
        assert not rest
        return y * self.param("gain", nn.initializers.constant(3.0), (), jnp.float32)

    monkeypatch.setattr(Block, "_branch", with_gain)


@pytest.mark.parametrize("train", [False, True])
def test_an_own_design_is_computed_alike_by_all_ways(train, monkeypatch):
    """By lax, by oneDNN where it is, with kernels ahead, folded; its counts are those of its arrays."""
    halve_kernels(monkeypatch)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(lambda k: ResNet(OWN).init(k, jnp.zeros((1, 8, 8, 3))), key)
    assert count(OWN, 8).parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert "layer1_0/gain" in by_name(shapes["params"])
    variables = random_variables(OWN)
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
    ways = [ResNet(OWN, backend=jax.lax.conv_general_dilated), ResNet(OWN), ResNet(OWN, backend=with_kernels_ahead)]
    states = [variables] * 3
    if not train:
        folded, new = fold(ways[1], variables)
        ways, states = [*ways, folded], [*states, new]

    @jax.jit
    def logits(states, images):
        answers = [way.apply(state, images, train=train, mutable=["batch_stats"]) for way, state in zip(ways, states)]  # noqa: B905
        return [answer for answer, _ in answers]

    first, *others = jax.device_get(logits(states, images))
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-4 * first.std())


def test_nothing_of_an_own_design_is_folded_or_done_in_one_call():
    variables = random_variables(OWN)
    assert folded_norms(OwnSpec(**SMALL), variables)
    assert folded_norms(OWN, variables) == {}
    seen = jax.ShapeDtypeStruct((64, 16, 16, 8), jnp.float32)
    layer = layers.convolution(OWN, 8, 3, name="conv1", dtype=jnp.float32, backend=with_kernels_ahead)
    assert links._windows_of_one_call([links.Link(layer, None, nn.relu)], seen, None) == []


def test_a_norm_without_a_layer_is_refused_and_not_left_out():
    spec = types.SimpleNamespace(norm="own")
    with pytest.raises(SpecError, match="has no layer for it"):
        layers.norm(spec, 8, name="bn1", train=True, dtype=jnp.float32)


def test_an_activation_with_parameters_is_counted_with_them(monkeypatch):
    monkeypatch.setitem(layers.ACTIVATIONS, "silu", lambda x: nn.PReLU()(x))
    spec = ResNetSpec(**SMALL)
    slopes = count(dataclasses.replace(spec, activation="silu"), 8).parameters - count(spec, 8).parameters
    # The stem's, and two in each block.
    assert slopes == 1 + 2 * 2


def test_own_designs_are_told_apart_by_their_fields():
    """In one stage of basic blocks options A and B are one network, but who knows what they are with a field more?"""
    one = {**SMALL, "stage_sizes": (2,)}
    assert network_of(OwnSpec(**one, shortcut="A")) == network_of(OwnSpec(**one, shortcut="B"))
    own = [OwnSpec(**one, shortcut=option, halved=True) for option in "AB"]
    assert network_of(own[0]) != network_of(own[1])
