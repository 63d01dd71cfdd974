"""variants/NAME.json: all that is known of a variant that is done, and whether it is the one that is asked for."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from input_pipeline.errors import InputError, printable
from resnet.model.spec import BEHIND_BLOCKS
from resnet.study.ablation_alike import flat_config
from resnet.study.ablation_config import Study, Variant
from resnet.train.configuration import differences, differences_line
from resnet.train.workdir import without_nan, write_json

# Quantity -> part of the network -> one number a seed, None where it was not finite.
Diagnosis = dict[str, dict[str, list[float | None]]]
FOLDER = "variants"
# Apart from the variants' own checkpoints, which --keep_weights may still need when more seeds are trained.
MORE_SEEDS = "more_seeds"
FORMAT = 1
OK, DIVERGED, FAILED = "ok", "diverged", "failed"
# Where the data lie is no part of what they are: the fingerprint is taken over pixels and labels.
PLACES = ("data.source", "data.dir", "data.threads")


@dataclasses.dataclass
class Curves:
    """What is noted while a variant trains; one number a seed in each inner list, None where it was not finite.

    train_*: means since the line before, over the augmented training images. test_*: over the test split. diverged: the
    step by which a seed had too many non-finite steps in a row. seconds: of training alone, without compilation and
    evaluation, over `images` images of all seeds. start: the diagnosis before step 0. code: `code_digest` of what
    trained it, one after the other where it went on with another; empty of records of November 2026 and before.
    """

    train_step: list[int] = dataclasses.field(default_factory=list)
    train_loss: list[list[float | None]] = dataclasses.field(default_factory=list)
    train_top1: list[list[float | None]] = dataclasses.field(default_factory=list)
    test_step: list[int] = dataclasses.field(default_factory=list)
    test_loss: list[list[float | None]] = dataclasses.field(default_factory=list)
    test_top1: list[list[float | None]] = dataclasses.field(default_factory=list)
    diverged: list[int | None] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    images: int = 0
    start: Diagnosis = dataclasses.field(default_factory=dict)
    code: list[str] = dataclasses.field(default_factory=list)

    def well(self, values: list[float | None]) -> list[float | None]:
        """Of one value a seed those of the seeds that did not diverge; means and ranges are over these."""
        return [value for value, diverged in zip(values, self.diverged, strict=True) if diverged is None]


@dataclasses.dataclass(frozen=True)
class Record:
    """A variant that is done: what it was, how it ended, its curves. `status` is OK, DIVERGED or FAILED.

    identity: what makes it this run and no other (`identity_of`). end: the diagnosis after the last step.
    """

    name: str
    status: str
    reason: str
    identity: dict[str, Any]
    parameters: int
    multiply_adds: int
    together: str
    device: str
    revision: str | None
    curves: Curves
    end: Diagnosis

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that it was trained with, in the order of every list of one value a seed."""
        return tuple(self.identity["seeds"])

    @property
    def images_per_second(self) -> float | None:
        """Training images per second of all seeds together."""
        return self.curves.images / self.curves.seconds if self.curves.seconds > 0 else None


def identity_of(variant: Variant, study: Study, fingerprint: str) -> dict[str, Any]:
    """Everything that a variant's figures depend on, flat: its configuration, the seeds and the data."""
    flat = {key: value for key, value in flat_config(variant.config).items() if key not in PLACES}
    return {**flat, "seeds": list(study.seeds), "data's fingerprint": fingerprint}


def record_file(workdir: Path, name: str) -> Path:
    return workdir / FOLDER / f"{name}.json"


def checkpoint_folder(workdir: Path, name: str, *, more: bool = False) -> Path:
    """Where the checkpoints of a variant lie until it is done. more: those of seeds that are added to its record."""
    return workdir / (MORE_SEEDS if more else FOLDER) / name


def remove_checkpoints(folder: Path) -> None:
    """Remove a `checkpoint_folder`; of added seeds' the folder around it too, where it was the last in it."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.name == MORE_SEEDS:
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def diverged_reason(diverged: list[int | None], limit: int) -> str:
    """What a record says of its seeds' `Curves.diverged`, '' where none did. limit: config.run.max_bad_steps."""
    steps = [step for step in diverged if step is not None]
    if not steps:
        return ""
    return (
        f"{len(steps)} of {len(diverged)} seeds had {limit} non-finite steps in a row by step "
        f"{', '.join(map(str, steps))}"
    )


def write_record(workdir: Path, record: Record) -> None:
    """Write variants/NAME.json in one piece."""
    write_json(record_file(workdir, record.name), {"format": FORMAT, **without_nan(dataclasses.asdict(record))})


def read_record(workdir: Path, name: str) -> Record | None:
    """The record of a variant, None where there is none yet. Raises InputError that names a file of another form."""
    file = record_file(workdir, name)
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{printable(str(file))} cannot be read; remove it to train this variant again") from error
    try:
        if stored.pop("format") != FORMAT:
            raise KeyError("format")
        curves = Curves(**stored["curves"])
        curves.start = by_depth(curves.start)
        return Record(**{**stored, "curves": curves, "end": by_depth(stored["end"])})
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"{printable(str(file))} was written by another version; remove it to train this variant again"
        ) from error


def part(name: str) -> str:
    """The part of a network that a layer of this name belongs to: its block, 'stem' or 'head'."""
    if name.startswith("layer"):
        return name
    return "head" if name in BEHIND_BLOCKS else "stem"


def by_depth(found: Diagnosis) -> Diagnosis:
    """The same with parts from the images to the logits: stem, layer1_0, …, layer1_10, …, head. JSON sorts them."""

    def place(name: str) -> tuple[int, int, int]:
        if not name.startswith("layer"):
            return (0 if name == "stem" else 2, 0, 0)
        stage, _, index = name.removeprefix("layer").partition("_")
        return 1, int(stage), int(index)

    return {quantity: {name: parts[name] for name in sorted(parts, key=place)} for quantity, parts in found.items()}


def check_identity(what: str, at: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise InputError with every difference unless what is stored at `at` is what is wanted."""
    changed = differences(stored, wanted)
    if changed:
        raise InputError(
            f"{what} has another configuration; give --workdir a new folder, or the old settings, or delete "
            f"{printable(str(at))} to train it again: {differences_line(changed)}"
        )


def outdated(record: Record, wanted: dict[str, Any]) -> bool:
    """Whether a record says that another configuration failed: no reason to refuse this one, and nothing to keep.

    With more seeds it is the same one: what some of them had done is gone on with.
    """
    stored = record.identity
    if set(stored.get("seeds", ())) <= set(wanted["seeds"]):
        stored = {**stored, "seeds": wanted["seeds"]}
    return record.status == FAILED and bool(differences(stored, wanted))


def drop_outdated(workdir: Path, name: str, wanted: dict[str, Any]) -> None:
    """Remove the record of a variant if it is `outdated`, and before it the checkpoints of what failed."""
    record = read_record(workdir, name)
    if record is not None and outdated(record, wanted):
        remove_checkpoints(checkpoint_folder(workdir, name))
        record_file(workdir, name).unlink(missing_ok=True)
