"""What every test stands on: the CPU, and a compilation cache that outlives the run."""

import os
from pathlib import Path

import pytest

# Before jax is imported anywhere: tests never touch an accelerator and never argue about threads.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parent.parent / ".cache" / "xla-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@pytest.fixture(scope="session", autouse=True)
def folder_of_all_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Below it each test has its own; `tests.bad_input_table` writes none of them down."""
    os.environ["BAD_INPUT_BASE"] = str(tmp_path_factory.getbasetemp())
