"""Cross-validation: training images in parts of equal size, class by class alike, one of which is the test split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from input_pipeline.carving import STREAMS, rows_of, whole_groups
from input_pipeline.errors import InputError, printable

if TYPE_CHECKING:
    from input_pipeline.sources import Split

# Each is a run.
MOST = 1000


def check_folds(folds: int, fold: int) -> None:
    """Raise InputError unless `folds` is 0 (none) or at least 2, and `fold` one of theirs, counted from 0."""
    if folds != 0 and not 2 <= folds <= MOST:
        raise InputError(f"config.data.folds={folds} must be from 2 to {MOST}, or 0 for no cross-validation")
    if not 0 <= fold < max(folds, 1):
        among = f"from 0 to {folds - 1}, one of config.data.folds={folds}" if folds else "0 without config.data.folds"
        raise InputError(f"config.data.fold={fold} must be {among}")


def take_fold(
    train: Split,
    folds: int,
    fold: int,
    seed: int,
    class_names: tuple[str, ...],
    copies: list[tuple[str, ...]],
    left: int = 1,
) -> dict[str, Split]:
    """`train` without its part number `fold` of `folds`, and that part as 'test'; both keep their order.

    Each image is in the test split of exactly one fold. copies: groups of ids that stand in one fold together. left:
    images of each class that every fold must leave. Raises InputError, whichever fold it is, where one of them would be
    empty or leave fewer.
    """
    together = "config.data.keep_copies_together=True keeps them together; switch it off" if copies else "add images"
    empty = InputError(f"config.data.folds={folds} of {len(train)} images leave a part empty: use fewer, or {together}")
    if folds > len(train):
        raise empty
    parts = assign(train.labels, folds, rows_of(train, copies), seed=seed)
    counts = np.zeros((folds, len(class_names)), np.int64)
    np.add.at(counts, (parts, train.labels), 1)
    there = counts.sum(axis=0)
    short = (there > 0) & (there - counts.max(axis=0) < left)
    if short.any():
        also = " and one for validation" if left > 1 else ""
        raise InputError(
            f"class {printable(class_names[int(np.argmax(short))])!r} has too few images outside one of the {folds} "
            f"parts of config.data.folds to leave one for training{also}: {together}"
        )
    if not counts.any(axis=1).all():
        raise empty
    chosen = parts == fold
    return {"train": train.take(np.flatnonzero(~chosen)), "test": train.take(np.flatnonzero(chosen), "test")}


def assign(labels: np.ndarray, folds: int, groups: list[list[int]], *, seed: int) -> np.ndarray:
    """int[N]: the fold of each example, labels int32[N]; examples of a group of rows (disjoint) have one.

    Each group, the largest first, goes where there are fewest of its classes, then where there are fewest images. Of
    single images the folds have equally many of each class and in all, but for one. A function of these and the seed.
    """
    whole = whole_groups(labels, groups, seed, STREAMS["fold"])
    # Singles class by class, so that what a class has over goes to the folds that have one less so far.
    whole.sort(key=lambda rows: (-len(rows), int(labels[rows[0]]) if len(rows) == 1 else 0))
    loads = np.zeros((folds, int(labels.max()) + 1), np.int64)
    totals, parts = np.zeros(folds, np.int64), np.zeros(len(labels), np.int64)
    for rows in whole:
        alike = loads[:, labels[rows]].sum(axis=1)
        part = int(np.lexsort((totals, alike))[0])
        parts[rows] = part
        np.add.at(loads[part], labels[rows], 1)
        totals[part] += len(rows)
    return parts
