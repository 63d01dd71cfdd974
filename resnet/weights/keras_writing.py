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
    v2 = spec.preactivated
    layers = ["conv1_conv"] if v2 else ["conv1_conv", "conv1_bn"]
    for stage, blocks in enumerate(spec.stage_sizes, start=2):
        for number in range(1, blocks + 1):
            parts = ["preact_bn"] if v2 else []
            parts += ["1_conv", "1_bn", "2_conv", "2_bn"]
            if number == 1:
                parts += ["0_conv", "3_conv"] if v2 else ["0_conv", "3_conv", "0_bn", "3_bn"]
            else:
                parts += ["3_conv"] if v2 else ["3_conv", "3_bn"]
            layers += [f"conv{stage}_block{number}_{part}" for part in parts]
    if v2:
        layers.append("post_bn")
    return [*layers, "predictions"] if has_head else layers


def kind_of(layer: str) -> str:
    """Keras' class of a layer in snake case, as `VARIABLES` lists them."""
    if layer == "predictions":
        return "dense"
    return "conv2d" if layer.endswith("_conv") else "batch_normalization"


def leaves_of(layer: str, tensors: dict[str, np.ndarray]) -> list[str]:
    """The variables that a layer has, in Keras' order."""
    return [leaf for leaf in VARIABLES[kind_of(layer)] if f"{layer}/{leaf}" in tensors]


def with_biases(tensors: dict[str, np.ndarray], *, v2: bool) -> dict[str, np.ndarray]:
    """The tensors with a zero bias, which changes nothing, for each convolution that has none where Keras' has one.

    In V1 all have, in V2 those without a norm behind them.
    """
    completed = dict(tensors)
    for name, kernel in tensors.items():
        layer, leaf = name.split("/")
        biased = not v2 or not layer.endswith(("_1_conv", "_2_conv"))
        if biased and leaf == "kernel" and f"{layer}/bias" not in tensors:
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
        leaves = leaves_of(layer, tensors)
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
        for place, leaf in enumerate(leaves_of(layer, tensors)):
            group.create_dataset(str(place), data=tensors[f"{layer}/{leaf}"])
