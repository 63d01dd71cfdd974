"""The one table of names: our layers and those of torchvision (and timm), of the CIFAR ResNets, of Keras. Both ways.

A dialect says what another program calls each of our layers and how it lays out their arrays; `table` lists, for one
network, every tensor under both names. Reading looks tensors up in it, writing goes through it the other way.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from types import MappingProxyType

import jax
import numpy as np

from resnet.model.network import ResNet, initialise
from resnet.model.spec import HEAD, ResNetSpec

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Dialect:
    """Names of one program. `whole` and `block` map our layers to its; `prefix` stands before a block's layers.

    `leaves` maps our leaf to its; a norm's 'bias' is `norm_bias`. `torch_layout`: convolutions are [O, I, H, W] and
    dense layers [O, I]; else they lie as ours do, [H, W, I, O] and [I, O].
    """

    name: str
    whole: Mapping[str, str]
    block: Mapping[str, str]
    prefix: str
    separator: str
    leaves: Mapping[str, str]
    norm_bias: str
    torch_layout: bool


TORCH = Dialect(
    name="torchvision",
    whole={
        "conv1": "conv1",
        "bn1": "bn1",
        "fc": "fc",
        # timm's deep stem: an nn.Sequential of convolution, norm, activation, …, whose last norm is bn1.
        "conv1_1": "conv1.0",
        "bn1_1": "conv1.1",
        "conv1_2": "conv1.3",
        "bn1_2": "conv1.4",
        "conv1_3": "conv1.6",
        "bn1_3": "bn1",
    },
    block={
        **{f"{layer}{number}": f"{layer}{number}" for layer in ("conv", "bn") for number in (1, 2, 3)},
        "downsample_conv": "downsample.0",
        "downsample_bn": "downsample.1",
        "se/fc1": "se.fc1",
        "se/fc2": "se.fc2",
    },
    prefix="layer{stage}.{index}.",
    separator=".",
    leaves={"kernel": "weight", "bias": "bias", "scale": "weight", "mean": "running_mean", "var": "running_var"},
    norm_bias="bias",
    torch_layout=True,
)

# timm's option D: an average pool takes place 0 of the shortcut's nn.Sequential.
TORCH_D = dataclasses.replace(
    TORCH, block={**TORCH.block, "downsample_conv": "downsample.1", "downsample_bn": "downsample.2"}
)

# Y. Idelbayev's CIFAR ResNets of He et al. 2015, Section 4.2.
CIFAR = dataclasses.replace(
    TORCH,
    name="cifar",
    whole={**TORCH.whole, "fc": "linear"},
    block={**TORCH.block, "downsample_conv": "shortcut.0", "downsample_bn": "shortcut.1"},
)

KERAS = Dialect(
    name="keras",
    whole={"conv1": "conv1_conv", "bn1": "conv1_bn", "fc": "predictions"},
    block={
        **{f"conv{number}": f"{number}_conv" for number in (1, 2, 3)},
        **{f"bn{number}": f"{number}_bn" for number in (1, 2, 3)},
        "downsample_conv": "0_conv",
        "downsample_bn": "0_bn",
    },
    # Keras counts the stem as the first stage and blocks from 1.
    prefix="conv{stage_and_stem}_block{number}_",
    separator="/",
    leaves={"kernel": "kernel", "bias": "bias", "scale": "gamma", "mean": "moving_mean", "var": "moving_variance"},
    norm_bias="beta",
    torch_layout=False,
)

# Keras' V2: the norm in front of a block has a name of its own, the others are numbered after the convolution before.
KERAS_V2 = dataclasses.replace(
    KERAS,
    name="keras V2",
    whole={"conv1": "conv1_conv", "bn_last": "post_bn", "fc": "predictions"},
    block={
        **{f"conv{number}": f"{number}_conv" for number in (1, 2, 3)},
        "bn1": "preact_bn",
        "bn2": "1_bn",
        "bn3": "2_bn",
        "downsample_conv": "0_conv",
    },
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: where it stands in our variables, what the dialect calls it, and its shape in either layout."""

    path: Path
    name: str
    shape: tuple[int, ...]
    foreign_shape: tuple[int, ...]


def layer_name(layers: Path, dialect: Dialect) -> str:
    """The dialect's name of our layer, such as ('layer1_0', 'conv1'). Raises KeyError where it has none."""
    block = re.fullmatch(r"layer(\d+)_(\d+)", layers[0])
    if not block:
        return dialect.whole["/".join(layers)]
    stage, index = int(block[1]), int(block[2])
    prefix = dialect.prefix.format(stage=stage, index=index, stage_and_stem=stage + 1, number=index + 1)
    return prefix + dialect.block["/".join(layers[1:])]


def tensor_name(path: Path, dialect: Dialect) -> str:
    """The dialect's name of our variable ('params' or 'batch_stats', layer, …, leaf). Raises KeyError for none."""
    *layers, leaf = path[1:]
    is_norm = layers[-1].startswith("bn") or layers[-1] == "downsample_bn"
    foreign = dialect.norm_bias if leaf == "bias" and is_norm else dialect.leaves[leaf]
    return layer_name(tuple(layers), dialect) + dialect.separator + foreign


def table(spec: ResNetSpec, dialect: Dialect) -> tuple[Entry, ...]:
    """Every tensor of the network, in the order stem, stages, head.

    Raises KeyError where the dialect has no name for a layer.
    """
    entries = []
    for path, shape in variable_shapes(spec).items():
        foreign = to_foreign_shape(path, shape) if dialect.torch_layout else shape
        entries.append(Entry(path, tensor_name(path, dialect), shape, foreign))
    return tuple(entries)


@functools.lru_cache(maxsize=4)
def variable_shapes(spec: ResNetSpec) -> Mapping[Path, tuple[int, ...]]:
    """Path -> shape of every variable of the network, in the order stem, stages, head; nothing is computed.

    Kept for the last few networks: tracing a deep one takes seconds, and one conversion asks more than once.
    """
    network = ResNet(spec, backend=jax.lax.conv_general_dilated)
    tree = jax.eval_shape(lambda key: initialise(network, key, spec.total_stride), jax.random.key(0))
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    shapes = {tuple(str(part.key) for part in path): tuple(leaf.shape) for path, leaf in leaves}
    return MappingProxyType(dict(sorted(shapes.items(), key=lambda item: reading_order(item[0]))))


def reading_order(path: Path) -> tuple[object, ...]:
    """Sorts paths as a reader expects: stem, layer1_0, …, layer1_10, …, head; within a layer by name."""
    block = re.fullmatch(r"layer(\d+)_(\d+)", path[1])
    place = (1, int(block[1]), int(block[2])) if block else (2 if path[1] in HEAD else 0, 0, 0)
    return (*place, path[1:], path[0])


def to_foreign_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Our shape in torch's layout."""
    if len(shape) == 4:
        height, width, inputs, outputs = shape
        return outputs, inputs, height, width
    if len(shape) == 2:
        # timm's squeeze-and-excitation uses 1×1 convolutions where ours has dense layers.
        return (*shape[::-1], 1, 1) if "se" in path else shape[::-1]
    return shape


def from_torch_layout(array: np.ndarray, path: Path) -> np.ndarray:
    """A tensor in torch's layout -> ours; a view."""
    if array.ndim == 4 and "se" in path:
        return array[:, :, 0, 0].T
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_torch_layout(array: np.ndarray, path: Path) -> np.ndarray:
    """The inverse of `from_torch_layout`."""
    if array.ndim == 2 and "se" in path:
        return array.T[:, :, None, None]
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
