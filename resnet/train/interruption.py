"""SIGTERM and Ctrl-C: the run saves and leaves; a second Ctrl-C leaves at once."""

import signal
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Notes a signal instead of dying of it; the loop asks `requested` between steps. A context manager.

    The old handlers come back at the end, and after the first signal, so that a second one acts at once. Outside the
    main thread Python takes no handlers; signals then act as ever.
    """

    def __init__(self) -> None:
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
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._old = {}
