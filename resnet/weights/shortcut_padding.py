"""Option A shortcuts: published weights pad zero channels on both sides, our network behind; a renaming apart.

He et al. 2015, Section 4.1, leave open where the zero channels of option A go. The CIFAR weights in circulation
(Y. Idelbayev) put half of them in front and half behind, our network puts all behind. Which place a channel of the
residual stream has is arbitrary as long as all layers agree on it, so sorting the channels of each stage turns one
network into the other: the same function, no option in the network for it.
"""

import re

import numpy as np

from resnet.model.spec import ResNetSpec
from resnet.weights.names import Path


def channel_orders(spec: ResNetSpec) -> list[np.ndarray]:
    """Per stage, int[C]: element i is the place, with zeros on both sides, of the channel that our network has at i.

    Element 0 of the list is the stem's (unchanged), then one for each stage.
    """
    orders = [np.arange(spec.stem_channels)]
    for stage in range(len(spec.stage_sizes)):
        channels, carried = spec.width * 2**stage * spec.expansion, orders[-1]
        front = (channels - len(carried)) // 2
        moved = front + carried
        new = np.setdiff1d(np.arange(channels), moved)
        orders.append(np.concatenate([moved, new]))
    return orders


def pad_behind(array: np.ndarray, path: Path, spec: ResNetSpec) -> np.ndarray:
    """A variable of a network that pads on both sides, in our layout -> that of the network that pads behind."""
    for axis, order in axes(path, spec):
        array = np.take(array, order, axis)
    return array


def pad_both_sides(array: np.ndarray, path: Path, spec: ResNetSpec) -> np.ndarray:
    """The inverse of `pad_behind`."""
    for axis, order in axes(path, spec):
        array = np.take(array, np.argsort(order), axis)
    return array


def axes(path: Path, spec: ResNetSpec) -> list[tuple[int, np.ndarray]]:
    """The axes of a variable that run over channels of the residual stream, each with its stage's order."""
    orders = channel_orders(spec)
    leaf = path[-1]
    if path[1] == "fc":
        return [(0, orders[-1])] if leaf == "kernel" else []
    block = re.fullmatch(r"layer(\d+)_(\d+)", path[1])
    if not block:
        return []
    stage, index = int(block[1]), int(block[2])
    last = 3 if spec.block == "bottleneck" else 2
    found = []
    if path[2] == "conv1" and leaf == "kernel":
        found.append((2, orders[stage - 1] if index == 0 else orders[stage]))
    if path[2] in (f"conv{last}", f"bn{last}") or path[2:4] == ("se", "fc2"):
        found.append((-1, orders[stage]))
    if path[2:] == ("se", "fc1", "kernel"):
        found.append((0, orders[stage]))
    return found
