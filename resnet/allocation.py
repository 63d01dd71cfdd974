"""Memory that a CPU run frees stays with the process, so that the next step finds it mapped.

XLA on a CPU takes the memory of a whole step anew at every call and frees it at its end. glibc maps so large a block
from the kernel each time and gives it back, and the step touches every page for the first time: 116,000 page faults a
step of ResNet-50 (64 px, batch 32), a quarter of its CPU time and 410 ms where it takes 305 without them (2026-11-25).
"""

import ctypes
import os
import sys
from pathlib import Path

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
# What the drivers of accelerators put there: NVIDIA, AMD, TPUs.
_ACCELERATORS = ("nvidia0", "kfd", "accel0", "vfio/0")


def keep_freed_memory() -> bool:
    """Have glibc serve all blocks, large ones too, from one heap that never shrinks; whether it was done.

    Only where the host computes: not if JAX_PLATFORMS names, or /dev holds, an accelerator, whose host threads would
    only stand in line at the one heap. Nor without glibc, nor if the user has settings for malloc of their own. Call it
    before other threads have allocated, best before jax is imported; it holds for the rest of the process.
    """
    if not sys.platform.startswith("linux") or _computes_elsewhere() or _has_settings():
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # Large blocks come from the heap only in the first arena, hence one for all threads: the block of a step is asked
    # for by a thread of XLA's. -1: never give back (mallopt(3)).
    return all(set_option(*option) == 1 for option in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)))


def _computes_elsewhere() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] != "cpu"
    return any(Path("/dev", name).exists() for name in _ACCELERATORS)


def _has_settings() -> bool:
    return any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
