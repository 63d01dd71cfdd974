"""Benchmarks in parts, each a process of its own: none finds another's memory taken, and one that fails costs no other.

A part is `python -m MODULE OUT ARGUMENTS...`, which writes what it found into the file OUT as one JSON object.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record

# Less than this and a part would be stopped before it has begun.
LEAST_SECONDS = 15


@dataclasses.dataclass(frozen=True)
class Part:
    """label: its columns in the results, such as {'part': 'ours', 'batch_size': 256}. environment: on top of ours."""

    label: Mapping[str, Any]
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def run_all(
    benchmark: str, module: str, parts: Sequence[Part], *, seconds: float, longest: float, out: str, small: bool
) -> list[dict[str, Any]]:
    """Run the parts one after the other within `seconds`, each for `longest` at most; their rows, saved after each.

    out: the JSON file; '' for benchmarks/results/BENCHMARK_DEVICE.json. A part that fails or runs out of time leaves a
    row that says so under 'failed'.
    """
    deadline = time.monotonic() + seconds
    rows: list[dict[str, Any]] = []
    for part in parts:
        left = deadline - time.monotonic()
        enough = left > LEAST_SECONDS
        found = run_part(module, part, min(longest, left), small) if enough else {"failed": "no time left"}
        rows.append({**part.label, **found})
        print(json.dumps(rows[-1])[:300], flush=True)
        save(benchmark, out, rows, small)
    return rows


def run_part(module: str, part: Part, seconds: float, small: bool) -> dict[str, Any]:
    """What one part wrote, with 'failed' where it did not come to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, "-m", module, str(out), *part.arguments, *(["small"] if small else [])]
        start = time.monotonic()
        errors = Path(folder) / "stderr"
        with errors.open("w") as stream:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=stream, env={**os.environ, **part.environment},
                start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(timeout=seconds)
                failed = {} if code == 0 else {"failed": reason(errors.read_text(errors="replace"), code)}
            except subprocess.TimeoutExpired:
                failed = {"failed": f"stopped after {seconds:.0f} s"}
            finally:
                # It and what it started, such as workers of a DataLoader.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        found = json.loads(out.read_text()) if out.exists() else {}
        return {**found, **failed, "wall_seconds": time.monotonic() - start}


def reason(stderr: str, code: int) -> str:
    """The last line that names an error; JAX puts remarks of its own behind it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit|Interrupt)\b", line)]
    return ((errors or lines or [f"exit code {code}"])[-1])[:300]


def save(benchmark: str, out: str, rows: list[dict[str, Any]], small: bool) -> None:
    """Write what is known so far: a call that is cut off leaves it."""
    device = next((row["device"] for row in rows if "device" in row), "unknown")
    name = re.sub(r"[^a-z0-9]+", "_", f"{benchmark}_{device}".lower())
    record.write(benchmark, {"small": small, "rows": rows}, out or record.RESULTS / f"{name}.json", device=device)
