"""Files that belong together by their names: slices of one patient, frames of one film, variants of one photo.

Split at random, file by file, such groups stand on both sides, and a network is tested on what it has all but seen.
A name proves nothing (numbering may start anew in each folder), so this gives notes, and is slow to speak.
"""

from __future__ import annotations

import re
from collections import defaultdict

from input_pipeline.findings import Finding, Item, plural
from input_pipeline.images import Listing

# The '_slice3' of 'patient12_slice3', the '-03' of '0012-03'.
_LAST_NUMBER = re.compile(r"[ _.\-]+[A-Za-z]{0,8}[ _.\-]?[0-9]{1,6}$")
# What Roboflow makes of one photo by augmentation: 'photo_jpg.rf.0a1b2c...'.
_AUGMENTED = re.compile(r"(?P<group>.+)\.rf\.[0-9a-fA-F]{16,}")
# Fewer groups a class, and the number before the last says something else: the class (ImageNet), the year (VOC).
_GROUPS_PER_CLASS = 5
_COVERED = 0.5


def group_of(name: str, class_name: str) -> str | None:
    """What `name` ('train/glioma/patient12_slice3.jpg', of class 'glioma') belongs to by its name, None if nothing."""
    *folders, file = name.split("/")
    below = folders[len(folders) - folders[::-1].index(class_name) :] if class_name in folders else []
    if any(character.isdigit() for character in "".join(below)):
        return "/".join(below)
    stem = file.rsplit(".", 1)[0]
    if augmented := _AUGMENTED.fullmatch(stem):
        return augmented["group"]
    last = _LAST_NUMBER.search(stem)
    group = stem[: last.start()] if last else ""
    # 'image_0001' belongs to nothing: before the last number stands no other.
    return group if any(map(str.isdigit, group)) else None


def about_names(listing: Listing, labels: list[int]) -> list[Finding]:
    """A note where names suggest groups that stand in two splits, or that a random split would tear.

    labels: of each file, -1 where unknown. Silent unless most files belong to groups of two and more, and each class
    has several groups.
    """
    groups: dict[tuple[int, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, split, label in zip(listing.ids, listing.split_names, labels, strict=True):
        group = group_of(name, listing.class_names[label]) if label >= 0 else None
        if group is not None:
            groups[label, group][split].append(name)
    shared = {key: splits for key, splits in groups.items() if sum(map(len, splits.values())) > 1}
    covered = sum(len(names) for splits in shared.values() for names in splits.values())
    classes = {label for label, _ in shared}
    if covered < _COVERED * len(listing.ids) or len(shared) < _GROUPS_PER_CLASS * max(len(classes), 1):
        return []
    if len(set(listing.split_names)) == 1:
        summary = (
            f"names suggest {plural(len(shared), 'group')} of files that belong together (one patient, one film): "
            "a random split would put some on both sides"
        )
        items = tuple(Item(tuple(splits["train"][:2]), group) for (_, group), splits in shared.items())
        return [Finding("name_groups", "note", summary, items)]
    torn = {key: splits for key, splits in shared.items() if len(splits) > 1}
    if not torn:
        return []
    summary = (
        f"{len(torn):,} of {plural(len(shared), 'group')} of files that belong together by their names (one patient, "
        "one film) are in two or more splits, unless numbering starts again in each"
    )
    items = tuple(Item(tuple(names[0] for names in splits.values()), group) for (_, group), splits in torn.items())
    return [Finding("name_groups", "note", summary, items)]
