"""Finds oneDNN, compiles what connects it with XLA (onednn.c) and loads both; `python -m resnet.model.onednn_library`.

oneDNN is the library that torch and TensorFlow compute convolutions with on a CPU; here it comes in the package
onednn-cpu-gomp. onednn.c is made into a library by the machine's C compiler the first time that it is needed, in less
than a second, and kept in the user's cache. Whatever is missing for it, `missing` says.
"""

import argparse
import ctypes
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax

from native.library import compiled, in_one_line, reason

PACKAGE = "onednn-cpu-gomp"
# Set to 0, convolutions are computed without oneDNN.
SWITCH = "RESNET_ONEDNN"
TARGETS = tuple(
    f"convolution_{name}"
    for name in ("output", "input_gradient", "weight_gradient", "evaluated", "trained", "trained_gradient")
)
POOLED, POOLED_GRADIENT = "pooled", "pooled_gradient"
PREPARED, KERNELS, THREADS = "convolution_prepared", "kernels_prepared", "threads"
_SOURCES = (
    "onednn.c",
    *(
        f"onednn_{name}.h"
        for name in [
            "buffers",
            "call",
            "compiled",
            "few",
            "interface",
            "norms",
            "pooling",
            "reading",
            "rows",
            "taps",
            "training",
            "work",
        ]
    ),
)
# What `_require_processor` has found; AVX-512 would read no faster from beyond the first cache.
_VECTORS = ("-mavx2", "-mfma")
# Guards `_outcome`: cache alone would let two threads that come first at the same time both load.
_loading = threading.Lock()


def missing() -> str:
    """What this machine lacks for convolutions by oneDNN, in one line; empty where they can be called.

    The first call loads, and if need be compiles, and makes TARGETS known to XLA; the others only repeat its answer.
    """
    with _loading:
        return _outcome()


def function(name: str) -> Any:
    """A function of onednn.c's, where nothing is `missing`."""
    return getattr(_load(), name)


@functools.cache
def _outcome() -> str:
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 is set"
    try:
        _require_processor()
        library = _library()
        handlers = _load()
        handlers.start.restype = ctypes.c_char_p
        wrong = handlers.start(os.fsencode(library))
        if wrong:
            return in_one_line(wrong.decode(errors="replace"))
        for name in (*TARGETS, POOLED, POOLED_GRADIENT, PREPARED, KERNELS, THREADS):
            jax.ffi.register_ffi_target(target(name), jax.ffi.pycapsule(getattr(handlers, name)), platform="cpu")
    except (ImportError, OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        return reason(error)
    return ""


def description() -> str:
    """Who computes float32 convolutions of large batches on this machine's CPU, and if it is not oneDNN, why."""
    lacking = missing()
    return f"XLA, without oneDNN: {lacking}" if lacking else f"oneDNN ({PACKAGE} {importlib.metadata.version(PACKAGE)})"


def target(name: str) -> str:
    """What XLA knows a handler of onednn.c by."""
    return f"resnet_{name}"


def _require_processor() -> None:
    """Raise OSError where there is no such library, or it is slower than XLA: by half in what SSE and AVX can do."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        raise OSError(f"{PACKAGE} is built for Linux on x86-64 only")
    if "avx2" not in Path("/proc/cpuinfo").read_text().split():
        raise OSError("the processor has no AVX2")


def _library() -> Path:
    """The file of oneDNN. Raises PackageNotFoundError, or FileNotFoundError where the package lacks it."""
    for file in importlib.metadata.files(PACKAGE) or ():
        path = Path(str(file.locate()))
        if file.name == "libdnnl.so.3" and path.exists():
            return path
    raise FileNotFoundError(f"the package {PACKAGE} is installed without its libdnnl.so.3")


@functools.cache
def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(_compiled()))
    except OSError:
        # What was kept is damaged, or there is nothing yet and no way to make it, which shows again.
        _compiled().unlink(missing_ok=True)
        return ctypes.CDLL(str(_compiled()))


def _compiled() -> Path:
    """The library made of onednn.c. Raises as `native.library.compiled` does."""
    sources = [Path(__file__).with_name(name) for name in _SOURCES]
    include = Path(jax.ffi.include_dir())
    interface = include / "xla" / "ffi" / "api" / "c_api.h"
    return compiled("onednn", sources, headers=(interface,), options=(f"-I{include}", *_VECTORS, "-ldl", "-lm"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Say who computes float32 convolutions on this machine's CPU, and why."
    )
    parser.parse_args()
    print(description())


if __name__ == "__main__":
    main()
