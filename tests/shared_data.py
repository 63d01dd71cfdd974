"""The real data sets that some tests look at, unpacked once under .data/, next to the checkout's ../shared."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared(name: str) -> Path:
    """Folder of the set `name` (brain_mri, caltech101, flower_photos, cifar10, weights); skips where there is none."""
    data = ROOT / ".data"
    if (data / name).is_dir():
        return data / name
    unpack = ROOT.parent / "shared" / "data" / "unpack.py"
    if not unpack.is_file():
        pytest.skip(f"no .data/{name}, and no ../shared/data to unpack it from")
    data.mkdir(exist_ok=True)
    # Held while unpacking: the workers of pytest-xdist ask for the same set at the same time.
    with open(data / ".unpack.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (data / name).is_dir():
            subprocess.run([sys.executable, str(unpack), str(data), name], check=True, capture_output=True)
    return data / name
