"""More seeds for a variant that is done: which ones it lacks, and one record of all."""

import dataclasses
from pathlib import Path

from resnet.study.ablation_config import Study, Variant
from resnet.study.ablation_records import (
    DIVERGED,
    FAILED,
    OK,
    Curves,
    Diagnosis,
    Record,
    check_identity,
    checkpoint_folder,
    diverged_reason,
    identity_of,
)
from resnet.train.checkpoints import newest_meta

Rows = list[list[float | None]]
UNKNOWN_CODE = "not noted"


def missing_seeds(record: Record | None, study: Study) -> tuple[int, ...]:
    """The study's seeds that a variant is still to be trained with: all without a record, or with one that failed."""
    if record is None or record.status == FAILED:
        return study.seeds
    return tuple(seed for seed in study.seeds if seed not in record.seeds)


def begun_seeds(folder: Path) -> tuple[int, ...]:
    """The seeds whose training the checkpoints in a `checkpoint_folder` are of; none without one that can be read."""
    meta = newest_meta(folder)
    return tuple(meta.config.get("seeds", ())) if meta else ()


def next_seeds(record: Record | None, study: Study, folder: Path) -> tuple[int, ...]:
    """Those of `missing_seeds` to train next: all at once, unless some are under way in `folder`: these first."""
    missing, begun = missing_seeds(record, study), begun_seeds(folder)
    return begun if begun and set(begun) <= set(missing) else missing


def check_begun(record: Record | None, study: Study, variant: Variant, workdir: Path, fingerprint: str) -> None:
    """Raise InputError with the differences if what is under way of a variant cannot be gone on with."""
    more = record is not None and record.status != FAILED
    folder = checkpoint_folder(workdir, variant.name, more=more)
    meta = newest_meta(folder)
    if meta is None or (record is not None and set(begun_seeds(folder)) <= set(record.seeds)):
        return
    group = dataclasses.replace(study, seeds=next_seeds(record, study, folder))
    wanted = identity_of(variant, group, fingerprint)
    check_identity(f"the unfinished variant {variant.name}", folder, meta.config, wanted)


def merged(one: Record, other: Record) -> Record:
    """One record of two trainings of the same variant with different seeds, `one`'s first.

    Seconds and images add up, so that images/s are those of both trainings. Where all seeds of one have diverged, it
    ended before the other: what it lacks is None.
    """
    left, right = one.curves, other.curves
    train = {name: (getattr(left, name), getattr(right, name)) for name in ("train_loss", "train_top1")}
    test = {name: (getattr(left, name), getattr(right, name)) for name in ("test_loss", "test_top1")}
    seeds = (len(one.seeds), len(other.seeds))
    curves = Curves(
        train_step=sorted({*left.train_step, *right.train_step}),
        test_step=sorted({*left.test_step, *right.test_step}),
        **{name: side_by_side((left.train_step, right.train_step), both, seeds) for name, both in train.items()},
        **{name: side_by_side((left.test_step, right.test_step), both, seeds) for name, both in test.items()},
        diverged=left.diverged + right.diverged,
        seconds=left.seconds + right.seconds,
        images=left.images + right.images,
        start=diagnoses(left.start, right.start),
        code=codes(left.code, right.code),
    )
    reason = diverged_reason(curves.diverged, one.identity["run.max_bad_steps"])
    return dataclasses.replace(
        one,
        status=DIVERGED if reason else OK,
        reason=reason,
        identity={**one.identity, "seeds": [*one.seeds, *other.seeds]},
        together=both_of(one.together, other.together),
        device=both_of(one.device, other.device),
        revision=both_of(one.revision or "", other.revision or "") or None,
        curves=curves,
        end=diagnoses(one.end, other.end),
    )


def codes(one: list[str], other: list[str]) -> list[str]:
    """The codes of both; one that is not known, of an early record, is not taken for the other's."""
    if not one and not other:
        return []
    return list(dict.fromkeys([*(one or [UNKNOWN_CODE]), *(other or [UNKNOWN_CODE])]))


def both_of(one: str, other: str) -> str:
    """Either where they are the same, else both."""
    return ", ".join(dict.fromkeys(word for text in (one, other) for word in text.split(", ") if word))


def side_by_side(steps: tuple[list[int], list[int]], rows: tuple[Rows, Rows], seeds: tuple[int, int]) -> Rows:
    """For each step that either has a row of, the values of the one's seeds and then the other's."""
    found = [dict(zip(at, of, strict=True)) for at, of in zip(steps, rows, strict=True)]
    nothing: list[list[float | None]] = [[None] * count for count in seeds]
    return [
        [*found[0].get(step, nothing[0]), *found[1].get(step, nothing[1])] for step in sorted({*steps[0], *steps[1]})
    ]


def diagnoses(one: Diagnosis, other: Diagnosis) -> Diagnosis:
    """The same parts of the same network, the one's seeds and then the other's."""
    return {
        quantity: {name: [*values, *other[quantity][name]] for name, values in parts.items()}
        for quantity, parts in one.items()
    }
