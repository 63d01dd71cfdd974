"""Which training images become a split of their own: drawn by a seed, class by class, copies together where asked."""

import numpy as np

from input_pipeline.errors import InputError, printable

# How to do without splits that are made here, as a refusal to make one ends.
MAKE_NONE = "config.data.val_fraction=0 and test_fraction=0 make none"


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
            f"class {name!r} has a single image in train, too few to split: add images, or give val and test folders "
            f"of your own ({MAKE_NONE})"
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
    draws = _draws(len(labels), seed, stream)
    chosen = np.zeros(len(labels), bool)
    for label, number in enumerate(quota):
        members = np.flatnonzero(labels == label)
        chosen[members[np.argsort(draws[members], kind="stable")[:number]]] = True
    return chosen


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
    classes = int(labels.max()) + 1
    grouped = {row for rows in groups for row in rows}
    whole = [rows for rows in groups if rows] + [[row] for row in range(len(labels)) if row not in grouped]
    draws = _draws(len(labels), seed, stream)
    whole.sort(key=lambda rows: int(draws[rows].min()))
    chosen, room = np.zeros(len(labels), bool), np.bincount(labels[drawn], minlength=classes)
    for rows in whole:
        taken = np.bincount(labels[rows], minlength=classes)
        if np.all(taken <= room):
            chosen[rows], room = True, room - taken
    if not chosen.any():
        for rows in sorted(whole, key=len):
            rest = np.ones(len(labels), bool)
            rest[rows] = False
            if np.isin(labels[rows], labels[rest]).all():
                return ~rest
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
            f"config.data.per_class={number} leaves nothing of class {printable(class_names[label])!r}, which has "
            f"{counts[label]} images; take at most {counts.min() - 1}"
        )
    draws = _draws(len(labels), seed, stream)
    chosen = np.zeros(len(labels), bool)
    for label in range(len(class_names)):
        members = np.flatnonzero(labels == label)
        chosen[members[np.argsort(draws[members], kind="stable")[:number]]] = True
    return chosen


def _draws(number: int, seed: int, stream: int) -> np.ndarray:
    """uint64[number], random: a function of these three alone."""
    return np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(number)
