"""The files in launch/, held against their systems' rules without those systems.

local.sh starts stand-ins here and a real run in tests/train/test_processes.py.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from resnet.train import hosts
from tests.commands import ROOT

LAUNCH = ROOT / "launch"


def executable(file: Path, text: str) -> Path:
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch"])
def test_bash_reads_the_script(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


def run_sbatch(folder: Path, code: int, restarts: int = 0, **variables: str) -> tuple[int, str, list[str]]:
    """(exit code, what srun was given, jobs queued again) of the batch script, where srun ends with `code`."""
    executable(folder / "srun", f'echo "$@" > {folder}/given; echo $SRUN_CPUS_PER_TASK > {folder}/cores; exit {code}')
    executable(folder / "scontrol", f'echo "$@" >> {folder}/queued')
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(restarts)}
    command = ["bash", LAUNCH / "slurm.sbatch", "--config=a b.py", "--workdir=w"]
    done = subprocess.run(command, env=environment | variables)
    queued = (folder / "queued").read_text().splitlines() if (folder / "queued").exists() else []
    return done.returncode, (folder / "given").read_text(), queued


@pytest.mark.parametrize(
    ("code", "again"),
    [(0, False), (1, False), (2, False), (75, True), (130, False), (134, True), (137, True), (143, True)],
)
def test_slurm_queues_again_what_goes_on_by_itself(code, again, tmp_path):
    ended, given, queued = run_sbatch(tmp_path, code)
    assert ended == code
    assert given == "--kill-on-bad-exit=1 .venv/bin/python train_main.py --config=a b.py --workdir=w\n"
    assert queued == (["requeue 17"] if again else [])


def test_slurm_does_not_queue_again_for_ever(tmp_path):
    assert run_sbatch(tmp_path, 137, restarts=20)[2] == []
    assert run_sbatch(tmp_path, 143, restarts=20, MOST_RESTARTS="21")[2] == ["requeue 17"]


def test_slurm_gives_every_task_its_cores(tmp_path):
    run_sbatch(tmp_path, 0, SLURM_CPUS_PER_TASK="12")
    assert (tmp_path / "cores").read_text() == "12\n"


def test_slurm_gives_every_task_the_gpu_of_its_number():
    options = re.findall(r"^#SBATCH --([\w-]+)=(.*)$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
    asked = dict(options)
    # As many GPUs to a node as tasks, seen by all of them: JAX takes the one of SLURM_LOCALID.
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert not {"gpus-per-task", "gpu-bind"} & set(asked)


def test_the_jobset_is_one_indexed_job_whose_first_pod_all_others_find():
    document = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = document["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    (container,) = spec["template"]["spec"]["containers"]
    flags = dict(word.removeprefix("--").split("=", 1) for word in container["command"] if word.startswith("--"))
    name = document["metadata"]["name"]
    port = container["ports"][0]["containerPort"]
    assert flags["coordinator"] == f"{name}-{job['name']}-0-0.{name}:{port}"
    assert int(flags["num_processes"]) == spec["parallelism"] == spec["completions"]
    (variable,) = container["env"]
    assert flags["process_id"] == f"$({variable['name']})"
    index = variable["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    hosts.check_flags(flags["coordinator"], int(flags["num_processes"]), 3)
    # What the user can mend ends the set, all else starts it again.
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    assert document["spec"]["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


def local(folder: Path, count: object, train: str) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of launch/local.sh COUNT where each process is the shell commands `train`, $id its
    number."""
    number = "for i; do case $i in --process_id=*) id=${i#*=};; esac; done"
    python = executable(folder / "python", f'[ "$1" = -c ] && {{ echo 1234; exit; }}\n{number}\n{train}')
    return ["bash", str(LAUNCH / "local.sh"), str(count), "--config=c"], os.environ | {"PYTHON": str(python)}


def run_local(folder: Path, count: object, train: str, **variables: str) -> subprocess.CompletedProcess:
    command, environment = local(folder, count, train)
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("count", ["", "0", "two", "-1", "2x"])
def test_local_refuses_a_number_that_is_none(count, tmp_path):
    done = run_local(tmp_path, count, "exit 0")
    assert done.returncode == 2
    assert "N is the number of processes" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_local_tells_each_process_who_it_is(tmp_path):
    done = run_local(tmp_path, 3, 'echo "$@"')
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [
        f"train_main.py --coordinator=127.0.0.1:1234 --num_processes=3 --process_id={number} --config=c"
        for number in range(3)
    ]


@pytest.mark.parametrize(
    ("first", "code", "words"),
    [
        ("exit 2", 2, ""),
        ("exit 75", 75, ""),
        ("kill -9 $$", 75, "error: process 1 of 2 was ended by signal 9"),
        ("kill -15 $$", 143, ""),
    ],
)
def test_local_ends_the_others_with_the_first_that_fails(first, code, words, tmp_path):
    others = "exit 143" if code == 143 else "exec sleep 50"
    done = run_local(tmp_path, 2, f'if [ "$id" = 1 ]; then {first}; else {others}; fi')
    assert done.returncode == code
    assert words in done.stderr


@pytest.mark.parametrize(
    ("number", "heard", "code"),
    [(signal.SIGINT, "INT", 130), (signal.SIGTERM, "TERM", 143), (signal.SIGHUP, "TERM", 143)],
)
def test_local_passes_each_signal_on_once(number, heard, code, tmp_path):
    """As a terminal sends it, to the whole group; twice would mean leave without saving."""
    note = lambda name: f"trap 'echo {name} >> {tmp_path}/heard.$id; code={128 + getattr(signal, f'SIG{name}')}' {name}"  # noqa: E731
    wait = f"code=; : > {tmp_path}/ready.$id; for i in $(seq 100); do [ $code ] && break; sleep 0.1; done; sleep 1"
    command, environment = local(tmp_path, 2, f"{note('INT')}; {note('TERM')}; {wait}; exit $code")
    # Where the suite itself was started in the background, all that it starts ignores Ctrl-C, and under nohup SIGHUP;
    # bash traps no signal that it was started to ignore.
    heard_again = "[signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)]"
    hear = f"import os, signal, sys; {heard_again}; os.execvp(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", hear, *command], env=environment, start_new_session=True)
    until = time.monotonic() + 30
    while len(list(tmp_path.glob("ready.*"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    # The traps of the script are set behind the last start.
    time.sleep(0.5)
    os.killpg(process.pid, number)
    assert process.wait(30) == code
    assert [(tmp_path / f"heard.{rank}").read_text() for rank in range(2)] == [f"{heard}\n"] * 2


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "3,GPU-ab,5"}, ["3", "GPU-ab"]),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ["-1", "-1"]),
    ],
)
def test_local_gives_each_process_one_of_the_gpus_that_it_may_use(given, seen, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    executable(tmp_path / "nvidia-smi", 'for i in 0 1 2; do echo "GPU $i: NVIDIA H100 (UUID: GPU-$i)"; done')
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = run_local(tmp_path, 2, 'echo "$id $CUDA_VISIBLE_DEVICES"', **path, **given)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"{rank} {gpu}" for rank, gpu in enumerate(seen)]


def test_local_refuses_more_processes_than_gpus(tmp_path):
    executable(tmp_path / "nvidia-smi", "echo 'GPU 0: NVIDIA H100 (UUID: GPU-0)'")
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "7"}
    done = run_local(tmp_path, 2, "exit 0", **path)
    assert done.returncode == 2
    assert done.stderr == "error: 2 processes, but CUDA_VISIBLE_DEVICES names 1 GPUs; start at most 1\n"
