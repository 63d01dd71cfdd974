"""train_main.py that waits at a place of the test's choice, so that a signal meets it just there.

PAUSE_AT names the place, NAME:NUMBER: open:0 (before the data are opened), train:STEP (the line of that step is
written), val:BATCH and test:BATCH (before that batch of an evaluation, counted from 0), save:STEP (its save has begun),
features:ROWS (that many rows of a probe's features are on disk; FEATURE_BATCH of them at a time), deaf:0 (the first
train step is called, and Python hears no signal before it returns, as while XLA compiles), ended:0 (signals are no
longer the run's, and what it leaves is taken down: in a callback, which cannot raise).
It makes the file PAUSE_FILE and goes on once that is gone. It draws nothing (see tests/bare.py).
"""

import os
import runpy
import signal
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resnet.train import evaluation, features, loop, parallel
from resnet.train.checkpoints import Checkpoints
from resnet.train.interruption import Interruption
from resnet.train.writers import MetricsWriter
from tests.bare import leave_out

PLACE = os.environ["PAUSE_AT"]
FILE = Path(os.environ["PAUSE_FILE"])


def reached(name: str, number: int) -> None:
    if f"{name}:{number}" == PLACE:
        FILE.touch()
        while FILE.exists():
            time.sleep(0.01)


def patch() -> None:
    open_data, eval_batches = loop.open_data, evaluation.eval_batches
    save, write, end = Checkpoints.save, MetricsWriter.write, Interruption.__exit__

    def open_later(config: Any, **options: Any) -> Any:
        reached("open", 0)
        return open_data(config, **options)

    def batches_later(split: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for number, batch in enumerate(eval_batches(split, *args, **kwargs)):
            reached(split.name, number)
            yield batch

    def write_and_wait(self: MetricsWriter, step: int, epoch: float, kind: str, values: Any) -> None:
        write(self, step, epoch, kind, values)
        if kind == "train":
            reached("train", step)

    def save_and_wait(self: Checkpoints, state: Any, meta: Any) -> None:
        save(self, state, meta)
        reached("save", meta.step)

    def end_and_wait(self: Interruption, *error: Any) -> None:
        end(self, *error)
        left = Interruption()
        reference = weakref.ref(left, lambda _: reached("ended", 0))
        del left, reference

    compile_train_step = parallel.compile_train_step

    def compiled(*args: Any) -> Any:
        step = compile_train_step(*args)

        def deaf(*state_and_batch: Any) -> Any:
            if PLACE == "deaf:0":
                # The system gives them to another thread; this one sleeps in C, where no handler of Python's can run.
                signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
                FILE.touch()
                time.sleep(3600)
            return step(*state_and_batch)

        return deaf

    rows = features.rows

    def rows_later(*args: Any) -> Iterator[int]:
        for done in rows(*args):
            reached("features", done)
            yield done

    features.rows = rows_later
    features.BATCH = int(os.environ.get("FEATURE_BATCH", features.BATCH))
    loop.open_data, evaluation.eval_batches = open_later, batches_later
    parallel.compile_train_step = compiled
    MetricsWriter.write, Checkpoints.save, Interruption.__exit__ = write_and_wait, save_and_wait, end_and_wait


if __name__ == "__main__":
    leave_out()
    patch()
    runpy.run_path("train_main.py", run_name="__main__")
