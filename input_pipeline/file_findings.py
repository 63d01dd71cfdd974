"""Findings about single files and about classes: what cannot be read, what is read otherwise than one might think, what
is missing or rare. Nothing here compares pictures; see `copy_findings`.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

import numpy as np

from input_pipeline.errors import printable
from input_pipeline.findings import Finding, Item, plural
from input_pipeline.fingerprints import NEUTRAL, Gallery, Look
from input_pipeline.images import Listing

_EXTENSIONS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".bmp": "BMP", ".dib": "BMP",
    ".gif": "GIF", ".webp": "WebP",
}  # fmt: skip
_FEW = 10
_RATIO_WARNING, _RATIO_NOTE = 10, 3
_STRETCHED = 3.0
_SMALL = 32
# Points of accuracy above chance by which a file's outside has to give its class away before it is worth a word.
_TELLING = 0.2


def about_files(listing: Listing, gallery: Gallery, blank: np.ndarray) -> list[Finding]:
    """Files that cannot be read, and files that the feed reads otherwise than their owner may think.

    blank: bool[N], pictures all of one grey.
    """
    unreadable = [Item((name,), look.reason) for name, look in _named(listing, gallery) if look.reason]
    findings = []
    if unreadable:
        summary = f"{plural(len(unreadable), 'file')} cannot be read"
        findings.append(Finding("unreadable", "error", summary, tuple(unreadable)))
    if blank.any():
        items = tuple(Item((listing.ids[row],)) for row in np.flatnonzero(blank))
        summary = f"{plural(len(items), 'image')} of one uniform grey or colour"
        findings.append(Finding("blank", "warning", summary, items))
    shown = ((name, look) for name, look in _named(listing, gallery) if not look.reason)
    of_kind: dict[str, list[Item]] = defaultdict(list)
    for name, look in shown:
        for code, (_, _, remark) in _ODDITIES.items():
            said = remark(name, look)
            if said is not None:
                of_kind[code].append(Item((name,), said))
    for code, (level, text, _) in _ODDITIES.items():
        if of_kind[code]:
            summary = f"{plural(len(of_kind[code]), 'file')} {text}"
            findings.append(Finding(code, level, summary, tuple(of_kind[code])))
    return findings


def _named(listing: Listing, gallery: Gallery) -> list[tuple[str, Look]]:
    return list(zip(listing.ids, gallery.looks, strict=True))


def _misnamed(name: str, look: Look) -> str | None:
    extension = os.path.splitext(name)[1].lower()
    return f"is {look.format}" if _EXTENSIONS.get(extension) != look.format else None


def _transparent(name: str, look: Look) -> str | None:
    if not look.transparent:
        return None
    return look.mode if look.mode.endswith("A") else f"{look.format}, {look.mode} with a transparent colour"


def _pixels(look: Look) -> str:
    return f"{look.width} x {look.height} pixels"


# level, what the files do, and of a name and its look the remark on it, None where it is as usual
_ODDITIES: Mapping[str, tuple[str, str, Callable[[str, Look], str | None]]] = {
    "animated": ("warning", "with more than one frame: only the first is used",
                 lambda name, look: look.format if look.animated else None),
    "misnamed": ("note", "whose extension names another format: read by content here, not by every tool", _misnamed),
    "cmyk": ("note", "in CMYK: converted to RGB without a colour profile",
             lambda name, look: look.mode if look.mode in ("CMYK", "YCCK") else None),
    "sixteen_bit": ("note", "with 16 bits a channel: the lower 8 are dropped",
                    lambda name, look: look.mode if look.bits == 16 else None),
    "turned": ("note", "rotated by EXIF: read upright here, not by every tool",
               lambda name, look: f"orientation {look.orientation}" if look.orientation != 1 else None),
    "alpha": ("note", "with an alpha channel or a transparent colour: dropped, so that what it hid is seen",
              _transparent),
    "stretched": ("note", f"with one side more than {_STRETCHED:g} times the other: a square crop drops most of it",
                  lambda name, look: _pixels(look)
                  if max(look.height, look.width) > _STRETCHED * min(look.height, look.width) else None),
    "small": ("note", f"with a side below {_SMALL} pixels",
              lambda name, look: _pixels(look) if min(look.height, look.width) < _SMALL else None),
}  # fmt: skip


def about_classes(class_names: tuple[str, ...], counts: Mapping[str, tuple[int, ...]]) -> list[Finding]:
    """Classes that are missing in a split, rare, or spelt in two ways. counts: readable images per class, by split."""
    train = counts["train"]
    findings = []
    if len(class_names) < 2:
        findings.append(Finding("one_class", "error", "only one class: a classifier needs two"))
    untrained = [(name, label) for label, name in enumerate(class_names) if not train[label]]
    items = []
    for name, label in untrained:
        elsewhere = [split for split in counts if counts[split][label]]
        items.append(Item((name,), f"only in {' and '.join(elsewhere)}" if elsewhere else "no readable image anywhere"))
    if items:
        summary = f"{_classes(len(items))} without an image in train"
        findings.append(Finding("untrained", "error", summary, tuple(items)))
    for split in counts:
        missing = [name for label, name in enumerate(class_names) if not counts[split][label] and train[label]]
        if split != "train" and missing:
            summary = f"{_classes(len(missing))} without an image in {split}: their accuracy is not measured there"
            findings.append(Finding("missing", "warning", summary, tuple(Item((name,)) for name in missing)))
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in class_names:
        spellings[re.sub(r"[\W_]+", "", name.casefold())].append(name)
    items = [Item(tuple(names)) for key, names in spellings.items() if key and len(names) > 1]
    if items:
        summary = f"{plural(len(items), 'class', 'classes')} may have several spellings"
        findings.append(Finding("spelling", "warning", summary, tuple(items)))
    return findings + _imbalance(class_names, train)


def _imbalance(class_names: tuple[str, ...], train: tuple[int, ...]) -> list[Finding]:
    present = [(count, name) for count, name in zip(train, class_names, strict=True) if count]
    if len(present) < 2:
        return []
    findings = []
    (least, rarest), (most, commonest) = min(present), max(present)
    ratio = most / least
    if ratio >= _RATIO_NOTE:
        level = "warning" if ratio >= _RATIO_WARNING else "note"
        summary = (
            f"the largest class in train has {ratio:.1f} times as many images as the smallest "
            f"({printable(commonest)} {most:,}, {printable(rarest)} {least:,}): look at balanced accuracy"
        )
        findings.append(Finding("imbalance", level, summary))
    few = tuple(Item((name,), plural(count, "image")) for count, name in sorted(present) if count < _FEW)
    if few:
        summary = f"{_classes(len(few))} with fewer than {_FEW} images in train"
        findings.append(Finding("few", "warning", summary, few))
    return findings


def _classes(count: int) -> str:
    return plural(count, "class", "classes")


def about_giveaways(listing: Listing, gallery: Gallery) -> list[Finding]:
    """Whether what has nothing to do with the picture's subject tells the class: a network would learn that instead.

    For each property: how often the class that is commonest among the *other* train images of the same value is right,
    against always naming the commonest class of all.
    """
    train = np.array([split == "train" for split in listing.split_names], bool) & gallery.readable
    rows = np.flatnonzero(train)
    if len(rows) < 2 * _FEW:
        return []
    labels = gallery.labels[rows]
    chance = float(np.bincount(labels).max() / len(rows))
    # By the pixels, not by the mode: grey stored as RGB comes out of the feed like any other grey.
    coloured = np.any(np.abs(gallery.chroma.astype(np.int16) - NEUTRAL) > 2, axis=(1, 2, 3))
    properties: Mapping[str, list[object]] = {
        "the size in pixels": [(gallery.looks[row].height, gallery.looks[row].width) for row in rows],
        "the file format": [gallery.looks[row].format for row in rows],
        "whether there is any colour": coloured[rows].tolist(),
    }
    findings = []
    for text, values in properties.items():
        accuracy = _told_by(values, labels)
        if accuracy >= chance + _TELLING:
            summary = f"{text} alone predicts the class of {accuracy:.0%} of the train images (chance {chance:.0%})"
            findings.append(Finding("giveaway", "note", summary))
    return findings


def _told_by(values: list[object], labels: np.ndarray) -> float:
    """Leave-one-out accuracy of the majority class among equal values; a tie, or a value seen once, counts as wrong."""
    by_value: dict[object, Counter[int]] = defaultdict(Counter)
    for value, label in zip(values, labels.tolist(), strict=True):
        by_value[value][label] += 1
    right = 0
    for counter in by_value.values():
        (_, most), *rest = counter.most_common(2)
        if most - 1 > (rest[0][1] if rest else 0):
            right += most
    return right / len(labels)
