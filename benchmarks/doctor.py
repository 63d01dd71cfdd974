"""How long the doctor takes over many small files: claimed are 100,000 of CIFAR's size in under 3 minutes on 2 cores.

    python -m benchmarks.doctor [--data=.data/cifar10] [--count=100000] [--folder=DIR]

The files are CIFAR-10's own and, beyond its 60,000, the same turned by 90, 180 and 270 degrees: as many pairs to
compare as other photographs would give. They are written to a temporary folder, or to --folder, which is kept.
Writes benchmarks/results/doctor.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
RESULT = Path(__file__).parent / "results" / "doctor.json"


def write_files(data: Path, folder: Path, count: int) -> int:
    """Put `count` images under `folder`, in the splits and classes of `data`; how many stand there in the end."""
    sources = sorted(path for path in data.rglob("*") if path.is_file())
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
        raise SystemExit(done.stderr)
    return {
        "wall_seconds": round(time.monotonic() - start, 1),
        "user_seconds": round(after.ru_utime - before.ru_utime, 1),
        "system_seconds": round(after.ru_stime - before.ru_stime, 1),
        "peak_megabytes": round(after.ru_maxrss / 1024),
        "load_average": round(os.getloadavg()[0], 1),
        "cores": len(os.sched_getaffinity(0)),
        "nice": os.nice(0),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", default=".data/cifar10")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--folder", help="where the files are written and kept (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        files = write_files(Path(options.data), folder, options.count)
        figures = {"files": files, **measure(folder)}
    RESULT.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(", ".join(f"{name} {value}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
