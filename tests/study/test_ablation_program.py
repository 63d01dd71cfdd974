"""All seeds at once are each of them alone; many steps in one dispatch are those steps one by one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.default import get_config
from input_pipeline.resident import Images, cut, make_resident, step_rows
from resnet.study import ablation_program as program
from resnet.study.ablation_diagnostics import make_diagnosis
from resnet.train import plan
from resnet.train.dispatch import next_dispatch
from resnet.train.steps import make_train_step
from tests.compiling import FUSED
from tests.networks import by_name

SEEDS, STEPS, SIDE, ROWS = (3, 4_000_000_000), 3, 8, 4


@pytest.fixture(scope="module", autouse=True)
def fused():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "compiler_options", lambda: FUSED)
        yield


@functools.cache
def shared_data():
    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 256, (10, SIDE, SIDE, 3), np.uint8), rng.integers(0, 3, 10).astype(np.int32))
    return make_resident(("a", "b", "c"), {"train": images, "test": images})


def planned(seed: int = 0, loss: str = "softmax") -> plan.Plan:
    """A plan with everything that draws: flips, crops, dropout, momentum, averages."""
    config = get_config()
    config.data.flip = "alternating"
    config.model.name, config.model.stage_sizes, config.model.width = "cifar_resnet20", (1,), 8
    config.model.dropout = 0.3
    config.data.image_size, config.data.batch_size, config.data.crop, config.data.crop_padding = SIDE, ROWS, "pad", 2
    config.optim.ema = 0.9
    config.optim.loss = loss
    config.run.seed, config.run.steps = seed, STEPS
    return plan.make_plan(config, shared_data().as_source("arrays"))


def rows_of(one: plan.Plan, start: int, count: int, fill: int = 0) -> dict[str, jax.Array]:
    each = [step_rows(dataclasses.replace(one.order, seed=seed), one.train_crop, start, count) for seed in SEEDS]
    stacked = {name: np.stack([rows[name] for rows in each]) for name in ("index", "offset")}
    return {
        name: jnp.asarray(np.pad(value, [(0, 0), (0, fill)] + [(0, 0)] * (value.ndim - 2)))
        for name, value in stacked.items()
    }


@functools.cache
def alone() -> list:
    """The states of ordinary runs after STEPS steps, one a seed: their own step, batches made on the host."""
    train, states = shared_data().splits["train"], []
    first = program.first_states(planned(), SEEDS, SIDE)
    for number, seed in enumerate(SEEDS):
        own = planned(seed)
        step = jax.jit(make_train_step(own.network, own.stages[0].optimizer, own.recipe), compiler_options=FUSED)
        state = jax.tree.map(lambda leaf, number=number: leaf[number], first)
        rows = step_rows(own.order, own.train_crop, 0, STEPS)
        for at in range(STEPS):
            index = rows["index"][at]
            batch = {"image": cut(train.images, index, rows["offset"][at], own.train_crop.padding)}
            batch |= {"label": train.labels[index], "mask": np.ones(ROWS, np.float32), "index": index}
            state, _ = step(state, batch)
        states.append(jax.device_get(state))
    return states


def together(how: str, *, loop: bool):
    """The states of all seeds after STEPS steps of the program: in one dispatch of up to STEPS + 1, or one by one."""
    one, train = planned(), shared_data().splits["train"]
    state, keys = program.first_states(one, SEEDS, SIDE), program.seed_keys(SEEDS)
    images, labels = jnp.asarray(train.images), jnp.asarray(train.labels)
    rows = rows_of(one, 0, STEPS, fill=1) if loop else rows_of(one, 0, 1)
    advance = program.compile_for_all(
        program.make_advance(one, how, loop=loop), how, state, (keys, rows), (images, labels, np.int32(1))
    )
    if loop:
        # Cut differently than the ordinary runs' steps: two and one.
        state, _ = advance(state, (keys, rows), (images, labels, np.int32(2)))
        later = {name: jnp.roll(leaf, -2, axis=1) for name, leaf in rows.items()}
        return jax.device_get(advance(state, (keys, later), (images, labels, np.int32(1)))[0])
    for at in range(STEPS):
        state, _ = advance(state, (keys, rows_of(one, at, 1)), (images, labels, np.int32(1)))
    return jax.device_get(state)


def assert_equal(stacked, states: list, tolerance: float) -> None:
    for number, state in enumerate(states):
        own = jax.tree.map(lambda leaf, number=number: leaf[number], stacked)
        for field in dataclasses.fields(state):
            one, other = (jax.tree.leaves(getattr(tree, field.name)) for tree in (own, state))
            for a, b in zip(one, other, strict=True):
                if tolerance:
                    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=field.name)
                else:
                    np.testing.assert_array_equal(a, b, err_msg=field.name)


@pytest.mark.parametrize(
    ("how", "loop", "tolerance"),
    # Where one convolution does the work of several seeds sums are taken in another order; bit for bit elsewhere.
    [("turns", False, 0.0), ("unrolled", False, 0.0), ("vmap", True, 1e-5)],
)
def test_seeds_at_once_are_each_alone(how, loop, tolerance):
    assert_equal(together(how, loop=loop), alone(), tolerance)


def test_each_seed_begins_as_an_ordinary_run_and_no_two_alike():
    from resnet.model.network import initialise

    one = planned()
    stacked = by_name(program.first_states(one, SEEDS, SIDE).params)
    for number, seed in enumerate(SEEDS):
        own = by_name(initialise(one.network, jax.random.key(seed), SIDE)["params"])
        for name, value in own.items():
            np.testing.assert_array_equal(stacked[name][number], value, err_msg=name)
    assert not np.array_equal(*stacked["conv1/kernel"])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.lists(st.integers(1, 60), min_size=1, max_size=3), st.integers(1, 50))
def test_dispatches_meet_every_mark_and_are_never_too_long(total, marks, longest):
    step, ends = 0, set()
    while step < total:
        dispatch = next_dispatch(step, total, tuple(marks), longest)
        assert dispatch.first == step < dispatch.last <= min(total, step + longest)
        step = dispatch.last
        ends.add(step)
    assert all(at in ends for mark in marks for at in range(mark, total + 1, mark))


def test_sums_over_batches_are_means_over_examples():
    parts = [
        {"count": np.float32([4, 4]), "loss": np.float32([2, 6]), "top1": np.float32([1, 4])},
        {"count": np.float32([2, 2]), "loss": np.float32([1, 3]), "top1": np.float32([2, 0])},
    ]
    means = program.add_up(parts)
    np.testing.assert_allclose(means["top1"], [3 / 6, 4 / 6])
    np.testing.assert_allclose(means["loss"], [3 / 6, 9 / 6])


def test_figures_and_diagnoses_are_of_the_loss_that_is_trained_with():
    """Of logits that are all 0, as of a head of zeros: log 2 for each class by itself, log 3 for one of three."""
    split = shared_data().splits["test"]
    batch = {"image": jnp.asarray(split.images), "label": jnp.asarray(split.labels), "mask": jnp.ones(10)}
    variables = program.first_states(planned(), SEEDS[:1], SIDE).evaluated()
    flat = {**variables["params"], "fc": jax.tree.map(jnp.zeros_like, variables["params"]["fc"])}
    norms = {}
    for loss, expected in (("softmax", np.log(3)), ("sigmoid", np.log(2))):
        one = planned(loss=loss)
        sums = jax.jit(program.make_evaluation(one, "map"))((), {**variables, "params": flat}, batch)
        assert float(sums["loss"][0]) == pytest.approx(10 * expected, rel=1e-5)
        own = jax.tree.map(lambda leaf: leaf[0], {**variables, "params": flat})
        found = jax.jit(make_diagnosis(one))(own, {name: batch[name] for name in ("image", "label")})
        norms[loss] = float(found["gradient_norm"]["head"])
    # By the head's logits the gradients are (1/3 - t) and (1/2 - t) / 3.
    assert norms["sigmoid"] != pytest.approx(norms["softmax"], rel=0.05)
