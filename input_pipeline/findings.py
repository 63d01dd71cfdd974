"""What a looking-over says: findings, each with a level, in a report that survives a round trip through JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# From bad to harmless. error: a result measured on this data would be wrong or could not be measured at all.
LEVELS = ("error", "warning", "note")
_DROP = (
    "config.data.drop_leaks=True leaves them out of evaluation; otherwise accuracy is reported with and without them"
)
_TWO_LABELS = "check them: one label is wrong, or the classes overlap"
_TOGETHER = "config.data.keep_copies_together=True keeps copies on one side of a split made here"
# Code of a finding -> what to do about it.
ADVICE: Mapping[str, str] = {
    "unreadable": "fix or remove them; config.data.on_error='skip' leaves out what the feed cannot read",
    "exact_leak": _DROP,
    "near_leak": _DROP,
    "exact_two_labels": _TWO_LABELS,
    "near_two_labels": _TWO_LABELS,
    "untrained": "add images to train, remove the class, or correct the spelling of its folder",
    "alike_leak": "check them: are they of one patient or film? Then split by patient or film, not by file",
    "exact_copies": _TOGETHER,
    "near_copies": _TOGETHER,
    "hidden_folders": "remove the dot from the name of any that is a class",
}


@dataclass(frozen=True)
class Item:
    """One case of a finding. files: names relative to the folder, unescaped. remark: what there is to say of it."""

    files: tuple[str, ...]
    remark: str = ""


@dataclass(frozen=True)
class Finding:
    """code: a stable name for programs. level: one of LEVELS. summary: one line. items: every case, most telling first.

    paired: whether the files of an item are pictures to be seen side by side.
    """

    code: str
    level: str
    summary: str
    items: tuple[Item, ...] = ()
    paired: bool = False


@dataclass(frozen=True)
class Report:
    """A folder, looked over.

    where: the folder. class_names: sorted. counts: readable images of each class, by split. files: all that were looked
    at. formats, modes: how many readable files of each encoded format and of each colour mode as stored. sizes: of the
    readable, by 'height', 'width' (pixels, upright) and 'aspect' (longer over shorter side): least, median and
    greatest; empty where none is readable. findings: worst first. leaks: by split, names of the images that also
    stand in an earlier split (train before val before test), under 'exact' (same bytes) and 'near' (encoded anew,
    scaled, brightened; not those that are exact). identical: groups of names of files with the same bytes, whatever
    their splits. near_copies: pairs of names of near copies; of a group in `identical` its first name stands for all.
    """

    where: str
    class_names: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    files: int
    formats: Mapping[str, int]
    modes: Mapping[str, int]
    sizes: Mapping[str, tuple[float, float, float]]
    findings: tuple[Finding, ...]
    leaks: Mapping[str, Mapping[str, tuple[str, ...]]]
    identical: tuple[tuple[str, ...], ...] = ()
    near_copies: tuple[tuple[str, str], ...] = ()

    @property
    def exit_code(self) -> int:
        """1 where a finding is an error, else 0."""
        return int(any(finding.level == "error" for finding in self.findings))

    def lines(self) -> list[str]:
        """'LEVEL: SUMMARY' of each finding."""
        return [f"{finding.level}: {finding.summary}" for finding in self.findings]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Report:
        """The report that `to_json` gave, after a round trip; KeyError, TypeError or ValueError for anything else."""
        findings = tuple(
            Finding(
                str(finding["code"]),
                str(finding["level"]),
                str(finding["summary"]),
                tuple(Item(tuple(map(str, item["files"])), str(item["remark"])) for item in finding["items"]),
                bool(finding["paired"]),
            )
            for finding in data["findings"]
        )
        return Report(
            where=str(data["where"]),
            class_names=tuple(map(str, data["class_names"])),
            counts={str(split): tuple(map(int, counts)) for split, counts in data["counts"].items()},
            files=int(data["files"]),
            formats={str(name): int(count) for name, count in data["formats"].items()},
            modes={str(name): int(count) for name, count in data["modes"].items()},
            sizes={str(name): _three(values) for name, values in data["sizes"].items()},
            findings=findings,
            leaks={
                str(split): {str(kind): tuple(map(str, names)) for kind, names in kinds.items()}
                for split, kinds in data["leaks"].items()
            },
            identical=tuple(tuple(map(str, names)) for names in data["identical"]),
            near_copies=tuple((str(one), str(other)) for one, other in data["near_copies"]),
        )


def _three(values: Any) -> tuple[float, float, float]:
    least, median, greatest = map(float, values)
    return least, median, greatest


def sorted_by_level(findings: list[Finding]) -> tuple[Finding, ...]:
    """Worst level first; within a level in the order given."""
    return tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level)))


def plural(count: int, noun: str, nouns: str = "") -> str:
    """'1 file', '2 files', '1,311 test images'."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"
