"""train_main.py that injures itself at a moment of the harness' choice; the code under test knows nothing of it.

INJURY is JSON: place, number (the how-manieth time the place is reached, from 0), delay (seconds after it, in which the
run goes on), kind (kill, terminate, interrupt, interrupt_twice, fill_disk), marker (a file, made just before the blow).
"""

import contextlib
import json
import os
import runpy
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resnet.train import beginning, evaluation, integrity, loop, parallel
from resnet.train.checkpoints import Checkpoints

INJURY = json.loads(os.environ["INJURY"])
reached: Counter[str] = Counter()


def at(place: str) -> None:
    """Note that `place` is reached; strike, now or a little later, if it is the one."""
    number = reached[place]
    reached[place] += 1
    if (place, number) == (INJURY["place"], INJURY["number"]):
        if INJURY["delay"] > 0:
            threading.Timer(INJURY["delay"], strike).start()
        else:
            strike()


def strike() -> None:
    Path(INJURY["marker"]).touch()
    kind = INJURY["kind"]
    if kind == "fill_disk":
        fill_disk(Path(INJURY["marker"]).parent / "ballast")
    elif kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGINT)
        if kind == "interrupt_twice":
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)


def fill_disk(ballast: Path) -> None:
    """Write until the disk is full to the last byte."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)


def before(owner: Any, name: str, place: str | Callable[..., str]) -> None:
    """Have `owner.name` pass `place` (or what `place` says of the arguments) each time it is called."""
    original = getattr(owner, name)

    def passing(*arguments: Any, **keywords: Any) -> Any:
        at(place if isinstance(place, str) else place(*arguments))
        return original(*arguments, **keywords)

    setattr(owner, name, passing)


def patch() -> None:
    # A shell that starts the harness in the background has it ignore Ctrl-C, and what it starts inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before(loop, "open_data", "open")
    before(beginning, "write_json", "directory")
    before(Checkpoints, "restore", "restore")
    last = lambda checkpoints, state, meta: "final_save" if meta.step == meta.config["run.steps"] else "save"  # noqa: E731
    before(Checkpoints, "save", last)
    before(integrity, "seal", "seal")
    before(loop, "write_curves", "end")
    compile_train_step, eval_batches = parallel.compile_train_step, evaluation.eval_batches

    def compiled(*arguments: Any) -> Callable[..., Any]:
        step = compile_train_step(*arguments)

        def counted(*state_and_batch: Any) -> Any:
            at("compile" if not reached["compile"] else "step")
            return step(*state_and_batch)

        return counted

    def batches(split: Any, *arguments: Any, **keywords: Any) -> Iterator[Any]:
        for batch in eval_batches(split, *arguments, **keywords):
            at(split.name)
            yield batch

    parallel.compile_train_step, evaluation.eval_batches = compiled, batches


if __name__ == "__main__":
    patch()
    runpy.run_path("train_main.py", run_name="__main__")
