"""Whatever spec is drawn: its counts are those of its arrays, its train step traces, and a sample really steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import HealthCheck, given, settings

from input_pipeline.augment import Augmentation
from input_pipeline.contract import CONTRACTS
from resnet.model.counts import count
from resnet.model.errors import SpecError
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from resnet.train.optimizer import OptimizerSettings, make_optimizer
from resnet.train.state import create_state
from resnet.train.steps import Recipe, make_train_step, sum_names
from tests.model.test_spec import SPECS
from tests.networks import by_name, fresh_variables, parameter_count

ROWS = 4


def drawn(choices: dict[str, object]) -> tuple[ResNetSpec, int, jnp.dtype] | None:
    """(spec, side of its images, dtype) of a draw of SPECS; None where the spec is refused."""
    choices = dict(choices)
    dtype = jnp.dtype(jnp.bfloat16 if choices.pop("half") else jnp.float32)
    odd = choices.pop("odd")
    try:
        spec = ResNetSpec(**choices)
    except SpecError:
        return None
    return spec, spec.total_stride + odd, dtype


def step_and_arguments(spec: ResNetSpec, size: int, dtype: jnp.dtype):
    """The train step of a spec under SGD, a fresh state for it and a batch of noise."""
    optimizer = make_optimizer(OptimizerSettings(name="sgd"), optax.constant_schedule(0.1))
    recipe = Recipe(seed=0, contract=CONTRACTS["torch"], augmentation=Augmentation())
    network = ResNet(spec, dtype=dtype, backend=jax.lax.conv_general_dilated)
    variables = fresh_variables(spec)
    variables.setdefault("batch_stats", {})
    state = create_state(variables, optimizer, ema=False, sum_names=sum_names(spec.num_classes))
    generator = np.random.default_rng(0)
    batch = {
        "image": generator.integers(0, 256, (ROWS, size, size, 3)).astype(np.uint8),
        "label": (np.arange(ROWS) % spec.num_classes).astype(np.int32),
        "mask": np.ones(ROWS, np.float32),
    }
    return make_train_step(network, optimizer, recipe), state, batch


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(SPECS)
def test_counts_are_those_of_the_arrays_and_the_step_traces(choices):
    if (spec_size_dtype := drawn(choices)) is None:
        return
    spec, size, _ = spec_size_dtype
    step, state, batch = step_and_arguments(*spec_size_dtype)
    assert count(spec, size).parameters == parameter_count(spec) == sum(a.size for a in jax.tree.leaves(state.params))
    new, _ = jax.eval_shape(step, state, batch)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (new, state)]
    assert shapes[0] == shapes[1]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(SPECS.filter(lambda choices: drawn(choices) is not None))
def test_a_sample_of_specs_takes_a_step(choices):
    """Compiled and run: the step is finite, and the head, which every gradient passes, has moved."""
    spec_size_dtype = drawn(choices)
    step, state, batch = step_and_arguments(*spec_size_dtype)
    new, pulse = jax.jit(step)(state, batch)
    assert np.isfinite(pulse["loss"])
    assert (int(new.step), int(new.bad_steps_total)) == (1, 0)
    if spec_size_dtype[0].num_classes > 1:
        before, after = by_name(state.params), by_name(new.params)
        assert any((before[name] != after[name]).any() for name in before if name.startswith("fc/"))
