"""Every variant of every ablation, and every spec that can be drawn, takes a training step (traced, not computed)."""

import functools
import importlib
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings

from input_pipeline.augment import Augmentation
from input_pipeline.contract import CONTRACTS
from resnet.model.errors import SpecError
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from resnet.study.ablation_config import read_study
from resnet.study.ablation_records import part
from resnet.train.configuration import make_spec
from resnet.train.optimizer import make_optimizer
from resnet.train.plan import optimizer_settings
from resnet.train.state import TrainState, create_state
from resnet.train.steps import Recipe, make_train_step, sum_names
from tests.model.test_spec import SPECS
from tests.networks import variable_shapes
from tests.study.test_ablation_config import RECIPES


@pytest.mark.parametrize("spec", [
    ResNetSpec(stage_sizes=(1, 1), width=8, stem="deep", head_hidden=4, order="full_preactivation"),
    ResNetSpec(block="basic", stage_sizes=(1, 1), width=8, head_hidden=4),
])  # fmt: skip
def test_each_layer_is_of_the_part_that_it_stands_in(spec):
    """A diagnosis sums gradients by these parts: the head's hidden layer and last norm are behind the blocks."""
    names = set(variable_shapes(spec)["params"])
    parts = {name: part(name) for name in names}
    assert {name for name in names if parts[name] == "head"} == names & {"fc", "fc_hidden", "bn_last"}
    assert {name for name in names if parts[name] == "stem"} == {name for name in names if re.match("conv|bn1", name)}
    assert {parts[name] for name in names} == {"stem", "layer1_0", "layer2_0", "head"}


def traced_step(spec: ResNetSpec, optimizer: optax.GradientTransformation) -> tuple[TrainState, TrainState]:
    """The abstract state before and after one step on four images."""
    size = spec.total_stride
    batch = {
        "image": jax.ShapeDtypeStruct((4, size, size, 3), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((4,), jnp.float32),
    }
    batch["label"] = jax.ShapeDtypeStruct((4,), jnp.int32)
    recipe = Recipe(0, CONTRACTS["torch"], Augmentation(flip="horizontal"))
    variables = {"batch_stats": {}, **variable_shapes(spec)}
    create = functools.partial(create_state, optimizer=optimizer, ema=False, sum_names=sum_names(spec.num_classes))
    before = jax.eval_shape(create, variables)
    step = make_train_step(ResNet(spec, backend=jax.lax.conv_general_dilated), optimizer, recipe)
    return before, jax.eval_shape(step, before, batch)[0]


def shapes(state: TrainState) -> list[tuple]:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]


@pytest.mark.parametrize("name", RECIPES)
def test_every_variant_takes_a_step(name):
    """At one block a stage and a quarter of the width; with its own optimizer."""
    study = read_study(importlib.import_module(f"configs.ablations.{name}").get_config())
    seen = set()
    for variant in study.variants:
        config = variant.config
        with config.unlocked():
            spec = make_spec(config, 10)
            config.model.stage_sizes, config.model.width = (1,) * len(spec.stage_sizes), spec.width // 4
        spec = make_spec(config, 10)
        if spec in seen:  # depths, all cut to one
            continue
        seen.add(spec)
        before, after = traced_step(spec, make_optimizer(optimizer_settings(config), optax.constant_schedule(0.1)))
        assert shapes(before) == shapes(after)


@settings(max_examples=8, deadline=None)
@given(SPECS)
def test_every_spec_that_is_not_refused_takes_a_step(drawn):
    choices = {key: value for key, value in drawn.items() if key not in ("half", "odd")}
    if choices["block"] == "basic":
        choices |= {"groups": 1, "base_width": 64, "stride_place": "3x3"}
    try:
        spec = ResNetSpec(**choices)
    except SpecError:
        return
    before, after = traced_step(spec, optax.sgd(0.1))
    assert shapes(before) == shapes(after)
