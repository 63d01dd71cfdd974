"""This project's folders in the user's cache; where they hold programs that will run, nobody else may put one there.

Imports nothing of the project.
"""

import errno
import os
import stat
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Where this project keeps things of one kind, which no finished run needs: under XDG_CACHE_HOME or ~/.cache."""
    # Not Path.expanduser, which raises RuntimeError for a ~NAME that has no home.
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "resnet-jax" / name


def check_own(folder: Path) -> None:
    """Raise PermissionError where `folder`, or the one that it lies in, as far as they exist, is another user's.

    Where a cache is shared (XDG_CACHE_HOME in /tmp, say) whoever comes first makes its folders. Of our own the right of
    all to write is taken away.
    """
    for place in (folder.parent, folder):
        try:
            about = place.stat()
        except FileNotFoundError:
            continue
        if about.st_uid not in (0, os.getuid()):
            advice = "set XDG_CACHE_HOME to a folder of your own"
            raise PermissionError(
                errno.EPERM, f"belongs to another user, whose programs would run; {advice}", str(place)
            )
        if about.st_mode & stat.S_IWOTH:
            place.chmod(stat.S_IMODE(about.st_mode) & ~stat.S_IWOTH)


def is_own(file: Path) -> bool:
    """Whether a file is there, ordinary, and nobody else's to write."""
    try:
        about = file.lstat()
    except OSError:
        return False
    return stat.S_ISREG(about.st_mode) and about.st_uid in (0, os.getuid()) and not about.st_mode & stat.S_IWOTH
