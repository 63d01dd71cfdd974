"""The parts of benchmarks/gpu_commands.py: `python -m benchmarks.gpu_command_parts OUT NAME WORK ARRAYS.npz [small]`.

A part's process computes on the CPU; the commands that it gives have the GPU, one after the other.
"""

import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.command_shell import ROOT, Shell, Unexpected
from benchmarks.run_agreement import differences

# One step of CIFAR ResNet-20 takes some 1.5 ms of an H100: long enough to be stopped midway.
STEPS, SMALL_STEPS = 2000, 120
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# `evaluate` whose programs have convolutions in CUDA graphs.
IN_GRAPHS = """\
import runpy
from benchmarks.gpu_cifar_parts import IN_GRAPHS
from resnet.train import parallel
parallel.compiler_options = lambda: {"xla_gpu_enable_command_buffer": IN_GRAPHS}
runpy.run_module("resnet.study.evaluate", run_name="__main__")
"""


def main() -> None:
    out, name, work, arrays = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    shell = Shell(out, dict(os.environ))
    # From here on this process itself: what it loads to compare must not take the GPU's memory from the commands.
    os.environ["JAX_PLATFORMS"] = "cpu"
    PARTS[name](Cifar(shell, work, arrays, "small" in sys.argv[5:]))
    shell.save()


class Cifar:
    """CIFAR ResNet-20 over a file of arrays, in workdirs below `work`; small: a tiny one, few steps."""

    def __init__(self, shell: Shell, work: Path, arrays: Path, small: bool) -> None:
        self.shell, self.work, self.arrays, self.small = shell, work, arrays, small
        self.steps = SMALL_STEPS if small else STEPS
        # Of the run and of evaluate: another one may round otherwise.
        self.evaluated_at_once = 40 if small else 500

    def command(self, name: str, *flags: str) -> list[str]:
        """train_main.py for the run `name`."""
        tiny = ("--config.model.stage_sizes=(1,1)", "--config.model.width=8", "--config.data.batch_size=16")
        every = [f"--config.run.{kind}_every={self.epochs:g}" for kind in ("eval", "checkpoint")]
        return [
            "train_main.py", "--config=configs/cifar10.py", f"--workdir={self.work / name}",
            "--config.data.source=arrays", f"--config.data.dir={self.arrays}", "--config.data.feed=resident",
            f"--config.run.steps={self.steps}", f"--config.run.log_every={self.steps // 12}", *every,
            f"--config.data.eval_batch_size={self.evaluated_at_once}",
            "--config.optim.schedule=cosine", "--config.optim.lr=0.05", *(tiny if self.small else ()), *flags,
        ]  # fmt: skip

    @property
    def epochs(self) -> float:
        """A third of the run; of 10,000 training images, of 320 where it is small."""
        return self.steps / 3 * (16 / 320 if self.small else 128 / 10_000)

    def train(self, name: str, *flags: str, **environment: str) -> Path:
        """Give the command of a run; its workdir. Of one that has ended no step is done again."""
        workdir = self.work / name
        done = self.shell.run(*self.command(name, *flags), environment=environment)
        self.shell.note(screen=[line for line in done.out.splitlines() if line.startswith(("Data", "Device"))])
        self.shell.on_device_of(workdir)
        self.shell.measured(workdir)
        return workdir

    def base(self) -> Path:
        """The workdir of the run `float32`, which is made if it is not there."""
        workdir = self.work / "float32"
        if not ended(workdir):
            self.shell.run(*self.command("float32"))
        self.shell.on_device_of(workdir)
        return workdir

    def evaluate(self, checkpoint: Path) -> dict[str, Any]:
        """What evaluate says of a checkpoint on the test images."""
        words = [f"--checkpoint={checkpoint}", f"--data={self.arrays}", f"--batch_size={self.evaluated_at_once}"]
        return dict(json.loads(self.shell.run("-m", "resnet.study.evaluate", *words, "--json").out))


def ended(workdir: Path) -> bool:
    """Whether the run has its last line."""
    metrics = workdir / "metrics.jsonl"
    return metrics.exists() and '"kind": "test"' in metrics.read_text()


def float32(cifar: Cifar) -> None:
    cifar.train("float32")


def bfloat16(cifar: Cifar) -> None:
    cifar.train("bfloat16", "--config.run.dtype=bfloat16")


def stream(cifar: Cifar) -> None:
    """Batches that the host cuts: equal rows, another program, so the figures may differ in their last digits."""
    cifar.shell.compare(
        "the resident run", differences(cifar.base(), cifar.train("stream", "--config.data.feed=stream"))
    )


def again(cifar: Cifar) -> None:
    """The same command twice: with the first one's compiled programs nothing may differ."""
    cifar.shell.compare("an equal run", differences(cifar.base(), cifar.train("again")), equal=True)


def again_cold(cifar: Cifar) -> None:
    """Compiled anew: on a GPU XLA times kernels to choose among them, so it may choose others. Told, not judged."""
    cache = str(cifar.work / "cache_cold")
    run = cifar.train("again_cold", JAX_COMPILATION_CACHE_DIR=cache)
    cifar.shell.compare("an equal run compiled again", differences(cifar.base(), run))


def deterministic(cifar: Cifar) -> None:
    """Two equal runs, each compiled by itself, where XLA may neither time kernels nor take one that varies."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    runs = [
        cifar.train(
            f"deterministic_{name}", XLA_FLAGS=flags, JAX_COMPILATION_CACHE_DIR=str(cifar.work / f"cache_{name}")
        )
        for name in ("one", "two")
    ]
    cifar.shell.compare(f"two runs under {DETERMINISTIC}", differences(*runs), equal=True)


def resumed(cifar: Cifar) -> None:
    """SIGTERM midway: exit code 143, then the same command goes on to what an untouched run ends with, bit for bit."""
    base, words = cifar.base(), cifar.command("resumed")
    # Of an earlier try.
    shutil.rmtree(cifar.work / "resumed", ignore_errors=True)
    metrics = cifar.work / "resumed" / "metrics.jsonl"
    with cifar.shell.started(*words) as process:
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        stopped = cifar.shell.ended(process, words, expect=143)
    said = [line for line in stopped.out.splitlines() if line.startswith("Stopped")]
    cifar.shell.note(found=said)
    cifar.shell.compare("a run that was not stopped", differences(base, cifar.train("resumed")), equal=True)


def evaluate(cifar: Cifar) -> None:
    """The test figures are those that the run logged, to the last bit (in batches of its size)."""
    base = cifar.base()
    told = cifar.evaluate(base)
    logged = json.loads((base / "metrics.jsonl").read_text().splitlines()[-1])
    apart = [
        f"{key} {told[key]} for {logged[key]}" for key in ("top1", "loss", "confusion") if told[key] != logged[key]
    ]
    cifar.shell.compare("the run's test line", apart, equal=True)


def inference(cifar: Cifar) -> None:
    """What predict does behind its decoder, folded norms and the program's own layout included, and Grad-CAM."""
    found = json.loads(cifar.shell.run("-m", "benchmarks.gpu_command_inference", cifar.base(), cifar.arrays).out)
    cifar.shell.note(found=[f"probabilities differ by {found['most_apart']:.1e} from the run's at most"], **found)
    # TF32 has 10 bits of mantissa; a folded and an unfolded network round differently.
    if not found["most_apart"] < 0.02:
        raise Unexpected(f"probabilities differ by {found['most_apart']}")


def predict(cifar: Cifar) -> None:
    """Three pictures; without TensorFlow, which decodes them, one line and exit code 2."""
    from PIL import Image

    from input_pipeline.resident import read_arrays

    pixels = read_arrays(cifar.arrays, 32).splits["test"].images
    files = [cifar.work / name for name in ("one.png", "two.png", "three.jpg")]
    for file, picture in zip(files, pixels, strict=False):
        Image.fromarray(picture).save(file)
    words = ["-m", "resnet.study.predict", f"--checkpoint={cifar.base()}", *files]
    if importlib.util.find_spec("tensorflow"):
        cifar.shell.run(*words, f"--gradcam={cifar.work / 'sheet.png'}")
    else:
        cifar.shell.refused("TensorFlow", *words)


def report(cifar: Cifar) -> None:
    base = cifar.base()
    cifar.shell.run("-m", "resnet.study.report", base, f"--out={cifar.work / 'report.html'}")
    cifar.shell.note(found=[f"a page of {(cifar.work / 'report.html').stat().st_size / 1e6:.1f} MB"])


def ablation(cifar: Cifar) -> None:
    """Two seeds at once; evaluate gives of each one's weights the top-1 that the ablation noted."""
    workdir, steps = cifar.work / "ablation", 10 if cifar.small else 200
    cifar.shell.run(
        "-m", "resnet.study.ablation", "--config=configs/ablations/depth_cifar.py", f"--workdir={workdir}",
        "--only=resnet20", "--config.seeds=(0,1)", "--keep_weights", "--config.data.source=arrays",
        f"--config.data.dir={cifar.arrays}", f"--config.run.steps={steps}", f"--config.run.log_every={steps}",
        *(f"--config.run.{kind}_every=1000.0" for kind in ("eval", "checkpoint")),
        *(["--config.data.batch_size=16"] if cifar.small else []),
    )  # fmt: skip
    record = json.loads((workdir / "variants" / "resnet20.json").read_text())
    curves = record["curves"]
    cifar.shell.note(device=record["device"], images_per_second=curves["images"] / curves["seconds"])
    told, noted = cifar.evaluate(workdir / "weights" / "resnet20" / "seed_1")["top1"], curves["test_top1"][-1][1]
    apart = [] if abs(told - noted) < 1e-6 else [f"top-1 {told} for {noted}"]
    cifar.shell.compare("the ablation's own top-1", apart, equal=True)


def out_of_memory(cifar: Cifar) -> None:
    """A batch that no card holds: one line, exit code 2. A CPU's memory is the machine's, and is left alone."""
    # Eight times as wide, ResNet-20's maps take 6 MB an image in float32: 300 GB for 50,000, which are drawn.
    if cifar.small:
        cifar.shell.note(found=["not tried on a CPU"])
        return
    from benchmarks.gpu_cifar import write_drawn

    drawn = cifar.work / "many.npz"
    write_drawn(drawn, 50_000, 500)
    words = cifar.command("out_of_memory", "--config.model.width=128", "--config.data.batch_size=50000")
    cifar.shell.refused("out of memory", *words, f"--config.data.dir={drawn}", "--config.run.eval_every=100.0")


def in_graphs(cifar: Cifar) -> None:
    """`evaluate` with convolutions in CUDA graphs, compiled anew and then out of the cache, whose kernels nothing has
    loaded: kernels loaded as they are needed, then all at the start. Told, not judged (gpu_notes.md)."""
    words = ("-c", IN_GRAPHS, f"--checkpoint={cifar.base()}", f"--data={cifar.arrays}")
    for loading in ("LAZY", "EAGER"):
        cache = cifar.work / f"cache_{loading.lower()}"
        environment = {"CUDA_MODULE_LOADING": loading, "JAX_COMPILATION_CACHE_DIR": str(cache)}
        for programs in ("compiled anew", "from the cache"):
            try:
                cifar.shell.run(*words, f"--batch_size={cifar.evaluated_at_once}", environment=environment)
                answer = "runs"
            except Unexpected as error:
                answer = str(error)
            cifar.shell.note(found=[f"{loading}, {programs}: {answer}"])


def single_steps(cifar: Cifar) -> None:
    """`float32` with one step a call: what calls of ten are worth."""
    cifar.train("single_steps", "--config.run.steps_per_call=1")


def counting(cifar: Cifar) -> None:
    cifar.shell.run("-m", "resnet.model.counting", "--check")


def resnet50(cifar: Cifar) -> None:
    """The loop of train_main.py must not cost speed: its images/s beside those of the step alone."""
    from benchmarks.gpu_command_resnet50 import loop_beside_step

    loop_beside_step(cifar.shell, cifar.work, small=cifar.small)


PARTS: dict[str, Callable[[Cifar], Any]] = {
    function.__name__: function
    for function in (
        float32, bfloat16, stream, again, again_cold, deterministic, resumed, evaluate, inference, predict, report,
        ablation, out_of_memory, counting, resnet50, in_graphs, single_steps,
    )
}  # fmt: skip


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
