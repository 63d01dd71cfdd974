"""Every comparison that this machine can make, in one call of under 15 minutes, and one table of all results.

    ./run.sh bench [--seconds=900] [--data=DIR]    all of them, in order of worth, then the table
    ./run.sh bench --table                         the table alone
    ./run.sh bench step --image_size=64            one alone, with its own flags (also others of benchmarks/)

Each is a process of its own and writes its file in benchmarks/results. What does not fit into the time is not begun, or
stopped, and has a row that says so; so has what fails. The table also shows what earlier runs left there, on other
devices too, with day and device. DIR is a folder of photographs in class folders for the feeds; without it flowers are
drawn. A peer that is not installed is left out and named. Exit code 1 where a benchmark failed.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from benchmarks import comparisons, record, tables
from input_pipeline.errors import InputError, printable
from resnet import command

ROOT = Path(__file__).resolve().parent.parent
# Seconds between SIGTERM and SIGKILL.
PATIENCE = 10.0


@dataclass(frozen=True)
class Job:
    """A benchmark to run: what it says in the table, its command, and the seconds it takes on two cores."""

    what: str
    words: tuple[str, ...]
    seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """reason: '' where the job came to its end, else why it did not; failed: by a fault of its own."""

    job: Job
    reason: str = ""
    failed: bool = False


def jobs(data: str) -> list[Job]:
    """In order of worth: what comes late is what a slow machine loses."""
    on_cpu = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}

    def job(what: str, seconds: float, *words: str) -> Job:
        return Job(what, (sys.executable, "-m", *words), seconds, on_cpu)

    found = [
        job("ResNet-50, 64 px: step", 140, "benchmarks.step", "--image_size=64", "--rounds=7"),
        job("CIFAR ResNet-20: step", 80, "benchmarks.step", "--model=cifar_resnet20", "--rounds=7"),
        job("ResNet-50, 224 px: inference", 130, "benchmarks.inference", "--rounds=7"),
        job("ResNet-50, 224 px: step", 280, "benchmarks.step", "--image_size=224", "--rounds=3", "--peer_seconds=40"),
        job("CIFAR ResNet-110: compiling", 50, "benchmarks.step", "--model=cifar_resnet110", "--rounds=0"),
        job("feeds", 170, "benchmarks.feed", "--rounds=2", *([data] if data else [])),
    ]
    if has_gpu():
        gpu = Job("ResNet-50 on the GPU", (sys.executable, "-m", "benchmarks.gpu", "--seconds=520"), 540)
        return [gpu, *found]
    return found


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers."""
    program = shutil.which("nvidia-smi")
    return program is not None and subprocess.run([program], capture_output=True).returncode == 0


def run_all(todo: Sequence[Job], seconds: float) -> list[Outcome]:
    """Run the jobs one after the other, within so many seconds in all."""
    deadline = time.monotonic() + seconds
    outcomes = []
    for number, job in enumerate(todo, start=1):
        left = deadline - time.monotonic()
        print(f"\n[{number}/{len(todo)}] {job.what}: about {job.seconds:.0f} s, {max(0, left):.0f} s left", flush=True)
        if left < job.seconds:
            outcome = Outcome(job, f"not run: needs about {job.seconds:.0f} s, {max(0, left):.0f} s were left")
        else:
            outcome = run_one(job, left)
        if outcome.reason:
            print(outcome.reason, flush=True)
        outcomes.append(outcome)
    return outcomes


def run_one(job: Job, seconds: float) -> Outcome:
    """Run a job, with all that it starts in a group of processes, which ends with it or after `seconds`."""
    environment = {**os.environ, **job.environment}
    process = subprocess.Popen(job.words, cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return Outcome(job, f"stopped after {seconds:.0f} s: the time (--seconds) was up")
    finally:
        end(process)
    return Outcome(job, f"failed with exit code {code}", failed=True) if code else Outcome(job)


def end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a group of processes; what does not heed SIGTERM is killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            continue


def summary(outcomes: Sequence[Outcome]) -> str:
    """The one table: what was not measured now, then all that the files hold."""
    notes = [(outcome.job.what, outcome.reason) for outcome in outcomes if outcome.reason]
    return tables.board(comparisons.compared(record.read_all()), notes)


def alone(name: str, words: Sequence[str]) -> NoReturn:
    """Become `python -m benchmarks.NAME`. Raises InputError for a name that is no benchmark's."""
    guard = 'if __name__ == "__main__":'
    names = [path.stem for path in sorted(Path(__file__).parent.glob("[a-z]*.py")) if guard in path.read_text("utf-8")]
    if name not in names:
        raise InputError(f"{printable(name)}: no benchmark; those are {', '.join(names)}")
    os.execv(sys.executable, [sys.executable, "-m", f"benchmarks.{name}", *words])


def main() -> int:
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        alone(sys.argv[1], sys.argv[2:])
    parser = command.Parser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900, help="in all (default: 900)")
    parser.add_argument("--data", default="", help="a folder of class folders for the feeds; default: drawn flowers")
    parser.add_argument("--table", action="store_true", help="run nothing, print the table of what there is")
    arguments = parser.parse_args()
    outcomes = [] if arguments.table else run_all(jobs(arguments.data), arguments.seconds)
    print(f"\n{summary(outcomes)}")
    if not arguments.table:
        print("\npython -m benchmarks.tables writes them into README.md and docs")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    # So that what runs ends with this process.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    command.run(main)
