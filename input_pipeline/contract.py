"""Preprocessing contracts: how pixels become the numbers that a set of weights was trained on.

A contract travels with the weights. Weights fed through another contract still give plausible, worse predictions, so a
checkpoint stores its contract (`Contract.to_json`) and loading compares.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.errors import InputError, printable


@dataclasses.dataclass(frozen=True)
class Contract:
    """`(pixel * scale - mean) / std` per channel, the channels first put into `channel_order`.

    `mean` and `std` stand in the order of `channel_order` ('rgb' | 'bgr') and in units of `pixel * scale`.
    `resize_shorter` is the ratio of the resized shorter side to the crop in evaluation; 0 resizes the whole image to
    the square instead. `interpolation` ('bilinear' | 'bicubic') is that of the resize.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float
    channel_order: str
    resize_shorter: float
    interpolation: str = "bilinear"

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values; `from_json` gives an equal contract back."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Contract":
        """The contract that `to_json` wrote. Raises InputError where a key is missing, unknown or malformed."""
        fields = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(stored, Mapping) or set(stored) != fields:
            found = ", ".join(sorted(map(str, stored))) if isinstance(stored, Mapping) else type(stored).__name__
            raise InputError(
                f"stored preprocessing contract: expected the keys {', '.join(sorted(fields))}, "
                f"found {printable(found)}; was it written by another version?"
            )
        try:
            contract = cls(
                name=str(stored["name"]),
                mean=_triple(stored["mean"]),
                std=_triple(stored["std"]),
                scale=float(stored["scale"]),
                channel_order=str(stored["channel_order"]),
                resize_shorter=float(stored["resize_shorter"]),
                interpolation=str(stored["interpolation"]),
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"stored preprocessing contract: {printable(str(error))}") from error
        numbers = (*contract.mean, *contract.std, contract.scale, contract.resize_shorter)
        if not all(map(math.isfinite, numbers)) or not all(contract.std):
            raise InputError("stored preprocessing contract: its numbers must be finite, and std not 0")
        if contract.channel_order not in ("rgb", "bgr") or contract.interpolation not in ("bilinear", "bicubic"):
            raise InputError(
                f"stored preprocessing contract: channel_order {printable(contract.channel_order)!r} must be rgb or "
                f"bgr and interpolation {printable(contract.interpolation)!r} bilinear or bicubic"
            )
        return contract


def _triple(values: Any) -> tuple[float, float, float]:
    first, second, third = values
    return float(first), float(second), float(third)


CONTRACTS: Mapping[str, Contract] = MappingProxyType(
    {
        contract.name: contract
        for contract in (
            # torchvision, timm: statistics of ImageNet's training set in 0..1.
            Contract("torch", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255, "rgb", 256 / 224),
            # He et al.'s Caffe release and Keras' ResNet50 v1: BGR, mean subtracted in 0..255, no scaling.
            Contract("caffe", (103.939, 116.779, 123.68), (1.0, 1.0, 1.0), 1.0, "bgr", 256 / 224),
            # Keras' ResNet50V2 and TensorFlow Hub: x / 127.5 - 1, in -1..1.
            Contract("tf", (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 1 / 127.5, "rgb", 256 / 224),
            # No statistics at all: 0..1, the whole image resized to the square. For nets trained from nothing.
            Contract("raw", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1 / 255, "rgb", 0.0),
        )
    }
)


def contract_by_name(name: str) -> Contract:
    """The contract called `name`. Raises InputError that lists the known names."""
    if name not in CONTRACTS:
        raise InputError(f"contract {printable(str(name))!r} is not known; choose one of {', '.join(CONTRACTS)}")
    return CONTRACTS[name]


def normalise(images: jax.Array | np.ndarray, contract: Contract) -> jax.Array:
    """Apply `contract` to RGB `images` [..., 3], uint8 or float in 0..255; float32 of the same shape, in jit or out."""
    pixels = jnp.asarray(images).astype(jnp.float32)
    if pixels.shape[-1:] != (3,):
        raise ValueError(f"images must end in 3 channels, not shape {pixels.shape}")
    if contract.channel_order == "bgr":
        pixels = jnp.flip(pixels, -1)
    mean, std = np.asarray(contract.mean, np.float32), np.asarray(contract.std, np.float32)
    return (pixels * np.float32(contract.scale) - mean) / std


def pictures(inputs: jax.Array | np.ndarray, contract: Contract) -> np.ndarray:
    """What `normalise` made of pixels, back: float[..., 3] -> uint8[..., 3], RGB, clipped to 0..255."""
    mean, std = np.asarray(contract.mean, np.float32), np.asarray(contract.std, np.float32)
    scaled = np.asarray(inputs, np.float32) * std + mean
    pixels = np.clip(np.round(scaled / contract.scale), 0, 255).astype(np.uint8)
    return pixels[..., ::-1] if contract.channel_order == "bgr" else pixels
