"""When one of several processes dies, hangs or fails, all end: within a stated time, with its rank and the reason.

Two threads of each process keep watch. One gives a sign of life a second through JAX' coordination service, which
process 0 holds; the other listens: process 0 for everybody's signs, the others for an answer of the service and for
the verdict, the one reason why the job ends, which holds for all. The watchdog, a third, asks for progress.

JAX' own heartbeats would do half of it, but end a process by an abort with pages of C++, exit code 134 and no word of
the run; their callback for Python fails (std::bad_cast, jaxlib 0.10.2). They stay on, as a net beneath this one.
"""

import contextlib
import re
import threading
from collections.abc import Iterator

import jax

from input_pipeline.errors import InputError
from input_pipeline.recipe import first_line
from resnet.command import refusal
from resnet.out_of_memory import out_of_memory
from resnet.train.heartbeat import Heartbeat
from resnet.train.verdict import ADVICE, LOST_PEER, leave, place

# What compiles (the first step, the first batches of an evaluation) may take this many times the watchdog's patience.
COMPILING = 6
# How what XLA raises begins, also where JAX makes a ValueError of it.
STATUS = re.compile(r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around a run of several processes: when one fails, is lost or hangs, all end.

    Without this a process that raises would wait for the others in JAX' shutdown barrier, and they for it, for minutes.
    The exit code is 2 for what the user can mend (memory that does not do, too), 130 after a second Ctrl-C, else
    LOST_PEER.
    """
    if jax.process_count() == 1:
        yield
        return
    heartbeat = Heartbeat()
    heartbeat.start()
    try:
        yield
    except InputError as error:
        leave(first_line(error)[:400], 2)
    except KeyboardInterrupt:
        leave("interrupted", 130)
    except Exception as error:
        if said := out_of_memory(error) or refusal(error):
            # The same job, started again, would end the same way.
            leave(said, 2)
        if isinstance(error, jax.errors.JaxRuntimeError) or STATUS.match(str(error)):
            # A message that failed. Whoever knows more, why a peer ended or which one is silent, says so meanwhile.
            heartbeat.trouble = f"{place(error)}: {first_line(error)[:200]}"
            heartbeat.hear_out()
        leave(f"{first_line(error)[:400]}; {ADVICE}", LOST_PEER)
    heartbeat.end()


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
                    f"nothing was completed for {self._patience:g} s ({self._where}; this process is at {place()}): "
                    f"this process or a peer hangs, or the network is down; {ADVICE}",
                    LOST_PEER,
                )
