"""The learning rate as a function of the step: linear warm-up, then constant, steps, half a cosine or a polynomial."""

import math
from dataclasses import dataclass
from itertools import pairwise

import optax

from input_pipeline.errors import InputError

SCHEDULES = ("constant", "step", "cosine", "polynomial")
# Those in which each rate depends on where the run ends.
ENDS = ("cosine", "polynomial")


@dataclass(frozen=True)
class ScheduleSettings:
    """The part of `config.optim` that decides the learning rate. Times are epochs of the run (floats), rates absolute.

    schedule: one of SCHEDULES.
    lr: the highest learning rate, reached at the end of the warm-up; >= 0.
    warmup_epochs: length of the linear warm-up; >= 0, shorter than the run.
    step_epochs: for 'step', when the rate is multiplied by `step_factor`; strictly increasing, after the warm-up, and
        counted from the start of the run (warm-up included). Epochs beyond the end of the run are never reached
        (`never_drops`: none is).
    step_factor: for 'step'; 0 < step_factor <= 1.
    power: for 'polynomial', the exponent; > 0 (1 is linear).
    final_lr: for 'cosine' and 'polynomial', the absolute rate at `total_steps`; 0 <= final_lr <= lr.
    """

    schedule: str = "cosine"
    lr: float = 0.1
    warmup_epochs: float = 0.0
    step_epochs: tuple[float, ...] = ()
    step_factor: float = 0.1
    power: float = 1.0
    final_lr: float = 0.0


def make_schedule(settings: ScheduleSettings, steps_per_epoch: float, total_steps: int) -> optax.Schedule:
    """The learning rate of step 0, 1, ..., total_steps - 1, as a jittable function of the (integer) step.

    With w = round(warmup_epochs * steps_per_epoch) warm-up steps, step k < w has lr * (k + 1) / w: the first step
    already learns, and step w - 1 has the full rate (Goyal et al. 2017, section 2.2, warm up linearly, from a small
    rate). The schedule proper spans the remaining R = total_steps - w steps; with t = (k - w) / R:

        constant    lr
        step        lr * step_factor^(number of step_epochs reached), a drop acting on the first step that begins at or
                    after its epoch (He et al. 2015, section 4.2)
        cosine      final_lr + (lr - final_lr) * (1 + cos(pi t)) / 2 (Loshchilov and Hutter 2017, without restarts)
        polynomial  final_lr + (lr - final_lr) * (1 - t)^power

    `steps_per_epoch` may be fractional (the stream of examples crosses epoch boundaries within a batch). `final_lr` is
    the value at t = 1, one step after the last. Raises InputError naming the key of `config` at fault.
    """
    _check(settings, steps_per_epoch, total_steps)
    warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
    if warmup_steps >= total_steps:
        raise _fault(
            "warmup_epochs",
            settings.warmup_epochs,
            f"that is {warmup_steps} steps of a run of {total_steps}; it must be shorter than the run",
        )
    main = _after_warmup(settings, steps_per_epoch, warmup_steps, total_steps)
    if warmup_steps == 0:
        return main
    warmup = optax.schedules.linear_schedule(
        init_value=settings.lr / warmup_steps, end_value=settings.lr, transition_steps=warmup_steps - 1
    )
    return optax.schedules.join_schedules([warmup, main], [warmup_steps])


def _after_warmup(
    settings: ScheduleSettings, steps_per_epoch: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    """The schedule proper, as a function of the steps since the warm-up."""
    lr, final_lr, remaining = settings.lr, settings.final_lr, total_steps - warmup_steps
    if settings.schedule == "constant":
        return optax.schedules.constant_schedule(lr)
    if settings.schedule == "cosine":
        return optax.schedules.cosine_decay_schedule(lr, decay_steps=remaining, alpha=final_lr / lr if lr else 0.0)
    if settings.schedule == "polynomial":
        return optax.schedules.polynomial_schedule(lr, final_lr, power=settings.power, transition_steps=remaining)
    if settings.schedule != "step":
        raise _fault("schedule", settings.schedule, "_after_warmup of resnet/train/schedules.py has no line for it")
    scales: dict[int, float] = {}
    # Two drops may fall on one step: both count.
    for boundary in (step - warmup_steps for step in _drops(settings, steps_per_epoch)):
        scales[boundary] = scales.get(boundary, 1.0) * settings.step_factor
    return optax.schedules.piecewise_constant_schedule(lr, scales)


def _drops(settings: ScheduleSettings, steps_per_epoch: float) -> list[int]:
    """The first step behind each of `step_epochs`."""
    # The allowance keeps 0.1 * 30 = 3.0000000000000004 at step 3.
    return [math.ceil(epoch * steps_per_epoch - 1e-6) for epoch in settings.step_epochs]


def never_drops(settings: ScheduleSettings, steps_per_epoch: float, total_steps: int) -> bool:
    """Whether a 'step' schedule reaches none of its epochs before the run ends: its rate is constant."""
    return settings.schedule == "step" and all(step >= total_steps for step in _drops(settings, steps_per_epoch))


def _check(settings: ScheduleSettings, steps_per_epoch: float, total_steps: int) -> None:
    """Raise InputError for the first value that makes no schedule."""
    if settings.schedule not in SCHEDULES:
        raise _fault("schedule", settings.schedule, f"known are {', '.join(SCHEDULES)}")
    for key in ("lr", "warmup_epochs", "final_lr"):
        value = getattr(settings, key)
        if not (math.isfinite(value) and value >= 0):
            raise _fault(key, value, "it must be finite and not negative")
    if not 0 < settings.step_factor <= 1:
        raise _fault("step_factor", settings.step_factor, "it must be above 0 and at most 1")
    if not (math.isfinite(settings.power) and settings.power > 0):
        raise _fault("power", settings.power, "it must be finite and above 0")
    if not (math.isfinite(steps_per_epoch) and steps_per_epoch > 0):
        raise InputError(f"config.data.batch_size gives {steps_per_epoch} steps per epoch: there must be more than 0")
    if total_steps < 1:
        raise InputError(f"config.run.epochs (or config.run.steps) gives {total_steps} steps: a run has at least 1")
    if settings.schedule in ENDS and settings.final_lr > settings.lr:
        raise _fault("final_lr", settings.final_lr, f"it must not be above config.optim.lr = {settings.lr}")
    if settings.schedule == "step":
        _check_step_epochs(settings)


def _check_step_epochs(settings: ScheduleSettings) -> None:
    epochs = settings.step_epochs
    if not all(math.isfinite(epoch) and epoch > 0 for epoch in epochs):
        raise _fault("step_epochs", epochs, "each must be finite and above 0")
    if not all(earlier < later for earlier, later in pairwise(epochs)):
        raise _fault("step_epochs", epochs, "they must be strictly increasing")
    if epochs and epochs[0] < settings.warmup_epochs:
        raise _fault("step_epochs", epochs, f"the first lies within the warm-up of {settings.warmup_epochs} epochs")


def _fault(key: str, value: object, rule: str) -> InputError:
    return InputError(f"config.optim.{key} is {value!r}: {rule}")
