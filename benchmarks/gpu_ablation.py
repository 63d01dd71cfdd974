"""He et al. 2015, Table 6 and Figure 6, on one GPU, in calls of under nine minutes: ResNet-20 and 56, plain-20 and 56.

    python -m benchmarks.gpu_ablation --sheets=DIR --out=DIR [--state=DIR] [--seconds=480] [FLAGS...]

1. Cuts CIFAR-10 out of lossless mosaics (DIR/{train,test}_CLASS.webp, 40 images of 32 px a row) into a file of arrays.
2. Measures one seed alone, and all five by each manner of training them together; the fastest is taken from there on.
3. Runs configs/ablations/depth_cifar.py with it until the seconds are over, saves and stops.

Needs no TensorFlow, but tensorboardX. In bfloat16, on one H100, one seed of ResNet-20 takes some 96 seconds, of
ResNet-56 some 290: all of it an hour, in calls. The same command goes on where it stopped; on a fresh machine with
--state, the folder of the *.part files (pieces of 15 MiB, small enough to be carried) that the call before left in
--out. FLAGS go to the ablation, such as --config.run.steps=20 for a trial. What it is to show, and nobody has shown
here yet: ResNet-20 at 8.75 ± 0.3 % error or better, ResNet-56 at 6.97 ± 0.3 % or better, plain-56 worse than plain-20.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from benchmarks.cifar_arrays import write_cifar
from input_pipeline.errors import InputError

VARIANTS = "resnet20,resnet56,plain20,plain56"
PART_BYTES = 15 * 1024**2
MANNERS = ("vmap", "unrolled", "map")


def main() -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheets", default="../shared/data/cifar10", help="folders of mosaics, separated by commas")
    parser.add_argument("--out", type=Path, required=True, help="where the results of this call go")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu_ablation"), help="arrays and runs, kept")
    parser.add_argument("--state", type=Path, help="folder of an earlier call's *.part files")
    parser.add_argument("--seconds", type=int, default=480, help="of this call, after which it saves and stops")
    parser.add_argument("--probe_steps", type=int, default=600, help="steps of each measurement of speed")
    parser.add_argument("--only", default=VARIANTS)
    arguments, flags = parser.parse_known_args()
    out, work = arguments.out, arguments.work
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    if arguments.state and not (work / "run").exists():
        unpack(arguments.state, work)
    arrays = work / "cifar10.npz"
    if not arrays.exists():
        try:
            write_cifar(arguments.sheets.split(","), arrays)
        except InputError as error:
            parser.error(str(error))
    flags = ["--config.data.source=arrays", f"--config.data.dir={arrays}", "--config.run.dtype=bfloat16", *flags]
    speed = measure(work, flags, arguments.probe_steps)
    fastest = max(MANNERS, key=lambda manner: speed[manner])
    left = int(arguments.seconds - (time.monotonic() - begun))
    if left > 0:
        limits = [f"--only={arguments.only}", f"--together={fastest}", f"--max_seconds={left}"]
        ablation([f"--workdir={work / 'run'}", *limits, *flags])
    pack(work, out)
    print(f"Speed, images/s of all seeds: {json.dumps(speed)}. Run the same command to resume.")


def ablation(flags: list[str]) -> None:
    """Run the command; a variant that fails (code 1) is in its table."""
    command = [sys.executable, "-m", "resnet.study.ablation", "--config=configs/ablations/depth_cifar.py", *flags]
    code = subprocess.run(command, check=False).returncode
    if code not in (0, 1):
        sys.exit(code)


def measure(work: Path, flags: list[str], steps: int) -> dict[str, float]:
    """Images per second of ResNet-20: one seed alone, and all seeds by each manner; measured once, then remembered."""
    file = work / "speed.json"
    if file.exists():
        return dict(json.loads(file.read_text()))
    speed = {}
    rare = [f"--config.run.{key}_every=1000.0" for key in ("eval", "checkpoint")]
    for name in ("alone", *MANNERS):
        workdir = work / f"speed_{name}"
        how = ["--together=vmap", "--config.seeds=(0,)"] if name == "alone" else [f"--together={name}"]
        # Last, so that a length among the flags does not make a measurement of the whole run.
        length = [*rare, f"--config.run.steps={steps}"]
        ablation([f"--workdir={workdir}", "--only=resnet20", *flags, *how, *length])
        curves = json.loads((workdir / "variants" / "resnet20.json").read_text())["curves"]
        speed[name] = curves["images"] / curves["seconds"] if curves["seconds"] else 0.0
    file.write_text(json.dumps(speed, indent=1) + "\n")
    return speed


def pack(work: Path, out: Path) -> None:
    """Results as they are, and all that the next call on another machine needs in pieces small enough to be carried."""
    names = ["speed.json", *(["run"] if (work / "run").exists() else [])]
    for name in ("speed.json", "run/table.md", "run/table.csv"):
        if (work / name).exists():
            shutil.copy(work / name, out)
    whole = work / "state.tar"
    with tarfile.open(whole, "w") as archive:
        for name in names:
            archive.add(work / name, name)
    for old in out.glob("state_*.part"):
        old.unlink()
    content = whole.read_bytes()
    whole.unlink()
    for start in range(0, len(content), PART_BYTES):
        (out / f"state_{start // PART_BYTES:02d}.part").write_bytes(content[start : start + PART_BYTES])


def unpack(state: Path, work: Path) -> None:
    """The inverse of `pack`."""
    whole = work / "state.tar"
    whole.write_bytes(b"".join(part.read_bytes() for part in sorted(state.glob("state_*.part"))))
    with tarfile.open(whole) as archive:
        archive.extractall(work, filter="data")
    whole.unlink()


if __name__ == "__main__":
    main()
