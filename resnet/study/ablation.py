"""An ablation: variants × seeds, all seeds of a variant trained at once; a table with means, intervals and the papers.

python -m resnet.study.ablation --config=configs/ablations/NAME.py --workdir=DIR [--config.data.dir=PATH] [--only=NAME]
    [--keep_weights]

The same command resumes where it stopped, variant by variant; given more seeds, it trains those alone. It writes
report.html, table.md, table.tex, table.csv, curves.png, variants/NAME.json and, with --keep_weights,
weights/NAME/seed_S; docs/ablations.md explains them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from configs.default import get_config as default_config
from input_pipeline import recipe
from input_pipeline.errors import InputError, printable
from input_pipeline.sources import ARRAYS
from resnet import command
from resnet.study.ablation_config import KEYS, Study, add_keys, known_key, read_study
from resnet.study.ablation_folder import check_folder, start_folder
from resnet.study.ablation_records import Record, check_identity, identity_of, outdated, read_record, record_file
from resnet.study.report import REPORT_FILE
from resnet.train.configuration import flatten
from resnet.train.interruption import Interruption
from resnet.train.unread_keys import check_splits
from resnet.train.workdir import claimed

if TYPE_CHECKING:
    from input_pipeline.resident import ResidentData
    from resnet.study.ablation_runs import Manner

AUTO = "auto"
TOGETHER = (AUTO, "vmap", "unrolled", "map", "turns")


def main() -> int:
    begun = time.monotonic()
    values = make_flags(sys.argv)
    known = flatten(default_config())
    recipe.parse(values, sys.argv, __doc__ or "", known=[*known, *KEYS], also=known_key)
    given = values.flag_values_dict()
    workdir = Path(given["workdir"])
    study = read_study(given["config"], recipe.keys_given(sys.argv))
    only = read_only(given["only"], study)
    check_folder(workdir)
    deadline = begun + given["max_seconds"] if given["max_seconds"] else float("inf")
    title = Path(recipe.recipe_file(sys.argv).partition(":")[0]).stem
    # Here, not above: they take seconds to import, and a slip in the flags is told at once.
    import jax

    from resnet.study.ablation_runs import put_data
    from resnet.study.ablation_training import Training
    from resnet.study.ablation_weights import announce

    device = jax.local_devices()[0]
    manner = choose_manner(device.platform, given["together"], given["steps_per_dispatch"])
    data = open_data(study.base, recipe.keys_given(sys.argv))
    records = check_all(study, only, data, workdir)
    keep = given["keep_weights"]
    to_keep = announce(workdir, study, only, records, data) if keep else ""
    with Interruption(afterwards=command.leave_at_once) as interruption, claimed(workdir):
        check_folder(workdir)
        start_folder(workdir, title, study, data)
        print(screen(title, study, data, manner, device.device_kind), *([to_keep] if keep else []), sep="\n")
        eval_batch_size = study.base.data.eval_batch_size or study.base.data.batch_size
        resident = put_data(data, eval_batch_size, device)
        stop = lambda: interruption.requested or time.monotonic() > deadline  # noqa: E731
        training = Training(study, resident, workdir, manner, title, records, keep)
        stopped = training.run(only, stop)
        if interruption.requested:
            return interruption.exit_code
    kept = ", weights/NAME/seed_S" if keep else ""
    page = f"{REPORT_FILE}, " if (workdir / REPORT_FILE).is_file() else ""
    print(f"{printable(str(workdir))}: {page}table.md, table.tex, table.csv, curves.png, variants/NAME.json{kept}")
    return 1 if training.failed and not stopped else 0


def make_flags(arguments: list[str]) -> flags.FlagValues:
    """The command's flags, in a set of their own."""
    values = flags.FlagValues()
    recipe.define(
        values,
        arguments,
        "The recipe, such as configs/ablations/cifar_small.py.",
        prepare=lambda config: add_keys(config, recipe.keys_given(arguments)),
    )
    flags.DEFINE_string("workdir", None, "The ablation's folder; the same command resumes it.", flag_values=values)
    flags.DEFINE_list("only", [], "Variants to train now; the table lists all.", flag_values=values)
    flags.DEFINE_integer(
        "max_seconds", 0, "Save and stop cleanly after this many seconds; 0: never.", 0, flag_values=values
    )
    flags.DEFINE_boolean(
        "keep_weights", False, "Leave each variant's and seed's final weights in weights/NAME/seed_S.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "together",
        AUTO,
        TOGETHER,
        "How one program trains all seeds; auto: the fastest on this device.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "steps_per_dispatch", 0, "The most steps that one call of the program does; 0: chosen for the device.", 0,
        flag_values=values,
    )  # fmt: skip
    return values


def read_only(names: list[str], study: Study) -> list[str]:
    """The variants to train, in the study's order. Raises InputError for a name that is none."""
    known = [variant.name for variant in study.variants]
    for name in names:
        if name not in known:
            raise InputError(f"--only={printable(name)}: no such variant; choose from {', '.join(known)}")
    return [name for name in known if not names or name in names]


def open_data(config: ConfigDict, flagged: Collection[str] = ()) -> ResidentData:
    """The dataset that config.data names, decoded: a folder, a tfds set, the demo or a file of arrays.

    flagged: the keys that were given as flags. Raises InputError for what the user can mend.
    """
    from input_pipeline import configured
    from input_pipeline.resident import decode_source
    from resnet.train.plan import make_crop, own_contract

    if config.data.source == ARRAYS:
        arrays = configured.open_arrays(config)
        check_splits(config, arrays.as_source(ARRAYS), flagged)
        return arrays
    crop = make_crop(config, own_contract(config), None, "none")
    source = configured.open_data(config)
    check_splits(config, source, flagged)
    return decode_source(source, crop, threads=config.data.threads or None)


def check_all(study: Study, only: list[str], data: ResidentData, workdir: Path) -> dict[str, Record]:
    """The records of what is done. Raises InputError, naming the variant, before anything is trained."""
    from resnet.study.ablation_seeds import check_begun
    from resnet.train.plan import make_plan

    if "test" not in data.splits:
        raise InputError("the data have no test split to compare variants on; set config.data.test_fraction above 0")
    source = data.as_source(study.base.data.source)
    records = {}
    for variant in study.variants:
        try:
            if variant.name in only:
                plan = make_plan(variant.config, source)
                if plan.transfer.mode != "scratch":
                    raise InputError("config.transfer.mode: an ablation trains from scratch; omit the key")
        except ValueError as error:  # InputError and SpecError
            raise InputError(f"variant {variant.name}: {error}") from error
        record, identity = read_record(workdir, variant.name), identity_of(variant, study, data.fingerprint)
        if record is not None and not outdated(record, identity):
            file = record_file(workdir, variant.name)
            if set(record.seeds) <= set(study.seeds):
                # What it lacks is trained and added.
                identity["seeds"] = list(record.seeds)
            check_identity(f"{printable(str(workdir))}: variant {variant.name}", file, record.identity, identity)
            records[variant.name] = record
        if variant.name in only and (record is None or variant.name in records):
            check_begun(record, study, variant, workdir, data.fingerprint)
    return records


def choose_manner(platform: str, together: str, steps_per_dispatch: int) -> Manner:
    """How the seeds of a variant are trained on this platform, unless the flags say so."""
    from resnet.study.ablation_program import default_steps_per_dispatch, default_together
    from resnet.study.ablation_runs import Manner

    chosen = default_together(platform) if together == AUTO else together
    return Manner(chosen, steps_per_dispatch or default_steps_per_dispatch(platform))


def screen(title: str, study: Study, data: ResidentData, manner: Manner, device: str) -> str:
    """What is about to happen, in four lines."""
    images = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    unused = " (val is held out and not used)" if "val" in data.splits else ""
    return "\n".join(
        [
            f"Ablation  {printable(title)}: {len(study.variants)} variants, baseline {study.baseline}",
            f"Data      {images} images at {data.image_size} px, decoded, on the device{unused}",
            f"Seeds     {', '.join(map(str, study.seeds))}, together by {manner.together}, up to "
            f"{manner.steps_per_dispatch} steps a dispatch",
            f"Device    {device}, {study.base.run.dtype}",
        ]
    )


if __name__ == "__main__":
    command.run(main)
