"""Checks a folder of images, every file of it, and reports what is wrong.

    python -m input_pipeline.doctor DATA_DIR [--json] [--html FILE]

Exit code 0, or 1 where a finding is an error (a result measured on this folder would be wrong), or 2 for bad input.
What each finding means, and what was measured on public sets: docs/doctor.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import PIL

from input_pipeline import file_findings
from input_pipeline.bars import Bar
from input_pipeline.copies import blank, identical, near_pairs
from input_pipeline.copy_findings import Copies
from input_pipeline.doctor_page import page
from input_pipeline.errors import InputError, printable
from input_pipeline.findings import ADVICE, Finding, Report, sorted_by_level
from input_pipeline.fingerprints import Gallery, Look
from input_pipeline.folder import find_images
from input_pipeline.images import SPLITS, Listing
from input_pipeline.looking import Looking, gather
from input_pipeline.name_groups import about_names
from input_pipeline.unused_files import about_unused_files
from input_pipeline.whole_files import write_whole
from native.own_folders import cache_folder

# Part of the cache's key: raise it when what is looked for, or how it is said, changes.
VERSION = 5
_SHOWN = 3


def look_over(data_dir: str | Path, *, cache_dir: str | None = None, progress: bool = True) -> Report:
    """Look at every image under `data_dir` once, or recall what an earlier call found on the same files.

    cache_dir: default resnet-jax/doctor under $XDG_CACHE_HOME or ~/.cache; one that cannot be written is no error.
    progress: on standard error, where the set is large (`bars`). Memory: about 1.1 kB an image.
    Raises InputError for a folder that is missing or cannot be understood as classes and splits.
    """
    return Doctor(_list(Path(data_dir)), cache_dir=cache_dir).look_over(progress=progress)


class Doctor:
    """One look over a folder that is listed already. `report`: what an earlier one found on the same files, or None.

    While it is None, code that reads files of the listing anyway may hand them over (`take`), from threads too: the
    doctor does not read these again.
    """

    def __init__(self, listing: Listing, *, cache_dir: str | None = None) -> None:
        """Raises ValueError for a listing that is of no files."""
        self.listing = listing
        self._unused = about_unused_files(listing)
        self._cache = _cache_file(listing, self._unused, cache_dir)
        report = _recall(self._cache)
        self.report = report and dataclasses.replace(report, where=listing.where)
        self._looking = None if report else Looking(listing, cache_dir)

    def take(self, i: int, data: bytes, label: int) -> None:
        """The encoded bytes and the label of file i."""
        if self._looking is not None:
            self._looking.take(i, data, label)

    def quietly(self) -> contextlib.AbstractContextManager[None]:
        """The context in which `take` is to be called."""
        return contextlib.nullcontext() if self._looking is None else self._looking.quietly()

    def look_over(self, *, progress: bool = True) -> Report:
        """The report, with whatever is left to be read now."""
        if self.report is None:
            assert self._looking is not None
            if self._looking.left():
                # Another process may have looked at them while this one waited for its audit.
                self._looking.recall()
            self.report, lasting = _examine(self._looking, self._unused, progress)
            self._looking = None
            if lasting:
                try:
                    self._cache.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(self._cache, json.dumps(self.report.to_json(), separators=(",", ":")))
                except OSError:
                    pass  # A read-only home costs the next run another look, nothing else.
        return self.report


def _list(data_dir: Path) -> Listing:
    try:
        if not data_dir.is_dir():
            raise InputError(f"{printable(str(data_dir))}: no such folder; name a folder of images")
        return find_images(data_dir)
    except OSError as error:  # A link to itself, a folder that goes away.
        name = printable(str(error.filename or data_dir))
        raise InputError(f"{name}: cannot be read ({error.strerror}); fix or remove it") from error


def _examine(looking: Looking, unused: list[Finding], progress: bool) -> tuple[Report, bool]:
    """The report, and whether it holds as long as no file changes: not where one was not given."""
    listing = looking.listing
    with Bar("looking at images", len(looking.left()), shown=progress) as bar:
        gallery = gather(looking, progress=bar.update)
    even = blank(gallery)
    groups = identical(gallery)
    repeated = np.zeros(len(listing.ids), bool)
    for group in groups:
        repeated[group[1:]] = True
    rows = np.flatnonzero(gallery.readable & ~even & ~repeated)
    with Bar("comparing images", len(rows), shown=progress) as bar:
        pairs = near_pairs(gallery, rows, progress=bar.update)
    copies = Copies(listing, gallery, groups, pairs)
    counts = _counts(listing, gallery)
    findings = [
        *file_findings.about_files(listing, gallery, even),
        *copies.findings(),
        *file_findings.about_classes(listing.class_names, counts),
        *unused,
        *about_names(listing, gallery.labels.tolist()),
        *file_findings.about_giveaways(listing, gallery),
    ]
    looks = [look for look in gallery.looks if not look.reason]
    report = Report(
        where=listing.where,
        class_names=listing.class_names,
        counts=counts,
        files=len(listing.ids),
        formats=dict(Counter(look.format for look in looks).most_common()),
        modes=dict(Counter(look.mode for look in looks).most_common()),
        sizes=_sizes(looks),
        findings=sorted_by_level(findings),
        leaks=copies.leaks(),
        # Of unreadable files too: what Pillow cannot read here, the feed's decoder may.
        identical=tuple(_names(listing, group) for group in identical(gallery, unreadable_too=True)),
        near_copies=tuple((listing.ids[one], listing.ids[other]) for one, other in pairs.rows[pairs.copy].tolist()),
    )
    return report, all(look.lasting for look in gallery.looks)


def _names(listing: Listing, rows: Sequence[int]) -> tuple[str, ...]:
    return tuple(listing.ids[row] for row in rows)


def _counts(listing: Listing, gallery: Gallery) -> dict[str, tuple[int, ...]]:
    """Readable images per class, by split; 'train' even where it has none."""
    splits = np.array(listing.split_names)
    return {
        split: tuple(
            np.bincount(
                gallery.labels[(splits == split) & gallery.readable], minlength=len(listing.class_names)
            ).tolist()
        )
        for split in SPLITS
        if split == "train" or split in listing.split_names
    }


def _sizes(looks: Sequence[Look]) -> dict[str, tuple[float, float, float]]:
    if not looks:
        return {}
    sides = np.array([(look.height, look.width) for look in looks], np.float64)
    columns = {"height": sides[:, 0], "width": sides[:, 1], "aspect": sides.max(1) / sides.min(1)}
    return {
        name: (float(values.min()), float(np.median(values)), float(values.max())) for name, values in columns.items()
    }


def _cache_file(listing: Listing, unused: list[Finding], cache_dir: str | None) -> Path:
    """Where the report on just these files is kept: any file added, changed or touched gives another name."""
    key = f"{VERSION} {PIL.__version__} {listing.stamp} {unused!r}".encode("utf-8", "surrogateescape")
    return Path(cache_dir or cache_folder("doctor")) / f"{hashlib.sha256(key).hexdigest()}.json"


def _recall(cache: Path) -> Report | None:
    try:
        return Report.from_json(json.loads(cache.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # None there, or something else.


def table(report: Report) -> list[str]:
    """The report as lines of text: splits, sizes, then findings, worst first, each with its first cases."""
    readable = sum(map(sum, report.counts.values()))
    lines = [
        f"{printable(report.where)}: {report.files:,} files, {readable:,} readable, {len(report.class_names):,} classes"
    ]
    kinds = (*report.formats.items(), *report.modes.items())
    lines.append("  " + ", ".join(f"{name} {count:,}" for name, count in kinds))
    for name, (least, median, greatest) in report.sizes.items():
        digits = ".2f" if name == "aspect" else ",.0f"
        lines.append(f"  {name:6} min {least:{digits}}, median {median:{digits}}, max {greatest:{digits}}")
    for split, counts in report.counts.items():
        fewest, most = (f"{pick(counts):,} {_class_with(report, counts, pick(counts))}" for pick in (min, max))
        spread = f"fewest {fewest}, most {most}" if min(counts) < max(counts) else f"{max(counts):,} of each class"
        lines.append(f"  {split:6} {sum(counts):>9,} images; {spread}")
    for finding in report.findings:
        lines.append(f"{finding.level:8} {finding.summary}")
        for item in finding.items[:_SHOWN]:
            names = " = ".join(printable(name) for name in item.files[:4]) + (" ..." if len(item.files) > 4 else "")
            remark = printable(item.remark)
            lines.append(" " * 11 + (f"{names} ({remark})" if names and remark else names or remark))
        if len(finding.items) > _SHOWN:
            lines.append(" " * 11 + f"... and {len(finding.items) - _SHOWN:,} more")
        if finding.code in ADVICE:
            lines.append(f"{'':9}-> {ADVICE[finding.code]}")
    if not report.findings:
        lines.append("nothing found")
    return lines


def _class_with(report: Report, counts: Sequence[int], count: int) -> str:
    return printable(report.class_names[counts.index(count)])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{printable(message)}; see --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = _Parser(prog="python -m input_pipeline.doctor", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data_dir", metavar="DATA_DIR", help="CLASS/*.jpg or {train,val,test}/CLASS/*.jpg")
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON, every case listed")
    parser.add_argument("--html", metavar="FILE", help="write a page with the suspicious pictures side by side")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name must not break a terminal that knows ASCII only
    try:
        options = parser.parse_args(arguments)
        report = look_over(options.data_dir)
        if options.html:
            try:
                write_whole(Path(options.html), page(report))
            except OSError as error:
                raise InputError(f"{printable(options.html)}: cannot be written ({error.strerror})") from error
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        print(json.dumps(report.to_json(), indent=1) if options.json else "\n".join(table(report)), flush=True)
    except BrokenPipeError:  # The reader, head say, has seen enough; Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return report.exit_code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
