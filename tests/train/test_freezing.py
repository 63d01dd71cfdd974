"""What rests costs nothing and does not change, by a single bit; what joins later begins as if it were alone."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from input_pipeline.augment import Augmentation
from input_pipeline.contract import CONTRACTS
from input_pipeline.errors import InputError
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from resnet.model.traced_program import operations
from resnet.train import freezing
from resnet.train.freezing import Stage, frozen_parts, grouped, joined_state, make_stages, merge, multipliers, partition
from resnet.train.optimizer import OfAnyShape, OptimizerSettings, make_optimizer
from resnet.train.state import TrainState, create_state
from resnet.train.steps import Recipe, accumulate, make_train_step, sum_names
from resnet.train.transfer import Transfer
from tests.networks import by_name, random_variables

SPEC = ResNetSpec(block="basic", stage_sizes=(1, 1), width=8, stem="cifar", num_classes=4, stochastic_depth=0.3)
NETWORK = ResNet(SPEC, backend=jax.lax.conv_general_dilated)
RECIPE = Recipe(seed=0, contract=CONTRACTS["torch"], augmentation=Augmentation(), ema=0.9)


def transfer(**changes) -> Transfer:
    fields = {"weights": "file", "mode": "finetune", "norms": "train", "unfreeze": (), "multipliers": (), "views": 1}
    return Transfer(**{**fields, **changes})


def stages_of(*unfreeze: tuple[str, float], settings: OptimizerSettings | None = None, **changes) -> tuple[Stage, ...]:
    patterns = tuple((re.compile(pattern), epoch) for pattern, epoch in unfreeze)
    chosen = settings or OptimizerSettings(weight_decay=0.5)
    plan = transfer(unfreeze=patterns, **changes)
    return make_stages(plan, NETWORK, chosen, optax.constant_schedule(0.1), steps_per_epoch=10.0)


def state_of(stage: Stage) -> TrainState:
    variables = jax.tree.map(jnp.asarray, random_variables(SPEC))
    names = sum_names(SPEC.num_classes)
    return create_state(variables, stage.optimizer, ema=True, sum_names=names, learning=stage.learning)


def batch(rows: int = 8) -> dict[str, jax.Array]:
    generator = np.random.default_rng(0)
    return {
        "image": jnp.asarray(generator.integers(0, 256, (rows, 8, 8, 3)), jnp.uint8),
        "label": jnp.arange(rows, dtype=jnp.int32) % 4,
        "mask": jnp.ones(rows, jnp.float32),
    }


def products(stage: Stage) -> tuple[int, int]:
    """(convolutions, multiply-adds) of a step's forward and backward pass, read from the program that jax traces."""
    state = jax.eval_shape(lambda: state_of(stage))
    key = jax.random.key(0)
    trace = lambda s, b: accumulate(stage.network, RECIPE, s, b, key, learning=stage.learning)  # noqa: E731
    found = operations(jax.make_jaxpr(trace)(state, batch()))
    return sum(bool(operation.kernel) for operation in found), sum(operation.multiply_adds for operation in found)


def test_no_gradient_is_computed_for_what_rests():
    forward = jax.make_jaxpr(lambda x: NETWORK.apply(random_variables(SPEC), x))(jnp.zeros((8, 8, 8, 3)))
    forward_products = sum(operation.multiply_adds for operation in operations(forward))
    convolutions = len([operation for operation in operations(forward) if operation.kernel])
    dense = 8 * 16 * 4
    # The head alone: the forward pass and the gradient of its kernel, nothing else.
    head = stages_of(("^fc", 0.0), norms="frozen")[0]
    assert products(head) == (convolutions, forward_products + dense)
    # The last block: each of its convolutions' kernels; of inputs the second's alone, since the block's rests.
    block = [operation for operation in operations(forward) if "layer2_0" in operation.scope]
    last = stages_of(("layer2", 0.0))[0]
    assert products(last)[0] == convolutions + len(block) + 1
    # All of it: every kernel, and every input but the images.
    whole = make_stages(transfer(), NETWORK, OptimizerSettings(), optax.constant_schedule(0.1), 10.0)[0]
    assert whole.learning is None
    assert products(whole)[0] == 3 * convolutions - 1


def split_by_name(before: dict, after: dict) -> tuple[set[str], set[str]]:
    """(names whose arrays changed, names that hold the same bits)."""
    names = {name: np.array_equal(np.asarray(before[name]), np.asarray(after[name])) for name in before}
    return {name for name, same in names.items() if not same}, {name for name, same in names.items() if same}


def test_what_rests_keeps_its_bits_and_has_no_optimizer_state():
    """Under weight decay 0.5 and averaging, both of which would change it."""
    stage = stages_of(("layer2_0/(conv2|bn2)", 0.0), settings=OptimizerSettings(name="adam", weight_decay=0.5))[0]
    state = state_of(stage)
    after, _ = jax.jit(make_train_step(stage.network, stage.optimizer, RECIPE, learning=stage.learning))(state, batch())
    learning = {"layer2_0/conv2/kernel", "layer2_0/bn2/scale", "layer2_0/bn2/bias", "fc/kernel", "fc/bias"}
    assert stage.learning == learning
    assert split_by_name(by_name(state.params), by_name(after.params))[0] == learning
    moved = {"layer2_0/bn2/mean", "layer2_0/bn2/var"}
    assert split_by_name(by_name(state.batch_stats), by_name(after.batch_stats))[0] == moved
    averaged = {f"params/{name}" for name in learning} | {f"batch_stats/{name}" for name in moved}
    assert split_by_name(by_name(state.ema), by_name(after.ema))[0] == averaged
    # Two moments a learning parameter, and two counters.
    learnt = sum(leaf.size for leaf in jax.tree.leaves(partition(state.params, stage.learning)[0]))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) == 2 * learnt + 2


def test_frozen_norms_keep_their_statistics_and_learn_their_scale():
    stage = stages_of(norms="frozen")[0]
    assert stage.learning is None
    state = state_of(stage)
    after, _ = jax.jit(make_train_step(stage.network, stage.optimizer, RECIPE, learning=stage.learning))(state, batch())
    assert not split_by_name(by_name(state.batch_stats), by_name(after.batch_stats))[0]
    assert not split_by_name(by_name(state.params), by_name(after.params))[1]


def test_a_resting_block_drops_nothing_and_normalises_as_in_evaluation():
    """Its output in training is evaluation's; that of the blocks that learn is not."""
    stage = stages_of(("layer2", 0.0))[0]
    assert stage.network.frozen == {"bn1", "layer1_0", "layer1_0/bn1", "layer1_0/bn2"}
    variables, images = random_variables(SPEC), np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype(np.float32)
    options = {"return_features": True, "rngs": {"dropout": jax.random.key(0)}}
    (_, training), _ = stage.network.apply(variables, images, train=True, mutable=["batch_stats"], **options)
    _, evaluation = NETWORK.apply(variables, images, train=False, return_features=True)
    for name in ("stem", "layer1"):
        np.testing.assert_array_equal(training[name], evaluation[name])
    assert np.abs(training["layer2"] - evaluation["layer2"]).max() > 0.01


def test_a_norm_whose_parameters_rest_keeps_its_statistics_in_a_block_that_learns():
    params = ["bn1/scale", "layer1_0/conv1/kernel", "layer1_0/bn1/scale", "fc/kernel"]
    norms = frozenset({"bn1", "layer1_0/bn1"})
    learning = frozenset({"layer1_0/conv1/kernel", "fc/kernel"})
    assert frozen_parts(params, norms, learning, norms_learn=True) == {"bn1", "layer1_0/bn1"}


def test_stages_begin_where_their_epochs_do():
    stages = stages_of(("layer2", 0.25), ("layer1|^bn1", 1.0), ("^conv1", 0.25))
    assert [stage.start for stage in stages] == [0, 3, 10]
    assert stages[0].learning == {"fc/kernel", "fc/bias"}
    assert stages[1].learning - stages[0].learning == {
        name for name in by_name(random_variables(SPEC)["params"]) if name.startswith(("layer2", "conv1"))
    }
    assert stages[2].learning == by_name(random_variables(SPEC)["params"]).keys()
    assert stages[2].network.frozen == frozenset()


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "lamb"])
def test_a_multiplier_is_the_learning_rate_of_its_parameters(name):
    """Bit for bit: a quarter is exact in floating point."""
    settings = OptimizerSettings(name=name, weight_decay=0.1, nesterov=name == "sgd")
    schedule = optax.linear_schedule(0.5, 0.25, 2)
    generator = np.random.default_rng(0)
    draw = lambda: {m: {"kernel": jnp.asarray(generator.normal(size=(3, 2)), jnp.float32)} for m in ("a", "b")}  # noqa: E731
    params, gradients = draw(), [draw() for _ in range(3)]
    results = {}
    for factor in (1.0, 0.25):
        scaled = grouped([frozenset()], settings, schedule, {"b/kernel": 0.25} if factor < 1 else {}, staged=False)
        plain = make_optimizer(settings, lambda count, factor=factor: schedule(count) * factor)
        for kind, optimizer in (("scaled", scaled), ("plain", plain)):
            values, state = params, optimizer.init(params)
            for gradient in gradients:
                updates, state = optimizer.update(gradient, state, values)
                values = optax.apply_updates(values, updates)
            results[kind, factor] = values
    np.testing.assert_array_equal(results["scaled", 0.25]["b"]["kernel"], results["plain", 0.25]["b"]["kernel"])
    np.testing.assert_array_equal(results["scaled", 0.25]["a"]["kernel"], results["plain", 1.0]["a"]["kernel"])
    assert not np.array_equal(results["plain", 0.25]["b"]["kernel"], results["plain", 1.0]["b"]["kernel"])


def test_what_joins_begins_as_if_it_were_alone_and_the_others_go_on():
    """Adam: its first update is the learning rate times the gradient's sign; one count for all says how far it is."""
    groups = [frozenset({"a/kernel"}), frozenset({"b/kernel"})]
    schedule = optax.piecewise_constant_schedule(0.5, {3: 0.5})
    settings = OptimizerSettings(name="adam", weight_decay=0.0, clip_norm=10.0)
    first, second = (grouped(groups[:n], settings, schedule, {}, staged=True) for n in (1, 2))
    a, b = ({name: {"kernel": jnp.asarray([[1.0, -2.0]])}} for name in "ab")
    state = first.init(a)
    for _ in range(3):
        _, state = first.update(a, state, a)
    kept = jax.device_get(state)
    stage = Stage(3, groups[0] | groups[1], NETWORK, second)
    state = joined_state(stage, state, merge(a, b))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state[:1]), kept)
    updates, _ = second.update(merge(a, b), state, merge(a, b))
    np.testing.assert_allclose(updates["b"]["kernel"], [[-0.25, 0.25]], rtol=1e-4)
    np.testing.assert_allclose(updates["a"]["kernel"], [[-0.25, 0.25]], rtol=1e-4)


def test_clipping_is_of_all_groups_together():
    groups = [frozenset({"a/kernel"}), frozenset({"b/kernel"})]
    settings = OptimizerSettings(momentum=0.0, weight_decay=0.0, clip_norm=1.0)
    optimizer = grouped(groups, settings, optax.constant_schedule(1.0), {}, staged=True)
    gradient = {"a": {"kernel": jnp.asarray([[3.0]])}, "b": {"kernel": jnp.asarray([[4.0]])}}
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_allclose([updates["a"]["kernel"][0, 0], updates["b"]["kernel"][0, 0]], [-0.6, -0.8], rtol=1e-6)


def factors(**by_pattern: float) -> tuple[tuple[re.Pattern[str], float], ...]:
    return tuple((re.compile(pattern), factor) for pattern, factor in by_pattern.items())


@pytest.mark.parametrize(
    ("unfreeze", "changes", "words"),
    [
        ((("layer9", 0.0),), {}, "unfreeze: 'layer9' matches no parameter"),
        ((("^fc", 1.9), ("layer2", 1.0)), {}, r"unfreeze: '\^fc@1\.9' adds nothing: .*the head always is.*'\^fc@0'$"),
        ((("fc", 1.0),), {"norms": "frozen"}, "unfreeze: 'fc@1' adds nothing: .*the head always is"),
        (
            (("layer2", 0.5), ("layer2_0", 1.5)),
            {},
            r"unfreeze: 'layer2_0@1\.5' adds nothing: .*because of earlier lines",
        ),
        (
            (("layer2", 0.5), ("fc|layer2", 0.5)),
            {},
            r"unfreeze: 'fc\|layer2@0\.5' adds nothing: .*because of earlier lines",
        ),
        ((), {"multipliers": factors(head=2.0)}, "lr_multipliers: 'head' matches no parameter"),
        ((), {"multipliers": factors(layer=0.1, layer2=10)}, "'layer2=10' has no effect: an earlier pattern"),
        ((), {"multipliers": factors(layer1=0.1, layer2=10, layer=2)}, "'layer=2' has no effect: an earlier pattern"),
        (
            (("layer2", 1.0),),
            {"multipliers": factors(layer1=0.1)},
            r"'layer1=0\.1' has no effect: config\.transfer\.unfreeze=\('layer2@1',\) keeps everything",
        ),
        # Of what it matches, layer2 learns by the first and layer1 rests.
        ((("layer2", 1.0),), {"multipliers": factors(layer2=0.1, layer=10)}, "'layer=10' has no effect: an earlier"),
        (
            (),
            {"mode": "probe", "multipliers": factors(fc=2, layer1=0.1)},
            r"'layer1=0\.1' .*a probe trains only the head",
        ),
        # The backbone rests for good, so its statistics must not move.
        ((("^fc", 0.0),), {}, r"bn='train'.*\('\^fc@0',\) leaves every norm.*frozen or recalibrate"),
    ],
)
def test_what_makes_no_sense_is_refused(unfreeze, changes, words):
    with pytest.raises(InputError, match=words):
        stages_of(*unfreeze, **changes)


def test_the_head_may_be_named_where_it_begins():
    """Alone it keeps the rest frozen; beside others it says what is so."""
    head = {"fc/kernel", "fc/bias"}
    assert [stage.learning for stage in stages_of(("^fc", 0.0), norms="frozen")] == [head]
    assert [stage.start for stage in stages_of(("^fc", 0.0), ("layer2", 1.0))] == [0, 10]


def test_the_first_multiplier_that_matches_counts_and_one_of_1_shields_from_the_next():
    names = ["layer1_0/conv1/kernel", "layer2_0/conv1/kernel", "fc/kernel"]
    plan = transfer(multipliers=factors(layer2=1.0, layer=0.1, fc=3.0))
    assert multipliers(plan, names, frozenset(names)) == {"layer1_0/conv1/kernel": 0.1, "fc/kernel": 3.0}
    # Of layer the first, which rests, and the second, which learns: it acts.
    assert "layer1_0/conv1/kernel" in multipliers(transfer(multipliers=factors(layer=0.1)), names, frozenset(names[1:]))


@pytest.mark.parametrize("known", [False, True])
def test_stages_and_multipliers_do_no_more_with_shapes_than_their_optimizer(known, monkeypatch):
    """What goes by rows and columns is given kernels as they are under them too."""
    inner = optax.centralize()
    inner = OfAnyShape(inner.init, inner.update) if known else inner
    monkeypatch.setattr(freezing, "make_optimizer", lambda settings, schedule: inner)
    stages = stages_of(("layer2", 1.0)) + stages_of(multipliers=factors(layer=0.1))
    assert [isinstance(stage.optimizer, OfAnyShape) for stage in stages] == [known] * 3


def test_a_run_that_freezes_nothing_has_one_stage_and_the_plain_optimizer():
    stage = make_stages(transfer(), NETWORK, OptimizerSettings(), optax.constant_schedule(0.1), 10.0)[0]
    plain = make_optimizer(OptimizerSettings(), optax.constant_schedule(0.1))
    params = random_variables(SPEC)["params"]
    assert jax.tree.structure(stage.optimizer.init(params)) == jax.tree.structure(plain.init(params))
    assert dataclasses.astuple(stage)[:2] == (0, None)
