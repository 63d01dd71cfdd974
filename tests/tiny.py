"""The smallest run that goes all the way: a 2-stage network on drawn flowers at 16 px, a second or two a run."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs import default
from input_pipeline.demo import write_demo


def tiny_data(folder: Path, per_class: int = 8) -> Path:
    """A small drawn dataset under `folder`; the same files every time."""
    data = folder / "data"
    write_demo(data, per_class=(per_class, per_class // 2))
    return data


def tiny_arrays(folder: Path) -> Path:
    """A small file of arrays under `folder`: noise of three classes at 16 px, which needs no decoder."""
    from input_pipeline.resident import Images, make_resident, write_arrays

    generator = np.random.default_rng(0)

    def split(count: int) -> Images:
        pixels = generator.integers(0, 256, (count, 16, 16, 3), np.uint8)
        return Images(pixels, np.arange(count, dtype=np.int32) % 3)

    splits = {"train": split(24), "val": split(9), "test": split(9)}
    write_arrays(make_resident(("a", "b", "c"), splits), folder / "set.npz")
    return folder / "set.npz"


def tiny_config(data: Path) -> ConfigDict:
    """A configuration that trains in a second once compiled; every part of a run takes place."""
    config = default.get_config()
    config.model.name = "cifar_resnet20"
    config.model.stage_sizes = (1, 1)
    config.model.width = 8
    config.data.dir = str(data)
    config.data.image_size = 16
    config.data.batch_size = 8
    config.data.val_fraction = 0.25
    config.data.threads = 1
    config.optim.lr = 0.05
    config.run.steps = 6
    config.run.eval_every = 0.5
    config.run.checkpoint_every = 0.5
    config.run.log_every = 1
    return config


def tiny_recipe(file: Path, data: Path) -> Path:
    """A recipe file that says `tiny_config(data)`, for commands."""
    file.write_text(
        "from pathlib import Path\n\nfrom tests.tiny import tiny_config\n\n\n"
        f"def get_config():\n    return tiny_config(Path({str(data)!r}))\n"
    )
    return file


def tiny_run(folder: Path, steps: int = 6) -> tuple[Path, Path]:
    """(data, workdir) of a finished run under `folder`."""
    from resnet.train.loop import train

    data = tiny_data(folder)
    config = tiny_config(data)
    config.run.steps = steps
    assert train(config, folder / "run") == 0
    return data, folder / "run"
