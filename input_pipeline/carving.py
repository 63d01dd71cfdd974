"""Which training images become a split of their own: drawn by a seed, class by class, copies together where asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from input_pipeline.errors import InputError, printable

if TYPE_CHECKING:
    from input_pipeline.sources import Split

# How to do without splits that are made here, as a refusal to make one ends.
MAKE_NONE = "config.data.val_fraction=0 and test_fraction=0 make no splits"
# Streams of the random split, so that val is not drawn by the very numbers that drew test.
STREAMS = {"test": 1, "val": 2, "per_class": 3, "fold": 4}


def carve(
    train: Split, name: str, fraction: float, seed: int, class_names: tuple[str, ...], copies: list[tuple[str, ...]]
) -> dict[str, Split]:
    """`train` in two: a stratified `fraction` of it as the split `name`, the rest as 'train'; both keep their order.

    copies: groups of ids of which no two are to stand on different sides. Raises InputError where that leaves no
    choice: the one side would be empty, or the other without a class.
    """
    stream = STREAMS[name]
    drawn = stratified_choice(train.labels, fraction, seed=seed, stream=stream, class_names=class_names)
    groups = rows_of(train, copies)
    chosen = keep_together(drawn, train.labels, groups)
    # Of few images all that were drawn may have gone back to their copies.
    if not chosen.any():
        chosen = choose_whole(train.labels, drawn, groups, seed=seed, stream=stream)
    if not chosen.any():
        raise InputError(
            f"config.data.keep_copies_together=True leaves no image for {name}: each image is a copy in a group that "
            f"holds all of a class; add other images, or add your own val and test folders ({MAKE_NONE})"
        )
    return {"train": train.take(np.flatnonzero(~chosen)), name: train.take(np.flatnonzero(chosen), name)}


def few_of_each(
    train: Split, number: int, seed: int, class_names: tuple[str, ...], copies: list[tuple[str, ...]]
) -> dict[str, Split]:
    """`number` examples of each class as 'train', the rest as 'test'; both keep their order.

    copies: groups of ids of which no two are to stand on different sides. Raises InputError where no such choice has
    `number` of a class.
    """
    stream = STREAMS["per_class"]
    kept = choose_per_class(train.labels, number, seed=seed, stream=stream, class_names=class_names)
    if groups := rows_of(train, copies):
        whole, wanted = whole_groups(train.labels, groups, seed, stream), np.full(len(class_names), number)
        kept = _taken(whole, train.labels, wanted)
        if np.any(np.bincount(train.labels[kept], minlength=len(class_names)) != number):
            # Single images last: they fill what room families leave.
            kept = _taken(sorted(whole, key=len, reverse=True), train.labels, wanted)
        counts = np.bincount(train.labels[kept], minlength=len(class_names))
        if np.any(counts != number):
            raise InputError(
                f"config.data.keep_copies_together=True cannot pick {number} images (config.data.per_class) of class "
                f"{printable(class_names[int(np.argmax(counts != number))])!r} without splitting a group of copies; "
                "use another number or split_seed, or switch it off"
            )
    return {"train": train.take(np.flatnonzero(kept)), "test": train.take(np.flatnonzero(~kept), "test")}


def rows_of(train: Split, copies: list[tuple[str, ...]]) -> list[list[int]]:
    """The rows of `train` in each of these groups of ids, of those with any there."""
    row_of = {example: row for row, example in enumerate(train.ids)} if copies else {}
    groups = ([row_of[example] for example in group if example in row_of] for group in copies)
    return [rows for rows in groups if rows]


def stratified_choice(
    labels: np.ndarray, fraction: float, *, seed: int, stream: int, class_names: tuple[str, ...]
) -> np.ndarray:
    """Choose a `fraction` of N examples at random, class by class: bool[N], True where chosen.

    labels: int32[N]. Of each class the exact share, rounded down or up by largest remainder so that the total is the
    rounded share of N (at least 1); at least one example per class is left. The draw is a function of (labels, seed,
    stream) alone. Raises InputError, naming the class, where one has a single example: it cannot stand on both sides.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    if np.any(counts == 1):
        name = printable(class_names[int(np.argmax(counts == 1))])
        raise InputError(
            f"class {name!r} has a single image in train, too few to split: add images, or add your own val and test "
            f"folders ({MAKE_NONE})"
        )
    share = counts * fraction
    quota = np.floor(share).astype(np.int64)
    total = max(1, round(len(labels) * fraction))
    room = np.maximum(counts - 1, 0)
    quota = np.minimum(quota, room)
    order = np.argsort(-(share - np.floor(share)), kind="stable")
    for label in order:
        if quota.sum() < total and quota[label] < room[label]:
            quota[label] += 1
    return _first_drawn(labels, quota, seed, stream)


def keep_together(chosen: np.ndarray, labels: np.ndarray, groups: list[list[int]]) -> np.ndarray:
    """`chosen` bool[N], changed so that of each group of rows (disjoint) all are chosen or none: as its first row was.

    A group stays where it would take the last unchosen example of a class, int32[N] `labels`, with it.
    """
    kept = chosen.copy()
    for rows in groups:
        if not rows or np.all(kept[rows] == kept[rows[0]]):
            continue
        kept[rows] = kept[rows[0]]
        if not np.isin(labels[rows], labels[~kept]).all():
            kept[rows] = False
    return kept


def choose_whole(
    labels: np.ndarray, drawn: np.ndarray, groups: list[list[int]], *, seed: int, stream: int
) -> np.ndarray:
    """Choose whole groups of rows (disjoint; a row of none is one by itself) of N examples: bool[N], True where chosen.

    labels: int32[N]. drawn: bool[N], a `stratified_choice` with this seed and stream, which says how many of each class
    to choose at most; in the order of its draw. Where every group is more than that, the smallest that leaves an
    example of each class; none, all False, where there is no such group.
    """
    whole = whole_groups(labels, groups, seed, stream)
    chosen = _taken(whole, labels, np.bincount(labels[drawn], minlength=int(labels.max()) + 1))
    if not chosen.any():
        for rows in sorted(whole, key=len):
            rest = np.ones(len(labels), bool)
            rest[rows] = False
            if np.isin(labels[rows], labels[rest]).all():
                return ~rest
    return chosen


def whole_groups(labels: np.ndarray, groups: list[list[int]], seed: int, stream: int) -> list[list[int]]:
    """The groups of rows, and each other row by itself, in the order of this draw."""
    grouped = {row for rows in groups for row in rows}
    whole = [rows for rows in groups if rows] + [[row] for row in range(len(labels)) if row not in grouped]
    draws = _draws(len(labels), seed, stream)
    return sorted(whole, key=lambda rows: int(draws[rows].min()))


def _taken(whole: list[list[int]], labels: np.ndarray, room: np.ndarray) -> np.ndarray:
    """bool[N]: each group, one after the other, that has no more examples of a class than room, int[C], is left."""
    chosen, room = np.zeros(len(labels), bool), room.copy()
    for rows in whole:
        taken = np.bincount(labels[rows], minlength=len(room))
        if np.all(taken <= room):
            chosen[rows], room = True, room - taken
    return chosen


def choose_per_class(
    labels: np.ndarray, number: int, *, seed: int, stream: int, class_names: tuple[str, ...]
) -> np.ndarray:
    """Choose `number` of N examples of each class at random: bool[N], True where chosen.

    labels: int32[N]. The draw is a function of (labels, seed, stream) alone. Raises InputError, naming the class, where
    one has no more than `number`: nothing would be left of it.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    if counts.min() <= number:
        label = int(np.argmin(counts))
        raise InputError(
            f"config.data.per_class={number} leaves no image of class {printable(class_names[label])!r}, which has "
            f"{counts[label]} images; use at most {counts.min() - 1}"
        )
    return _first_drawn(labels, np.full(len(class_names), number), seed, stream)


def _first_drawn(labels: np.ndarray, quota: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """bool[N]: of the examples of each class the first quota[class], int[C], in the order of this draw."""
    # One sort, not a pass over all labels a class: that would be minutes for ImageNet-21k.
    order = np.lexsort((_draws(len(labels), seed, stream), labels))
    in_order = labels[order]
    starts = np.searchsorted(in_order, np.arange(len(quota)))
    chosen = np.zeros(len(labels), bool)
    chosen[order] = np.arange(len(labels)) - starts[in_order] < quota[in_order]
    return chosen


def _draws(number: int, seed: int, stream: int) -> np.ndarray:
    """uint64[number], random: a function of these three alone."""
    return np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(number)
