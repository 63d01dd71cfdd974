"""The same run on 8 virtual devices, and as 2 and 4 real processes that talk over loopback and lose each other."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from resnet.train import hosts, loop
from tests import commands
from tests.commands import ROOT
from tests.tiny import tiny_config, tiny_data
from tests.train.test_resume import final_arrays, lines
from tests.train.virtual_devices import config_for

# Sums in another order: float32 rounding, which 20 steps carry on.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def eight(data, tmp_path_factory) -> tuple[Path, dict]:
    """(folder with a run per mesh, what their compiled steps send) of 8 virtual devices."""
    folder = tmp_path_factory.mktemp("eight")
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.virtual_devices", str(data), str(folder)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def one(data, tmp_path_factory) -> tuple[list[dict], list[np.ndarray]]:
    """(lines, arrays) of the same run on one device."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    config = config_for(data, "data=-1")
    assert loop.train(config, workdir) == 0
    return lines(workdir), final_arrays(config, workdir)


@pytest.mark.parametrize("mesh", ["data", "fsdp"])
def test_any_mesh_trains_as_one_device_does(mesh, data, eight, one):
    folder, _ = eight
    for got, expected in zip(lines(folder / mesh), one[0], strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5), got["step"]
    # The checkpoint of 8 devices, divided or not, is read on one.
    arrays = final_arrays(config_for(data, "data=-1"), folder / mesh)
    for got, expected in zip(arrays, one[1], strict=True):
        np.testing.assert_allclose(got, expected, **TOLERANCE)


def test_data_parallel_steps_send_gradients_and_statistics_and_no_activations(eight):
    found = eight[1]["data"]
    assert found["divided"] == 0
    assert set(found["counts"]) == {"all-reduce"}
    # XLA joins what is ready together: never more than one message per leaf of gradients and per layer's statistics.
    assert 1 <= found["counts"]["all-reduce"] <= 40


def test_fsdp_divides_the_state_and_gathers_parameters_only(eight):
    found = eight[1]["fsdp"]
    assert found["divided"] > 0
    assert found["counts"]["all-gather"] > 0
    # The largest leaf of the tiny network is a 3×3 kernel of 64×64; a layer's activations are 16·16·16·32 numbers.
    assert found["largest_gather"] <= 9 * 64 * 64


def start(count: int, recipe: Path, workdir: Path, *flags: str) -> list[commands.Running]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        commands.start(
            "train_main.py",
            f"--config={recipe}",
            f"--workdir={workdir}",
            f"--coordinator=127.0.0.1:{port}",
            f"--num_processes={count}",
            f"--process_id={number}",
            *flags,
            environment={"JAX_PLATFORMS": "cpu"},
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def recipe(data, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "recipe.py"
    file.write_text(
        "from pathlib import Path\n\nfrom tests.train.test_processes import process_config\n\n\n"
        f"def get_config():\n    return process_config(Path({str(data)!r}))\n"
    )
    return file


def process_config(data: Path):
    config = tiny_config(data)
    config.run.steps = 8
    config.optim.ema = 0.9
    return config


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    config = process_config(data)
    assert loop.train(config, workdir) == 0
    return lines(workdir), final_arrays(config, workdir)


@pytest.fixture(scope="module")
def two(recipe, data, tmp_path_factory) -> Path:
    """The workdir of an undisturbed run of two processes."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    ends = [process.wait() for process in start(2, recipe, workdir)]
    assert [end.code for end in ends] == [0, 0], ends
    # One speaks for all; gloo, which connects them, says so in each.
    assert "test top-1" in ends[0].out
    assert [line for line in ends[1].out.splitlines() if "[Gloo]" not in line] == []
    return workdir


def test_two_processes_train_as_one_does_and_one_reads_their_checkpoint(two, data, alone):
    for got, expected in zip(lines(two), alone[0], strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5), got["step"]
        # 'count' of an evaluation: each example once, whoever read it.
        assert got.get("count") == expected.get("count")
    for got, expected in zip(final_arrays(process_config(data), two), alone[1], strict=True):
        np.testing.assert_allclose(got, expected, **TOLERANCE)


def test_four_processes_stopped_by_one_signal_go_on_as_two(recipe, data, alone, tmp_path):
    workdir = tmp_path / "run"
    processes = start(4, recipe, workdir, "--config.run.steps=8")
    commands.wait_until(lambda: steps_logged(workdir) >= 2, "step 2")
    processes[2].send(signal.SIGTERM)
    ends = [process.wait() for process in processes]
    assert {end.code for end in ends} <= {143, 0}, ends
    assert [process.wait().code for process in start(2, recipe, workdir)] == [0, 0]
    for got, expected in zip(final_arrays(process_config(data), workdir), alone[1], strict=True):
        np.testing.assert_allclose(got, expected, **TOLERANCE)


def test_a_killed_process_takes_the_job_down_and_the_next_start_is_bit_equal(recipe, data, two, tmp_path):
    workdir = tmp_path / "run"
    processes = start(2, recipe, workdir)
    commands.wait_until(lambda: steps_logged(workdir) >= 3, "step 3")
    processes[1].send(signal.SIGKILL)
    began = time.monotonic()
    assert processes[1].wait().code == -signal.SIGKILL
    survivor = processes[0].wait()
    assert time.monotonic() - began < 60
    assert survivor.code not in (0, 2), survivor
    assert [process.wait().code for process in start(2, recipe, workdir)] == [0, 0]
    assert lines(workdir) == lines(two)
    config = process_config(data)
    for got, expected in zip(final_arrays(config, workdir), final_arrays(config, two), strict=True):
        np.testing.assert_array_equal(got, expected)


def steps_logged(workdir: Path) -> int:
    file = workdir / "metrics.jsonl"
    return file.read_text().count('"train"') if file.exists() else 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--num_processes=2",), "go together"),
        (("--coordinator=here", "--num_processes=2", "--process_id=0"), "must be HOST:PORT"),
        (("--coordinator=h:1", "--num_processes=2", "--process_id=2"), "must be below --num_processes=2"),
    ],
)
def test_flags_that_do_not_fit_are_told_in_one_line(flags, words, recipe, tmp_path):
    result = commands.run("train_main.py", f"--config={recipe}", f"--workdir={tmp_path / 'run'}", *flags)
    assert result.code == 2
    assert words in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, ""),  # A shell inside an allocation is no task.
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, "SLURM"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, "Kubernetes"),
    ],
)
def test_launchers_are_recognised_by_their_variables(environment, name):
    assert hosts.launcher(environment) == name


WATCHED = """
import time
from resnet.train.hosts import Watchdog
with Watchdog(0.4) as dog:
    {before}
    time.sleep(3)
print("went on")
"""


@pytest.mark.parametrize(("before", "code"), [("dog.beat('after step 7')", hosts.LOST_PEER), ("pass", 0)])
def test_the_watchdog_ends_what_hangs_and_lets_what_compiles(before, code):
    command = (sys.executable, "-c", WATCHED.format(before=before))
    result = commands.run_fresh(*command, environment={"JAX_PLATFORMS": "cpu"})
    assert result.code == code
    assert ("after step 7" in result.err) == (code != 0)
