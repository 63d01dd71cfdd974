"""Tensors under another program's names -> our variables, and back: every one checked, none left over."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from input_pipeline.errors import printable
from resnet.model.spec import ResNetSpec
from resnet.train.state import Variables
from resnet.weights import names, shortcut_padding
from resnet.weights.faults import fault
from resnet.weights.names import Dialect, Entry


def to_variables(
    tensors: Mapping[str, np.ndarray], spec: ResNetSpec, dialect: Dialect, *, has_head: bool, source: str
) -> Variables:
    """Our variables {'params', 'batch_stats'}, float32 NumPy arrays, of a network of `spec` from a file's tensors.

    Without a head in the file (`has_head` false) ours is zero. Raises InputError that names `source` and the first
    tensor that is missing, left over, of another shape or not finite, or the first variance below zero.
    """
    entries = table(spec, dialect, source)
    wanted = [entry for entry in entries if has_head or entry.path[1] != "fc"]
    check_names(tensors, [entry.name for entry in wanted], source)
    variables: Variables = {"params": {}, "batch_stats": {}}
    for entry in entries:
        if has_head or entry.path[1] != "fc":
            array = checked(tensors[entry.name], entry, source)
            array = names.from_torch_layout(array, entry.path) if dialect.torch_layout else array
            if pads_on_both_sides(spec, dialect):
                array = shortcut_padding.pad_behind(array, entry.path, spec)
        else:
            array = np.zeros(entry.shape, np.float32)
        place(variables, entry.path, np.ascontiguousarray(array))
    return variables


def from_variables(
    variables: Variables, spec: ResNetSpec, dialect: Dialect, *, has_head: bool
) -> dict[str, np.ndarray]:
    """The inverse of `to_variables`: the dialect's names -> float32 arrays in its layout.

    Raises InputError where the dialect has no name for a layer.
    """
    tensors = {}
    for entry in table(spec, dialect, "the checkpoint"):
        if not has_head and entry.path[1] == "fc":
            continue
        array: Any = variables
        for part in entry.path:
            array = array[part]
        array = np.asarray(array, np.float32)
        if pads_on_both_sides(spec, dialect):
            array = shortcut_padding.pad_both_sides(array, entry.path, spec)
        array = names.to_torch_layout(array, entry.path) if dialect.torch_layout else array
        # A copy: what comes from the device is read-only, and torch wants to own what it is given.
        tensors[entry.name] = np.array(array, order="C")
    return tensors


def table(spec: ResNetSpec, dialect: Dialect, source: str) -> tuple[Entry, ...]:
    """`names.table`, with an InputError where the dialect has no name for a layer."""
    try:
        return names.table(spec, dialect)
    except KeyError as error:
        raise fault(source, f"{dialect.name}'s ResNets have no layer {error.args[0]!r}") from error


def pads_on_both_sides(spec: ResNetSpec, dialect: Dialect) -> bool:
    """Whether the dialect's zero-padded shortcuts (option A) lay channels out otherwise than ours."""
    return spec.shortcut == "A" and dialect.torch_layout


def check_names(tensors: Mapping[str, np.ndarray], wanted: list[str], source: str) -> None:
    """Raise InputError that names the first tensor that is missing or left over, and how many there are."""
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise fault(source, f"tensor {missing[0]} is missing{others(missing)}; is the file complete and of a ResNet?")
    known = set(wanted)
    surplus = [name for name in tensors if name not in known]
    if surplus:
        raise fault(
            source,
            f"tensor {printable(surplus[0])} belongs to no layer of the network that the file's "
            f"shapes describe{others(surplus)}; it is of a network that this project does not have",
        )


def others(found: list[str]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def checked(tensor: np.ndarray, entry: Entry, source: str) -> np.ndarray:
    """float32 of the tensor. Raises InputError for another shape, no number, NaN, infinity or a negative variance."""
    if tensor.shape != entry.foreign_shape:
        raise fault(
            source, f"tensor {entry.name} has shape {tuple(tensor.shape)} where the network needs {entry.foreign_shape}"
        )
    if tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
        raise fault(source, f"tensor {entry.name} is of type {tensor.dtype}; weights are floating-point numbers")
    with np.errstate(over="ignore"):
        array = np.asarray(tensor).astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise fault(source, f"tensor {entry.name} has values that are not finite (NaN or infinity)")
    if entry.path[-1] == "var" and array.min() < 0:
        raise fault(source, f"tensor {entry.name} has negative variances")
    return array


def place(tree: Variables, path: names.Path, array: np.ndarray) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = array


def with_input_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A stem's kernel [H, W, I, O] for another number of input channels.

    One channel: the sum, so that a grey image gives what its three equal channels gave. More: the channels repeated
    in turn, scaled by I/channels so that the output keeps its size.
    """
    inputs = kernel.shape[2]
    if channels == inputs:
        return kernel
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = kernel[:, :, np.arange(channels) % inputs, :]
    return (repeated * np.float32(inputs / channels)).astype(np.float32)
