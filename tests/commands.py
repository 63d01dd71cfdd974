"""Runs this project's commands as a user does: processes of their own, with arguments, exit codes and two streams."""

import atexit
import dataclasses
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Seconds; a machine with other work takes ten times what an idle one does.
PATIENCE = float(os.environ.get("TESTS_PATIENCE", 300))
_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended: its exit code (negative: killed by that signal) and what it wrote.

    command: what was asked for, where whoever asked has noted it.
    """

    code: int
    out: str
    err: str
    command: str = ""


class Running:
    """A command that is under way."""

    def __init__(self, pid: int, out: Path, err: Path) -> None:
        self.pid, self.out, self.err = pid, out, err

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Result:
        """Its end; it is killed, and that is its result, when it takes longer than PATIENCE."""
        watchdog = threading.Timer(PATIENCE, os.kill, (self.pid, signal.SIGKILL))
        watchdog.start()
        try:
            code = _ask({"wait": self.pid})
        finally:
            watchdog.cancel()
        return Result(code, self.out.read_text(), self.err.read_text())


def start(*arguments: object, environment: dict[str, str] | None = None, directory: Path = ROOT) -> Running:
    """Start `FILE.py ARGS` or `a.module ARGS`, forked where the slow imports are done already.

    directory: where it runs; the project's modules are those of this checkout wherever that is.
    """
    folder = Path(_server()[1])
    number = next(_numbers)
    out, err = folder / f"{number}.out", folder / f"{number}.err"
    request = {
        "arguments": [str(argument) for argument in arguments],
        "environment": environment or {},
        "directory": str(directory),
        "out": str(out),
        "err": str(err),
    }
    return Running(_ask(request), out, err)


def run(*arguments: object, environment: dict[str, str] | None = None, directory: Path = ROOT) -> Result:
    """`start` and wait."""
    return start(*arguments, environment=environment, directory=directory).wait()


def run_fresh(*arguments: object, environment: dict[str, str] | None = None) -> Result:
    """Run a whole command line of its own in a fresh process: what it says while it imports is seen too."""
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def with_eight_devices() -> dict[str, str]:
    """The environment of a process of 8 virtual devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    return os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Return once `condition` holds; AssertionError naming `what` after PATIENCE."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE:.0f} s in vain for {what}"
        time.sleep(0.02)


@functools.cache
def _server() -> tuple[subprocess.Popen, str]:
    folder = tempfile.TemporaryDirectory(prefix="commands-")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.command_server"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def end() -> None:
        server.stdin.close()
        server.wait()
        folder.cleanup()

    atexit.register(end)
    return server, folder.name


def _ask(request: dict) -> int:
    server = _server()[0]
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())
