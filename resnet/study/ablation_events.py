"""An ablation for TensorBoard: each variant and seed a run of its own, which the hparams table sorts and filters."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from resnet.study.ablation_alike import flat_config
from resnet.study.ablation_config import Study
from resnet.study.ablation_records import FAILED, Record, record_file
from resnet.train.tensorboard_events import EventFile
from resnet.train.writers import TENSORBOARD_FOLDER

# The curves of a record and where TensorBoard shows them, as a run's.
TAGS = {
    "train/loss": ("train_step", "train_loss"),
    "train/top1": ("train_step", "train_top1"),
    "test/loss": ("test_step", "test_loss"),
    "test/top1": ("test_step", "test_top1"),
}


def write_events(workdir: Path, study: Study, records: Mapping[str, Record]) -> None:
    """Write tensorboard/VARIANT/seed_S of every variant that is done, all seeds at once, unless it is there already.

    What is older than the variant's record was of an earlier training.
    """
    for variant in study.variants:
        record, folder = records.get(variant.name), workdir / TENSORBOARD_FOLDER / variant.name
        if record is None or record.status == FAILED:
            continue
        if folder.is_dir() and folder.stat().st_mtime >= record_file(workdir, variant.name).stat().st_mtime:
            continue
        part = folder.with_name(f".{variant.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        settings = flat_config(variant.config)
        counts = {"parameters": record.parameters, "multiply_adds": record.multiply_adds}
        for place, seed in enumerate(record.seeds):
            events = EventFile(part / f"seed_{seed}", purge_step=0)
            events.write_hparams({**settings, "run.seed": seed, "variant": variant.name, **counts})
            for tag, (steps, values) in TAGS.items():
                curve = zip(getattr(record.curves, steps), getattr(record.curves, values), strict=True)
                for step, of_seeds in curve:
                    if of_seeds[place] is not None:
                        events.write(step, {tag: of_seeds[place]})
            events.write_end()
            events.close()
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
