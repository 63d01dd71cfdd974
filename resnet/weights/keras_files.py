"""Keras' files -> NumPy arrays named 'layer/leaf': .h5 of weights or of a model, .weights.h5 and .keras of Keras 3.

Read with h5py alone, link by link: nothing outside the file is ever opened and no layer is ever built.
"""

import io
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.errors import InputError, printable
from resnet.weights.faults import fault

# Keras 3 numbers a layer's variables instead of naming them.
VARIABLES: dict[str, tuple[str, ...]] = {
    "conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}
WEIGHTS_MEMBER = "model.weights.h5"
# Trained weights hardly compress; far beyond this, an archive is meant to fill the memory.
MOST_COMPRESSION = 20
# HDF5 picks chunks of up to 1 MB by itself, whatever is in them.
SMALL_CHUNK = 1 << 21
# NumPy's kinds. Elements of others may lie elsewhere, a thousand in the place of one.
NUMBERS = "biuf"


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of an HDF5 file. Raises InputError when it is damaged, links elsewhere or claims too much."""
    return read_hdf5(path, path.stat().st_size, str(path))


def read_archive(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a .keras file. Raises InputError as `read` does."""
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(WEIGHTS_MEMBER)
            # What it says of its compressed size may be a lie as well.
            packed = min(info.compress_size, path.stat().st_size)
            if info.file_size > MOST_COMPRESSION * packed:
                raise fault(path, f"{WEIGHTS_MEMBER} would expand to {info.file_size} bytes; it is not a Keras file")
            content = archive.read(info)
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError, NotImplementedError, RuntimeError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise fault(path, f"damaged archive ({printable(str(error)[:120])}); download it again") from error
    return read_hdf5(io.BytesIO(content), len(content), str(path))


def read_hdf5(file: Path | io.BytesIO, size: int, source: str) -> dict[str, np.ndarray]:
    """'layer/leaf' -> array, for every dataset of an open or named HDF5 file of `size` bytes but optimizers' state."""
    import h5py

    arrays: dict[str, np.ndarray] = {}
    claimed = 0
    try:
        with h5py.File(file, "r") as opened:
            for parts, dataset, group in datasets(opened, (), set(), source):
                if parts[0].startswith("optimizer"):
                    continue
                claimed += dataset.nbytes
                # Reading one number unpacks the chunk that it lies in, of up to 4 GB.
                if claimed > size or chunk_bytes(dataset) > size + SMALL_CHUNK:
                    raise fault(source, f"{printable(dataset.name)} claims more data than the file has; it is damaged")
                if dataset.dtype.kind not in NUMBERS:
                    raise fault(source, f"{printable(dataset.name)} holds no numbers, so it is not a network's weights")
                name = tensor_name(parts, group, source)
                if name in arrays:
                    raise fault(source, f"two tensors are called {printable(name)}")
                arrays[name] = np.asarray(dataset[()])
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise fault(
            source, f"damaged HDF5 file ({printable(str(error).splitlines()[0][:120])}); download it again"
        ) from error
    return arrays


def chunk_bytes(dataset: Any) -> int:
    """Of one chunk when unpacked; 0 for a dataset that lies in one piece, as it is."""
    return math.prod(dataset.chunks) * dataset.dtype.itemsize if dataset.chunks else 0


def datasets(
    group: Any, parts: tuple[str, ...], seen: set[int], source: str
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """(path, dataset, its group) of all datasets below `group`. Raises InputError for anything that leads elsewhere."""
    import h5py

    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
        raise fault(source, f"{printable('/'.join(parts))} contains itself or occurs in two places")
    seen.add(address)
    for name in group:
        below = (*parts, name)
        link = group.get(name, getlink=True)
        item = group[name] if isinstance(link, h5py.HardLink) else None
        if isinstance(item, h5py.Group):
            yield from datasets(item, below, seen, source)
        elif isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual:
            yield below, item, group
        else:
            raise fault(source, f"{printable('/'.join(below))} is a link to somewhere else, which is not followed")


def tensor_name(parts: tuple[str, ...], group: Any, source: str) -> str:
    """'conv1_conv/kernel' from …/conv1_conv/kernel:0 (Keras 2) or …/conv2d/vars/0 and the name beside it (Keras 3)."""
    if len(parts) < 3 or parts[-2] != "vars":
        return "/".join([*parts[-2:-1], parts[-1].split(":")[0]])
    kind = re.sub(r"_\d+$", "", parts[-3])
    layer = group.attrs.get("name")
    if layer is None:
        raise fault(
            source,
            "its layers have no names, as in files of early Keras 3; load it in Keras and call save_weights again",
        )
    layer = layer.decode() if isinstance(layer, bytes) else str(layer)
    leaves, number = VARIABLES.get(kind, ()), parts[-1]
    leaf = leaves[int(number)] if number.isdecimal() and int(number) < len(leaves) else number
    return f"{layer}/{leaf}"
