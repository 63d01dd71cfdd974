"""torch's files -> NumPy arrays by name: zip and old pickles, nested under a key, prefixed or not.

Only tensors are ever built. torch is imported here alone among the readers, and only when such a file is read.
"""

import importlib.util
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.errors import InputError, printable
from resnet.weights.faults import fault
from resnet.weights.pickle_depth import MOST_DEPTH, deepest_tuple

# Under which of these a training script keeps the weights, in timm's order: running averages before the newest.
CONTAINERS = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model", "net")
# What wrappers put before every name: DataParallel, torch.compile, Lightning.
WRAPPERS = ("module.", "_orig_mod.", "model.")


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a torch file by name, wrappers' prefixes and batch counters left out; bfloat16 becomes float32.

    Raises InputError, naming the file, when torch is missing, the file is damaged, holds Python objects other than
    tensors, no tensors, or claims more data than it has bytes.
    """
    if importlib.util.find_spec("torch") is None:
        raise fault(path, "is a torch file and torch is not installed: pip install torch, or give a .safetensors file")
    if zipfile.is_zipfile(path):
        check_zip(path)
    check_pickles(path)
    state = find_state(load(path), path)
    return to_arrays(strip_wrappers(state), path)


def load(path: Path) -> Any:
    """torch.load that builds nothing but tensors and containers of them."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle may raise anything whatever
        unsafe = re.search(r"(?:GLOBAL|global:?) ([\w.]+)", str(error))
        if unsafe:
            raise fault(
                path,
                f"holds the Python object {unsafe[1]}, which could run code when loaded; "
                "save only the weights: torch.save(model.state_dict(), file)",
            ) from error
        raise fault(path, f"torch cannot read it ({first_line(error)}); is the file complete?") from error


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return printable(lines[0][:120]) if lines else type(error).__name__


def check_zip(path: Path) -> None:
    """Raise InputError unless every member is stored uncompressed and matches its checksum; torch checks neither."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            packed = [info.filename for info in members if info.compress_type != zipfile.ZIP_STORED]
            if not packed and sum(info.file_size for info in members) > path.stat().st_size:
                # Thousands that lie upon each other would take hours to check.
                raise fault(path, "its members claim more data than the file has; it is damaged")
            damaged = packed[0] if packed else archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise fault(path, f"damaged ({first_line(error)}); download it again") from error
    if damaged:
        what = (
            "is compressed, which torch never does"
            if packed
            else "does not match its checksum; download the file again"
        )
        raise fault(path, f"its member {printable(damaged)} {what}")


def check_pickles(path: Path) -> None:
    """Raise InputError for a pickle that nests tuples so deep that loading it might never end, or that is none."""
    try:
        deep = any(depth > MOST_DEPTH for depth in nesting(path))
    except Exception as error:  # Any: pickletools was made to look at sound pickles.
        raise fault(path, f"torch cannot read it ({first_line(error)}); is the file complete?") from error
    if deep:
        raise fault(path, "nests tuples deeper than any weights do; reading it might never end")


def nesting(path: Path) -> Iterator[int]:
    """How deep tuples are nested in each pickle of a file that torch would load, in torch's order."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    yield deepest_tuple(io.BytesIO(archive.read(name)))
        return
    with open(path, "rb") as file:
        # Before torch 1.6: a magic number, the version, the machine, the content, the keys of the storages.
        for _ in range(5):
            yield deepest_tuple(file)


def find_state(content: Any, path: Path) -> Mapping[str, Any]:
    """The mapping from names to tensors, out of the usual containers. Raises InputError where there is none."""
    import torch

    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        if any(isinstance(value, torch.Tensor) for value in content.values()):
            return {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
        inside = [key for key in CONTAINERS if isinstance(content.get(key), Mapping)]
        if not inside:
            break
        content = content[inside[0]]
    raise fault(path, "holds no named tensors; give a state_dict, plain or under 'state_dict' or 'model'")


def strip_wrappers(state: Mapping[str, Any]) -> dict[str, Any]:
    """Names without a prefix that all of them share, however often a wrapper was wrapped."""
    stripped = dict(state)
    while shared := [prefix for prefix in WRAPPERS if stripped and all(name.startswith(prefix) for name in stripped)]:
        stripped = {name.removeprefix(shared[0]): tensor for name, tensor in stripped.items()}
    return stripped


def to_arrays(state: Mapping[str, Any], path: Path) -> dict[str, np.ndarray]:
    """Dense tensors as NumPy arrays. Raises InputError for others, or where they claim more bytes than the file has."""
    import torch

    claimed = 0
    arrays = {}
    for name, tensor in state.items():
        # BN's count of batches, which evaluation does not use.
        if name.endswith("num_batches_tracked"):
            continue
        if (
            tensor.layout is not torch.strided
            or tensor.is_quantized
            or tensor.device.type != "cpu"
            or tensor.is_complex()
        ):
            raise fault(path, f"tensor {printable(name)} is not a dense array of real numbers")
        claimed += tensor.numel() * tensor.element_size()
        # A tensor of stride 0 claims any size from one number.
        if claimed > path.stat().st_size:
            raise fault(path, f"tensor {printable(name)} claims more data than the file has; it is damaged")
        detached = tensor.detach()
        arrays[name] = (detached.float() if tensor.dtype is torch.bfloat16 else detached).numpy()
    return arrays
