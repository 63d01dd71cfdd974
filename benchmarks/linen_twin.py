"""ResNets as one writes them in flax.linen, with nothing of ours in them: the peer in benchmarks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Layer = Callable[..., Any]


class Block(nn.Module):
    """A basic or bottleneck block: float32[B, H, W, C] -> float32[B, H', W', planes or 4 · planes]."""

    planes: int
    stride: int
    bottleneck: bool
    shortcut: str
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = self.planes * (4 if self.bottleneck else 1)
        y = x
        if self.bottleneck:
            layers = [(self.planes, 1, 1), (self.planes, 3, self.stride), (features, 1, 1)]
        else:
            layers = [(self.planes, 3, self.stride), (features, 3, 1)]
        for number, (channels, kernel, stride) in enumerate(layers):
            y = nn.Conv(channels, (kernel, kernel), stride, padding=kernel // 2, use_bias=False)(y)
            y = self.norm()(y)
            if number + 1 < len(layers):
                y = nn.relu(y)
        if x.shape != y.shape and self.shortcut == "A":
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[3])))
        elif x.shape != y.shape:
            x = self.norm()(nn.Conv(features, (1, 1), self.stride, use_bias=False)(x))
        return nn.relu(x + y)


class LinenResNet(nn.Module):
    """A ResNet with the stride in the 3×3: float32[B, S, S, 3] -> logits float32[B, num_classes].

    stem: 'imagenet' (7×7 stride 2, max-pool) or 'cifar' (3×3 stride 1). shortcut: 'B' (projection where shapes change)
    or 'A' (zero-padded identity).
    """

    block: str = "bottleneck"
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    num_classes: int = 1000
    stem: str = "imagenet"
    shortcut: str = "B"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        if self.stem == "imagenet":
            x = nn.relu(norm()(nn.Conv(self.width, (7, 7), 2, padding=3, use_bias=False)(x)))
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        else:
            x = nn.relu(norm()(nn.Conv(self.width, (3, 3), padding=1, use_bias=False)(x)))
        for stage, blocks in enumerate(self.stage_sizes):
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                x = Block(self.width * 2**stage, stride, self.block == "bottleneck", self.shortcut, norm)(x)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))
