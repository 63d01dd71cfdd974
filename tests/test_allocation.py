"""Freed memory stays: what a run takes again is there without a page fault, unless the user or a device says no."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from resnet import allocation

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


@pytest.mark.parametrize(("device", "elsewhere"), [("nvidia3", True), ("vfio/1", True), ("nvidiactl", False)])
def test_an_accelerator_is_known_by_whichever_of_its_devices_is_there(device, elsewhere, tmp_path, monkeypatch):
    """A container given the fourth of a machine's GPUs has no nvidia0."""
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(allocation, "_DEVICES", tmp_path)
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    assert allocation._computes_elsewhere() == elsewhere


# Steps that take and free 50 MB. Before the first and the eleventh something takes 300, and a block that outlives it
# comes to lie behind.
GROWING = """
import ctypes
from resnet.allocation import Heap, anonymous_bytes, keep_freed_memory
keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def use(megabytes, then=0):
    block = libc.malloc(megabytes << 20)
    ctypes.memset(ctypes.c_void_p(block), 1, megabytes << 20)
    libc.malloc(then)
    libc.free(block)
begin, heap = anonymous_bytes(), Heap()
for step in range(20):
    if step in (0, 10):
        use(300, then=100_000)
    use(50)
    given_back = heap.heed()
    print((anonymous_bytes() - begin) >> 20, int(given_back))
"""


def test_a_heap_gives_back_what_it_holds_in_vain_and_no_more():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", GROWING], env=environment, capture_output=True, text=True, check=True)
    held, given_back = zip(*(map(int, line.split()) for line in done.stdout.splitlines()), strict=True)
    assert [step for step, given in enumerate(given_back) if given] == [3, 10]
    assert min(held[:3]) > 290
    # Steps after it find their own 50 MB again, without giving them back each time.
    assert max(held[3], held[10]) < 20
    assert 45 < min(held[4:10]) <= max(held[4:10]) < 70
    assert 45 < min(held[11:]) <= max(held[11:]) < 70
