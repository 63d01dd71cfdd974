"""Findings about pictures that stand in a folder more than once: across splits, under two labels, or just twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from input_pipeline.copies import Pairs
from input_pipeline.findings import Finding, Item, plural
from input_pipeline.fingerprints import Gallery
from input_pipeline.groups import joined
from input_pipeline.images import SPLITS, Listing

_HOW = {
    "exact": "a byte-identical copy",
    "near": "a copy (re-encoded, scaled, with other brightness or contrast)",
    "alike": "a look-alike (neighbouring slice, next frame, same scene)",
}
# split that leaks, split it stands in too, how -> file of the former -> (likeness, file of the latter)
Leaks = dict[tuple[str, str, str], dict[int, tuple[float, int]]]


class Copies:
    """What `copies` found in a listing, seen by split and by label.

    groups: of rows with the same bytes. pairs: of first rows of such groups, or of rows in none.
    """

    def __init__(self, listing: Listing, gallery: Gallery, groups: list[list[int]], pairs: Pairs) -> None:
        self.listing, self.labels, self.groups, self.pairs = listing, gallery.labels, groups, pairs
        self._members = {group[0]: group for group in groups}
        self._leaks = self._find_leaks()

    def findings(self) -> list[Finding]:
        """All of them, leaks first."""
        findings = [self._leak(*key) for key in sorted(self._leaks, key=_rank)]
        findings += self._two_labels() + self._repeats()
        if not self.pairs.complete:
            summary = (
                "the search for copies was abandoned: too many pictures look alike, so the counts of copies are too low"
            )
            findings.append(Finding("search_given_up", "warning", summary))
        return findings

    def leaks(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """As in `Report.leaks`."""
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        for split in SPLITS[1:]:
            exact, near = (
                {row for key, rows in self._leaks.items() if key[0] == split and key[2] == how for row in rows}
                for how in ("exact", "near")
            )
            if exact or near:
                found[split] = {"exact": self._names(exact), "near": self._names(near - exact)}
        return found

    def _names(self, rows: set[int]) -> tuple[str, ...]:
        return tuple(self.listing.ids[row] for row in sorted(rows))

    def _by_split(self, row: int) -> dict[str, list[int]]:
        """The files with the bytes of file `row`, by split."""
        found: dict[str, list[int]] = defaultdict(list)
        for member in self._members.get(row, [row]):
            found[self.listing.split_names[member]].append(member)
        return found

    def _find_leaks(self) -> Leaks:
        """Each file of a later split, once for each earlier split, under the closest way in which it stands there."""
        leaks: Leaks = defaultdict(dict)
        for group in self.groups:
            self._cross(leaks, "exact", self._by_split(group[0]), self._by_split(group[0]), 1.0)
        # Closest first, so that the example shown is the most telling.
        for number in np.lexsort((-self.pairs.detail, ~self.pairs.copy)):
            one, other = (self._by_split(int(row)) for row in self.pairs.rows[number])
            how = "near" if self.pairs.copy[number] else "alike"
            likeness = float(self.pairs.detail[number])
            self._cross(leaks, how, one, other, likeness)
            self._cross(leaks, how, other, one, likeness)
        return {key: rows for key, rows in leaks.items() if rows}

    @staticmethod
    def _cross(leaks: Leaks, how: str, one: dict[str, list[int]], other: dict[str, list[int]], likeness: float) -> None:
        """Note the files of `other` that stand, as files of `one`, in an earlier split."""
        closer = list(_HOW)[: list(_HOW).index(how)]
        for earlier, sources in one.items():
            for later, rows in other.items():
                if SPLITS.index(earlier) >= SPLITS.index(later):
                    continue
                for row in rows:
                    if not any(row in leaks[later, earlier, way] for way in closer):
                        leaks[later, earlier, how].setdefault(row, (likeness, sources[0]))

    def _leak(self, later: str, earlier: str, how: str) -> Finding:
        rows = self._leaks[later, earlier, how]
        names, total = self.listing.ids, self.listing.split_names.count(later)
        ranked = sorted(rows.items(), key=lambda entry: (-entry[1][0], entry[0]))
        items = tuple(
            Item((names[row], names[source]), "" if how == "exact" else f"likeness {likeness:.3f}")
            for row, (likeness, source) in ranked
        )
        closer = list(_HOW)[: list(_HOW).index(how)]
        more = " more" if any((later, earlier, way) in self._leaks for way in closer) else ""
        few = f"{len(rows):,}{more} of {total:,} {later} images"
        verb = "has" if len(rows) == 1 else "have"
        level = "warning" if how == "alike" else "error"
        return Finding(f"{how}_leak", level, f"{few} {verb} {_HOW[how]} in {earlier}", items, paired=True)

    def _two_labels(self) -> list[Finding]:
        """The same picture under several labels: whichever the network says, it is wrong once."""
        names, classes = self.listing.ids, self.listing.class_names

        def item(rows: list[int], likeness: float | None) -> Item:
            of_label = {int(self.labels[row]): row for row in reversed(rows)}
            labels = " / ".join(classes[label] for label in sorted(of_label))
            shown = tuple(names[of_label[label]] for label in sorted(of_label))
            return Item(shown, labels if likeness is None else f"{labels}, likeness {likeness:.3f}")

        exact = tuple(item(group, None) for group in self.groups if len(set(self.labels[group].tolist())) > 1)
        near = tuple(
            item(rows, likeness) for rows, likeness in self._near() if len(set(self.labels[rows].tolist())) > 1
        )
        findings = []
        if exact:
            summary = f"{plural(len(exact), 'image')} with two or more labels, byte for byte the same"
            findings.append(Finding("exact_two_labels", "error", summary, exact, paired=True))
        if near:
            summary = f"{plural(len(near), 'pair')} of copies (re-encoded, scaled ...) with different labels"
            findings.append(Finding("near_two_labels", "error", summary, near, paired=True))
        return findings

    def _near(self) -> Iterator[tuple[list[int], float]]:
        """Pairs of rows that are copies, closest first."""
        for number in np.argsort(-self.pairs.detail, kind="stable"):
            if self.pairs.copy[number]:
                yield self.pairs.rows[number].tolist(), float(self.pairs.detail[number])

    def _repeats(self) -> list[Finding]:
        """Groups wherever they stand: within a split they weigh a picture double, and a random split tears them."""
        names = self.listing.ids
        torn = "" if len(set(self.listing.split_names)) > 1 else ": a random split would put some on both sides"
        findings = []
        if self.groups:
            items = tuple(Item(tuple(names[row] for row in rows)) for rows in sorted(self.groups, key=_largest))
            surplus = sum(len(rows) - 1 for rows in self.groups)
            summary = f"{plural(len(items), 'group')} of byte-identical files, {surplus:,} surplus in all{torn}"
            findings.append(Finding("exact_copies", "warning", summary, items, paired=True))
        families = joined(rows for rows, _ in self._near())
        if families:
            items = tuple(Item(tuple(names[row] for row in rows)) for rows in sorted(families, key=_largest))
            surplus = sum(len(rows) - 1 for rows in families)
            summary = (
                f"{plural(len(items), 'group')} of copies (re-encoded, scaled, with other brightness or contrast), "
                f"{surplus:,} surplus in all besides byte-identical files{torn}"
            )
            findings.append(Finding("near_copies", "warning", summary, items, paired=True))
        alike = np.flatnonzero(~self.pairs.copy)
        if len(alike):
            closest = alike[np.argsort(-self.pairs.detail[alike], kind="stable")]
            items = tuple(
                Item(tuple(names[row] for row in self.pairs.rows[number]), f"likeness {self.pairs.detail[number]:.3f}")
                for number in closest
            )
            summary = f"{plural(len(items), 'pair')} of look-alikes (slices of one scan, frames of one film?){torn}"
            findings.append(Finding("look_alikes", "note", summary, items, paired=True))
        return findings


def _rank(key: tuple[str, str, str]) -> tuple[int, int, int]:
    """Test before val, against train before val, exact before near."""
    later, earlier, how = key
    return -SPLITS.index(later), SPLITS.index(earlier), list(_HOW).index(how)


def _largest(rows: list[int]) -> tuple[int, int]:
    return -len(rows), rows[0]
