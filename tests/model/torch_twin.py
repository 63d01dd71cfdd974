"""The networks of resnet/model as plain torch modules after torchvision's definition, to compare against.

Written from torchvision's names and from He et al. 2016, Figure 4, read literally; nothing of resnet/model is used.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import max_pool2d, pad, relu


class Subsample(nn.Module):
    """Option A of He et al. 2015, Section 4.1: every stride-th pixel, zeros for the channels that are missing."""

    def __init__(self, stride: int, missing: int) -> None:
        super().__init__()
        self.stride, self.missing = stride, missing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))


class Block(nn.Module):
    def __init__(self, spec: Any, inputs: int, planes: int, stride: int, first: bool) -> None:
        super().__init__()
        self.order, self.first = spec.order, first
        early = stride if spec.stride_place == "first_1x1" else 1
        outputs = planes * 4 if spec.block == "bottleneck" else planes
        if spec.block == "bottleneck":
            convolutions = [
                nn.Conv2d(inputs, planes, 1, early, bias=False),
                nn.Conv2d(planes, planes, 3, stride // early, 1, bias=False),
                nn.Conv2d(planes, outputs, 1, bias=False),
            ]
        else:
            convolutions = [
                nn.Conv2d(inputs, planes, 3, stride, 1, bias=False),
                nn.Conv2d(planes, planes, 3, 1, 1, bias=False),
            ]
        self.count = len(convolutions)
        for number, layer in enumerate(convolutions, start=1):
            setattr(self, f"conv{number}", layer)
            channels = layer.in_channels if self.order == "full_preactivation" else layer.out_channels
            if not (self.order == "full_preactivation" and first and number == 1):
                setattr(self, f"bn{number}", nn.BatchNorm2d(channels))
        self.preactivated = self.order in ("relu_only_preactivation", "full_preactivation")
        self.downsample: nn.Module | None = None
        # A block that strides and keeps its channels (stride_block 'last') only leaves pixels out, of its raw input.
        self.projects = inputs != outputs
        if stride != 1 and not self.projects:
            self.downsample = Subsample(stride, 0)
        elif self.projects:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            if spec.shortcut == "A":
                self.downsample = Subsample(stride, outputs - inputs)
            elif self.preactivated:
                self.downsample = nn.Sequential(projection)
            else:
                self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def layer(self, kind: str, number: int, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, f"{kind}{number}")(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last = self.count
        entry = h = x
        if self.preactivated and not self.first:
            entry = h = relu(self.bn1(x) if self.order == "full_preactivation" else x)
        for number in range(1, last):
            h = self.layer("conv", number, h)
            h = relu(self.layer("bn", number + 1 if self.order == "full_preactivation" else number, h))
        h = self.layer("conv", last, h)
        shortcut = x if self.downsample is None else self.downsample(entry if self.projects else x)
        if self.order == "original":  # Figure 4 (a)
            return relu(self.layer("bn", last, h) + shortcut)
        if self.order == "bn_after_addition":  # (b)
            return relu(self.layer("bn", last, h + shortcut))
        if self.order == "relu_before_addition":  # (c)
            return relu(self.layer("bn", last, h)) + shortcut
        if self.order == "relu_only_preactivation":  # (d)
            return self.layer("bn", last, h) + shortcut
        return h + shortcut  # (e)


class Twin(nn.Module):
    """torchvision's ResNet for a spec with option A or B, batch norm and the imagenet or cifar stem, in eval mode."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.spec = spec
        channels = spec.stem_width or spec.width
        if spec.stem == "cifar":
            self.conv1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        expansion = 4 if spec.block == "bottleneck" else 1
        for stage, blocks in enumerate(spec.stage_sizes):
            planes = spec.width * 2**stage
            modules = []
            for index in range(blocks):
                if spec.stride_block == "last":
                    stride = 2 if index == blocks - 1 and stage < len(spec.stage_sizes) - 1 else 1
                else:
                    stride = 2 if stage > 0 and index == 0 else 1
                modules.append(Block(spec, channels, planes, stride, stage == index == 0))
                channels = planes * expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*modules))
        if spec.order == "full_preactivation":
            self.bn_last = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, spec.num_classes)
        self.eval()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x = relu(self.bn1(self.conv1(images)))
        if self.spec.stem == "imagenet":
            x = max_pool2d(x, 3, 2, 1)
        features = {"stem": x}
        for stage in range(1, len(self.spec.stage_sizes) + 1):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                x = features[f"layer{stage}_{index}"] = block(x)
            features[f"layer{stage}"] = x
        if self.spec.order == "full_preactivation":
            x = self.bn_last(x)
        if self.spec.order in ("relu_only_preactivation", "full_preactivation"):
            x = relu(x)
        features["pooled"] = x.mean((2, 3))
        return self.fc(features["pooled"]), features


def torch_name(name: str) -> str:
    """'layer1_0/downsample_bn/mean' -> 'layer1.0.downsample.1.running_mean'."""
    kinds = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    *modules, kind = name.split("/")
    path = ".".join(modules).replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
    if path.startswith("layer"):
        path = path.replace("_", ".", 1)
    return f"{path}.{kinds[kind]}"


def load(twin: nn.Module, variables: dict[str, np.ndarray]) -> None:
    """Give the twin our variables by name; every one must have its place and every place its variable."""
    state = {}
    for name, value in variables.items():
        if name.endswith("kernel"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        state[torch_name(name)] = torch.from_numpy(np.ascontiguousarray(value))
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
