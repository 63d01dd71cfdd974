"""An ablation under way: each variant that is not done, or lacks seeds, is trained; tables after each."""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

from input_pipeline import recipe
from input_pipeline.errors import InputError
from resnet.study.ablation_config import Study, Variant
from resnet.study.ablation_folder import write_outputs
from resnet.study.ablation_records import (
    FAILED,
    Curves,
    Record,
    checkpoint_folder,
    drop_outdated,
    identity_of,
    remove_checkpoints,
    write_record,
)
from resnet.study.ablation_runs import Manner, OnDevice, VariantRun
from resnet.study.ablation_seeds import merged, missing_seeds, next_seeds
from resnet.study.ablation_statistics import figures
from resnet.study.ablation_table import with_deviation
from resnet.study.ablation_weights import forget_weights, keep_done, last_checkpoints, write_weights


@dataclasses.dataclass
class Training:
    """What an ablation is trained with. records: of the variants that are done; `run` adds to them.

    keep: whether to leave the weights too. failed: the variants that failed in this call.
    """

    study: Study
    data: OnDevice
    workdir: Path
    manner: Manner
    title: str
    records: dict[str, Record]
    keep: bool
    failed: set[str] = dataclasses.field(default_factory=set)

    def run(self, only: Collection[str], stop: Callable[[], bool]) -> bool:
        """Train what the variants `only` still lack, in the study's order; whether `stop` ended it before."""
        self.write()
        if self.keep and keep_done(self.study, only, self.data, self.workdir, self.manner, self.records):
            self.write()
        for variant in self.study.variants:
            while variant.name in only and self.lacking(variant) and variant.name not in self.failed:
                if stop():
                    print(f"Stopped before {variant.name}. Run the same command to resume.")
                    return True
                if not self.train(variant, stop):
                    print(f"Stopped within {variant.name}, saved. Run the same command to resume.")
                    return True
        return False

    def lacking(self, variant: Variant) -> bool:
        return bool(missing_seeds(self.records.get(variant.name), self.study))

    def write(self) -> None:
        write_outputs(self.workdir, self.title, self.study, self.records)

    def train(self, variant: Variant, stop: Callable[[], bool]) -> bool:
        """Train a variant with seeds that its record lacks, and write what is known then; False if stopped.

        With all of them at once, unless some are under way already: with those first.
        """
        done = self.records.get(variant.name)
        before = done if done is not None and done.status != FAILED else None
        folder = self.prepare(variant, before)
        seeds = next_seeds(done, self.study, folder)
        try:
            group = dataclasses.replace(self.study, seeds=seeds)
            run = VariantRun(variant, group, self.data, folder, self.manner, stop)
            record = run.go()
        except (InputError, OSError):
            raise
        except Exception as error:  # Any: what fails for one variant (memory, a compiler) must not cost the others.
            self.note_failure(variant, f"{type(error).__name__}: {recipe.first_line(error)[:300]}", seeds, before)
            return True
        if record is None:
            return False
        if before is None:
            forget_weights(self.workdir, variant.name)
        self.add(record if before is None else merged(before, record))
        if not (self.keep and write_weights(run, self.workdir, self.records[variant.name])):
            run.discard()
        self.write()
        print(result(self.records[variant.name]))
        return True

    def prepare(self, variant: Variant, before: Record | None) -> Path:
        """The folder for the checkpoints of a variant, or of the seeds that `before` lacks; without what cannot be
        gone on with there."""
        folder = checkpoint_folder(self.workdir, variant.name, more=before is not None)
        if before is None:
            drop_outdated(self.workdir, variant.name, identity_of(variant, self.study, self.data.host.fingerprint))
        elif folder in last_checkpoints(self.workdir, before):
            # Of seeds that are in the record since: a kill came before it was removed.
            remove_checkpoints(folder)
        return folder

    def add(self, record: Record) -> None:
        write_record(self.workdir, record)
        self.records[record.name] = record

    def note_failure(self, variant: Variant, reason: str, seeds: tuple[int, ...], before: Record | None) -> None:
        """A failed variant is a row of the table; where other seeds are done, their record stays as it is."""
        self.failed.add(variant.name)
        if before is not None:
            told = f"seeds {', '.join(map(str, seeds))} failed: {reason}"
            print(f"{variant.name}: {told}; the results of the other seeds are kept")
            return
        identity = identity_of(variant, self.study, self.data.host.fingerprint)
        empty = Curves(diverged=[None] * len(self.study.seeds))
        kind = self.data.device.device_kind
        self.add(Record(variant.name, FAILED, reason, identity, 0, 0, self.manner.together, kind, None, empty, {}))
        self.write()
        print(result(self.records[variant.name]))


def result(record: Record) -> str:
    """One variant in one line."""
    if record.status == FAILED:
        return f"{record.name}: failed: {record.reason}"
    own = figures(record, None)
    rate = f", {record.images_per_second:,.0f} images/s" if record.images_per_second else ""
    shown = f"test error {with_deviation(own)} %" if own.mean is not None else "no seed has a result"
    return f"{record.name}: {shown}{rate}" + (f" ({record.reason})" if record.reason else "")
