"""Makes a shared library of C sources of this project, with the machine's C compiler, the first time that it is needed.

What is made is kept in the user's cache, one file for each content of the sources and of the interface that they are
compiled against, each compiler and its options. What another user has put there is not loaded. Imports nothing of the
project but `own_folders`.
"""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from native.own_folders import cache_folder, check_own, is_own

_COMPILERS = ("cc", "gcc", "clang")
_OPTIONS = ("-O3", "-shared", "-fPIC", "-pthread")
_LONGEST_SECONDS = 120


def compiled(name: str, sources: Sequence[Path], *, headers: Sequence[Path] = (), options: Sequence[str] = ()) -> Path:
    """The library made of sources[0], which includes the others, from the cache or made now.

    name: of its folder in the cache. headers: of others, by which one version of theirs is told from another. options:
    to the compiler, behind the source.

    Raises FileNotFoundError without a compiler, CalledProcessError with what it said, OSError for an unwritable cache
    and one of another user.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), *_COMPILERS))), None)
    if not compiler:
        raise FileNotFoundError("there is no C compiler (Debian: apt install gcc libc6-dev)")
    contents = [path.read_bytes() for path in (*sources, *headers)]
    words = map(os.fsencode, (compiler, *_OPTIONS, *options))
    digest = hashlib.sha256(b"\0".join([*contents, *words])).hexdigest()[:16]
    folder = cache_folder(name)
    library = folder / f"{digest}.so"
    check_own(folder)
    if is_own(library):
        return library
    folder.mkdir(parents=True, exist_ok=True)
    check_own(folder)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        made = Path(own, library.name)
        command = [compiler, *_OPTIONS, "-o", str(made), str(sources[0]), *options]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LONGEST_SECONDS)
        # Where the umask leaves all the right to write, nobody could trust it.
        made.chmod(0o755)
        # In one step: other processes may be at it too, or be killed.
        made.replace(library)
    return library


def reason(error: Exception) -> str:
    """One line on why a library could not be made or loaded."""
    if isinstance(error, importlib.metadata.PackageNotFoundError):
        return f"the package {error.name} is not installed"
    if isinstance(error, subprocess.CalledProcessError):
        said = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr)
        source = next((Path(word).name for word in error.cmd if word.endswith(".c")), "its source")
        return in_one_line(f"{error.cmd[0]} could not compile {source} (exit code {error.returncode}) {said}")
    if isinstance(error, OSError) and error.filename:
        return in_one_line(f"{error.filename}: {error.strerror}")
    return in_one_line(str(error))


def in_one_line(text: str) -> str:
    """`text` with every run of white space made one space."""
    return " ".join(text.split())
