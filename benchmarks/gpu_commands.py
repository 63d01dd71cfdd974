"""The user's commands on a GPU, as a user gives them: do they run, agree, resume, and lose no speed? No TensorFlow.

    python -m benchmarks.gpu_commands --write=cifar10.npz [--sheets=DIR]           # where the mosaics are
    python -m benchmarks.gpu_commands --arrays=cifar10.npz [--seconds=520] [--out=FILE] [--parts=…] [--work=DIR]
    JAX_PLATFORMS=cpu python -m benchmarks.gpu_commands --small --out=/tmp/small.json    # that it works, on any machine

Each part is a process of its own (benchmarks/gpu_command_parts.py) that gives commands, notes for each its exit code
and seconds, compares what they wrote, and fails where that is not what is promised. The same command again goes on with
what is not done: parts that stand in FILE without a failure are left alone. Parts that need a run which is not in
--work make it first. Images: --arrays, 14,000 of CIFAR-10 as --write cuts them out of the mosaics (benchmarks/
cifar_arrays.py), 43 MB, small enough to be carried; without it they are drawn. Exit code 1 where a part failed.

float32, bfloat16: CIFAR ResNet-20 through train_main.py. resumed: stopped by SIGTERM and gone on, beside `float32`, bit
for bit. again, again_cold: the same run once more, with the first one's compiled programs or its own. deterministic:
two such under XLA_FLAGS that forbid what is not. single_steps: `float32` with one step a call. in_graphs: `evaluate`
with convolutions in CUDA graphs, which failed (benchmarks/gpu_notes.md), and with what may mend it. stream: batches cut
by NumPy. evaluate, inference, predict, report: the commands on that run's checkpoint. resnet50: images/s and memory as
train_main.py tells them, beside the step alone (benchmarks/gpu.py). ablation, out_of_memory, counting: those commands.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.cifar_arrays import write_cifar
from benchmarks.gpu_cifar import write_drawn
from benchmarks.part_processes import Part, name_of, run_all
from input_pipeline.errors import InputError
from resnet import command

# In order of worth: what comes late is what a short lease loses.
PARTS = (
    *("float32", "resumed", "evaluate", "inference", "resnet50", "out_of_memory", "bfloat16", "again", "stream"),
    *("single_steps", "in_graphs", "predict", "report", "ablation", "again_cold", "deterministic", "counting"),
)
# Seconds of one part at most.
LONGEST = 240
# Images of each class in --write's file.
IMAGES = {"train": 1000, "val": 200, "test": 200}
DEVICE = "import jax; print(jax.local_devices()[0].device_kind)"


def main() -> int:
    parser = command.Parser(__doc__)
    parser.add_argument("--arrays", help="CIFAR-10 as --write leaves it (default: drawn images)")
    parser.add_argument("--write", metavar="FILE", help="write that file, and nothing else")
    parser.add_argument("--sheets", default="../shared/data/cifar10", help="folders of mosaics, separated by commas")
    parser.add_argument("--seconds", type=float, default=520, help="in all (default: 520)")
    parser.add_argument("--longest", type=float, default=LONGEST, help=f"seconds of a part (default: {LONGEST})")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--small", action="store_true", help="a tiny network and few steps: whether it works")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu_commands"), help="arrays and runs, kept")
    parser.add_argument("--out", default="", help="the JSON (default: benchmarks/results/gpu_commands_DEVICE.json)")
    arguments = parser.parse_args()
    if arguments.write:
        write_some(arguments.sheets, Path(arguments.write))
        return 0
    names = arguments.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise InputError(f"--parts: no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    if arguments.small:
        # Its runs and images are none that a full call may go on with.
        arguments.work /= "small"
    arguments.work.mkdir(parents=True, exist_ok=True)
    arrays = Path(arguments.arrays or arguments.work / "drawn.npz").absolute()
    if not arrays.exists():
        if arguments.arrays:
            raise InputError(f"--arrays={arguments.arrays}: no such file; --write makes it where the mosaics are")
        write_drawn(arrays, *((320, 80) if arguments.small else (10_000, 2_000)))
    out = Path(arguments.out or record.RESULTS / f"{name_of('gpu_commands', device())}.json")
    earlier = done_before(out, small=arguments.small)
    todo = [name for name in names if name not in {row["part"] for row in earlier}]
    rows = run_all(
        "gpu_commands", "benchmarks.gpu_command_parts", [part_of(name, arguments.work, arrays) for name in todo],
        seconds=arguments.seconds, longest=arguments.longest, out=str(out), small=arguments.small, earlier=earlier,
    )  # fmt: skip
    print(table(rows))
    return 1 if any("failed" in row for row in rows) else 0


def part_of(name: str, work: Path, arrays: Path) -> Part:
    return Part({"part": name}, (name, str(work.absolute()), str(arrays)))


def device() -> str:
    """The device's name as JAX has it, asked for in a process that gives it back."""
    asked = subprocess.run([sys.executable, "-c", DEVICE], capture_output=True, text=True)
    if asked.returncode:
        raise InputError(f"JAX finds no device: {(asked.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return asked.stdout.strip()


def done_before(file: Path, *, small: bool) -> list[dict[str, Any]]:
    """The rows of an earlier call's parts that came to their end; none of a call that was `small` where this is not."""
    figures = record.read(file).figures if file.exists() else {}
    return [row for row in figures.get("rows", []) if "failed" not in row and figures.get("small") == small]


def write_some(sheets: str, file: Path) -> None:
    """IMAGES of each class of CIFAR-10, each split's the first of its class; validation behind those of training."""
    import numpy as np

    from input_pipeline.resident import Images, make_resident, read_arrays, write_arrays

    file.parent.mkdir(parents=True, exist_ok=True)
    write_cifar(sheets.split(","), file)
    whole = read_arrays(file, 32)

    def first(name: str, begin: int, count: int) -> Images:
        split = whole.splits[name]
        ranges = [np.flatnonzero(split.labels == label)[begin : begin + count] for label in range(10)]
        rows = np.concatenate(ranges)
        return Images(split.images[rows], split.labels[rows])

    splits = {
        "train": first("train", 0, IMAGES["train"]),
        "val": first("train", IMAGES["train"], IMAGES["val"]),
        "test": first("test", 0, IMAGES["test"]),
    }
    write_arrays(make_resident(whole.class_names, splits), file)
    print(f"{file}: {', '.join(f'{len(split):,} {name}' for name, split in splits.items())} images")


def table(rows: list[dict[str, Any]]) -> str:
    """One line a part: whether it kept its promise, how long it took, its speed and memory, what was compared."""
    lines = ["| part | | seconds | images/s | GB | found |", "| --- " * 6 + "|"]
    for row in rows:
        rate = f"{row['images_per_second']:,.0f}" if row.get("images_per_second") else ""
        memory = f"{row['device_memory'] / 1e9:.1f}" if row.get("device_memory") else ""
        found = "; ".join([*row.get("found", []), *([row["failed"]] if "failed" in row else [])])
        verdict = "failed" if "failed" in row else "ok"
        lines.append(f"| {row['part']} | {verdict} | {row['wall_seconds']:.0f} | {rate} | {memory} | {found} |")
    return "\n".join(lines)


if __name__ == "__main__":
    command.run(main)
