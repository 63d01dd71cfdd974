"""SIGTERM and Ctrl-C: the run saves and leaves; one more Ctrl-C leaves at once."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAVING = b"\nSaving, then leaving; Ctrl-C once more leaves at once, without saving.\n"
TERMINATED = b"\nSIGTERM: saving, then leaving.\n"
LEAVING = b"\ninterrupted\n"
PARTING = b"\nThis process is done and leaves with the others; Ctrl-C once more leaves at once.\n"
Handler = Callable[[int, FrameType | None], None]


class Interruption:
    """Notes a signal instead of dying of it; the loop asks `requested` between steps. A context manager.

    Ctrl-C after the first signal ends the process at once, with exit code 130. Python itself hears a signal only
    between two calls into C, and a call that compiles or waits for a disk takes a minute: so a thread listens, which
    the system wakes, and ends the process without its leave, as a kill would. A second SIGTERM changes nothing: batch
    systems send one to each process of a job and one more through the launcher, and the save must survive that. At the
    end the old handlers come back, or the one given for then. Outside the main thread Python takes no
    handlers; signals then act as ever.
    """

    def __init__(
        self,
        said: bytes = SAVING,
        terminated: bytes = TERMINATED,
        *,
        afterwards: Handler | None = None,
        of: Collection[signal.Signals] = (signal.SIGINT,),
    ) -> None:
        """What is written to standard error at the first signal: `said` at Ctrl-C, `terminated` at SIGTERM.

        afterwards: the handler of the signals `of` from the end on, with no moment in between at which the old one
        hears them.
        """
        self._said = {signal.SIGINT: said, signal.SIGTERM: terminated}
        self.signal: int | None = None
        self._since = 0.0
        self._afterwards = dict.fromkeys(of, afterwards) if afterwards else {}
        self._leave = contextlib.ExitStack()

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.signal is not None

    @property
    def seconds(self) -> float:
        """Seconds since the first signal; 0 where none has arrived."""
        return time.monotonic() - self._since if self.requested else 0.0

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells and batch systems expect: 143 after SIGTERM, 130 after Ctrl-C.

        143 too where no signal came: then another process of this run had it.
        """
        return 128 + (self.signal or signal.SIGTERM)

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError), contextlib.ExitStack() as stack:
            for number in SIGNALS:
                old = signal.signal(number, self._note)
                stack.callback(signal.signal, number, self._afterwards.get(number, old))
            ear, mouth = socket.socketpair()
            mouth.setblocking(False)
            thread = threading.Thread(target=self._listen, args=(ear,), daemon=True, name="signals")
            thread.start()
            stack.callback(ear.close)
            stack.callback(thread.join)
            stack.callback(mouth.close)
            stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False))
            # What comes first at the end: a signal that `_note` takes while nobody listens is lost.
            for number, handler in self._afterwards.items():
                stack.callback(signal.signal, number, handler)
            self._leave = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Python's handler: what it leaves undone, `_listen` does."""
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()

    def _listen(self, ear: socket.socket) -> None:
        """Take the numbers of signals as the system hands them over, until the other end is closed."""
        heard = False
        while numbers := ear.recv(64):
            for number in numbers:
                if number not in SIGNALS:
                    continue
                self._note(number, None)
                if heard and number == signal.SIGINT:
                    say(LEAVING)
                    os._exit(128 + signal.SIGINT)
                if not heard:
                    say(self._said[signal.Signals(number)])
                heard = True


def waiting_handler() -> Handler:
    """The handler of signals for one of several processes whose own part of the run has ended: it goes on waiting.

    A process that left alone would keep the others for five minutes in JAX' shutdown, which waits for all. Ctrl-C after
    the first signal leaves all the same.
    """
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        if len(heard) == 1:
            say(PARTING)
        elif number == signal.SIGINT:
            say(LEAVING)
            os._exit(128 + signal.SIGINT)

    return hear


def say(words: bytes) -> None:
    """Write to standard error; not with print, in the midst of which the process may be."""
    with contextlib.suppress(OSError):
        os.write(2, words)
