"""Several processes as one run: who the peers are, which one writes, and what happens when one dies or hangs.

JAX' own runtime does the work (jax.distributed); this file decides when it is started and how it ends.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import jax

from input_pipeline.errors import InputError, printable
from input_pipeline.recipe import first_line

Result = TypeVar("Result")
# Seconds without a sign of life after which a peer counts as dead. JAX' default of 100 lets a job of 256 wait minutes.
HEARTBEAT_SECONDS = 20
# A run that lost a peer or hung: EX_TEMPFAIL of sysexits.h, "try again", which batch systems can be told to requeue on.
LOST_PEER = 75


def join(coordinator: str, num_processes: int, process_id: int, environment: Mapping[str, str] = os.environ) -> None:
    """Become one of several processes, before anything else asks JAX for devices; alone, do nothing.

    coordinator ('HOST:PORT' of process 0), num_processes and process_id come from the command line: all or none ('', 0,
    -1). Without them, the peers are found where SLURM, Open MPI, a Cloud TPU slice or a Kubernetes Job started them.
    Raises InputError for flags that do not fit together, and where the peers do not meet within five minutes.
    """
    given = (bool(coordinator), num_processes > 0, process_id >= 0)
    if any(given):
        check_flags(coordinator, num_processes, process_id)
        arguments = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    elif launcher(environment):
        arguments = {}
    else:
        return
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)  # type: ignore[arg-type]
        # Here, where all arrive together: on CPU the peers must ask for devices within half a minute of each other.
        jax.devices()
    except (RuntimeError, ValueError) as error:
        where = f"--coordinator={printable(coordinator)}" if coordinator else launcher(environment)
        raise InputError(
            f"{where}: the processes did not find each other ({first_line(error)}); see that all were started, with "
            "the same --coordinator and --num_processes and each its own --process_id"
        ) from error


def check_flags(coordinator: str, num_processes: int, process_id: int) -> None:
    """Raise InputError unless the three flags describe one process of a job."""
    if not (coordinator and num_processes > 0 and process_id >= 0):
        raise InputError("--coordinator, --num_processes and --process_id go together: give all three or none")
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 65536):
        raise InputError(f"--coordinator={printable(coordinator)} must be HOST:PORT of process 0, such as node1:9876")
    if process_id >= num_processes:
        raise InputError(f"--process_id={process_id} must be below --num_processes={num_processes}")


def launcher(environment: Mapping[str, str]) -> str:
    """What started this process as one of several, '' for nothing known; JAX reads the rest from the same variables."""

    def count(name: str) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdigit() else 0

    if count("SLURM_STEP_NUM_TASKS") > 1 and "SLURM_PROCID" in environment:
        return "SLURM"
    if count("OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        return "Cloud TPU"
    # A pod of an indexed Job; JAX asks the cluster for the rest, which needs the 'kubernetes' package in the image.
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "Kubernetes"
    return ""


def several() -> bool:
    """Whether this run has more than one process."""
    return jax.process_count() > 1


def primary() -> bool:
    """Whether this process is the one that writes and speaks for all."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Print, in one of several processes only."""
    if primary():
        print(text)


def barrier(name: str) -> None:
    """Return when all processes are here."""
    if several():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def by_primary(work: Callable[[], Result]) -> Result | None:
    """Do what changes folders in one process, while the others wait for it; its result there, None in the others."""
    done = work() if primary() else None
    barrier("work of one process")
    return done


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around a run of several processes: when one fails, its peer is lost or a collective breaks, all end.

    Without this a process that raises would wait for the others in JAX' shutdown barrier, and they for it, for minutes.
    The exit code is 2 for what the user can mend, else LOST_PEER.
    """
    if not several():
        yield
        return
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        mendable = isinstance(error, InputError)
        advice = "" if mendable else "; start all processes again, the run goes on from its last checkpoint"
        leave(f"{first_line(error)[:400]}{advice}", 2 if mendable else LOST_PEER)


def leave(reason: str, code: int) -> None:
    """Say why, with this process' rank, and end it without waiting for anybody; the others notice by the heartbeat."""
    print(f"error: process {jax.process_index()} of {jax.process_count()}: {reason}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


class Watchdog:
    """Ends this process when no step, evaluation batch or save was finished for `seconds`; a context manager.

    For runs of several processes, where a stuck peer would leave the others waiting in a collective for ever (JAX issue
    38503). Compiling is no hang: the clock starts with the first `beat`. seconds: 0 turns it off.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._last: float | None = None
        self._where = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def beat(self, where: str) -> None:
        """Something was finished: start the clock anew. where: what comes next, for the message."""
        self._last, self._where = time.monotonic(), where

    def rest(self) -> None:
        """Stop the clock until the next beat: for what takes its time, such as compiling."""
        self._last = None

    def __enter__(self) -> "Watchdog":
        if self.seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self.seconds / 4)):
            last = self._last
            if last is not None and time.monotonic() - last > self.seconds:
                leave(
                    f"nothing was finished for {self.seconds:g} s ({self._where}); a peer hangs or its network is "
                    "gone; start all processes again, the run goes on from its last checkpoint",
                    LOST_PEER,
                )
