"""The learning rate at every step, and one-line refusals of settings that make no schedule."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.errors import InputError
from resnet.train.schedules import ENDS, SCHEDULES, ScheduleSettings, make_schedule, never_drops
from resnet.train.unread_keys import READ_ONLY_IF


def rates(config: ScheduleSettings, steps_per_epoch: float, total_steps: int) -> np.ndarray:
    schedule = make_schedule(config, steps_per_epoch, total_steps)
    values = np.asarray([float(schedule(step)) for step in range(total_steps)])
    jitted = jax.jit(jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32)))(jnp.arange(total_steps))
    np.testing.assert_allclose(values, jitted, rtol=1e-5, atol=1e-7)
    return values


def test_warmup_learns_from_the_first_step_and_ends_at_the_full_rate() -> None:
    values = rates(ScheduleSettings("constant", lr=0.8, warmup_epochs=2), steps_per_epoch=2.0, total_steps=7)
    np.testing.assert_allclose(values, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8], rtol=1e-6)


def test_steps_fall_at_the_first_step_at_or_after_their_epoch() -> None:
    # 2.5 steps an epoch: epoch 1 begins within step 2, so step 3 is the first whole step of it; epoch 2 begins at 5.
    config = ScheduleSettings("step", lr=1.0, step_epochs=(1, 2), step_factor=0.1)
    values = rates(config, steps_per_epoch=2.5, total_steps=8)
    np.testing.assert_allclose(values, [1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01], rtol=1e-6)


@given(
    epochs=st.lists(st.floats(0.1, 9.0), max_size=3, unique=True).map(sorted).map(tuple),
    steps_per_epoch=st.floats(0.3, 9.0),
    total_steps=st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_a_rate_that_never_drops_is_told_as_such(epochs, steps_per_epoch, total_steps) -> None:
    config = ScheduleSettings("step", lr=1.0, step_epochs=epochs, step_factor=0.1)
    schedule = make_schedule(config, steps_per_epoch, total_steps)
    assert never_drops(config, steps_per_epoch, total_steps) == (float(schedule(total_steps - 1)) == 1.0)
    assert not never_drops(dataclasses.replace(config, schedule="cosine"), steps_per_epoch, total_steps)


def test_steps_count_from_the_start_of_the_run_with_warmup() -> None:
    config = ScheduleSettings("step", lr=1.0, warmup_epochs=1, step_epochs=(2.0, 30.0), step_factor=0.5)
    np.testing.assert_allclose(rates(config, 2.0, 6), [0.5, 1, 1, 1, 0.5, 0.5], rtol=1e-6)


def test_two_drops_on_one_step_both_count() -> None:
    config = ScheduleSettings("step", lr=1.0, step_epochs=(1.1, 1.2), step_factor=0.1)
    np.testing.assert_allclose(rates(config, 2.0, 4), [1, 1, 1, 0.01], rtol=1e-6)


def test_paper_recipe() -> None:
    """He et al. 2015, section 4.2: 0.1, divided by 10 at 32k and 48k iterations of batch 128."""
    steps_per_epoch = 50_000 / 128
    config = ScheduleSettings("step", lr=0.1, step_epochs=(32_000 / steps_per_epoch, 48_000 / steps_per_epoch))
    schedule = make_schedule(config, steps_per_epoch, 64_000)
    found = [float(schedule(step)) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    np.testing.assert_allclose(found, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-5)


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_polynomial_formula(power: float) -> None:
    config = ScheduleSettings("polynomial", lr=0.4, warmup_epochs=0.5, power=power, final_lr=0.1)
    t = np.arange(15) / 15
    expected = 0.1 + 0.3 * (1 - t) ** power
    np.testing.assert_allclose(rates(config, 10.0, 20)[5:], expected, rtol=1e-5)


@given(
    lr=st.floats(1e-4, 10),
    final=st.floats(0, 1),
    warmup=st.floats(0, 2),
    steps_per_epoch=st.floats(3, 20),
    epochs=st.integers(3, 8),
)
@settings(max_examples=20, deadline=None)
def test_cosine_matches_its_formula(
    lr: float, final: float, warmup: float, steps_per_epoch: float, epochs: int
) -> None:
    total = math.ceil(steps_per_epoch * epochs)
    config = ScheduleSettings("cosine", lr=lr, warmup_epochs=warmup, final_lr=final * lr)
    first = round(warmup * steps_per_epoch)
    schedule = make_schedule(config, steps_per_epoch, total)
    steps = jnp.arange(170)  # beyond the end of any of these runs, and one shape for all
    values = np.asarray(jnp.broadcast_to(schedule(steps), steps.shape))
    t = np.minimum((np.arange(first, 170) - first) / (total - first), 1.0)
    expected = final * lr + (1 - final) * lr * (1 + np.cos(np.pi * t)) / 2
    np.testing.assert_allclose(values[first:], expected, rtol=1e-4, atol=1e-6 * lr)
    np.testing.assert_allclose(values[:first], lr * (np.arange(first) + 1) / max(first, 1), rtol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_hangs_on_the_end_of_the_run_is_said_to(name: str) -> None:
    """By ENDS a longer run is told of its jump, and by READ_ONLY_IF a final rate that nothing reads is refused."""
    settings = ScheduleSettings(name, lr=1.0, step_epochs=(2.0,), final_lr=0.0)
    short, longer = rates(settings, 2.0, 10), rates(settings, 2.0, 20)[:10]
    assert (not np.array_equal(short, longer)) == (name in ENDS)
    ends_elsewhere = not np.array_equal(short, rates(dataclasses.replace(settings, final_lr=0.5), 2.0, 10))
    assert ends_elsewhere == READ_ONLY_IF["optim.final_lr"][0]({"optim.schedule": name})


@pytest.mark.parametrize("name", SCHEDULES)
def test_zero_rate_stays_zero(name: str) -> None:
    assert not rates(ScheduleSettings(name, lr=0.0, warmup_epochs=1, step_epochs=(2.0,)), 2.0, 6).any()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schedule", "cosin"),
        ("lr", -0.1),
        ("lr", math.nan),
        ("lr", math.inf),
        ("warmup_epochs", -1.0),
        ("warmup_epochs", 10.0),
        ("final_lr", -1e-6),
        ("final_lr", 1.0),
        ("power", 0.0),
        ("step_factor", 0.0),
        ("step_factor", 10.0),
        ("step_epochs", (3.0, 2.0)),
        ("step_epochs", (2.0, 2.0)),
        ("step_epochs", (0.0,)),
        ("step_epochs", (math.nan,)),
        ("step_epochs", (0.5,)),
    ],
)
def test_bad_values_are_named(key: str, value: object) -> None:
    base = ScheduleSettings("step" if key == "step_epochs" else "cosine", lr=0.1, warmup_epochs=1.0)
    with pytest.raises(InputError, match=rf"config\.optim\.{key} ") as caught:
        make_schedule(dataclasses.replace(base, **{key: value}), 10.0, 100)
    assert "\n" not in str(caught.value)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(InputError, match="constant, step, cosine, polynomial"):
        make_schedule(ScheduleSettings("linear"), 10.0, 100)


@pytest.mark.parametrize(("steps_per_epoch", "total_steps"), [(0.0, 10), (math.nan, 10), (5.0, 0)])
def test_a_run_without_steps_is_refused(steps_per_epoch: float, total_steps: int) -> None:
    with pytest.raises(InputError, match=r"config\.(data|run)\."):
        make_schedule(ScheduleSettings(), steps_per_epoch, total_steps)
