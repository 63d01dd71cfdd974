"""Images that stand in two splits at once: accuracy on them measures memory, not vision.

The very bytes are compared by what the audit noted of them, or recalled from the doctor's report; near copies (encoded
anew, scaled, brightened) are known where the doctor has looked the folder over.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from input_pipeline.errors import InputError
from input_pipeline.findings import Report
from input_pipeline.groups import joined
from input_pipeline.images import SPLITS

if TYPE_CHECKING:
    from input_pipeline.sources import Source, Split


@dataclasses.dataclass(frozen=True)
class Leaks:
    """Which of a split's N examples stand in an earlier split too (train before val before test).

    exact: bool[N], with the very same bytes. near: bool[N], as a copy, where it is not exact; all False where the
    doctor did not look, which `searched` tells.
    """

    exact: np.ndarray
    near: np.ndarray
    searched: bool

    @property
    def either(self) -> np.ndarray:
        """bool[N]."""
        return np.asarray(self.exact | self.near)

    def ids(self, split: Split) -> dict[str, tuple[str, ...]]:
        """Of `split`, whose leaks these are: {'exact': ids, 'near': ids}."""
        kinds = {"exact": self.exact, "near": self.near}
        return {kind: tuple(split.ids[row] for row in np.flatnonzero(rows)) for kind, rows in kinds.items()}


def find_leaks(source: Source, name: str) -> Leaks:
    """The leaks of the split `name`; none in 'train'."""
    split = source.splits[name]
    before = [source.splits[other] for other in earlier(source, name)]
    nothing = np.zeros(len(split), bool)
    if source.report is None:
        exact = nothing.copy()
        for other in before:
            exact |= byte_identical(other, split)
        return Leaks(exact, nothing, False)
    there = {example for other in before for example in other.ids}
    group_of = {group[0]: group for group in source.report.identical}
    same = {example for group in group_of.values() if not there.isdisjoint(group) for example in group}
    alike: set[str] = set()
    for pair in source.report.near_copies:
        one, other_one = (group_of.get(example, (example,)) for example in pair)
        for mine, others in ((one, other_one), (other_one, one)):
            if not there.isdisjoint(others):
                alike.update(mine)
    exact = np.fromiter((example in same for example in split.ids), bool, len(split))
    near = np.fromiter((example in alike for example in split.ids), bool, len(split))
    return Leaks(exact, near & ~exact, True)


def earlier(source: Source, name: str) -> list[str]:
    """The splits of `source` that come before `name`: what a model has seen, or was chosen by, before it meets it."""
    return [other for other in SPLITS[: SPLITS.index(name)] if other in source.splits]


def without_leaks(source: Source) -> Source:
    """`source` with val and test free of what stands in an earlier split, and a fingerprint that says so.

    Raises InputError where nothing would be left of a split.
    """
    splits, dropped = dict(source.splits), {}
    for name, split in source.splits.items():
        leaks = find_leaks(source, name)
        if not leaks.either.any():
            continue
        if leaks.either.all():
            raise InputError(
                f"drop_leaks leaves no {name} image: all {len(split):,} are also in an earlier split; add other images "
                "or switch it off"
            )
        splits[name] = split.take(np.flatnonzero(~leaks.either))
        dropped[name] = leaks.ids(split)
    if not dropped:
        return source
    fingerprint, by_sizes = (_without(each, dropped) for each in (source.fingerprint, source.by_sizes))
    return dataclasses.replace(source, splits=splits, dropped=dropped, fingerprint=fingerprint, by_sizes=by_sizes)


def _without(fingerprint: str, dropped: Mapping[str, Mapping[str, tuple[str, ...]]]) -> str:
    """The fingerprint of a dataset that lacks these examples."""
    digest = hashlib.sha256(fingerprint.encode())
    for name, kinds in dropped.items():
        for example in sorted(example for ids in kinds.values() for example in ids):
            digest.update(f"{name}\0{example}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def families(report: Report) -> list[tuple[str, ...]]:
    """Names joined by the same bytes or as near copies, directly or by way of others; each family sorted."""
    return [tuple(names) for names in joined((*report.identical, *report.near_copies))]


def byte_identical(reference: Split, other: Split) -> np.ndarray:
    """Which examples of `other` have the very same encoded bytes as some example of `reference`: bool[len(other)].

    Copies that were encoded anew, cropped or scaled are not found. Nothing is read: the audit noted what each holds.
    """
    return np.isin(other.contents, reference.contents)
