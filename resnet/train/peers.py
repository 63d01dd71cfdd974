"""When one of several processes dies, hangs or fails, all end: within a stated time, with its rank and the reason.

Two threads of each process keep watch. One gives a sign of life a second through JAX' coordination service, which
process 0 holds; the other listens: process 0 for everybody's signs, the others for an answer of the service and for
the verdict, the one reason why the job ends, which holds for all. The watchdog, a third, asks for progress.

JAX' own heartbeats would do half of it, but end a process by an abort with pages of C++, exit code 134 and no word of
the run; their callback for Python fails (std::bad_cast, jaxlib 0.10.2). They stay on, as a net beneath this one.
"""

import collections
import contextlib
import ctypes
import dataclasses
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax

from input_pipeline.errors import InputError
from input_pipeline.recipe import first_line

Result = TypeVar("Result")
# A run that lost a peer or hung: EX_TEMPFAIL of sysexits.h, "try again", which batch systems can be told to requeue on.
LOST_PEER = 75
# Seconds from one sign of life to the next, and how many may fail to come before a process counts as lost. Rounds are
# counted, not seconds: after a pause of the whole machine nobody is taken for dead. Thirty, because importing
# TensorFlow from a slow network disk can keep all threads of a process still for a while.
SIGN_SECONDS = 1.0
SILENT_ROUNDS = 30
# Seconds that process 0 goes on holding the service after the verdict, so that all others hear it.
GRACE_SECONDS = 2.0
# What compiles (the first step, the first batches of an evaluation) may take this many times the watchdog's patience.
COMPILING = 6
ALIVE, VERDICT, OVER = "resnet/alive/", "resnet/verdict", "over"
ADVICE = "start all processes again, the run goes on from its last checkpoint"
# How what XLA raises begins, also where JAX makes a ValueError of it.
STATUS = re.compile(r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")
ROOT = Path(__file__).resolve().parents[2]
# Held by the thread that ends this process, so that no other says a second reason meanwhile.
ENDING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Why a job ends: the rank that says so, what it says, and the exit code of all."""

    rank: int
    reason: str
    code: int


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around a run of several processes: when one fails, is lost or hangs, all end.

    Without this a process that raises would wait for the others in JAX' shutdown barrier, and they for it, for minutes.
    The exit code is 2 for what the user can mend, 130 after a second Ctrl-C, else LOST_PEER.
    """
    if jax.process_count() == 1:
        yield
        return
    lifeline = Lifeline()
    lifeline.start()
    try:
        yield
    except InputError as error:
        leave(first_line(error)[:400], 2)
    except KeyboardInterrupt:
        leave("interrupted", 130)
    except Exception as error:
        if isinstance(error, jax.errors.JaxRuntimeError) or STATUS.match(str(error)):
            # A message that failed. Whoever knows more, why a peer ended or which one is silent, says so meanwhile.
            lifeline.trouble = f"{place(error)}: {first_line(error)[:200]}"
            lifeline.hear_out()
        leave(f"{first_line(error)[:400]}; {ADVICE}", LOST_PEER)
    lifeline.end()


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
    print(f"error: process {own} of {count}: {source}{verdict.reason}", file=sys.stderr, flush=True)
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


class Lifeline:
    """The signs of life of this process, and the watch over those of the others; see the top of this file."""

    def __init__(self) -> None:
        # Noted here: asked for after JAX' shutdown, by a thread that is still about, it would start all over again.
        self.rank, self.count, self.store = jax.process_index(), jax.process_count(), store()
        # Where a message failed in the main thread, and how; '' as long as none did.
        self.trouble = ""
        self._answered = self._rounds = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._speak, self._listen)]
        self._silent: collections.Counter[int] = collections.Counter()
        self._signs: dict[int, str] = {}

    def start(self) -> None:
        """From here on a process that is gone is missed."""
        self._catch_abort()
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """This process is done; nobody misses it any more. Takes a second: the threads hear of it between messages."""
        self._over.set()
        # A peer may be gone already with the service: it was done as well.
        within(GRACE_SECONDS, lambda: self.store.key_value_set(f"{ALIVE}{self.rank}", OVER, allow_overwrite=True))
        # One that comes back from a message while the interpreter ends crashes it: signal 11 after a run that was well.
        for thread in self._threads:
            thread.join(2 * SIGN_SECONDS)

    def hear_out(self) -> None:
        """Wait for as many rounds as a silent peer takes to be found, which ends this process; at most half as long
        again."""
        last, limit = self._rounds + SILENT_ROUNDS + 3, time.monotonic() + 1.5 * (SILENT_ROUNDS + 3) * SIGN_SECONDS
        while self._rounds < last and time.monotonic() < limit:
            time.sleep(SIGN_SECONDS)

    def _speak(self) -> None:
        while not self._over.wait(SIGN_SECONDS):
            # Fails when process 0 is gone, which JAX answers with an abort; blocks while it hangs.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self.store.key_value_set(f"{ALIVE}{self.rank}", str(self._answered), allow_overwrite=True)
                self._answered += 1

    def _listen(self) -> None:
        while not self._over.is_set():
            verdict = self._verdict()
            self._rounds += 1
            if self._over.is_set():
                return
            if verdict and verdict.rank != self.rank:
                end(verdict)
            if lost := self._lost():
                names = ", ".join(str(rank) for rank in lost)
                leave(
                    f"process {names} gave no sign of life for {SILENT_ROUNDS * SIGN_SECONDS:g} s (killed, hanging or "
                    f"cut off; this one is at {self.trouble or place()}); {ADVICE}",
                    LOST_PEER,
                )

    def _verdict(self) -> Verdict | None:
        """The verdict, as soon as there is one; None after a second without."""
        started = time.monotonic()
        try:
            return Verdict(**json.loads(self.store.blocking_key_value_get(VERDICT, int(1e3 * SIGN_SECONDS))))
        except jax.errors.JaxRuntimeError:
            self._over.wait(max(0.0, SIGN_SECONDS - (time.monotonic() - started)))
            return None

    def _lost(self) -> list[int]:
        """The ranks that have been silent for too long; counts one more round."""
        signs = self._table() if self.rank == 0 else {0: str(self._answered)}
        for rank, sign in signs.items():
            still = sign == self._signs.get(rank) and sign != OVER
            self._silent[rank] = self._silent[rank] + 1 if still else 0
        self._signs = signs
        return [rank for rank, rounds in self._silent.items() if rounds >= SILENT_ROUNDS]

    def _table(self) -> dict[int, str]:
        """The last sign of each other process; '' where there was none yet."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            found = {int(key.rpartition("/")[2]): sign for key, sign in self.store.key_value_dir_get(ALIVE)}
            return {rank: found.get(rank, "") for rank in range(1, self.count)}
        return {}

    def _catch_abort(self) -> None:
        """Turn the abort, JAX' answer to losing process 0, into a line and an exit code.

        In C, for Python's own handlers run only after the signal's, and abort() does not return.
        """
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        library = ctypes.CDLL(None)
        library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        library.signal(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))

    def _aborted(self, number: int) -> None:
        reason = "JAX' runtime ended this process, as it says above"
        if self.rank != 0 and not reachable():
            where = self.trouble or place()
            reason = f"process 0, which all others talk to, is gone (killed, or its machine; this one is at {where})"
        end(Verdict(self.rank, f"{reason}; {ADVICE}", LOST_PEER))


def reachable() -> bool:
    """Whether process 0 still takes connections."""
    from jax._src import distributed

    host, _, port = str(distributed.global_state.coordinator_address).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        return False
    return True


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
        if file.is_relative_to(ROOT) and file != Path(__file__) and ".venv" not in file.parts:
            return f"{file.relative_to(ROOT)} line {line} ({frame.f_code.co_name})"
    return "its end"


class Watchdog:
    """Ends this process when no step, evaluation batch or save was finished for `seconds`; a context manager.

    For runs of several processes, where a stuck peer would leave the others waiting in a collective for ever (JAX issue
    38503). Before the first `beat`, and after `rest`, something may be compiled: patience is COMPILING times as long.
    seconds: 0 turns it off.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._round = min(1.0, seconds / 4)
        self._rounds, self._patience, self._where = 0, seconds * COMPILING, "at the start"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def beat(self, where: str) -> None:
        """Something was finished: start the clock anew. where: what that was, for the message."""
        self._rounds, self._patience, self._where = 0, self.seconds, where

    def rest(self) -> None:
        """The same, and what comes next may take long, such as compiling."""
        self._rounds, self._patience = 0, self.seconds * COMPILING

    def __enter__(self) -> "Watchdog":
        if self.seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(self._round):
            self._rounds += 1
            if self._rounds * self._round > self._patience:
                leave(
                    f"nothing was finished for {self._patience:g} s ({self._where}; this process is at {place()}): it "
                    f"or a peer hangs, or the network is gone; {ADVICE}",
                    LOST_PEER,
                )
