"""ResNets in torch after torchvision's published definition and names: the peer in benchmarks."""

import torch
from torch import nn


class PaddedIdentity(nn.Module):
    """Option A (He et al. 2015, section 3.3): every stride-th pixel, zeros in the new channels."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class Block(nn.Module):
    """A basic (expansion 1) or bottleneck (expansion 4) block with torchvision's layer names; input and output NCHW."""

    def __init__(
        self, in_channels: int, planes: int, expansion: int, stride: int, stride_place: str, shortcut: str
    ) -> None:
        super().__init__()
        out_channels = planes * expansion
        if expansion == 4:
            first = stride if stride_place == "first_1x1" else 1
            layers = [
                (in_channels, planes, 1, first),
                (planes, planes, 3, stride // first),
                (planes, out_channels, 1, 1),
            ]
        else:
            layers = [(in_channels, planes, 3, stride), (planes, planes, 3, 1)]
        self.depth = len(layers)
        for number, (source, target, kernel, step) in enumerate(layers, start=1):
            setattr(self, f"conv{number}", nn.Conv2d(source, target, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(target))
        self.downsample: nn.Module | None = None
        if shortcut == "A":
            self.downsample = PaddedIdentity(stride, out_channels - in_channels)
        elif shortcut == "B":
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.depth + 1):
            x = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x))
            if number < self.depth:
                x = torch.relu(x)
        return torch.relu(x + shortcut)


class TorchResNet(nn.Module):
    """A ResNet: float[B, 3, H, W] -> logits [B, num_classes].

    stem: 'imagenet' (7×7 stride 2, max-pool) or 'cifar' (3×3 stride 1). shortcut: 'B' (projection where shapes change)
    or 'A' (zero-padded identity).
    """

    def __init__(
        self,
        block: str = "bottleneck",
        stage_sizes: tuple[int, ...] = (3, 4, 6, 3),
        *,
        width: int = 64,
        num_classes: int = 1000,
        stem: str = "imagenet",
        stride_place: str = "3x3",
        shortcut: str = "B",
    ) -> None:
        super().__init__()
        expansion = 4 if block == "bottleneck" else 1
        self.pooled_stem = stem == "imagenet"
        if self.pooled_stem:
            self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(stage_sizes)
        channels = width
        for stage, blocks in enumerate(stage_sizes):
            planes, layers = width * 2**stage, []
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                kept = stride == 1 and channels == planes * expansion
                layers.append(Block(channels, planes, expansion, stride, stride_place, "" if kept else shortcut))
                channels = planes * expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x)["pooled"])

    def features(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """'stem', 'layer1', …, 'pooled', as our network names them."""
        x = torch.relu(self.bn1(self.conv1(x)))
        if self.pooled_stem:
            x = nn.functional.max_pool2d(x, 3, 2, 1)
        found = {"stem": x}
        for stage in range(1, self.stages + 1):
            x = found[f"layer{stage}"] = getattr(self, f"layer{stage}")(x)
        found["pooled"] = x.mean((2, 3))
        return found
