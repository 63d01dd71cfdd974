"""ResNet-50 at 224 px in bfloat16 through train_main.py, beside the bare step of benchmarks/gpu_parts.py."""

import json
from pathlib import Path

import numpy as np

from benchmarks.command_shell import Shell, Unexpected

CLASSES = 1000
# Share of the bare step's speed that is left to the loop at the least.
LEAST = 0.95


def loop_beside_step(shell: Shell, work: Path, *, small: bool) -> None:
    """Note images/s and memory of 120 steps of 256 resident images, and of the step alone; Unexpected below LEAST.

    small: ResNet-18 at 32 px, 6 steps of 4, and no verdict: beside a start's neighbours such a step says nothing.
    """
    model, side, batch, images, steps = ("resnet18", 32, 4, 16, 6) if small else ("resnet50", 224, 256, 1024, 120)
    arrays, workdir = work / f"drawn_{side}.npz", work / f"{model}_{side}"
    if not arrays.exists():
        write_noise(arrays, images, side)
    shell.run(
        "train_main.py", "--config=configs/default.py", f"--workdir={workdir}", f"--config.model.name={model}",
        "--config.data.source=arrays", f"--config.data.dir={arrays}", "--config.data.feed=resident",
        f"--config.data.image_size={side}", "--config.data.crop=none", "--config.data.flip=none",
        f"--config.data.batch_size={batch}", "--config.run.dtype=bfloat16", "--config.optim.lr=0.001",
        f"--config.run.steps={steps}", f"--config.run.log_every={steps // 6}",
        *(f"--config.run.{kind}_every=1000.0" for kind in ("eval", "checkpoint")),
    )  # fmt: skip
    shell.on_device_of(workdir)
    shell.measured(workdir)
    loop = shell.notes["images_per_second"]
    bare = work / "bare_step.json"
    shell.run("-m", "benchmarks.gpu_parts", bare, "ours", batch, *(["small"] if small else []))
    step = json.loads(bare.read_text())
    share = loop / step["images_per_second"]
    shell.note(
        found=[f"{share:.1%} of the bare step's {step['images_per_second']:,.0f} images/s"],
        step_images_per_second=step["images_per_second"], step_peak_bytes=step["peak_bytes"], share=share,
    )  # fmt: skip
    if share < LEAST and not small:
        raise Unexpected(f"the loop leaves {share:.1%} of the bare step's speed, less than {LEAST:.0%}")


def write_noise(file: Path, images: int, side: int) -> None:
    """A file of arrays with drawn pixels and CLASSES classes; of so many images not all occur."""
    from input_pipeline.resident import Images, make_resident, write_arrays

    generator = np.random.default_rng(0)

    def split(count: int) -> Images:
        pixels = generator.integers(0, 256, (count, side, side, 3), np.uint8)
        return Images(pixels, generator.integers(0, CLASSES, count, np.int32))

    names = tuple(f"class{number:04}" for number in range(CLASSES))
    write_arrays(make_resident(names, {"train": split(images), "test": split(images // 4)}), file)
