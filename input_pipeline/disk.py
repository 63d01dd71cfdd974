"""Whether the disk has room for what is about to be written on it."""

import shutil
from pathlib import Path

from input_pipeline.errors import InputError, printable


def require_room(folder: Path, needed: int, what: str, advice: str) -> None:
    """Raise InputError unless the disk under `folder`, which need not exist yet, has `needed` bytes free.

    what: whose bytes they are, a plural ('features'). advice: what else helps than to make room.
    """
    usage = shutil.disk_usage(first_standing(folder))
    # Some file systems (of a network, in user space) do not tell their size and say 0.
    if usage.total and usage.free < needed:
        raise InputError(
            f"{printable(str(folder))}: {what} need {amount(needed)}, the disk has {amount(usage.free)} free; "
            f"make room, {advice}"
        )


def first_standing(path: Path) -> Path:
    """`path`, absolute, or the nearest folder or file above it that exists."""
    standing = path.absolute()
    while not standing.exists():
        standing = standing.parent
    return standing


def amount(count: int) -> str:
    """Bytes in words: '205 MB', '3.1 GB'."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.0f} kB"
