"""safetensors files <-> NumPy arrays by name, without torch: the format is a JSON header and raw bytes behind it.

An unsigned 64-bit little-endian length, that many bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}},
then the data, which the offsets count from. Written by the safetensors package; read here, where every number
in the header is checked against the file before it is used, and the error names the tensor.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from input_pipeline.errors import printable
from resnet.weights.faults import fault

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
}
# The format's own limit.
MOST_HEADER_BYTES = 100_000_000
# Of a tensor; NumPy takes no more than 64.
MOST_SIDES = 32


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors by name, batch counters left out. Raises InputError, naming the tensor, for a header that lies."""
    data = np.memmap(path, np.uint8, mode="r")
    header, start = read_header(data, path)
    arrays, end_of_last = {}, 0
    for name, (dtype, shape, begin, end) in sorted(header.items(), key=lambda item: item[1][2:]):
        if begin != end_of_last or end > len(data) - start:
            raise fault(
                path,
                f"tensor {printable(name)} should lie at bytes {begin} to {end}, which the file does "
                "not have or another tensor uses; it is truncated or damaged",
            )
        end_of_last = end
        if not name.endswith("num_batches_tracked"):
            arrays[name] = np.asarray(data[start + begin : start + end]).view(dtype).reshape(shape)
    if end_of_last != len(data) - start:
        raise fault(path, f"{len(data) - start - end_of_last} bytes at its end belong to no tensor")
    return arrays


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write the tensors as torch's users and timm expect such a file: its metadata say {'format': 'pt'}.

    Each keeps its type, shape and bits; C-contiguous, float16, bfloat16 (ml_dtypes), float32, float64, int32, int64.
    Raises OSError.
    """
    # Here, not above: reading such a file, which a run may start from, needs no such package.
    from safetensors.numpy import save

    # In one piece: where the package writes the file itself, a full disk is an error of its own that has no errno.
    path.write_bytes(save(dict(tensors), metadata={"format": "pt"}))


def read_header(data: np.ndarray, path: Path) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...], int, int]], int]:
    """(name -> (dtype, shape, begin, end), where the data begin in the file)."""
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(MOST_HEADER_BYTES, len(data) - 8):
        raise fault(path, f"its header claims {length} bytes of a file of {len(data)}; it is truncated or damaged")
    try:
        stored = json.loads(data[8 : 8 + length].tobytes(), object_pairs_hook=without_repeats)
        if not isinstance(stored, dict):
            raise ValueError("not a JSON object")
        header = {name: parse(name, entry) for name, entry in stored.items() if name != "__metadata__"}
    except (ValueError, RecursionError) as error:
        raise fault(path, f"its header cannot be read ({printable(str(error)[:120])})") from error
    return header, 8 + length


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def parse(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """One tensor's line. Raises ValueError that names it."""
    if not isinstance(entry, dict) or entry.get("dtype") not in DTYPES:
        raise ValueError(f"tensor {name} has a type other than {', '.join(DTYPES)}")
    dtype = DTYPES[entry["dtype"]]
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not (whole_numbers(shape) and whole_numbers(offsets) and len(offsets) == 2):
        raise ValueError(f"tensor {name} has no proper shape or data_offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {name} of shape {shape} does not fit its {end - begin} bytes")
    return dtype, tuple(shape), begin, end


def whole_numbers(values: Any) -> bool:
    """At most MOST_SIDES, none negative or above what 63 bits hold: the product of longer ones would take for ever."""
    short = isinstance(values, list) and len(values) <= MOST_SIDES
    return short and all(type(value) is int and 0 <= value < 1 << 63 for value in values)
