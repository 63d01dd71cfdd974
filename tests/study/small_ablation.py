"""An ablation of three variants, one of which diverges, over forty images of 8 px; and what it left."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.resident import Images, make_resident, write_arrays
from resnet.study import ablation

RECIPE = """
from configs.ablations.study import study
from tests.tiny import tiny_config

def get_config():
    base = tiny_config("{data}")
    base.model.stage_sizes = (1,)
    base.data.source = "arrays"
    base.data.image_size = 8
    base.data.crop, base.data.crop_padding = "pad", 1
    base.data.val_fraction = 0.0
    base.data.eval_batch_size = 9
    base.run.steps, base.run.log_every, base.run.max_bad_steps = 9, 2, 2
    base.run.eval_every = base.run.checkpoint_every = 0.5
    variants = {{
        "residual": {{"model": {{"shortcut": "A"}}}},
        "plain": {{"model": {{"shortcut": "none"}}}},
        "wild": {{"optim": {{"lr": 1e30, "clip_norm": 1.0}}}},
    }}
    return study(base, variants, baseline="residual", seeds=(0, 5), paper={{"plain": (9.0, "a paper")}})
"""
# What a clock says differs between runs; everything else may not.
CLOCK = ("images_per_second", "train_seconds")


def write_recipe(folder: Path) -> Path:
    """A recipe over forty images of noise around one colour a class."""
    rng = np.random.default_rng(0)

    def images(count: int) -> Images:
        labels = (np.arange(count) % 3).astype(np.int32)
        pixels = rng.integers(0, 128, (count, 8, 8, 3)) + 127 * np.eye(3, dtype=int)[labels][:, None, None]
        return Images(pixels.astype(np.uint8), labels)

    write_arrays(make_resident(("r", "g", "b"), {"train": images(40), "test": images(20)}), folder / "set.npz")
    (folder / "small.py").write_text(RECIPE.format(data=folder / "set.npz"))
    return folder / "small.py"


def command(file: Path, workdir: Path, *flags: str) -> int:
    """The command in this process."""
    arguments = ["ablation", f"--config={file}", f"--workdir={workdir}", "--steps_per_dispatch=2", *flags]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        return ablation.main()


def records(workdir: Path) -> dict[str, dict]:
    """variants/NAME.json by NAME, without what a clock says."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((workdir / "variants").glob("*.json"))}
    for record in found.values():
        del record["curves"]["seconds"]
    return found


def lines(workdir: Path) -> list[dict[str, str]]:
    """table.csv, without what a clock says."""
    with (workdir / "table.csv").open() as table:
        return [{key: value for key, value in line.items() if key not in CLOCK} for line in csv.DictReader(table)]
