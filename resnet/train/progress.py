"""What a person sees while a run goes: a bar per epoch on a terminal, now and then a plain line elsewhere."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

Clock = Callable[[], float]
_LEAST_BAR = 3  # cells
_HORIZON = 10.0  # seconds after which a measurement counts 1/e in the shown speed


@dataclass(frozen=True)
class Interval:
    """What a DataWait measured: wall seconds, the part of them spent waiting for batches, and the images trained on."""

    seconds: float
    waited: float
    images: int

    @property
    def share(self) -> float:
        """The part of the time spent waiting for data, 0..1."""
        return min(1.0, self.waited / self.seconds) if self.seconds > 0 else 0.0

    @property
    def images_per_second(self) -> float:
        """Images trained on per second of wall time; 0 for an interval without duration."""
        return self.images / self.seconds if self.seconds > 0 else 0.0


class DataWait:
    """A stopwatch for the input: how much of the time the training loop stands waiting for its next batch.

    The loop wraps `next(batches)` in `waiting()`, names the images of each step with `count(images)`, wraps what is no
    training (evaluation, saving) in `paused()`, and takes an `interval()` as often as it logs.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._start_over()

    def _start_over(self) -> None:
        self._start, self._waited, self._paused, self._images = self._clock(), 0.0, 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent in this context is time waiting for data, also when it ends in StopIteration or an error."""
        start = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in this context belongs to no interval."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    def count(self, images: int) -> None:
        """Add the images of one step."""
        self._images += images

    def interval(self) -> Interval:
        """What was measured since the last call (or the start); the next interval starts now."""
        seconds = self._clock() - self._start - self._paused
        result = Interval(seconds=max(0.0, seconds), waited=self._waited, images=self._images)
        self._start_over()
        return result


class Speed:
    """Seconds a step and images a second, averaged over the last ten seconds or so.

    Sums of time, steps and images that decay together: with asynchronous dispatch single steps take 0 ms or very
    long, of which neither a mean of rates nor a median says anything, while their totals stay right.
    """

    def __init__(self) -> None:
        self._seconds = self._steps = self._images = 0.0

    def add(self, seconds: float, steps: int, images: int) -> None:
        """Take in `steps` steps with `images` images in all that took `seconds`."""
        keep = math.exp(-seconds / _HORIZON)
        self._seconds = keep * self._seconds + seconds
        self._steps = keep * self._steps + steps
        self._images = keep * self._images + images

    @property
    def seconds_per_step(self) -> float | None:
        """None before the first measurement."""
        return self._seconds / self._steps if self._steps else None

    @property
    def images_per_second(self) -> float | None:
        """None before the first measurement."""
        return self._images / self._seconds if self._seconds else None


def _width(stream: TextIO) -> dict[str, Any]:
    """How tqdm finds a bar's width: from the terminal, and where that says 0 (`script`, `docker run -t`), 100.

    Of 0 columns tqdm would fill none, and in 0 rows draw no bar: a run would show nothing at all.
    """
    try:
        told = os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):  # No descriptor behind it: tqdm has a way for that.
        told = True
    return {"dynamic_ncols": True} if told else {"ncols": 100, "nrows": 20}


class EpochBar:
    """The progress of a run: images/s, time left, share of data waiting, loss and top-1. A context manager.

    On a terminal one tqdm bar per epoch; elsewhere nothing but a plain line at most every `plain_every` seconds and
    one after the last step. The first step of the process (it compiles) and whatever runs inside `paused()` are left
    out of images/s; time left is that of the whole run and reckons with pauses as frequent as so far.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: float,
        *,
        start_step: int = 0,
        label: str = "",
        stream: TextIO | None = None,
        plain_every: float = 30.0,
        clock: Clock = time.perf_counter,
    ) -> None:
        """A run of `total_steps`, `start_step` of them done. Epoch e (from 0) ends at the first step s >= (e + 1) *
        steps_per_epoch, which may be fractional. label: what begins the bar or line, of several runs in turn.
        `stream` is standard error unless given; `clock` is in seconds.
        """
        self._total_steps, self._steps_per_epoch, self._plain_every = total_steps, steps_per_epoch, plain_every
        self._stream = stream if stream is not None else sys.stderr
        self._clock, self._label = clock, f"{label}  " if label else ""
        self._terminal = self._stream.isatty()
        self._bar: tqdm | None = None
        self._bar_epoch = 0
        self._step, self._first_step = start_step, start_step
        self._speed, self._paused_total, self._pause = Speed(), 0.0, 0.0
        self._loss: float | None = None
        self._top1: float | None = None
        self._wait_share: float | None = None
        self._last_update = self._last_line = clock()

    def update(
        self,
        step: int,
        images: int,
        *,
        loss: float | None = None,
        top1: float | None = None,
        wait_share: float | None = None,
    ) -> None:
        """`step` steps of the run are done, those since the last call on `images` images (0 for the same step again).

        loss, top1 and wait_share (both 0..1) are host numbers; one that is left out shows the last one given, so that
        the loop need not wait for the accelerator at every step.
        """
        now = self._clock()
        if self._step > self._first_step:
            self._speed.add(max(0.0, now - self._last_update - self._pause), step - self._step, images)
        self._last_update, self._pause = now, 0.0
        self._loss = self._loss if loss is None else loss
        self._top1 = self._top1 if top1 is None else top1
        self._wait_share = self._wait_share if wait_share is None else wait_share
        if self._terminal:
            self._advance_bar(step)
        elif now - self._last_line >= self._plain_every or step >= self._total_steps > self._step:
            self._last_line = now
            head = f"{self._head(self._epoch(step))}  step {step}/{self._total_steps}"
            print(f"{head}  {self._status(step)}", file=self._stream, flush=True)
        self._step = step

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For evaluation, saving and the like: time in this context does not count as training."""
        start = self._clock()
        try:
            yield
        finally:
            seconds = self._clock() - start
            self._pause += seconds
            self._paused_total += seconds

    def write(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if self._bar is not None:
            self._bar.clear()
        print(text, file=self._stream, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it stands. Calling it again does nothing."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _epoch(self, step: int) -> int:
        """The epoch, from 0, that the `step`-th step of the run belongs to."""
        # A step belongs to the epoch of its first example. The allowance keeps step 4 of 3 * (1 / 3) out of the first.
        return max(0, math.floor((step - 1) / self._steps_per_epoch + 1e-9))

    def _head(self, epoch: int) -> str:
        """`epoch 3/12` for the epoch 2, behind the label."""
        return f"{self._label}epoch {epoch + 1}/{self._epoch(self._total_steps) + 1}"

    def _epoch_end(self, epoch: int) -> int:
        """The number of steps done when `epoch` (from 0; -1 is the start) is."""
        return min(self._total_steps, math.ceil((epoch + 1) * self._steps_per_epoch - 1e-9))

    def _advance_bar(self, step: int) -> None:
        """Move the epoch's bar to `step`; a step beyond its end fills it and opens the bar of the step's epoch."""
        epoch = self._epoch(step)
        if self._bar is not None and epoch != self._bar_epoch:
            self._bar.update(self._bar.total - self._bar.n)
            self.close()
        start = self._epoch_end(epoch - 1)
        if self._bar is None:
            self._bar_epoch = epoch
            self._bar = tqdm(
                total=self._epoch_end(epoch) - start,
                initial=max(0, self._step - start),
                desc=self._head(epoch),
                file=self._stream,
                **_width(self._stream),
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )
        self._bar.set_postfix_str(self._status(step, self._room()), refresh=False)
        self._bar.update(step - start - self._bar.n)

    def _room(self) -> int | None:
        """Columns behind the bar, of which tqdm would cut off what is longer; None where nothing says how many."""
        assert self._bar is not None
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns or _width(self._stream)["ncols"]
        except (OSError, ValueError):
            return None
        # '{desc} 100%|{bar}| {n}/{total}, ' and the column that tqdm leaves free.
        return columns - len(self._bar.desc) - 2 * len(str(self._bar.total)) - 12 - _LEAST_BAR

    def _status(self, step: int, room: int | None = None) -> str:
        """What is known so far: `loss 1.234  top-1 56.7%  812 images/s  waiting for data 3%  04:05 left`.

        room: columns that there are (None: any number). Where they are too few, data's share, top-1 and images/s go, in
        this order; the loss and the time left stay.
        """
        parts = self._parts(step)
        for name in ("wait", "top1", "rate"):
            if room is None or len("  ".join(parts.values())) <= room:
                break
            parts.pop(name, None)
        return "  ".join(parts.values())

    def _parts(self, step: int) -> dict[str, str]:
        parts = {}
        if self._loss is not None:
            parts["loss"] = f"loss {self._loss:.4g}"
        if self._top1 is not None:
            parts["top1"] = f"top-1 {self._top1:.1%}"
        if (rate := self._speed.images_per_second) is not None:
            parts["rate"] = f"{rate:,.0f} images/s" if rate >= 100 else f"{rate:.3g} images/s"
        if self._wait_share is not None:
            parts["wait"] = f"waiting for data {self._wait_share:.0%}"
        if (seconds := self._seconds_left(step)) is not None:
            parts["left"] = f"{tqdm.format_interval(seconds)} left"
        return parts

    def _seconds_left(self, step: int) -> float | None:
        """Of the whole run, pauses as frequent as so far included; None before the speed is known."""
        per_step = self._speed.seconds_per_step
        if per_step is None:
            return None
        return (self._total_steps - step) * (per_step + self._paused_total / (step - self._first_step))
