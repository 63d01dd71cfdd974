"""A run that goes on: the same data and weights, wherever they lie now, and a length and code that may be others."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.errors import InputError, printable
from input_pipeline.sources import Source
from resnet.train import integrity
from resnet.train.checkpoints import FOLDER
from resnet.train.code_digests import gone_on_with
from resnet.train.configuration import LENGTH, PLACES, differences, flatten, steps_of
from resnet.train.plan import Plan, schedule_settings
from resnet.train.pretrained import Pretrained
from resnet.train.schedules import ENDS, make_schedule
from resnet.train.workdir import CONFIG, PROVENANCE, read_config, write_json


def go_on(config: ConfigDict, workdir: Path, source: Source, plan: Plan) -> list[str]:
    """Write down where the data and weights of a begun run lie now, how long it is and what code goes on with it; lines
    to print of its length and its code.

    A length or code that changes is noted in provenance.json, with the steps that were done by then. Raises InputError,
    before anything is written, for other data or weights than the run began with and for fewer steps than it has done.
    """
    before, now = read_config(workdir), flatten(config)
    provenance = read_provenance(workdir)
    check_same(workdir, provenance, source, plan.pretrained)
    changes = differences(before, now, now.keys() - set(LENGTH))
    done = last_whole_step(workdir / FOLDER)
    noted, lines = provenance, []
    if changes:
        check_done(config, workdir, done, plan)
        earlier = [entry for entry in provenance.get("new_lengths", []) if entry.get("after_step") != done]
        noted = noted | {"new_lengths": [*earlier, {"after_step": done, "changes": changes}]}
        lines = described(config, before, done, plan)
    if done < plan.total_steps:
        noted, told = gone_on_with(noted, done)
        lines += told
    if noted != provenance:
        # Before the configuration: a run whose length is new says since when.
        write_json(workdir / PROVENANCE, noted)
    after = before | {key: now[key] for key in (*LENGTH, *PLACES)}
    if after != before:
        write_json(workdir / CONFIG, after)
    return lines


def last_whole_step(checkpoints: Path) -> int:
    """The step that the run will go on from, as far as names and sizes of files tell; 0 where none is whole."""
    steps = integrity.step_numbers(checkpoints)
    return next((step for step in steps if integrity.fault(checkpoints / str(step), deep=False) is None), 0)


def read_provenance(workdir: Path) -> dict[str, Any]:
    """What provenance.json holds, {} where it is gone or damaged: nothing in a run hangs on it but what it can tell."""
    try:
        return dict(json.loads((workdir / PROVENANCE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def check_same(workdir: Path, provenance: dict[str, Any], source: Source, pretrained: Pretrained | None) -> None:
    """Raise InputError unless data and weights are those of the provenance, as far as it names them."""
    fingerprint = provenance.get("dataset", {}).get("fingerprint", "")
    if fingerprint and not source.is_of(fingerprint):
        raise changed_data(workdir)
    digest = provenance.get("weights", {}).get("sha256")
    if pretrained and digest not in (None, pretrained.digest):
        raise InputError(
            f"{printable(str(workdir))}: config.transfer.weights={printable(pretrained.source)} holds other weights "
            "than this run began with; name the original ones, or give --workdir a new folder"
        )


def changed_data(workdir: Path) -> InputError:
    """The error for data that are not those that a run began with."""
    return InputError(
        f"{printable(str(workdir))}: the data changed since this run began (other files, labels or splits); "
        "restore them or give --workdir a new folder"
    )


def check_done(config: ConfigDict, workdir: Path, done: int, plan: Plan) -> None:
    """Raise InputError where a run has done more steps than it is to have."""
    if done > plan.total_steps:
        key = "steps" if config.run.steps else "epochs"
        raise InputError(
            f"{printable(str(workdir))} has done {done} steps, more than the {plan.total_steps} of "
            f"config.run.{key}={config.run[key]:g}: a run cannot end before the step it has reached"
        )


def described(config: ConfigDict, before: dict[str, Any], done: int, plan: Plan) -> list[str]:
    """What another number of steps means for the learning rate; no line where the number is the same."""
    steps, epochs = (before.get(f"run.{key}", config.run[key]) for key in ("steps", "epochs"))
    was = steps or steps_of(epochs, plan.order.num_examples, plan.batch_size)
    if was == plan.total_steps:
        return []
    line = f"Note      the run's length changes from {was:,} steps to {plan.total_steps:,}"
    if config.optim.schedule not in ENDS or done == 0:
        return [f"{line}, each the same as in a run begun with that length"]
    last = make_schedule(schedule_settings(config), plan.steps_per_epoch, was)(done - 1)
    return [
        f"{line}; finished steps stay as they are: the learning rate of step {done} was {float(last):.3g}, that of "
        f"step {done + 1} is {float(plan.schedule(done)):.3g}. The result differs from that of a run begun with that "
        "length"
    ]
