"""Several processes as one run: who the peers are and which one writes. What happens when one is lost: see `peers`.

JAX' own runtime does the work (jax.distributed); this file decides when it is started, and with what.
"""

import contextlib
import ctypes
import importlib.util
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from input_pipeline.errors import InputError, printable
from input_pipeline.recipe import first_line
from resnet.no_device import no_device

Result = TypeVar("Result")
# JAX' own limit for a peer without a heartbeat, which ends the others by an abort: a net beneath `heartbeat.Heartbeat`.
# By the clock, so a machine that was paused that long (a laptop, a virtual machine that moved) ends its run.
HEARTBEAT_SECONDS = 600
# How long the first waits for the last: imports from a slow disk, a queue for the last machine.
MEET_SECONDS = 300
# Where a launcher tells each process how many there are and which one it is, as it sets them for the tasks it starts.
NUMBERS = {
    "SLURM": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}
# Lists of the GPUs that a process can see.
VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def join(coordinator: str, num_processes: int, process_id: int, environment: Mapping[str, str] = os.environ) -> None:
    """Become one of several processes, before anything else asks JAX for devices; alone, do nothing.

    coordinator ('HOST:PORT' of process 0), num_processes and process_id come from the command line ('', 0 and -1 where
    not given). Without them, the peers are found where SLURM, Open MPI, a Cloud TPU slice or a Kubernetes Job started
    them; the coordinator alone is enough where a launcher says the rest. --num_processes=1 alone keeps a process to
    itself wherever it was started. Raises InputError for flags that do not fit together, for a launcher that does not
    say enough, and where the peers do not meet within five minutes.
    """
    arguments = peers_of(coordinator, num_processes, process_id, environment)
    if arguments is None:
        return
    # JAX would take SIGTERM for itself from here on, in C, and nobody asks it: one that came before the run has its own
    # handlers (`interruption`), while data are opened, say, was lost.
    jax.config.update("jax_enable_preemption_service", False)
    where = f"--coordinator={printable(coordinator)}" if coordinator else launcher(environment)
    # JAX' answer to a peer that does not come.
    heed_no_more = catch_abort(lambda: give_up(unmet(where, f"one did not connect within {MEET_SECONDS} s")))
    try:
        jax.distributed.initialize(
            **arguments, initialization_timeout=MEET_SECONDS, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
        # Here, where all arrive together: on CPU the peers must ask for devices, and send their first message, within
        # half a minute of each other.
        check_devices(jax.devices())
        barrier("all are here")
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        # A device that this process cannot use is no fault of the peers.
        raise InputError(no_device(error) or unmet(where, first_line(error))) from error
    finally:
        heed_no_more()


def unmet(where: str, why: str) -> str:
    return (
        f"{where}: the processes did not find each other ({why}); check that all were started, with the same "
        "--coordinator and --num_processes and each with its own --process_id"
    )


def give_up(why: str) -> None:
    """End this process with a line and exit code 2, from a handler in which nothing can be raised."""
    with contextlib.suppress(OSError):
        os.write(2, f"error: {why}\n".encode())
    os._exit(2)


def catch_abort(answer: Callable[[], None]) -> Callable[[], None]:
    """Have `answer` called where this process aborts; until what this returns is called.

    In C, for Python's own handlers run only after the signal's, and abort() does not return.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: answer())
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    before = library.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))

    def heed_no_more(handler: object = handler) -> None:
        # The default holds the handler, which has to outlive its use.
        library.signal(signal.SIGABRT, before)

    return heed_no_more


def check_devices(devices: Sequence[jax.Device]) -> None:
    """Raise InputError unless each process has as many of them: batches are divided evenly over both."""
    counts = Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        told = ", ".join(f"process {rank} has {count}" for rank, count in sorted(counts.items()))
        raise InputError(f"the processes have different numbers of devices ({told[:300]}); give each the same number")


def peers_of(
    coordinator: str, num_processes: int, process_id: int, environment: Mapping[str, str]
) -> dict[str, Any] | None:
    """What jax.distributed.initialize is told, None for a process that is alone; what is left out, JAX finds."""
    if (coordinator, num_processes, process_id) in (("", 1, -1), ("", 1, 0)):
        return None
    name = launcher(environment)
    given = (bool(coordinator), num_processes != 0, process_id != -1)
    if given == (True, False, False) and name in NUMBERS:
        num_processes, process_id = (number(environment, variable) for variable in NUMBERS[name])
    elif not any(given):
        return found_by(name, environment)
    check_flags(coordinator, num_processes, process_id)
    arguments: dict[str, Any] = {"num_processes": num_processes, "process_id": process_id}
    # With flags JAX is not to look around: of a shell in a SLURM allocation it would take one GPU and leave the rest.
    return {"coordinator_address": coordinator, **arguments, "cluster_detection_method": "deactivate"}


def found_by(name: str, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """`peers_of` where there are no flags. Raises InputError for a launcher that says too little for JAX."""
    if name == "Open MPI" and "OMPI_MCA_orte_hnp_uri" not in environment:
        # Up to version 4 it is set; 5 has no such variable.
        raise InputError(
            "Open MPI 5 does not say where process 0 runs: give its --coordinator=HOST:PORT; the number of "
            "processes and the rank are known"
        )
    if name == "Kubernetes" and importlib.util.find_spec("kubernetes") is None:
        raise InputError(
            "Kubernetes: the image lacks the package 'kubernetes', by which JAX finds the peers; install it, or give "
            "--coordinator, --num_processes and --process_id as launch/jobset.yaml does (--num_processes=1 for a pod "
            "that trains alone)"
        )
    if not name:
        return None
    arguments: dict[str, Any] = {}
    if name == "SLURM":
        # Of the step. JAX reads SLURM_NTASKS, which can be the whole allocation's.
        arguments["num_processes"] = number(environment, NUMBERS[name][0])
    if name in NUMBERS and "JAX_LOCAL_DEVICE_IDS" not in environment and sees_one_device(environment):
        # JAX takes the GPU of the task's number on its node, which is not there where each task sees its own alone.
        arguments["local_device_ids"] = [0]
    return arguments


def sees_one_device(environment: Mapping[str, str]) -> bool:
    """Whether the launcher gave this process one GPU (--gpus-per-task=1, --gpu-bind=single:1)."""
    return any(environment.get(name, "") and "," not in environment[name] for name in VISIBLE)


def check_flags(coordinator: str, num_processes: int, process_id: int) -> None:
    """Raise InputError unless the three flags describe one process of a job."""
    for name, value, least in (("num_processes", num_processes, 0), ("process_id", process_id, -1)):
        if value < least:
            raise InputError(f"--{name}={value} must be at least {least + 1}")
    if not (coordinator and num_processes > 0 and process_id >= 0):
        raise InputError("--coordinator, --num_processes and --process_id go together: give all three or none")
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InputError(f"--coordinator={printable(coordinator)} must be HOST:PORT of process 0, such as node1:9876")
    if process_id >= num_processes:
        raise InputError(f"--process_id={process_id} must be below --num_processes={num_processes}")


def number(environment: Mapping[str, str], name: str) -> int:
    """The variable as a number; 0 where it is none."""
    text = environment.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def launcher(environment: Mapping[str, str]) -> str:
    """What started this process as one of several, '' for nothing known; JAX reads the rest from the same variables."""
    if number(environment, "SLURM_STEP_NUM_TASKS") > 1 and "SLURM_PROCID" in environment:
        return "SLURM"
    if number(environment, "OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    workers = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", ""))
    if "," in workers or "MEGASCALE_COORDINATOR_ADDRESS" in environment or several_tpu_hosts():
        return "Cloud TPU"
    # A pod of an indexed Job; JAX asks the cluster for the rest, which needs the 'kubernetes' package in the image.
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "Kubernetes"
    return ""


def several_tpu_hosts() -> bool:
    """Whether this is a Cloud TPU VM of a slice of several: no variable says so, Google's metadata server does.

    Asked the way JAX does, and only where JAX has seen TPU chips; False where nobody answers.
    """
    try:
        from jax._src import cloud_tpu_init
        from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

        if not cloud_tpu_init.running_in_cloud_tpu_vm:
            return False
        return GceTpuCluster.is_env_present() and len(GceTpuCluster._get_worker_list_in_slice()) > 1
    except (ImportError, OSError, ValueError):  # Not public, so it may move; the errors of requests are OSErrors.
        return False


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
    """Return when all processes are here. Raises RuntimeError where one is lost meanwhile."""
    if several():
        from jax.experimental import multihost_utils

        try:
            multihost_utils.sync_global_devices(name)
        except ValueError as error:
            # JAX' word for a message that failed, which around a save would pass for a refusal of the disk.
            raise RuntimeError(str(error)) from error


def by_primary(work: Callable[[], Result]) -> Result | None:
    """Do what changes folders in one process, while the others wait for it; its result there, None in the others."""
    done = work() if primary() else None
    barrier("work of one process")
    return done
