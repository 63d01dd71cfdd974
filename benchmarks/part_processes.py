"""Benchmarks in parts, each a process of its own: none finds another's memory taken, and one that fails costs no other.

A part is `python -m MODULE OUT ARGUMENTS...`, which writes what it found into the file OUT as one JSON object. Parts of
a group are started at once, so that they compile side by side, and measure one after the other: each says that it is
compiled by `wait_for_turn`.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record

# Less than this and a part would be stopped before it has begun.
LEAST_SECONDS = 15
# The environment's name for the path whose '.ready' a part of a group makes, and whose '.go' it waits for.
TURN = "BENCHMARK_TURN"


@dataclasses.dataclass(frozen=True)
class Part:
    """label: its columns in the results, such as {'part': 'ours', 'batch_size': 256}. environment: on top of ours."""

    label: Mapping[str, Any]
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    module: str = ""


def wait_for_turn() -> None:
    """To be called by a part that is compiled and goes on to measure: returns when it has the device to itself."""
    if path := os.environ.get(TURN):
        Path(f"{path}.ready").touch()
        while not Path(f"{path}.go").exists():
            time.sleep(0.01)


def run_all(
    benchmark: str,
    module: str,
    groups: Sequence[Part | Sequence[Part]],
    *,
    seconds: float,
    longest: float,
    out: str,
    small: bool,
    earlier: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Run the groups one after the other within `seconds`; their rows, saved after each. A part may be its own group.

    earlier: rows of an earlier call, which stay before the new ones.

    A group's parts compile side by side for `longest` seconds at most, and then measure in turn, each for as long
    again. out: the JSON file; '' for benchmarks/results/BENCHMARK_DEVICE.json. A part that fails or runs out of time
    leaves a row that says so under 'failed'.
    """
    deadline = time.monotonic() + seconds
    rows: list[dict[str, Any]] = list(earlier)
    for group in groups:
        parts = [group] if isinstance(group, Part) else list(group)
        for part, found in run_group(module, parts, deadline, longest, small):
            rows.append({**part.label, **found})
            print(json.dumps(rows[-1])[:300], flush=True)
            save(benchmark, out, rows, small)
    return rows


def run_group(
    module: str, parts: Sequence[Part], deadline: float, longest: float, small: bool
) -> Iterator[tuple[Part, dict[str, Any]]]:
    """Each part with what it wrote, and 'failed' where it did not come to its end; slow compilers last.

    After `longest` seconds those that still compile are halted while the others measure, and then go on: a compiler
    beside a measurement takes its cores and, to tune, its device (torch.compile(max-autotune) took 210 s and more).
    """
    if deadline - time.monotonic() <= LEAST_SECONDS:
        yield from ((part, {"failed": "no time left", "wall_seconds": 0.0}) for part in parts)
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        waiting = [Started(module, part, Path(folder) / str(number), small) for number, part in enumerate(parts)]
        for one in waiting:
            stack.callback(one.stop)
        while waiting:
            latest = min(deadline, time.monotonic() + longest)
            while len(parts) > 1 and time.monotonic() < latest and not all(one.compiled() for one in waiting):
                time.sleep(0.02)
            ready = [one for one in waiting if one.compiled() or len(parts) == 1]
            slow = [one for one in waiting if one not in ready]
            if not ready:
                ready, slow = slow, []
            for one in slow:
                one.signal(signal.SIGSTOP)
            for one in ready:
                yield one.part, one.finish(min(deadline, time.monotonic() + longest))
            for one in slow:
                one.signal(signal.SIGCONT)
            waiting = slow


class Started:
    """A part's process; `base`: a path of its own, to which endings are added."""

    def __init__(self, module: str, part: Part, base: Path, small: bool) -> None:
        self.part = part
        self.out, self.errors, self.base = base.with_suffix(".json"), base.with_suffix(".stderr"), base
        command = [
            sys.executable,
            "-m",
            part.module or module,
            str(self.out),
            *part.arguments,
            *(["small"] if small else []),
        ]
        self.start = time.monotonic()
        with self.errors.open("w") as stream:
            self.process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=stream, start_new_session=True,
                env={**os.environ, **part.environment, TURN: str(base)},
            )  # fmt: skip

    def compiled(self) -> bool:
        """Whether it waits for its turn, or has ended."""
        return self.base.with_suffix(".ready").exists() or self.process.poll() is not None

    def finish(self, latest: float) -> dict[str, Any]:
        """Give it its turn, up to `latest` of the monotonic clock; what it wrote."""
        begun = time.monotonic()
        self.base.with_suffix(".go").touch()
        try:
            code = self.process.wait(timeout=max(latest - begun, 0.0))
            failed = {} if code == 0 else {"failed": reason(self.errors.read_text(errors="replace"), code)}
        except subprocess.TimeoutExpired:
            failed = {"failed": f"stopped after {time.monotonic() - self.start:.0f} s"}
        self.stop()
        found = json.loads(self.out.read_text()) if self.out.exists() else {}
        return {**found, **failed, "wall_seconds": time.monotonic() - self.start}

    def signal(self, number: signal.Signals) -> None:
        """Send it, and what it started, such as workers of a DataLoader, a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """End it and what it started."""
        self.signal(signal.SIGKILL)
        self.process.wait()


def reason(stderr: str, code: int) -> str:
    """The last line that names an error; JAX puts remarks of its own behind it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit|Interrupt)\b", line)]
    return ((errors or lines or [f"exit code {code}"])[-1])[:300]


def save(benchmark: str, out: str, rows: list[dict[str, Any]], small: bool) -> None:
    """Write what is known so far: a call that is cut off leaves it."""
    device = next((row["device"] for row in rows if "device" in row), "unknown")
    file = out or record.RESULTS / f"{name_of(benchmark, device)}.json"
    record.write(benchmark, {"small": small, "rows": rows}, file, device=device)


def name_of(benchmark: str, device: str) -> str:
    """What a benchmark's results on a device are called: 'gpu_nvidia_h100_80gb_hbm3'."""
    return re.sub(r"[^a-z0-9]+", "_", f"{benchmark}_{device}".lower())
