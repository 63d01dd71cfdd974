"""Finds oneDNN, compiles what connects it with XLA (onednn.c) and loads both; `python -m resnet.model.onednn_library`.

oneDNN is the library that torch and TensorFlow compute convolutions with on a CPU; here it comes in the package
onednn-cpu-gomp. onednn.c is made into a library by the machine's C compiler the first time that it is needed, in less
than a second, and kept in the user's cache. Whatever is missing for it, `missing` says.
"""

import argparse
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import jax

PACKAGE = "onednn-cpu-gomp"
# Set to 0, convolutions are computed without oneDNN.
SWITCH = "RESNET_ONEDNN"
TARGETS = tuple(f"convolution_{name}" for name in ("output", "input_gradient", "weight_gradient"))
_SOURCES = ("onednn.c", "onednn_interface.h", "onednn_work.h")
_COMPILERS = ("cc", "gcc", "clang")
_OPTIONS = ("-O3", "-shared", "-fPIC", "-pthread")
# Guards `_outcome`: cache alone would let two threads that come first at the same time both load.
_loading = threading.Lock()


def missing() -> str:
    """What this machine lacks for convolutions by oneDNN, in one line; empty where they can be called.

    The first call loads, and if need be compiles, and makes TARGETS known to XLA; the others only repeat its answer.
    """
    with _loading:
        return _outcome()


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
            return _in_one_line(wrong.decode(errors="replace"))
        for name in TARGETS:
            jax.ffi.register_ffi_target(target(name), jax.ffi.pycapsule(getattr(handlers, name)), platform="cpu")
    except importlib.metadata.PackageNotFoundError:
        return f"the package {PACKAGE} is not installed"
    except subprocess.CalledProcessError as error:
        said = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr)
        return _in_one_line(f"{error.cmd[0]} could not compile {_SOURCES[0]} (exit code {error.returncode}) {said}")
    except (OSError, RuntimeError, AttributeError, subprocess.TimeoutExpired) as error:
        about = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        return _in_one_line(about)
    return ""


def description() -> str:
    """Who computes float32 convolutions of large batches on this machine's CPU, and if it is not oneDNN, why."""
    reason = missing()
    return f"XLA, without oneDNN: {reason}" if reason else f"oneDNN ({PACKAGE} {importlib.metadata.version(PACKAGE)})"


def target(name: str) -> str:
    """What XLA knows a handler of onednn.c by."""
    return f"resnet_{name}"


def _require_processor() -> None:
    """Raise OSError where there is no such library, or it is slower than XLA: by half in what SSE and AVX can do."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        raise OSError(f"{PACKAGE} is made for Linux on x86-64 alone")
    if "avx2" not in Path("/proc/cpuinfo").read_text().split():
        raise OSError("the processor has no AVX2")


def _library() -> Path:
    """The file of oneDNN. Raises PackageNotFoundError, or FileNotFoundError where the package lacks it."""
    for file in importlib.metadata.files(PACKAGE) or ():
        path = Path(str(file.locate()))
        if file.name == "libdnnl.so.3" and path.exists():
            return path
    raise FileNotFoundError(f"the package {PACKAGE} is there without its libdnnl.so.3")


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(_compiled()))
    except OSError:
        # What was kept is damaged, or there is nothing yet and no way to make it, which shows again.
        _compiled().unlink(missing_ok=True)
        return ctypes.CDLL(str(_compiled()))


def _compiled() -> Path:
    """The library made of onednn.c, from the cache or made now; one for each source, interface and compiler.

    Raises FileNotFoundError without a compiler, CalledProcessError with what it said, OSError for an unwritable cache.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), *_COMPILERS))), None)
    if not compiler:
        raise FileNotFoundError("there is no C compiler (Debian: apt install gcc libc6-dev)")
    sources = [Path(__file__).with_name(name) for name in _SOURCES]
    interface = Path(jax.ffi.include_dir())
    contents = [path.read_bytes() for path in (*sources, interface / "xla" / "ffi" / "api" / "c_api.h")]
    name = hashlib.sha256(b"\0".join([*contents, *map(os.fsencode, (compiler, *_OPTIONS))])).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet-jax" / "onednn"
    library = folder / f"{name}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        made = Path(own, library.name)
        command = [compiler, *_OPTIONS, f"-I{interface}", "-o", str(made), str(sources[0]), "-ldl"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        # In one step: other processes may be at it too, or be killed.
        made.replace(library)
    return library


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Say who computes float32 convolutions on this machine's CPU, and why."
    )
    parser.parse_args()
    print(description())


if __name__ == "__main__":
    main()
