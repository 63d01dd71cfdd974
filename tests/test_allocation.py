"""Freed memory stays: what a run takes again is there without a page fault, unless the user or a device says no."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

# Takes and frees 64 MB five times, in a thread as XLA does, and counts the faults of the last four.
PROGRAM = """
import resource, threading
from resnet.allocation import keep_freed_memory
kept = keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts, size = [], 64 << 20
def work():
    for _ in range(5):
        before = faults()
        b"x" * size
        counts.append(faults() - before)
thread = threading.Thread(target=work)
thread.start(); thread.join()
print(kept, sum(counts[1:]))
"""


def kept_and_faults(**settings: str) -> tuple[str, int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | settings
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept, int(faults)


def test_what_is_taken_again_is_not_mapped_again():
    kept, faults = kept_and_faults()
    assert kept == "True"
    # 64 MB are 16,384 pages, four times.
    assert faults < 100


@pytest.mark.parametrize("settings", [{"JAX_PLATFORMS": "cuda,cpu"}, {"MALLOC_TOP_PAD_": "0"}])
def test_accelerators_and_the_users_own_settings_are_left_alone(settings):
    kept, faults = kept_and_faults(**settings)
    assert kept == "False"
    assert faults > 10_000
