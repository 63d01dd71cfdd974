"""Memory that a CPU run frees stays with the process, so that the next step finds it mapped.

XLA on a CPU takes the memory of a whole step anew at every call and frees it at its end. glibc maps so large a block
from the kernel each time and gives it back, and the step touches every page for the first time: 116,000 page faults a
step of ResNet-50 (64 px, batch 32), a quarter of its CPU time and 410 ms where it takes 305 without them (2026-11-25).

What is kept has to be kept from growing, too: see `Heap`.
"""

import ctypes
import os
import sys
from pathlib import Path

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
# What the drivers of accelerators put into _DEVICES: NVIDIA, AMD, TPUs. A container that was given one of several may
# have nvidia3 alone.
_DEVICES = Path("/dev")
_ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel[0-9]*", "vfio/[0-9]*")
_STATM = Path("/proc/self/statm")
# Calls after which a loop has its blocks again, and by how much they may outgrow what they were then.
_SETTLED, _GROWTH = 4, 1.3


def keep_freed_memory() -> bool:
    """Have glibc serve all blocks, large ones too, from one heap that never shrinks; whether it was done.

    Only where the host computes: not if JAX_PLATFORMS names, or /dev holds, an accelerator, whose host threads would
    only stand in line at the one heap. Nor without glibc, nor if the user has settings for malloc of their own. Call it
    before other threads have allocated, best before jax is imported; it holds for the rest of the process.
    """
    if not _is_ours():
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # Large blocks come from the heap only in the first arena, hence one for all threads: the block of a step is asked
    # for by a thread of XLA's. -1: never give back (mallopt(3)).
    return all(set_option(*option) == 1 for option in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)))


class Heap:
    """Gives back what the heap of a loop holds in vain. Call `heed` after each step.

    Blocks of single threads that outlive a step come to lie in the gap that its block leaves; the next one, gigabytes
    in one piece, then finds no room there, and the heap grows by another, and by others where compiling, evaluating and
    saving left gaps. ResNet-50 at 224 px in batches of 32 held 14 GB where its steps take 3 (2026-11-27). So all that
    is free goes back to the system once a few steps are done, and again whenever the process has outgrown by a third
    what it needed a few steps later. That costs the next step its page faults, and no other.
    """

    def __init__(self) -> None:
        self._calls, self._limit, self._trimmed = 0, 0.0, False
        known = _is_ours() and _STATM.exists()
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if known else None

    def heed(self) -> bool:
        """Give back what is free if there is much of it; whether it was done."""
        self._calls += 1
        if self._trim is None or self._calls < _SETTLED:
            return False
        held = anonymous_bytes()
        if self._trimmed and self._calls == _SETTLED:
            # Never lower: a loop that needs more at times would give it back each time.
            self._limit = max(self._limit, _GROWTH * held)
        if held <= self._limit:
            return False
        self._trim(0)
        self._calls, self._trimmed = 0, True
        return True


def anonymous_bytes() -> int:
    """Memory of this process that is no file's, in bytes; Linux."""
    _, resident, shared = (int(pages) for pages in _STATM.read_text().split()[:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def _is_ours() -> bool:
    """Whether the heap is one that may be told what to do."""
    return sys.platform.startswith("linux") and not _computes_elsewhere() and not _has_settings()


def _computes_elsewhere() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] != "cpu"
    return any(any(_DEVICES.glob(pattern)) for pattern in _ACCELERATORS)


def _has_settings() -> bool:
    return any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
