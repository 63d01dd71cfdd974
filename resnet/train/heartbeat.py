"""Heartbeats: signs of life between the processes of a job, and what is done when one gives none; see `peers`."""

import collections
import contextlib
import json
import socket
import threading
import time

import jax

from resnet.train import hosts
from resnet.train.verdict import ADVICE, GRACE_SECONDS, LOST_PEER, VERDICT, Verdict, end, leave, place, store, within

# Seconds from one sign of life to the next, and how many may fail to come before a process counts as lost. Rounds are
# counted, not seconds: after a pause of the whole machine nobody is taken for dead. Thirty, because importing
# TensorFlow from a slow network disk can keep all threads of a process still for a while.
SIGN_SECONDS = 1.0
SILENT_ROUNDS = 30
ALIVE, OVER = "resnet/alive/", "over"


class Heartbeat:
    """The signs of life of this process, and the watch over those of the others; see the top of `peers`."""

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
        """Turn the abort, JAX' answer to losing process 0, into a line and an exit code."""
        # Held, and never called: it may abort as late as in its shutdown.
        self._heed_no_more = hosts.catch_abort(self._aborted)

    def _aborted(self) -> None:
        reason = "JAX' runtime ended this process, as it says above"
        if self.rank != 0 and not reachable():
            where = self.trouble or place()
            reason = (
                f"process 0, which all others talk to, is gone (killed, or its machine down; this one is at {where})"
            )
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
