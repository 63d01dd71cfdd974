"""SIGTERM and Ctrl-C: the run saves and leaves; one more Ctrl-C leaves at once."""

import contextlib
import os
import signal
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAVING = b"\nSaving, then leaving; Ctrl-C once more leaves at once, without saving.\n"


class Interruption:
    """Notes a signal instead of dying of it; the loop asks `requested` between steps. A context manager.

    After the first signal Ctrl-C acts at once again. A second SIGTERM changes nothing: batch systems send one to each
    process of a job and one more through the launcher, and the save must survive that. The old handlers come back at
    the end. Outside the main thread Python takes no handlers; signals then act as ever.
    """

    def __init__(self, said: bytes = SAVING) -> None:
        """said: written to standard error at the first Ctrl-C."""
        self._said = said
        self.signal: int | None = None
        self._old: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells and batch systems expect: 143 after SIGTERM, 130 after Ctrl-C.

        143 too where no signal came: then another process of this run had it.
        """
        return 128 + (self.signal or signal.SIGTERM)

    def __enter__(self) -> Self:
        try:
            self._old = {number: signal.signal(number, self._note) for number in SIGNALS}
        except ValueError:
            self._old = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        if signal.SIGINT in self._old:
            signal.signal(signal.SIGINT, self._old.pop(signal.SIGINT))  # type: ignore[arg-type]
        if number == signal.SIGINT:
            # Not print: the signal may have come in the middle of one.
            with contextlib.suppress(OSError):
                os.write(2, self._said)

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._old = {}
