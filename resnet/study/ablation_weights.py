"""What --keep_weights leaves of an ablation: weights/NAME/seed_S, the variables that its last evaluation used.

Each is a folder as resnet.weights.convert writes one, which all commands take as --checkpoint or as
config.transfer.weights. They are made of the variant's last checkpoint, once its record is on the disk, and that
checkpoint goes when they are whole: a full disk or a kill in between costs nothing, the same command writes them.
"""

import dataclasses
import math
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import jax

from input_pipeline.disk import amount, require_room
from input_pipeline.errors import InputError, printable
from input_pipeline.resident import ResidentData
from resnet.study.ablation_config import Study
from resnet.study.ablation_records import FAILED, Record, checkpoint_folder, remove_checkpoints
from resnet.study.ablation_runs import Manner, OnDevice, VariantRun
from resnet.study.ablation_seeds import begun_seeds, missing_seeds
from resnet.train import integrity
from resnet.train.checkpoints import abstract_variables, save_converted
from resnet.train.configuration import flatten, make_spec

FOLDER = "weights"


def weights_folder(workdir: Path, name: str, seed: int) -> Path:
    return workdir / FOLDER / name / f"seed_{seed}"


def wanted_seeds(record: Record) -> tuple[int, ...]:
    """The seeds that have a result to keep the weights of: those that did not diverge, of a variant that is done."""
    if record.status == FAILED:
        return ()
    return tuple(seed for seed, at in zip(record.seeds, record.curves.diverged, strict=True) if at is None)


def kept_seeds(workdir: Path, record: Record) -> tuple[int, ...]:
    """Those of them whose weights are there, by names and sizes of the files."""
    folders = {seed: weights_folder(workdir, record.name, seed) for seed in wanted_seeds(record)}
    return tuple(seed for seed, folder in folders.items() if integrity.fault(folder, deep=False) is None)


def last_checkpoints(workdir: Path, record: Record) -> dict[Path, tuple[int, ...]]:
    """Folder -> its seeds, of the checkpoints of a variant that is done which are still there; training may go on in
    another."""
    found = {}
    for folder in (checkpoint_folder(workdir, record.name, more=more) for more in (False, True)):
        seeds = begun_seeds(folder)
        if seeds and set(seeds) <= set(record.seeds):
            found[folder] = seeds
    return found


def announce(
    workdir: Path, study: Study, only: Collection[str], records: Mapping[str, Record], data: ResidentData
) -> str:
    """One line on the weights that are still to be written. Raises InputError unless the disk has room for them."""
    folders, needed = 0, 0
    for variant in study.variants:
        if variant.name not in only:
            continue
        record = records.get(variant.name)
        seeds = set(missing_seeds(record, study))
        if record is not None and record.status != FAILED:
            there = {seed for of in last_checkpoints(workdir, record).values() for seed in of}
            seeds |= there.intersection(wanted_seeds(record)).difference(kept_seeds(workdir, record))
        leaves = jax.tree.leaves(abstract_variables(make_spec(variant.config, len(data.class_names))))
        folders += len(seeds)
        needed += len(seeds) * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    advice = "omit --keep_weights or give another --workdir"
    require_room(workdir / FOLDER, needed, "the weights of --keep_weights", advice)
    place = printable(str(workdir / FOLDER))
    return f"Weights   {folders:,} folders still to be written, {amount(needed)}, to {place}/NAME/seed_S"


def write_weights(run: VariantRun, workdir: Path, record: Record) -> bool:
    """Write the weights that a variant which is done lacks of the run's seeds, and remove the run's checkpoint; False
    where that is gone.

    Raises InputError where the disk refuses; then the checkpoint stays.
    """
    state = run.finished()
    if state is None:
        return False
    evaluated, meta = jax.device_get(state.evaluated()), run.meta(run.plan.total_steps)
    kept, wanted = kept_seeds(workdir, record), wanted_seeds(record)
    for place, seed in enumerate(run.study.seeds):
        if seed in kept or seed not in wanted:
            continue
        folder = weights_folder(workdir, record.name, seed)
        # What a kill left: of a folder that was being removed, or beside one that was being written.
        for left in (folder, *folder.parent.glob(f".{folder.name}-*")):
            shutil.rmtree(left, ignore_errors=True)
        own = dataclasses.replace(
            meta,
            config={**flatten(run.variant.config), "run.seed": seed},
            progress={"variant": record.name},
            fingerprint=run.data.host.origin or run.data.host.fingerprint,
        )
        try:
            save_converted(folder, jax.tree.map(lambda leaf, place=place: leaf[place], evaluated), own)
        except InputError as error:
            raise InputError(
                f"{error}; the record of {record.name} is written and its last checkpoint is kept: make room and run "
                "the same command to write its weights"
            ) from error
    run.discard()
    return True


def keep_done(
    study: Study, only: Collection[str], data: OnDevice, workdir: Path, manner: Manner, records: Mapping[str, Record]
) -> bool:
    """Write the weights that variants which are done lack, as far as their checkpoints are there; whether any was.

    One line tells of the others.
    """
    written, lacking = False, []
    for variant in study.variants:
        record = records.get(variant.name)
        if record is None or variant.name not in only:
            continue
        if kept_seeds(workdir, record) == wanted_seeds(record):
            continue
        for folder, seeds in last_checkpoints(workdir, record).items():
            group = dataclasses.replace(study, seeds=seeds)
            written |= write_weights(VariantRun(variant, group, data, folder, manner, lambda: False), workdir, record)
        if kept_seeds(workdir, record) != wanted_seeds(record):
            lacking.append(variant.name)
    if lacking:
        files = ", ".join(f"variants/{name}.json" for name in lacking)
        print(
            f"Weights   not of {', '.join(lacking)}: already done without --keep_weights, and only training produces "
            f"weights; delete {files} to train again"
        )
    return written


def forget_weights(workdir: Path, name: str) -> None:
    """Remove what is left of an earlier training of a variant, whose record was deleted to train it anew."""
    shutil.rmtree(workdir / FOLDER / name, ignore_errors=True)
    remove_checkpoints(checkpoint_folder(workdir, name, more=True))
