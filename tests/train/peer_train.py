"""train_main.py as one of several processes under test: it can wait at a place, and notes which examples it was fed.

SILENT_ROUNDS: seconds after which a silent peer counts as lost, where the default is too long to wait for. FED: a
folder where each process leaves RANK.txt with the indices of each step's rows. PAUSE_AT and PAUSE_FILE as in
pausing_train.py, and one place more, seal:STEP: the save of that step is all written but for its final name. It draws
nothing (see tests/bare.py).
"""

import os
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax._src import compilation_cache, compiler

from resnet.train import heartbeat, integrity, stepping
from tests.bare import leave_out


def patch_seal() -> None:
    from tests.train import pausing_train

    seal = integrity.seal

    def seal_later(folder: Path) -> None:
        pausing_train.reached("seal", int(folder.name.partition(".")[0]))
        seal(folder)

    integrity.seal = seal_later
    pausing_train.patch()


def patch_feed(folder: Path) -> None:
    batches = stepping.train_batches

    def noted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with (folder / f"{jax.process_index()}.txt").open("a") as file:
            for batch in batches(*args, **kwargs):
                print(*batch["index"], file=file, flush=True)
                yield batch

    stepping.train_batches = noted


def patch_cache() -> None:
    """Have each process keep what it compiled, which JAX has process 0 alone do.

    The programs of the others have keys of their own, so that each start compiled them again: 9 s of a CPU, for which
    process 0 waits as well.
    """

    def write(key: str, seconds: float, name: str, backend: Any, program: Any, callbacks: Any) -> None:
        if not callbacks and seconds >= jax.config.jax_persistent_cache_min_compile_time_secs:
            compilation_cache.put_executable_and_time(key, name, program, backend, int(seconds))

    compiler._cache_write = write


if __name__ == "__main__":
    patch_cache()
    leave_out()
    heartbeat.SILENT_ROUNDS = int(os.environ.get("SILENT_ROUNDS", heartbeat.SILENT_ROUNDS))
    if "FED" in os.environ:
        patch_feed(Path(os.environ["FED"]))
    if "PAUSE_AT" in os.environ:
        patch_seal()
    runpy.run_path("train_main.py", run_name="__main__")
