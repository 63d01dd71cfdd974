"""Memory stays bounded: what a run holds after many steps beside what it held after a few.

    python -m benchmarks.soak [--steps=2000] [--first=200] [--out=FILE]

Trains a small network on drawn flowers through `train_main.py`, in a process of its own, with an evaluation and a
checkpoint every hundredth step, and reads its resident memory at each training line, as it is and after `malloc_trim`,
by which the C library gives back to the system what the program has freed. Without that it keeps the 180 MB that the
compiler used until a chance lets go of them, between steps 300 and 500: a drop that would hide what grows. Python's
garbage is not collected for the reading. Exit code 1 unless, after trimming, the last figure is within 5 % of the one
after `--first` steps and none from there on is more than 5 % above any before it. Linux with glibc.
"""

import argparse
import ctypes
import itertools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import record
from input_pipeline.demo import write_demo
from input_pipeline.errors import InputError
from resnet import command

ROOT = Path(__file__).resolve().parent.parent
EVERY, BATCH, PER_CLASS, VAL_FRACTION = 100, 8, 20, 0.2
CLASSES = 5
MOST_CHANGE = 0.05


def flags(data: Path, steps: int) -> list[str]:
    """The run: a residual network of two narrow blocks at 16 px, with averages, momentum and augmentation."""
    epochs = EVERY * BATCH / (CLASSES * PER_CLASS * (1 - VAL_FRACTION))
    settings = {
        "model.name": "cifar_resnet20",
        "model.stage_sizes": "(1,1)",
        "model.width": 8,
        "data.dir": str(data),
        "data.image_size": 16,
        "data.batch_size": BATCH,
        "data.val_fraction": VAL_FRACTION,
        "optim.ema": 0.99,
        "run.steps": steps,
        "run.log_every": EVERY,
        "run.eval_every": epochs,
        "run.checkpoint_every": epochs,
    }
    return ["--config=configs/default.py", *(f"--config.{key}={value}" for key, value in settings.items())]


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def watched_train(journal: Path, arguments: list[str]) -> None:
    """train_main.py with its memory read at each training line; a line of `journal` each."""
    # Here, not above: the process that waits for this one needs neither jax nor TensorFlow.
    from resnet.train.writers import MetricsWriter

    write, trim = MetricsWriter.write, ctypes.CDLL("libc.so.6").malloc_trim

    def read_and_write(self: MetricsWriter, step: int, epoch: float, kind: str, values: Mapping[str, Any]) -> None:
        if kind == "train":
            untrimmed = resident()
            trim(0)
            with journal.open("a") as file:
                file.write(json.dumps({"step": step, "untrimmed": untrimmed, "trimmed": resident()}) + "\n")
        write(self, step, epoch, kind, values)

    MetricsWriter.write = read_and_write  # type: ignore[method-assign]
    sys.argv = ["train_main.py", *arguments]
    runpy.run_path(str(ROOT / "train_main.py"), run_name="__main__")


def soak(folder: Path, steps: int) -> dict[int, dict[str, int]]:
    """Bytes held after each hundredth step, 'untrimmed' and 'trimmed'."""
    write_demo(folder / "data", per_class=(PER_CLASS, 8))
    journal, log = folder / "journal", folder / "log"
    journal.touch()
    words = [sys.executable, "-m", "benchmarks.soak", "--train", str(journal), f"--workdir={folder / 'run'}"]
    with log.open("w") as output, tqdm(total=steps, unit="step", disable=not sys.stderr.isatty()) as bar:
        process = subprocess.Popen([*words, *flags(folder / "data", steps)], cwd=ROOT, stdout=output, stderr=output)
        try:
            while process.poll() is None:
                bar.update(EVERY * len(journal.read_text().splitlines()) - bar.n)
                time.sleep(1)
        finally:
            process.terminate()
            process.wait()
    if process.returncode:
        raise InputError(f"the run ended with exit code {process.returncode}: {log.read_text().strip()[-500:]}")
    return {line.pop("step"): line for line in map(json.loads, journal.read_text().splitlines())}


def greatest_rise(sizes: list[int]) -> float:
    """By how much of itself a figure was surpassed at most by a later one: a drop does not hide what grows after it."""
    least = list(itertools.accumulate(sizes, min))
    return max(size / lowest - 1 for size, lowest in zip(sizes, least, strict=True))


def main() -> int:
    if sys.argv[1:2] == ["--train"]:
        watched_train(Path(sys.argv[2]), sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--first", type=int, default=200)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        held = soak(Path(folder), arguments.steps)
    for step, sizes in held.items():
        print(f"step {step:6,}  " + "  ".join(f"{name} {size / 1e6:8.1f} MB" for name, size in sizes.items()))
    change = {name: held[max(held)][name] / held[arguments.first][name] - 1 for name in ("untrimmed", "trimmed")}
    rise = greatest_rise([sizes["trimmed"] for step, sizes in held.items() if step >= arguments.first])
    print(
        f"after {max(held):,} steps {change['trimmed']:+.2%} of what was held after {arguments.first:,}, greatest rise "
        f"in between {rise:+.2%}; untrimmed {change['untrimmed']:+.2%}"
    )
    record.write("soak", {"resident_bytes": held, "change": change, "greatest_rise": rise}, arguments.out)
    return 0 if abs(change["trimmed"]) <= MOST_CHANGE and rise <= MOST_CHANGE else 1


if __name__ == "__main__":
    command.run(main)
