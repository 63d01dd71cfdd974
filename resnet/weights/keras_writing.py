"""Keras' HDF5 files, written with h5py: by layer names (.h5, Keras 2 and 3) or numbered (.weights.h5, Keras 3)."""

from pathlib import Path
from typing import Any

import numpy as np

from resnet.model.spec import ResNetSpec
from resnet.weights.keras_files import VARIABLES


def layer_order(spec: ResNetSpec, *, has_head: bool) -> list[str]:
    """The layers with weights in the order of Keras' `model.layers`, by which `load_weights` pairs them.

    Keras sorts layers by depth, so a projection stands beside the last convolution of its branch, before it.
    """
    layers = ["conv1_conv", "conv1_bn"]
    for stage, blocks in enumerate(spec.stage_sizes, start=2):
        for number in range(1, blocks + 1):
            block = f"conv{stage}_block{number}"
            layers += [f"{block}_{part}" for part in ("1_conv", "1_bn", "2_conv", "2_bn")]
            shortcut = ("0_conv", "3_conv", "0_bn", "3_bn") if number == 1 else ("3_conv", "3_bn")
            layers += [f"{block}_{part}" for part in shortcut]
    return [*layers, "predictions"] if has_head else layers


def kind_of(layer: str) -> str:
    """Keras' class of a layer in snake case, as `VARIABLES` lists them."""
    if layer == "predictions":
        return "dense"
    return "conv2d" if layer.endswith("_conv") else "batch_normalization"


def with_biases(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors with a zero bias for each convolution that has none: Keras' have one, and zero changes nothing."""
    completed = dict(tensors)
    for name, kernel in tensors.items():
        layer, leaf = name.split("/")
        if leaf == "kernel" and f"{layer}/bias" not in tensors:
            completed[f"{layer}/bias"] = np.zeros(kernel.shape[-1], np.float32)
    return completed


def write(path: Path, tensors: dict[str, np.ndarray], layers: list[str], *, numbered: bool) -> None:
    """Write 'layer/leaf' tensors; `numbered`: as .weights.h5 of Keras 3, else under the layers' names."""
    import h5py

    with h5py.File(path, "w") as file:
        if numbered:
            write_numbered(file, tensors, layers)
        else:
            write_named(file, tensors, layers)


def write_named(file: Any, tensors: dict[str, np.ndarray], layers: list[str]) -> None:
    file.attrs["layer_names"] = [layer.encode() for layer in layers]
    for layer in layers:
        group = file.create_group(layer)
        leaves = VARIABLES[kind_of(layer)]
        group.attrs["weight_names"] = [f"{layer}/{leaf}:0".encode() for leaf in leaves]
        for leaf in leaves:
            group.create_dataset(f"{layer}/{leaf}:0", data=tensors[f"{layer}/{leaf}"])


def write_numbered(file: Any, tensors: dict[str, np.ndarray], layers: list[str]) -> None:
    counts: dict[str, int] = {}
    for layer in layers:
        kind = kind_of(layer)
        number = counts[kind] = counts.get(kind, -1) + 1
        group = file.create_group(f"layers/{kind}_{number}/vars" if number else f"layers/{kind}/vars")
        group.attrs["name"] = layer
        for place, leaf in enumerate(VARIABLES[kind]):
            group.create_dataset(str(place), data=tensors[f"{layer}/{leaf}"])
