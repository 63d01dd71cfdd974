"""How long the doctor takes over many small files: claimed are 100,000 of CIFAR's size in under 3 minutes on 2 cores.

    python -m benchmarks.doctor [--data=.data/cifar10] [--count=100000] [--folder=DIR] [--out=FILE]

The files are CIFAR-10's own and, beyond its 60,000, the same turned by 90, 180 and 270 degrees: as many pairs to
compare as other photographs would give. They are written to a temporary folder, or to --folder, which is kept, so the
system holds them in memory when they are read. Exit code 1 if it took longer than claimed.
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import record
from input_pipeline.errors import InputError
from resnet import command

ROOT = Path(__file__).resolve().parent.parent
CLAIMED_SECONDS = 180


def write_files(data: Path, folder: Path, count: int) -> int:
    """Put `count` images under `folder`, in the splits and classes of `data`; how many stand there in the end."""
    sources = sorted(path for path in data.rglob("*") if path.is_file())
    # A small count, too, has files of all splits and classes.
    random.Random(0).shuffle(sources)
    for number in range(min(count, 4 * len(sources))):
        source, turn = sources[number % len(sources)], number // len(sources)
        target = folder / source.relative_to(data)
        target = target.with_name(f"{target.stem}_{90 * turn}{target.suffix}")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            continue
        if turn:
            with Image.open(source) as image:
                image.rotate(90 * turn).save(target)
        else:
            target.write_bytes(source.read_bytes())
    return sum(1 for path in folder.rglob("*") if path.is_file())


def measure(folder: Path) -> dict[str, Any]:
    """Wall-clock and processor seconds of the command in a process of its own, with no memory of an earlier time."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        words = [sys.executable, "-m", "input_pipeline.doctor", str(folder)]
        environment = os.environ | {"XDG_CACHE_HOME": cache}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode == 2:
        raise InputError(done.stderr.strip().removeprefix("error: "))
    return {
        "wall_seconds": round(time.monotonic() - start, 1),
        "user_seconds": round(after.ru_utime - before.ru_utime, 1),
        "system_seconds": round(after.ru_stime - before.ru_stime, 1),
        "peak_megabytes": round(after.ru_maxrss / 1024),
        "cores": len(os.sched_getaffinity(0)),
        "nice": os.nice(0),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=".data/cifar10")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--folder", help="where the files are written and kept (default: a temporary folder)")
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="doctor-") as temporary:
        folder = Path(arguments.folder or temporary).absolute()
        files = write_files(Path(arguments.data), folder, arguments.count)
        figures = {"files": files, **measure(folder)}
    for name, value in figures.items():
        print(f"{name:16} {value:,}")
    record.write("doctor", figures, arguments.out)
    return 0 if figures["wall_seconds"] <= CLAIMED_SECONDS else 1


if __name__ == "__main__":
    command.run(main)
