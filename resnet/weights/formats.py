"""A weights file of any format, recognised from its content -> tensors by name."""

import dataclasses
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from resnet.weights import keras_files, safetensors_files, torch_files
from resnet.weights.faults import fault

READERS = {
    "torch": torch_files.read,
    "safetensors": safetensors_files.read,
    "hdf5": keras_files.read,
    "keras archive": keras_files.read_archive,
}
FORMATS = "a torch file (.pth, .pt, .th), .safetensors, or Keras' .h5, .weights.h5 or .keras"


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """What a file holds: format, tensors under the names and in the layout of whoever wrote it, SHA-256 in hex."""

    path: Path
    format: str
    tensors: Mapping[str, np.ndarray]
    sha256: str

    @property
    def is_keras(self) -> bool:
        """Whether names and layout are Keras' (else torch's)."""
        return self.format in ("hdf5", "keras archive")


def read(path: Path) -> WeightsFile:
    """The weights in a file. Raises InputError, naming the file, for one that is none, damaged, or made to do harm."""
    try:
        found = recognise(path)
        digest = sha256(path)
        tensors = READERS[found](path)
    except OSError as error:
        raise fault(path, f"cannot be read ({error.strerror or error})") from error
    if not tensors:
        raise fault(path, "holds no tensors")
    return WeightsFile(path, found, tensors, digest)


def recognise(path: Path) -> str:
    """The format, by what the file begins with; its name plays no part."""
    if path.exists() and not path.is_file():
        # Opening a pipe would wait for ever.
        raise fault(path, f"is not a regular file; give {FORMATS}")
    with open(path, "rb") as file:
        head = file.read(9)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head.startswith(b"PK\x03\x04"):
        return "keras archive" if holds_keras(path) else "torch"
    # A pickle of protocol 2 or later: torch before 1.6.
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return "torch"
    if head[8:9] == b"{":
        return "safetensors"
    if not head:
        raise fault(path, "is empty; download it again")
    if head.startswith((b"version ", b"<")):
        raise fault(
            path, "is a text in place of the weights (a git-lfs pointer or a web page); download the file itself"
        )
    raise fault(path, f"is not a known kind of weights file; give {FORMATS}")


def holds_keras(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return keras_files.WEIGHTS_MEMBER in archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise fault(path, "truncated or damaged archive; download it again") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file's content in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
