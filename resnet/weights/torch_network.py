"""The ResNets of torchvision, timm (deep stem, option D, squeeze-and-excitation) and CIFAR, evaluated in torch.

Straight from a state_dict's own names by torch.nn.functional, without our tables and without our network: an
independent witness of what the weights compute. Strides, which a state_dict does not hold, are the published ones.
"""

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

State = Mapping[str, Tensor]


def features(state: State, images: Tensor, *, stride_place: str = "3x3") -> dict[str, Tensor]:
    """float[B, C, H, W] -> 'stem', 'layer1_0', …, 'pooled', 'logits' (where there is a head), as ours names them.

    `stride_place`: '3x3' (torchvision, timm) or 'first_1x1' (v1), where a bottleneck strides.
    """
    found = {"stem": stem(state, images)}
    x = found["stem"]
    for stage in itertools.count(1):
        if not has_block(state, stage, 0):
            break
        for index in itertools.count():
            if not has_block(state, stage, index):
                break
            stride = 2 if stage > 1 and index == 0 else 1
            x = found[f"layer{stage}_{index}"] = block(state, f"layer{stage}.{index}", x, stride, stride_place)
    found["pooled"] = x.mean((2, 3))
    head = "linear" if "linear.weight" in state else "fc"
    if f"{head}.weight" in state:
        found["logits"] = functional.linear(found["pooled"], state[f"{head}.weight"], state[f"{head}.bias"])
    return found


def has_block(state: State, stage: int, index: int) -> bool:
    return f"layer{stage}.{index}.conv1.weight" in state


def stem(state: State, x: Tensor) -> Tensor:
    if "conv1.0.weight" in state:
        x = functional.relu(norm(state, "conv1.1", convolve(state, "conv1.0", x, 2)))
        x = functional.relu(norm(state, "conv1.4", convolve(state, "conv1.3", x)))
        x = functional.relu(norm(state, "bn1", convolve(state, "conv1.6", x)))
        return functional.max_pool2d(x, 3, 2, 1)
    large = state["conv1.weight"].shape[-1] == 7
    x = functional.relu(norm(state, "bn1", convolve(state, "conv1", x, 2 if large else 1)))
    return functional.max_pool2d(x, 3, 2, 1) if large else x


def block(state: State, name: str, x: Tensor, stride: int, stride_place: str) -> Tensor:
    bottleneck = f"{name}.conv3.weight" in state
    strided = 1 if not bottleneck or stride_place == "first_1x1" else 2
    depth = 3 if bottleneck else 2
    y = x
    for number in range(1, depth + 1):
        y = convolve(state, f"{name}.conv{number}", y, stride if number == strided else 1)
        y = norm(state, f"{name}.bn{number}", y)
        if number < depth:
            y = functional.relu(y)
    if f"{name}.se.fc1.weight" in state:
        gate = functional.relu(convolve(state, f"{name}.se.fc1", y.mean((2, 3), keepdim=True)))
        y = y * torch.sigmoid(convolve(state, f"{name}.se.fc2", gate))
    return functional.relu(y + shortcut(state, name, x, stride, y.shape[1]))


def shortcut(state: State, name: str, x: Tensor, stride: int, channels: int) -> Tensor:
    for projection in ("downsample", "shortcut"):
        if f"{name}.{projection}.2.weight" in state:
            if stride > 1:
                x = functional.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
            return norm(state, f"{name}.{projection}.2", convolve(state, f"{name}.{projection}.1", x))
        if f"{name}.{projection}.0.weight" in state:
            return norm(state, f"{name}.{projection}.1", convolve(state, f"{name}.{projection}.0", x, stride))
    missing = channels - x.shape[1]
    # Option A as in the published CIFAR weights: every second pixel, zero channels half in front and half behind.
    return functional.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, missing // 2, missing - missing // 2))


def convolve(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    groups = x.shape[1] // weight.shape[1]
    return functional.conv2d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2, 1, groups)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return functional.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)
