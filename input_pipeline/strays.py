"""What lies in a folder of images and is not used: pipes, circles of links, images in no class, files that are none."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.findings import Finding, Item, plural
from input_pipeline.folder import IMAGE_EXTENSIONS
from input_pipeline.images import Listing


def about_strays(listing: Listing) -> list[Finding]:
    """What stands in the folder and not in its listing; hidden names are passed over. Nothing is opened."""
    top = listing.where
    used = set(listing.ids)
    found: dict[str, list[Item]] = {"special": [], "link_loop": [], "stray_images": []}
    extensions: Counter[str] = Counter()
    for path, kind in _walk(top):
        name = Path(os.path.relpath(path, top)).as_posix()
        extension = os.path.splitext(name)[1].lower()
        if kind in found:
            found[kind].append(Item((name,)))
        elif name not in used and extension in IMAGE_EXTENSIONS:
            found["stray_images"].append(Item((name,)))
        elif name not in used:
            extensions[extension] += 1
    texts = {
        "special": ("pipe, socket or device, never opened", "pipes, sockets or devices, never opened"),
        "link_loop": ("link in a circle, not followed", "links in circles, not followed"),
        "stray_images": ("image outside the class folders, not used", "images outside the class folders, not used"),
    }
    findings = [
        Finding(code, "warning", plural(len(items), *texts[code]), tuple(items))
        for code, items in found.items()
        if items
    ]
    if extensions:
        items = tuple(Item((), f"{count:,} {name or 'without extension'}") for name, count in extensions.most_common())
        summary = f"{plural(extensions.total(), 'file')} without the extension of an image, not used"
        findings.append(Finding("other_files", "note", summary, items))
    return findings


def _walk(top: str) -> Iterator[tuple[str, str]]:
    """(path, 'file' | 'special' | 'link_loop') of all that is no folder; a folder is entered once on each way down."""
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(top, ())]
    visited: set[tuple[int, int]] = set()
    while waiting:
        folder, above = waiting.pop()
        try:
            about = os.stat(folder)
            identity = (about.st_dev, about.st_ino)
            if identity in above:
                yield folder, "link_loop"
                continue
            if identity in visited:
                continue
            visited.add(identity)
            with os.scandir(folder) as entries:
                inside = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
        except OSError:
            continue  # Gone, or not ours to list: where images are concerned `find_images` has said so.
        for entry in inside:
            kind = _kind(entry)
            if kind == "folder":
                waiting.append((entry.path, (*above, identity)))
            else:
                yield entry.path, kind


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        mode = entry.stat().st_mode
    except FileNotFoundError:
        return "file"  # A dead link.
    except OSError:
        return "link_loop" if entry.is_symlink() else "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "special"
