"""Tiny weights files of every kind, with BN statistics that are not those of a fresh network."""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.torch_twin import TorchResNet
from input_pipeline.contract import CONTRACTS
from resnet.model.spec import ResNetSpec
from resnet.train.checkpoints import Meta, save_converted
from resnet.weights import keras_writing, mapping, names
from resnet.weights.recognise import KERAS_EPSILON
from tests.networks import random_variables

TINY_BASIC = ResNetSpec(block="basic", stage_sizes=(1, 1), width=8, num_classes=5)
TINY_KERAS = ResNetSpec(
    stage_sizes=(2, 1), width=8, num_classes=5, stride_place="first_1x1", conv_bias=True, norm_epsilon=KERAS_EPSILON
)

TINY_KERAS_V2 = ResNetSpec(
    stage_sizes=(2, 2),
    width=8,
    num_classes=5,
    order="full_preactivation",
    stem_norm=False,
    stride_block="last",
    bias_without_norm=True,
    norm_epsilon=KERAS_EPSILON,
)


def twin(block: str = "basic", stage_sizes: tuple[int, ...] = (1, 1), **options: object) -> TorchResNet:
    """torchvision's definition, small, with random weights and statistics; in evaluation mode."""
    torch.manual_seed(0)
    network = TorchResNet(block, stage_sizes, width=8, num_classes=5, **options).eval()  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for array, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                torch.nn.init.uniform_(array, low, high)
    return network


def save_twin(folder: Path, **options: object) -> Path:
    path = folder / "twin.pth"
    torch.save(twin(**options).state_dict(), path)  # type: ignore[arg-type]
    return path


def torch_state(spec: ResNetSpec, dialect: names.Dialect = names.TORCH) -> dict[str, torch.Tensor]:
    """A state_dict of random variables in a dialect's names."""
    tensors = mapping.from_variables(random_variables(spec), spec, dialect, has_head=True)
    return {name: torch.from_numpy(array) for name, array in tensors.items()}


def save_keras(path: Path, spec: ResNetSpec = TINY_KERAS, *, has_head: bool = True) -> Path:
    """An HDF5 file in Keras' names; numbered where `path` ends in .weights.h5."""
    dialect = names.KERAS_V2 if spec.preactivated else names.KERAS
    tensors = mapping.from_variables(random_variables(spec), spec, dialect, has_head=has_head)
    layers = keras_writing.layer_order(spec, has_head=has_head)
    keras_writing.write(path, tensors, layers, numbered=path.name.endswith(".weights.h5"))
    return path


def save_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """The format by its definition: header length, JSON, data."""
    import json

    header, data = {}, b""
    for name, array in tensors.items():
        raw = array.astype(np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def save_checkpoint(folder: Path, spec: ResNetSpec) -> Path:
    """A converted checkpoint of random variables."""
    classes = tuple(f"class {index}" for index in range(spec.num_classes))
    meta = Meta(spec, classes, CONTRACTS["torch"], image_size=32, resize_shorter=1.0)
    save_converted(folder, random_variables(spec), meta)
    return folder


def with_fields(spec: ResNetSpec, **fields: object) -> ResNetSpec:
    return dataclasses.replace(spec, **fields)  # type: ignore[arg-type]


KINDS = ("zip", "old", "safetensors", "h5", "keras")


def save_kind(folder: Path, kind: str) -> Path:
    """A sound file of a kind, without an extension that would give it away."""
    source = folder / "weights"
    if kind in ("zip", "old"):
        torch.save(twin().state_dict(), source, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "safetensors":
        save_safetensors(source, {name: tensor.numpy() for name, tensor in twin().state_dict().items()})
    else:
        save_keras(source)
        if kind == "keras":
            content = source.read_bytes()
            with zipfile.ZipFile(source, "w") as archive:
                archive.writestr("model.weights.h5", content)
    return source
