"""The verdict: the one reason for which all processes of a job end, the first that any of them gave; see `peers`."""

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax

Result = TypeVar("Result")
# A run that lost a peer or hung: EX_TEMPFAIL of sysexits.h, "try again", which batch systems can be told to requeue on.
LOST_PEER = 75
# Seconds that process 0 goes on holding the service after the verdict, so that all others hear it.
GRACE_SECONDS = 2.0
VERDICT = "resnet/verdict"
ADVICE = "start all processes again to resume from the last checkpoint"
ROOT = Path(__file__).resolve().parents[2]
# Their own lines say nothing of where a process is.
WATCHING = tuple(Path(__file__).with_name(name) for name in ("peers.py", "heartbeat.py", "verdict.py"))
# Held by the thread that ends this process, so that no other says a second reason meanwhile.
ENDING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Why a job ends: the rank that says so, what it says, and the exit code of all."""

    rank: int
    reason: str
    code: int


def leave(reason: str, code: int) -> None:
    """Say why, with this process' rank, and end it without waiting for anybody; the others end for the same reason.

    Where another process came first with its verdict, that one is told. Called by any thread; does not return.
    """
    mine = Verdict(jax.process_index(), reason, code)
    end(within(GRACE_SECONDS, lambda: settle(mine)) or mine)


def end(verdict: Verdict) -> None:
    """Print the verdict and end this process; process 0 last, for it holds the service by which the others hear it."""
    if not ENDING.acquire(blocking=False):
        time.sleep(2 * GRACE_SECONDS)
    own, count = jax.process_index(), jax.process_count()
    source = "" if verdict.rank == own else f"process {verdict.rank} ended the run: "
    # Whatever becomes of the line: on a full disk or into a pipe that nobody reads any more, this process still ends.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"error: process {own} of {count}: {source}{verdict.reason}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    time.sleep(GRACE_SECONDS if own == 0 else 0.0)
    os._exit(verdict.code)


def store() -> Any:
    """The key-value store of JAX' coordination service. It has no public door; orbax goes the same way."""
    from jax._src import distributed

    return distributed.global_state.client


def settle(mine: Verdict) -> Verdict:
    """The verdict that holds for the job: `mine`, unless one was there already. Raises JaxRuntimeError, or blocks."""
    if jax.process_count() == 1:
        return mine
    try:
        store().key_value_set(VERDICT, json.dumps(dataclasses.asdict(mine)))
    except jax.errors.JaxRuntimeError:
        return Verdict(**json.loads(store().key_value_try_get(VERDICT)))
    return mine


def within(seconds: float, work: Callable[[], Result]) -> Result | None:
    """What `work` gives, or None where it fails or takes longer: the service may hang with process 0."""
    results: list[Result] = []

    def attempt() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            results.append(work())

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None


def place(error: BaseException | None = None) -> str:
    """Where the main thread is, or where `error` came up, as 'resnet/train/loop.py line 200 (advance)'.

    The innermost line of this project.
    """
    if error is None:
        steps = list(traceback.walk_stack(sys._current_frames().get(threading.main_thread().ident or 0)))
    else:
        steps = list(traceback.walk_tb(error.__traceback__))[::-1]
    for frame, line in steps:
        file = Path(frame.f_code.co_filename).absolute()
        if file.is_relative_to(ROOT) and file not in WATCHING and ".venv" not in file.parts:
            return f"{file.relative_to(ROOT)} line {line} ({frame.f_code.co_name})"
    return "its end"
