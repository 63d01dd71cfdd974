"""Files that are there whole or not at all."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

_PART = re.compile(r"\..+\.[0-9a-f]{16}\.part")
# Of the target's name in that of its part, so that a long name, which a file system allows, has a part too.
_NAMED = 40


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A place to write at, which becomes `path` at the end: a reader sees the old file or the new one, never a part.

    Where what is done in between raises, nothing is left of it. Raises OSError where the disk refuses.
    """
    # Made here, under a name that nobody can guess: in /tmp a link of somebody else's could lead to any file of ours.
    part = path.with_name(f".{path.name[:_NAMED]}.{secrets.token_hex(8)}.part")
    part.touch(exist_ok=False)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str, errors: str = "strict") -> None:
    """Write `text` as UTF-8 in one piece. errors: as of `str.encode`. Raises OSError where the disk refuses."""
    with beside(path) as part:
        part.write_text(text, encoding="utf-8", errors=errors)


def clear_parts(folder: Path) -> None:
    """Remove the parts that killed processes have left in `folder`, which the caller alone writes to."""
    with contextlib.suppress(OSError):  # What cannot be removed is in nobody's way.
        for left in folder.glob(".*.part"):
            if _PART.fullmatch(left.name):
                left.unlink(missing_ok=True)
