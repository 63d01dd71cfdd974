"""Several steps in a call are those steps one by one: lines, checkpoints, stops, stages and guards, bit for bit.

A CPU takes one step a call; here it is made to loop as an accelerator does. That the bits are those of single steps is
so where XLA compiles a step inside a loop as it does alone: for this network it does, with the emitters of fused loops
that commands have (tests do without, tests/conftest.py).
"""

import json
import re
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from resnet.train import loop, parallel, stepping
from resnet.train.diagnosis import FILE, Diverged
from resnet.train.progress import EpochBar
from tests.commands import run, with_eight_devices
from tests.compiling import FUSED
from tests.train.test_processes import TOLERANCE, process_config, start
from tests.train.test_resume import final_arrays, lines, resumable, stop_after

pytestmark = pytest.mark.usefixtures("bare")


@pytest.fixture(scope="module", autouse=True)
def fused():
    """Steps of this process are compiled with XLA's emitters of fused loops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "compiler_options", lambda: FUSED)
        yield


@pytest.fixture
def looping(monkeypatch) -> list[int]:
    """The number of steps of each call that was heeded."""
    calls: list[int] = []
    note = stepping.Stepping.heed

    def heed(self, pulse, done, step, state):
        calls.append(done.steps)
        note(self, pulse, done, step, state)

    monkeypatch.setattr(stepping.Stepping, "heed", heed)
    return calls


def config_for(data: Path, steps_per_call: int):
    """Averages, accumulation, mixup, dropout; lines each 3 steps, evaluations each 4, of 11 in all."""
    config = resumable(data)
    config.run.steps, config.run.log_every = 11, 3
    config.run.eval_every = config.run.checkpoint_every = 1.0
    config.run.steps_per_call = steps_per_call
    return config


@pytest.fixture(scope="module")
def single(data, tmp_path_factory) -> tuple[list[dict], list[np.ndarray]]:
    workdir = tmp_path_factory.mktemp("single") / "run"
    assert loop.train(config_for(data, 1), workdir) == 0
    return lines(workdir), final_arrays(config_for(data, 1), workdir)


def same(workdir: Path, data: Path, single: tuple[list[dict], list[np.ndarray]]) -> None:
    assert lines(workdir) == single[0]
    for got, expected in zip(final_arrays(config_for(data, 1), workdir), single[1], strict=True):
        np.testing.assert_array_equal(got, expected)


def test_bfloat16_on_a_cpu_does_not_loop(data, tmp_path, looping):
    """As in configs/cifar10_fast.py, which asks for an epoch a call."""
    config = config_for(data, 4)
    config.run.steps, config.run.dtype = 5, "bfloat16"
    assert loop.train(config, tmp_path / "run") == 0
    assert set(looping) == {1}


@pytest.fixture
def told(monkeypatch) -> list[tuple[int, int]]:
    """(step, images) of each time that the progress bar was told of a call."""
    pairs: list[tuple[int, int]] = []
    update = EpochBar.update

    def note(self, step, images, **shown):
        pairs.append((step, images))
        update(self, step, images, **shown)

    monkeypatch.setattr(EpochBar, "update", note)
    return pairs


@pytest.mark.parametrize("steps_per_call", [2, 16])
def test_any_number_of_steps_in_a_call_gives_the_run_of_single_steps(
    steps_per_call, data, single, looping, told, tmp_path
):
    config = config_for(data, steps_per_call)
    assert loop.train(config, tmp_path / "run") == 0
    same(tmp_path / "run", data, single)
    # Seconds a step, and so the time left, are wrong where steps are not counted with their own images and time.
    assert all(images == (step - before) * config.data.batch_size for (before, _), (step, images) in pairwise(told))
    # The calls end at 3, 4, 6, 8, 9 and 11, and after two steps where no more are allowed.
    expected = {2: [2, 1, 1, 2, 2, 1, 2], 16: [3, 1, 2, 2, 1, 2]}[steps_per_call]
    assert looping == expected


@pytest.mark.parametrize("then", [1, 3])
def test_stopped_after_a_call_and_gone_on_with_another_number_is_bit_identical(
    then, data, single, looping, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert loop.train(config_for(data, 4), tmp_path / "run") == 128 + signal.SIGTERM
    assert loop.train(config_for(data, then), tmp_path / "run") == 0
    same(tmp_path / "run", data, single)


def test_a_run_that_diverges_inside_a_call_names_the_same_steps(data, looping, tmp_path):
    told = {}
    for steps_per_call in (1, 8):
        config = config_for(data, steps_per_call)
        config.optim.lr, config.optim.schedule, config.run.max_bad_steps, config.run.steps = 1e30, "constant", 3, 12
        config.run.eval_every = config.run.checkpoint_every = 100.0
        config.run.log_every = 100
        with pytest.raises(Diverged) as raised:
            loop.train(config, tmp_path / str(steps_per_call))
        record = json.loads((tmp_path / str(steps_per_call) / FILE).read_text())
        told[steps_per_call] = (re.match(r"steps \d+ to \d+", str(raised.value))[0], record["examples"])
    assert told[1] == told[8]


# A recipe of a process that loops, and on 8 virtual devices the same run divided.
RECIPE = """
from pathlib import Path

from tests.train.test_steps_per_call import several_config


def get_config():
    return several_config(Path({data!r}), {steps_per_call})
"""


def several_config(data: Path, steps_per_call: int):
    """Its group of ghost batch norm is the whole batch, and so lies on all processes and devices."""
    config = process_config(data)
    config.model.ghost_batch_size, config.data.mixup = config.data.batch_size, 0.4
    config.run.log_every, config.run.steps_per_call = 4, steps_per_call
    config.run.eval_every = config.run.checkpoint_every = 100.0
    return config


def test_two_processes_loop_as_one_steps(data, tmp_path):
    """But for rounding, as two that step do (test_processes): XLA compiles a step inside a loop other than alone."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(data=str(data), steps_per_call=3))
    ends = [process.wait() for process in start(2, recipe, tmp_path / "two")]
    assert [end.code for end in ends] == [0, 0], ends
    config = several_config(data, 1)
    assert loop.train(config, tmp_path / "one") == 0
    for got, expected in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert got["step"] == expected["step"]
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    arrays = [final_arrays(config, tmp_path / name) for name in ("two", "one")]
    for got, expected in zip(*arrays, strict=True):
        np.testing.assert_allclose(got, expected, **TOLERANCE)
    # Of the whole batch, whose first row is mixed with the last, which the second process has.
    assert pictures_of(tmp_path / "two") == pictures_of(tmp_path / "one")


def pictures_of(workdir: Path) -> list[bytes]:
    """The pictures of the first batch in TensorBoard's file."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    pictures = [image.encoded_image_string for image in events.Images("train/inputs")]
    assert len(pictures) == 1
    return pictures


EIGHT = """
import sys
from pathlib import Path
from resnet.train import loop
from tests.bare import leave_out
from tests.train.test_steps_per_call import several_config
leave_out()
config = several_config(Path(sys.argv[1]), 4)
config.run.mesh = "data=2,fsdp=4"
config.model.width = 32
assert loop.train(config, Path(sys.argv[2])) == 0
"""


def test_a_divided_state_stays_divided_in_a_loop(data, tmp_path):
    program = tmp_path / "eight.py"
    program.write_text(EIGHT)
    end = run(program, data, tmp_path / "eight", environment=with_eight_devices())
    assert end.code == 0, end.err
    config = several_config(data, 1)
    config.model.width = 32
    assert loop.train(config, tmp_path / "one") == 0
    for got, expected in zip(lines(tmp_path / "eight"), lines(tmp_path / "one"), strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5)
