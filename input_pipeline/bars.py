"""How far work on many images has come: a bar on a terminal, a line now and then elsewhere, nothing for small sets."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from tqdm import tqdm

Batch = TypeVar("Batch")
# Smaller sets are done in a blink, and a bar would only flicker.
BAR_FROM = 500
# Seconds: a batch system keeps what is written, and an audit of ImageNet takes an hour.
_LINE_EVERY = 30.0


class Bar:
    """A context manager on standard error. what: 'checking images'. total: how many, `done` of which were done before.
    shown: False for nothing.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        done: int = 0,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._clock, self._done = what, total, clock, done
        self._shown = shown and total >= BAR_FROM
        self._bar = None
        if self._shown and sys.stderr.isatty():
            self._bar = tqdm(None, what, total, initial=done, unit="image", leave=False)
        self._start, self._last, self._first = 0.0, 0.0, 0

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._shown and not self._first:
            # The first waited for what is started once, a decoder say: it tells nothing of the rest.
            self._start, self._first = self._clock(), self._done
            self._last = self._start
        elif self._shown and (now := self._clock()) - self._last >= _LINE_EVERY:
            self._last, rate = now, (self._done - self._first) / (now - self._start)
            left = tqdm.format_interval((self._total - self._done) / rate)
            progress = f"{self._done:,} of {self._total:,} done, {rate:,.0f} a second, {left} left"
            print(f"{self._what}: {progress}", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def over_batches(batches: Iterable[Batch], what: str, total: int, size: int) -> Iterator[Batch]:
    """The batches, with a bar over their `total` images; each has `size` of them, the last what is left."""
    with Bar(what, total) as bar:
        for number, batch in enumerate(batches):
            yield batch
            bar.update(min(size, total - number * size))
