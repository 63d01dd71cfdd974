"""The network: stem, stages of blocks, head -> logits, and named features on request."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet.model import blocked, onednn_pooling
from resnet.model.blocks import Block
from resnet.model.convolution import conv_general_dilated
from resnet.model.errors import SpecError
from resnet.model.layers import ACTIVATIONS, Convolution, Norm, classify, convolution, norm
from resnet.model.links import Link, convolve
from resnet.model.onednn_chain import End, closed
from resnet.model.pooling import max_pool, max_pool_by_xla
from resnet.model.proven import is_proven
from resnet.model.spec import ResNetSpec, block_stride

# What is computed again on the way back, in place of being kept: nothing, the inside of each block, of each stage.
REMAT = ("none", "block", "stage")


class ResNet(nn.Module):
    """A residual network: float[B, H, W, in_channels] -> logits float32[B, num_classes].

    Variables are {'params', 'batch_stats'}, all float32; activations and convolutions run in `dtype`. Training with
    dropout or stochastic depth needs an rng named 'dropout'.

    Gradients of gradients (penalties, MAML) and forward over reverse mode (Hessian-vector products) work. Forward mode
    alone (`jax.jvp`) works in evaluation where lax or oneDNN computes all convolutions; in training batch norm, whose
    gradient is its own, raises TypeError.
    """

    spec: ResNetSpec
    dtype: Any = jnp.float32
    # lax.conv_general_dilated or ours (the same result, faster where XLA's own is slow). With lax' one the pooling is
    # XLA's own too: counting and the ONNX export read such a program.
    backend: Convolution = conv_general_dilated
    # Parts that run as in evaluation though the rest trains: whole blocks ('layer1_0': running statistics, nothing
    # dropped) and single norms ('bn1', 'layer4_1/bn2': running statistics). Their statistics stay as they are.
    frozen: frozenset[str] = frozenset()
    # Norms that are folded into the convolution before them; only resnet/model/folding names any.
    folded: frozenset[str] = frozenset()
    # One of REMAT (Chen et al. 2016, arXiv 1604.06174): in training, of a block or a stage its input alone is kept for
    # the gradient. Variables, random draws and figures are the same.
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        return_features: bool = False,
        offsets: Mapping[str, jax.Array] = MappingProxyType({}),
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits or, with `return_features`, (logits, features).

        Features, in order: 'stem', 'layer1_0', 'layer1_1', …, 'layer1' (a stage's last block), …, 'pooled' (float32[B,
        C]). jax.jit hands a dict back with its keys sorted; the order is that inside.
        offsets: arrays of the features' shapes and dtypes, each added to the feature of its name on its way through the
        network ('pooled' takes none). The gradient by an offset of zeros is that by the feature.
        Raises SpecError when the images are smaller than the network's total stride, or for an unknown `remat`.
        """
        if train and self.folded:
            raise ValueError("a network with folded norms has no batch statistics to train with; it only evaluates")
        spec = self.spec
        if self.remat not in REMAT:
            raise SpecError(f"remat={self.remat!r} is not one of {', '.join(REMAT)}")
        spec.check_image_size(min(images.shape[1:3]))
        features: dict[str, Any] = {}

        def named(name: str, x: Any) -> Any:
            features[name] = x = x + offsets[name] if name in offsets else x
            return x

        # Whether nothing but the next block reads what a block gives.
        unseen = train and not (return_features or offsets) and self.remat == "none"
        x = named("stem", self._stem(images.astype(self.dtype), train))
        for stage in range(len(spec.stage_sizes)):
            blocks = lambda network, x, stage=stage: network._stage(x, stage, train, offsets, unseen)  # noqa: E731
            x, inside = self._remembered("stage", blocks, x, train)
            features |= inside
            x = named(f"layer{stage + 1}", x)
        logits = self._head(x, train, features)
        return (logits, features) if return_features else logits

    def _stem(self, x: jax.Array, train: bool) -> jax.Array:
        spec, activation = self.spec, ACTIVATIONS[self.spec.activation]
        width = spec.stem_channels
        if spec.stem == "deep":
            # ResNet-C of He, T. et al. 2019: three 3×3 convolutions, half as wide but the last.
            layers = [(width // 2, 3, 2), (width // 2, 3, 1), (width, 3, 1)]
        elif spec.stem == "cifar":
            layers = [(width, 3, 1)]
        else:
            layers = [(width, 7, 2)]
        links = []
        for number, (features, kernel, stride) in enumerate(layers, start=1):
            suffix = str(number) if len(layers) == 1 else f"1_{number}"
            bare = number == len(layers) and not spec.stem_norm
            layer = convolution(
                spec,
                features,
                kernel,
                stride=stride,
                normed=not bare,
                bias=True if f"bn{suffix}" in self.folded else None,
                name=f"conv{suffix}",
                dtype=self.dtype,
                backend=self.backend,
            )
            behind = None if bare else self._norm(features, f"bn{suffix}", train)
            links.append(Link(layer, behind, None if bare else activation))
        by_blocks = spec.stem == "imagenet" and self.backend is conv_general_dilated and blocked.stem_pays(x)
        if by_blocks and is_proven(spec):
            return self._stem_by_blocks(links[0], x)
        pooled = spec.stem != "cifar"
        end = convolve(links, x, train=train, left_open=pooled and activation is nn.relu)
        if isinstance(end, End):
            return onednn_pooling.max_pool(end)
        if not pooled:
            return end
        pool = max_pool_by_xla if self.backend is jax.lax.conv_general_dilated else max_pool
        if spec.stem_norm:
            return pool(end)
        # Behind ReLU zeros and nothing are the same; a bare convolution's values may all be negative.
        return pool(jnp.pad(end, ((0, 0), (1, 1), (1, 1), (0, 0))), padding=0)

    def _stem_by_blocks(self, link: Link, x: jax.Array) -> jax.Array:
        """The stem by blocks of pixels; norm and activation take a block's outputs for pixels of a row."""
        y = link.layer.by_blocks(x)
        rows = y.reshape(*y.shape[:2], -1, y.shape[-1])
        rows = rows if link.norm is None else link.norm(rows)
        rows = rows if link.activation is None else link.activation(rows)
        return blocked.max_pool(rows.reshape(y.shape), fill=-math.inf if self.spec.stem_norm else 0.0)

    def _stage(
        self, x: jax.Array | End, stage: int, train: bool, offsets: Mapping[str, jax.Array], unseen: bool
    ) -> tuple[jax.Array | End, dict[str, jax.Array | End]]:
        """The blocks of a stage, and what each gives, by name. unseen: nothing but the next reads it."""
        features: dict[str, Any] = {}
        sizes = self.spec.stage_sizes
        for index in range(sizes[stage]):
            name = f"layer{stage + 1}_{index}"
            left_open = unseen and (stage, index) != (len(sizes) - 1, sizes[-1] - 1)
            block = lambda network, x, of=(index, left_open): network._block(x, stage, *of, train)  # noqa: E731
            x = self._remembered("block", block, x, train)
            features[name] = x = closed(x) + offsets[name] if name in offsets else x
        return x, features

    def _block(self, x: jax.Array | End, stage: int, index: int, left_open: bool, train: bool) -> jax.Array | End:
        name, sizes = f"layer{stage + 1}_{index}", self.spec.stage_sizes
        number = sum(sizes[:stage]) + index
        block = Block(
            spec=self.spec,
            stage=stage,
            stride=block_stride(self.spec, stage, index),
            depth_share=number / max(sum(sizes) - 1, 1),
            first=number == 0,
            dtype=self.dtype,
            backend=self.backend,
            frozen=within(name, self.frozen),
            folded=within(name, self.folded),
            name=name,
        )
        return block(x, train=train and name not in self.frozen, left_open=left_open)

    def _remembered(self, unit: str, function: Callable[..., Any], x: jax.Array | End, train: bool) -> Any:
        """function(network, x); with `remat` of this unit, in training, only x is kept for its gradient."""
        return (nn.remat(function) if train and self.remat == unit else function)(self, x)

    def _norm(self, channels: int, name: str, train: bool) -> Norm | None:
        """None where there is none, or it is folded."""
        if name in self.folded:
            return None
        return norm(self.spec, channels, name=name, train=train and name not in self.frozen, dtype=self.dtype)

    def _head(self, x: jax.Array, train: bool, features: dict[str, jax.Array]) -> jax.Array:
        """Global average pooling and the dense layers, in float32 from the pooling on."""
        spec = self.spec
        last = self._norm(x.shape[-1], "bn_last", train) if spec.order == "full_preactivation" else None
        x = last(x) if last is not None else x
        if spec.preactivated:
            x = ACTIVATIONS[spec.activation](x)
        x = features["pooled"] = x.astype(jnp.float32).mean(axis=(1, 2))
        return classify(spec, x, train)


def within(block: str, paths: frozenset[str]) -> frozenset[str]:
    """What `paths` name inside a block, by its names there."""
    return frozenset(path.removeprefix(f"{block}/") for path in paths if path.startswith(f"{block}/"))


class Head(nn.Module):
    """The network behind its pooling: float32[B, C] -> logits float32[B, num_classes], with ResNet's names and values.

    For features that were computed once: its parameters are ResNet's of the names in spec.HEAD.
    """

    spec: ResNetSpec

    @nn.compact
    def __call__(self, pooled: jax.Array, *, train: bool = False) -> jax.Array:
        return classify(self.spec, pooled, train)


def evaluate(network: ResNet, variables: dict[str, Any], images: jax.Array) -> jax.Array:
    """Logits float32[B, num_classes] with the running statistics and without dropout."""
    return cast(jax.Array, network.apply(variables, images, train=False))


def initialise(network: ResNet, key: jax.Array, image_size: int) -> dict[str, Any]:
    """Fresh variables {'params', 'batch_stats'} of a network for square images; one compiled call, no training."""
    shape = (1, image_size, image_size, network.spec.in_channels)
    # Shapes and values of the parameters do not depend on how convolutions are carried out; lax' own compile fastest.
    plain = ResNet(network.spec, backend=jax.lax.conv_general_dilated)
    variables = jax.jit(lambda k: plain.init(k, jnp.zeros(shape), train=False))(key)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
