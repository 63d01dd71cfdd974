"""What every test stands on: the CPU, and a compilation cache that outlives the run."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CACHE = Path(__file__).resolve().parent.parent / ".cache"

# Before jax is imported anywhere: tests never touch an accelerator and never argue about threads.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As commands have it, for the processes that are none too: TensorFlow is then there 1 to 2 s of 5 to 6 earlier.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "xla-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Most of what tests take is compiling programs that run for milliseconds: unoptimised, the suite takes 27 min of the
# cores' time, not 41 (2026-11-26). How fast a program is and how it is rounded change with it, not what it computes.
# Nor by XLA's emitters of fused loops, two thirds of what is left: 1.15 s of a small network's gradient, 0.37 without
# (2026-11-27).
_QUICKLY = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICKLY}".strip()

# Images of containers often forbid bytecode, and uv installs none: each of the dozens of processes that tests start
# would then compile all it imports, TensorFlow and JAX among it, 12 s of a CPU where 6 do. It is kept where it is in
# nobody's way.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(CACHE / "bytecode-tests"))
    sys.dont_write_bytecode, sys.pycache_prefix = False, os.environ["PYTHONPYCACHEPREFIX"]

# Files of half a minute and more, the longest first: run.sh gives each worker a file at a time, in this order, and what
# begins last should be short. xdist's own order, by numbers of tests, leaves the longest for the end.
LONGEST = (
    "train/test_processes.py",
    "train/test_steps_per_call.py",
    "train/test_devices.py",
    "train/test_interruption.py",
    "weights/test_full_depth_parity.py",
    "train/test_resume.py",
    "test_bad_input.py",
    "test_configs.py",
    "test_docs.py",
    "faults/test_faults.py",
    "weights/test_parity.py",
    "study/test_export.py",
    "train/test_any_spec.py",
    "train/test_transfer.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of LONGEST first; the rest stays as it was collected."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session", autouse=True)
def folder_of_all_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Below it each test has its own; `tests.bad_input_table` writes none of them down."""
    os.environ["BAD_INPUT_BASE"] = str(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file() -> Iterator[None]:
    """Compiled programs go with the test file that made them.

    They stayed to the end of a worker: of tests/model alone 4.2 GB and 8,020 mapped regions, with this 2.2 GB and 3,500
    at most (2026-11-28, one run each, looked at every 5 s).
    """
    yield
    if (jax := sys.modules.get("jax")) is not None:
        jax.clear_caches()


@pytest.fixture(scope="module")
def bare() -> Iterator[None]:
    """Runs in this process draw nothing (see `tests.bare`) while a test file has its tests."""
    # Here, not above: it imports jax and TensorFlow, which most test files do without.
    from tests.bare import leave_out

    with pytest.MonkeyPatch.context() as patch:
        leave_out(patch.setattr)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test file's own small drawn dataset (`tests.tiny`)."""
    from tests.tiny import tiny_data

    return tiny_data(tmp_path_factory.mktemp("drawn"))
