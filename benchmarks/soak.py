"""Memory stays bounded: what a run holds after many steps beside what it held after a few.

    python -m benchmarks.soak [--steps=2000] [--first=200] [--out=FILE]

Trains a small network on drawn flowers through `train_main.py`, in a process of its own, with an evaluation and a
checkpoint every hundredth step, and reads the process' resident memory as each training line appears: all of it, and
the anonymous part, which only the process can give back. The rest is pages of libraries and other files, which the
system takes away and brings back as other processes need room. Exit code 1 unless, of the anonymous part, the last
figure is within 5 % of the one after `--first` steps and none from there on is more than 5 % above any before it.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from input_pipeline.demo import write_demo
from input_pipeline.errors import InputError
from resnet import command
from resnet.train.provenance import revision

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
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


def resident(pid: int) -> dict[str, int]:
    """Bytes of memory that a process holds: 'all', and 'anonymous', what is no page of a file (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    kilobytes = {"all": fields["VmRSS"], "anonymous": fields["RssAnon"]}
    return {name: 1024 * int(text.split()[0]) for name, text in kilobytes.items()}


def steps_logged(metrics: Path) -> int:
    """The step of the newest whole training line; 0 for none."""
    if not metrics.exists():
        return 0
    lines = [line for line in metrics.read_text().splitlines() if line.endswith("}")]
    return max((record["step"] for record in map(json.loads, lines) if record["kind"] == "train"), default=0)


def soak(folder: Path, steps: int) -> dict[int, dict[str, int]]:
    """Bytes held after each hundredth step, as `resident` says."""
    write_demo(folder / "data", per_class=(PER_CLASS, 8))
    words = [sys.executable, "train_main.py", f"--workdir={folder / 'run'}", *flags(folder / "data", steps)]
    held: dict[int, dict[str, int]] = {}
    log = folder / "log"
    with log.open("w") as output, tqdm(total=steps, unit="step", disable=not sys.stderr.isatty()) as bar:
        process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=output)
        try:
            while process.poll() is None:
                step = steps_logged(folder / "run" / "metrics.jsonl")
                if step and step not in held:
                    held[step] = resident(process.pid)
                    bar.update(step - bar.n)
                time.sleep(0.02)
        finally:
            process.terminate()
            process.wait()
    if process.returncode:
        raise InputError(f"the run ended with exit code {process.returncode}: {log.read_text().strip()[-500:]}")
    return held


def greatest_rise(sizes: list[int]) -> float:
    """By how much of itself a figure was surpassed at most by a later one: a drop does not hide what grows after it."""
    least = list(itertools.accumulate(sizes, min))
    return max(size / lowest - 1 for size, lowest in zip(sizes, least, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--first", type=int, default=200)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        held = soak(Path(folder), arguments.steps)
    for step, sizes in held.items():
        print(f"step {step:6,}  " + "  ".join(f"{name} {size / 1e6:8.1f} MB" for name, size in sizes.items()))
    change = {name: held[max(held)][name] / held[arguments.first][name] - 1 for name in ("all", "anonymous")}
    rise = greatest_rise([sizes["anonymous"] for step, sizes in held.items() if step >= arguments.first])
    print(
        f"after {max(held):,} steps {change['all']:+.2%} of what was held after {arguments.first:,}, of the anonymous "
        f"part {change['anonymous']:+.2%}; its greatest rise in between {rise:+.2%}"
    )
    result = {
        "benchmark": "soak",
        "date": datetime.date.today().isoformat(),
        "device": f"{os.cpu_count()}-core {platform.machine()} CPU",
        "revision": revision(),
        "command": f"python -m benchmarks.soak --steps={arguments.steps} --first={arguments.first}",
        "resident_bytes": held,
        "change": change,
        "greatest_rise": rise,
    }
    out = Path(arguments.out) if arguments.out else RESULTS / f"soak_cpu{os.cpu_count()}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if abs(change["anonymous"]) <= MOST_CHANGE and rise <= MOST_CHANGE else 1


if __name__ == "__main__":
    command.run(main)
