"""The same run as 2 and 4 real processes that talk over loopback; what the rest do when one is killed or stops."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.order import Order
from resnet.train import loop
from resnet.train.heartbeat import SILENT_ROUNDS
from resnet.train.predictions import read_predictions
from resnet.train.verdict import LOST_PEER
from tests import commands
from tests.commands import ROOT, Result, Running
from tests.tiny import tiny_config
from tests.train.test_resume import final_arrays, lines, stop_after

# Sums in another order: float32 rounding, which the steps carry on.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
STEPS = 12
# The limit for those who are left to end.
LIMIT = 60.0


@pytest.fixture(scope="module")
def recipe(data, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "recipe.py"
    file.write_text(
        "from pathlib import Path\n\nfrom tests.train.test_processes import process_config\n\n\n"
        f"def get_config():\n    return process_config(Path({str(data)!r}))\n"
    )
    return file


def process_config(data: Path):
    """30 images to train on, 10 to validate, 20 to test: in batches of 8 the last are uneven, and 4 processes have
    batches in which two of them hold padding alone."""
    config = tiny_config(data)
    config.run.steps = STEPS
    config.optim.ema = 0.9
    return config


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def free_job() -> int:
    """The number of a job whose port, 61440 + job modulo 4096 as JAX takes it, is free now."""
    for job in range(os.getpid() % 2000, 4095):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 61440 + job)):
                return job
    raise AssertionError("no port is free")


def by_flags(count: int) -> Iterator[tuple[list[str], dict[str, str]]]:
    """(flags, environment) of each process, where the command line says who is who."""
    port = free_port()
    for number in range(count):
        yield [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={number}"], {}


def by_slurm(count: int) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The same as srun says it to its tasks."""
    job = free_job()
    for number in range(count):
        yield [], slurm(count, number, job)


def slurm(count: int, number: int, job: int, nodes: str = "127.0.0.1") -> dict[str, str]:
    """The variables that srun sets for a task and JAX or we read."""
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_NTASKS": str(count),
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
    }


def by_open_mpi(count: int) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The same as mpirun of Open MPI 4 says it."""
    job = (free_job()) * 4096
    for number in range(count):
        yield [], open_mpi(count, number) | {"OMPI_MCA_orte_hnp_uri": f"{job}.0;tcp://127.0.0.1:34911"}


def open_mpi(count: int, number: int) -> dict[str, str]:
    return {
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_RANK": str(number),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
    }


class Job:
    """A run of several processes, which process 0 may hold at a place (see peer_train.py)."""

    def __init__(self, recipe: Path, workdir: Path, who, *, pause: str = "", **environment: str) -> None:
        self.file = workdir.with_suffix(".paused")
        self.processes: list[Running] = []
        for number, (flags, own) in enumerate(who):
            waits = {"PAUSE_AT": pause, "PAUSE_FILE": str(self.file)} if pause and number == 0 else {}
            arguments = ("tests/train/peer_train.py", f"--config={recipe}", f"--workdir={workdir}", *flags)
            self.processes.append(commands.start(*arguments, environment={**environment, **own, **waits}))
        if pause:
            commands.wait_until(self.reached, f"process 0 to reach {pause}")

    def reached(self) -> bool:
        """Whether process 0 is where it is to wait; AssertionError where one ended before."""
        assert not any(ended(process.pid) for process in self.processes), self.ends()
        return self.file.exists()

    def go_on(self) -> None:
        self.file.unlink()

    def ends(self) -> list[Result]:
        return [process.wait() for process in self.processes]


def start(count: int, recipe: Path, workdir: Path) -> list[Running]:
    """The processes of an undisturbed run."""
    return Job(recipe, workdir, by_flags(count)).processes


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    """The workdir of the same run as one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert loop.train(process_config(data), workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def two(recipe, tmp_path_factory) -> Path:
    """The workdir of an undisturbed run of two processes; FED lies beside it."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "fed").mkdir()
    ends = Job(recipe, folder / "run", by_flags(2), FED=str(folder / "fed")).ends()
    assert [end.code for end in ends] == [0, 0], ends
    # One speaks for all; gloo, which connects them, says so in each.
    assert "test top-1" in ends[0].out
    assert [line for line in ends[1].out.splitlines() if "[Gloo]" not in line] == []
    return folder / "run"


def same_figures(workdir: Path, expected: Path) -> None:
    """Losses to 1e-5, each evaluation's count exactly, the kept predictions row by row."""
    for got, wanted in zip(lines(workdir), lines(expected), strict=True):
        assert got["loss"] == pytest.approx(wanted["loss"], rel=1e-5), got["step"]
        # 'count' of an evaluation: each example once, whoever read it.
        assert got.get("count") == wanted.get("count")
    got, wanted = read_predictions(workdir), read_predictions(expected)
    assert got.ids == wanted.ids
    assert len(set(got.ids)) == 20
    np.testing.assert_allclose(got.probabilities, wanted.probabilities, **TOLERANCE)


def same_arrays(config, workdir: Path, expected: Path, **tolerance: float) -> None:
    """Parameters, statistics, optimizer state, averages and counters of the newest checkpoints; exactly by default."""
    for got, wanted in zip(final_arrays(config, workdir), final_arrays(config, expected), strict=True):
        np.testing.assert_allclose(got, wanted, **({"rtol": 0, "atol": 0} | tolerance))


def test_two_processes_train_as_one_does_and_one_reads_their_checkpoint(two, data, alone):
    same_figures(two, alone)
    same_arrays(process_config(data), two, alone, **TOLERANCE)


def test_two_processes_see_each_example_once_an_epoch_in_the_order_of_one(two):
    shares = [
        [[int(word) for word in line.split()] for line in (two.parent / "fed" / f"{rank}.txt").read_text().splitlines()]
        for rank in range(2)
    ]
    fed = [first + second for first, second in zip(*shares, strict=True)]
    order = Order(30, 8, 0)
    assert fed == [list(order.indices(step)) for step in range(STEPS)]
    stream = [index for step in fed for index in step]
    for epoch in range(3):
        assert sorted(stream[30 * epoch : 30 * (epoch + 1)]) == list(range(30))


def test_one_goes_on_as_four_as_two_as_one(recipe, data, alone, tmp_path, monkeypatch):
    """1 → 4 (under SLURM) → 2 (under Open MPI) → 1, each stopped by a signal to one; the figures stay those of one."""
    workdir, config = tmp_path / "run", process_config(data)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert loop.train(config, workdir) == 128 + signal.SIGTERM
    for who, pause in ((by_slurm(4), "train:4"), (by_open_mpi(2), "train:8")):
        job = Job(recipe, workdir, who, pause=pause)
        job.processes[-1].send(signal.SIGTERM)
        time.sleep(0.2)
        job.go_on()
        ends = job.ends()
        assert {end.code for end in ends} == {128 + signal.SIGTERM}, ends
        assert "Resuming from step" in ends[0].out
    assert loop.train(config, workdir) == 0
    same_figures(workdir, alone)
    same_arrays(config, workdir, alone, **TOLERANCE)


def ended_in_time(job: Job, began: float, lost: int, words: str) -> None:
    """The process that is left ended within the limit, with the right exit code and a line that names who was lost."""
    left = job.processes[1 - lost].wait()
    assert time.monotonic() - began < LIMIT
    assert left.code == LOST_PEER, left
    (line,) = [line for line in left.err.splitlines() if line.startswith("error:")]
    assert re.match(rf"error: process {1 - lost} of 2: .*process {lost}.*{words}.*start all processes again", line), (
        line
    )


def test_whatever_is_lost_the_rest_end_and_the_next_start_is_bit_equal(recipe, data, two, tmp_path):
    """Four accidents in one run: killed in mid-step, either one killed in mid-save, one that hangs."""
    workdir = tmp_path / "run"
    accident = {"SILENT_ROUNDS": "6"}

    # Process 1 is in the next step's all-reduce, for process 0 is held before it.
    job = Job(recipe, workdir, by_flags(2), pause="train:3", **accident)
    job.processes[1].send(signal.SIGKILL)
    began = time.monotonic()
    job.go_on()
    ended_in_time(job, began, 1, "no sign of life")
    assert job.processes[1].wait().code == -signal.SIGKILL

    # The one that writes, and holds the service, with the save all but named.
    job = Job(recipe, workdir, by_flags(2), pause="seal:4", **accident)
    assert list((workdir / "checkpoints").glob("4.orbax-checkpoint-tmp*"))
    job.processes[0].send(signal.SIGKILL)
    ended_in_time(job, time.monotonic(), 0, "is gone")
    assert job.processes[0].wait().code == -signal.SIGKILL
    job.go_on()
    assert not (workdir / "checkpoints" / "4").exists()

    # The one that does not write, in mid-save.
    job = Job(recipe, workdir, by_flags(2), pause="seal:6", **accident)
    job.processes[1].send(signal.SIGKILL)
    job.go_on()
    ended_in_time(job, time.monotonic(), 1, "no sign of life")
    assert job.processes[1].wait().code == -signal.SIGKILL

    hang_under_local_sh(recipe, workdir)

    assert [end.code for end in Job(recipe, workdir, by_flags(2)).ends()] == [0, 0]
    assert lines(workdir) == lines(two)
    same_arrays(process_config(data), workdir, two)


def hang_under_local_sh(recipe: Path, workdir: Path) -> None:
    """launch/local.sh with two fresh processes, one of which is stopped: 75 within the time that is stated, by default
    patience, and nothing is left of the job."""
    file, python = workdir.with_suffix(".paused"), workdir.with_suffix(".python")
    python.write_text(
        f'#!/bin/sh\n[ "$1" != train_main.py ] && exec {sys.executable} "$@"\n'
        f'shift\nexec {sys.executable} -m tests.train.peer_train "$@"\n'
    )
    python.chmod(0o755)
    job = subprocess.Popen(
        ["bash", "launch/local.sh", "2", f"--config={recipe}", f"--workdir={workdir}"],
        cwd=ROOT,
        env=os.environ | {"PYTHON": str(python), "PAUSE_AT": "train:9", "PAUSE_FILE": str(file)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    commands.wait_until(file.exists, "process 0 to reach step 9")
    children = {pid: line for pid in pids() if "--process_id=" in (line := command_line(pid)) and str(workdir) in line}
    (victim,) = [pid for pid, line in children.items() if "--process_id=1" in line]
    os.kill(victim, signal.SIGSTOP)
    began = time.monotonic()
    file.unlink()
    error = job.communicate(timeout=commands.PATIENCE)[1]
    assert job.returncode == LOST_PEER, error
    assert SILENT_ROUNDS - 2 < time.monotonic() - began < LIMIT
    silence = f"error: process 0 of 2: process 1 gave no sign of life for {SILENT_ROUNDS} s"
    assert silence in error
    assert not [pid for pid in children if workdir.name in command_line(pid)]


def pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def ended(pid: int) -> bool:
    """Whether a process is a zombie or gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


WATCHED = """
import time
from resnet.train.peers import Watchdog
with Watchdog(0.4) as dog:
    {before}
    time.sleep({seconds})
print("went on")
"""


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("dog.beat('after step 7')", "nothing was completed for 0.4 s (after step 7;"),
        ("pass", ""),
        ("dog.beat('x'); dog.rest()", ""),
        ("time.sleep(0.1)", "nothing was completed for 2.4 s (at the start;"),
    ],
)
def test_the_watchdog_ends_what_hangs_and_is_patient_with_what_compiles(before, words):
    # One that is to end goes on saying so for a while (GRACE_SECONDS), as process 0 does.
    command = (sys.executable, "-c", WATCHED.format(before=before, seconds=60 if words else 1.5))
    result = commands.run_fresh(*command, environment={"JAX_PLATFORMS": "cpu"})
    assert result.code == (LOST_PEER if words else 0)
    assert words in result.err
