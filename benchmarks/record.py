"""The files of benchmarks/results: written and read here alone.

A record is a JSON object: what a benchmark found, under names of its own, and beside it how it came about: `benchmark`,
`command` (as typed), `date`, `revision`, `device`, `cpu`, `load_average`, `versions`. Older files hold fewer of these;
`read` gives what they say.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from input_pipeline.errors import InputError, printable

RESULTS = Path(__file__).resolve().parent / "results"
# What the figures depend on; TensorFlow comes under either name.
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "keras", "tensorflow", "tensorflow-cpu", "onnxruntime", "pillow")


@dataclass(frozen=True)
class Record:
    """A file of results. `date`, `device` and `command` are '' where it does not say."""

    file: Path
    benchmark: str
    date: str
    device: str
    command: str
    figures: dict[str, Any]

    @property
    def machine(self) -> str:
        """Which kind of machine, by the file's name: cpu2, or all behind 'gpu_'."""
        stem = self.file.stem
        return stem.removeprefix("gpu_") if stem.startswith("gpu_") else stem.rpartition("_")[2]


def write(
    benchmark: str, figures: Mapping[str, Any], file: str | Path = "", *, device: str = "cpu", words: Sequence[str] = ()
) -> Path:
    """Write a record in one piece, say where, and give its path.

    file: default_file(benchmark) by default. device: as JAX names it; of 'cpu', the default, this machine's own name is
    taken. words: the command's, those of this process by default.
    """
    # Here: it imports jax, which the programs that only read have no need of.
    from resnet.train.provenance import revision

    path = Path(file) if file else default_file(benchmark)
    document = {
        "benchmark": benchmark,
        "command": command_line(words or typed()),
        "date": datetime.date.today().isoformat(),
        # Results are written one after the other: what one benchmark wrote is no change to what the next measures.
        "revision": revision(but_for=(str(RESULTS),)),
        "device": cpu_device() if device == "cpu" else device,
        "cpu": {"model": cpu_model(), "cores": os.cpu_count(), "architecture": platform.machine()},
        "load_average": os.getloadavg()[0],
        "versions": versions(),
        **figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
    print(f"written to {path}", flush=True)
    return path


def default_file(stem: str) -> Path:
    """Where results of this CPU go: benchmarks/results/STEM_cpuCORES.json."""
    return RESULTS / f"{stem}_cpu{os.cpu_count()}.json"


def read(file: Path) -> Record:
    """A record of any age. Raises InputError, naming the file, where it is none."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{printable(str(file))}: cannot be read as JSON ({error})") from error
    if not isinstance(document, dict):
        raise InputError(f"{printable(str(file))}: does not hold a JSON object")
    # probe_keras' first files have neither 'benchmark' nor 'device'.
    benchmark = document.get("benchmark") or file.stem.rpartition("_")[0]
    device = document.get("device") or document.get("machine", "")
    return Record(file, benchmark, document.get("date", ""), device, document.get("command", ""), document)


def read_all(folder: Path = RESULTS) -> list[Record]:
    """All records of a folder, by name."""
    return [read(file) for file in sorted(folder.glob("*.json"))]


def typed() -> list[str]:
    """The words that started this process: 'python -m benchmarks.step …', where sys.argv holds a path."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return ["python", Path(sys.argv[0]).name, *sys.argv[1:]]
    return ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]


def command_line(words: Sequence[str]) -> str:
    """One line, as a shell takes it; of absolute paths, which mean nothing elsewhere, the last part: PATH/flowers."""
    shown = []
    for word in words:
        flag, equals, value = word.rpartition("=")
        shown.append(f"{flag}{equals}PATH/{Path(value).name}" if Path(value).is_absolute() else word)
    return shlex.join(shown)


def cpu_device() -> str:
    """For example '2-core AMD EPYC CPU'."""
    return f"{os.cpu_count()}-core {cpu_model()} CPU"


def cpu_model() -> str:
    """The processor's name as the system gives it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of the installed ones among PACKAGES."""
    found = {}
    for package in PACKAGES:
        try:
            found[package.removesuffix("-cpu")] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
