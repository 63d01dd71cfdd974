"""A handful of the injuries that `./run.sh faults` deals by the dozen, and that the harness sees what it is for."""

import random

import numpy as np
import pytest

from resnet.train.integrity import step_numbers
from tests.faults.harness import Harness, outcome, same
from tests.faults.injuries import Injury, inflict

KINDS = ("kill", "terminate", "interrupt", "interrupt_twice")


@pytest.fixture(scope="module")
def harness(tmp_path_factory) -> Harness:
    return Harness(tmp_path_factory.mktemp("faults"), seed=0, kinds=KINDS)


def test_an_injured_run_ends_as_an_untouched_one(harness):
    """One run, injured before it begins, in mid-save, as a power cut does while it comes back, and as it goes on."""
    workdir = harness.folder / "injured"
    for injury in (
        Injury("start-up", "open", 0, 0.0, "interrupt_twice", ""),
        Injury("save", "seal", 1, 0.0, "kill", ""),
        Injury("resume", "restore", 0, 0.0, "kill", "flip"),
        Injury("evaluation", "val", 2, 0.0, "terminate", ""),
        Injury("final save", "final_save", 0, 0.0, "interrupt", ""),
    ):
        blow = harness.strike(workdir, injury, {})
        assert blow is not None
        assert blow.faults == []
        assert bool(blow.damaged) == (injury.damage == "flip")
    result = harness.start(workdir, {})
    assert result.code == 0, result.err
    assert same(outcome(workdir), harness.expected)
    assert list((workdir / "checkpoints").glob("damaged-*"))


def test_a_clock_that_jumps_by_years_changes_nothing(harness):
    workdir = harness.folder / "jumping"
    result = harness.start(workdir, {}, "tests/faults/jumping_train.py")
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    assert same(outcome(workdir), harness.expected)


def test_the_harness_sees_a_single_bit_and_a_line_too_many(harness):
    expected = harness.expected
    assert same(expected, expected)
    name = next(name for name, array in expected["arrays"].items() if array.dtype == np.float32 and array.size)
    array = expected["arrays"][name].copy()
    array.view(np.uint8).reshape(-1)[0] ^= 1
    assert not same(expected | {"arrays": expected["arrays"] | {name: array}}, expected)
    assert not same(expected | {"lines": [*expected["lines"], {}]}, expected)
    assert not same({}, {})


def test_every_part_of_the_state_is_compared(harness):
    names = " ".join(harness.expected["arrays"])
    for part in ("variables", "newest", "params", "batch_stats", "opt_state", "bad_steps_total", "sums", "step"):
        assert f"'{part}'" in names


@pytest.mark.parametrize("damage", ["cut", "flip", "lose", "empty"])
def test_damage_is_done_to_the_newest_checkpoint_alone(damage, harness):
    root = harness.folder / "untouched" / "checkpoints"
    newest = root / str(step_numbers(root)[0])
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    try:
        assert inflict(damage, root.parent, random.Random(1)).startswith(f"{damage} ")
        changed = {path for path, data in before.items() if not path.exists() or path.read_bytes() != data}
        assert changed
        assert all(newest in path.parents for path in changed)
    finally:
        for path, data in before.items():
            path.write_bytes(data)
