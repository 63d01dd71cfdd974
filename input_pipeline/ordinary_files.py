"""Reading a file that may be anything: only an ordinary one, without waiting for it, and only up to a size."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_ordinary(path: str | Path, most_bytes: int, what: str) -> bytes:
    """The bytes of an ordinary file, or of one that a link leads to.

    what: whose largest size `most_bytes` is ('any image'), for messages. Raises OSError for all else and above it.
    """
    # Not blocking: opening a pipe would wait for a writer. An ordinary file does not care.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "not a regular file but a pipe, device or folder")
        if about.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"{about.st_size:,} bytes, too large for {what}")
        return file.read()
