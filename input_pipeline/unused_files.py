"""What lies in a folder of images and is not used: pipes, links in a circle, images outside the class folders or in
hidden ones, files that are no images.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.errors import InputError, printable
from input_pipeline.findings import Finding, Item, plural
from input_pipeline.folder import IMAGE_EXTENSIONS, any_image
from input_pipeline.images import Listing

# Tools keep these, and copies of images in some; nobody means one for a class.
_TOOLS = frozenset((
    ".git", ".hg", ".svn", ".dvc", ".datalad", ".ipynb_checkpoints", ".cache", ".venv", ".idea", ".vscode",
    ".thumbnails", ".thumbs", ".@__thumb", ".picasaoriginals", ".AppleDouble", ".Spotlight-V100", ".fseventsd",
    ".DocumentRevisions-V100", ".TemporaryItems", ".snapshot", ".snapshots", ".zfs", ".stversions", ".dropbox.cache",
))  # fmt: skip
# .Trash-1000, .Trashes; Kubernetes' ..data, to which visible links lead.
_BEGINNINGS = (".Trash", "..")
_NAMED = 3


def about_unused_files(listing: Listing) -> list[Finding]:
    """What lies in the folder and is not in its listing; hidden files and the hidden folders of tools are passed over.

    Nothing is opened.
    """
    top = listing.where
    used = set(listing.ids)
    found: dict[str, list[Item]] = {"special": [], "link_loop": [], "stray_images": [], "hidden_folders": []}
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
    hidden = [printable(item.files[0]) for item in found["hidden_folders"]]
    which = ", ".join(hidden[:_NAMED]) + (" ..." if len(hidden) > _NAMED else "")
    texts = {
        "special": ("pipe, socket or device, never opened", "pipes, sockets or devices, never opened"),
        "link_loop": ("circular link, not followed", "circular links, not followed"),
        "stray_images": ("image outside the class folders, not used", "images outside the class folders, not used"),
        "hidden_folders": tuple(f"hidden {noun} with images ({which}), not used" for noun in ("folder", "folders")),
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
    """(path, 'file' | 'special' | 'link_loop') of all that is no folder, (path, 'hidden_folders') of those with images.

    A folder is entered once on each way down, a hidden one never.
    """
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
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            continue  # Gone, or not ours to list: where images are concerned `find_images` has said so.
        for entry in inside:
            kind = _kind(entry)
            if entry.name[0] == ".":
                if kind == "folder" and _hides_images(entry):
                    yield entry.path, "hidden_folders"
            elif kind == "folder":
                waiting.append((entry.path, (*above, identity)))
            else:
                yield entry.path, kind


def _hides_images(folder: os.DirEntry[str]) -> bool:
    """Whether there are images below a hidden folder that is no tool's."""
    if folder.name in _TOOLS or folder.name.startswith(_BEGINNINGS):
        return False
    try:
        return any_image(folder.path)
    except (InputError, OSError):
        return False  # Not ours to list.


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
