"""Residual blocks: basic and bottleneck branches × shortcuts × orders of norm, activation and addition."""

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet.model.layers import (
    ACTIVATIONS,
    BranchScale,
    Convolution,
    Norm,
    SqueezeExcitation,
    convolution,
    norm,
)
from resnet.model.links import Link, convolve, convolve_and_close
from resnet.model.onednn_chain import End, closed
from resnet.model.proven import is_proven
from resnet.model.spec import ResNetSpec, block_width


class Block(nn.Module):
    """One residual block, float[B, H, W, C] -> float[B, H/stride, W/stride, planes · expansion].

    Layers are named after torchvision: conv1, bn1, …, downsample_conv, downsample_bn. In pre-activated orders bnN
    stands before convN. With shortcut 'none' the block is the branch alone: a plain net's two or three layers.
    """

    spec: ResNetSpec
    stage: int
    stride: int
    # 0 for the network's first block, 1 for its last: stochastic depth grows with it.
    depth_share: float
    # The network's very first block finds its input activated by the stem (He et al. 2016, appendix) if it has a norm.
    first: bool
    dtype: Any
    backend: Convolution
    # Norms that keep to their running statistics in training too.
    frozen: frozenset[str] = frozenset()
    # Norms that are folded into the convolution before them, into its kernel and bias (resnet/model/folding).
    folded: frozenset[str] = frozenset()

    @nn.compact
    def __call__(self, x: jax.Array | End, *, train: bool, left_open: bool = False) -> jax.Array | End:
        """left_open: what comes next is a block, which may be left the addition at the end of this one."""
        spec = self.spec
        activation = ACTIVATIONS[spec.activation]
        out_channels = spec.width * 2**self.stage * spec.expansion
        changes_channels = x.shape[-1] != out_channels
        changes_shape = self.stride != 1 or changes_channels
        if self._ends_in_one(changes_shape, train):
            shortcut: jax.Array | End | None = None
            if spec.shortcut != "none":
                shortcut, x = self._shortcut(x, out_channels, changes_channels, train)
            return self._branch(x, train, addend=shortcut, activation=activation, left_open=left_open)
        x = closed(x)
        activated = self._activate_input(x, train)
        branch = cast(jax.Array, self._branch(activated, train))
        if spec.squeeze_excitation:
            branch = SqueezeExcitation(spec.squeeze_excitation, spec.activation, name="se")(branch)
        if spec.order == "relu_before_addition":
            branch = activation(branch)
        if spec.norm == "none":
            # Last of all: ReLU's gradient at zero is zero, so a ReLU behind the scale would hold it at zero for good.
            branch = BranchScale(name="branch_scale")(branch)
        if spec.shortcut == "none":
            return activation(branch)
        # A projection of pre-activated input sees the same activation as the branch (He et al. 2016, appendix); what
        # only leaves pixels out (stride_block='last') takes the input as it is, as the identity would.
        entry = activated if spec.preactivated and changes_shape and self._adapts(changes_channels) else x
        shortcut = closed(self._shortcut(entry, out_channels, changes_channels, train)[0])
        branch, shortcut = self._transform(branch, shortcut, x, out_channels, changes_shape, train)
        if train and spec.stochastic_depth > 0:
            branch = self._drop_branch(branch)
        out = branch + shortcut
        if self.is_mutable_collection("diagnostics"):
            self.sow("diagnostics", "branch_to_shortcut", norm_ratio(branch, shortcut))
        if spec.order == "bn_after_addition":
            return activation(self._normalised(out, self._last_norm, train))
        return activation(out) if spec.order == "original" else out

    @property
    def _last_norm(self) -> str:
        return "bn3" if self.spec.block == "bottleneck" else "bn2"

    def _ends_in_one(self, changes_shape: bool, train: bool) -> bool:
        """Whether nothing but its norm, the addition and the activation is behind the branch's last convolution."""
        spec = self.spec
        return not (train and spec.stochastic_depth > 0) and (
            is_proven(spec)
            and spec.order == "original"
            and spec.norm != "none"
            and not spec.squeeze_excitation
            and (changes_shape or spec.shortcut_transform in ("identity", "conv1x1"))
            and not self.is_mutable_collection("diagnostics")
        )

    def _norm(self, channels: int, name: str | None, train: bool, zero_scale: bool = False) -> Norm | None:
        """None where there is none, or it is folded."""
        if name is None or name in self.folded:
            return None
        train = train and name not in self.frozen
        return norm(self.spec, channels, name=name, train=train, dtype=self.dtype, zero_scale=zero_scale)

    def _normalised(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        module = self._norm(x.shape[-1], name, train)
        return x if module is None else module(x)

    def _bias_for(self, name: str | None) -> bool | None:
        """`convolution`'s bias where the norm `name` is behind it: what the spec says, unless it is folded."""
        return True if name in self.folded else None

    def _activate_input(self, x: jax.Array, train: bool) -> jax.Array:
        if not self.spec.preactivated or (self.first and self.spec.stem_norm):
            return x
        if self.spec.order == "full_preactivation":
            x = self._normalised(x, "bn1", train)
        return ACTIVATIONS[self.spec.activation](x)

    def _branch(
        self,
        x: jax.Array | End,
        train: bool,
        addend: jax.Array | End | None = None,
        activation: Callable[[jax.Array], jax.Array] | None = None,
        left_open: bool = False,
    ) -> jax.Array | End:
        """The convolutions of the branch with norms and activations between them and, by the order, behind the last.

        Then `addend` and `activation`, where given.
        """
        spec, width = self.spec, block_width(self.spec, self.stage)
        planes = spec.width * 2**self.stage
        if spec.block == "bottleneck":
            first_stride = self.stride if spec.stride_place == "first_1x1" else 1
            layers = [
                (width, 1, first_stride, 1),
                (width, 3, self.stride // first_stride, spec.groups),
                (planes * spec.expansion, 1, 1, 1),
            ]
        else:
            layers = [(planes, 3, self.stride, 1), (planes, 3, 1, 1)]
        links = []
        for number, (features, kernel, stride, groups) in enumerate(layers, start=1):
            last = number == len(layers)
            name = norm_behind(spec, number, last)
            layer = convolution(
                spec,
                features,
                kernel,
                stride=stride,
                groups=groups,
                normed=not last or spec.order != "full_preactivation",
                bias=self._bias_for(name),
                name=f"conv{number}",
                dtype=self.dtype,
                backend=self.backend,
            )
            behind = self._norm(features, name, train, zero_scale=last and spec.zero_init_last_gamma)
            links.append(Link(layer, behind, activation if last else ACTIVATIONS[spec.activation]))
        return convolve(links, x, train=train, addend=addend, left_open=left_open)

    def _adapts(self, changes_channels: bool) -> bool:
        """Whether the shortcut does more than to leave pixels out: it projects, or pads channels."""
        return changes_channels or self.spec.shortcut == "C" or self.spec.shortcut_transform == "conv1x1"

    def _shortcut(
        self, x: jax.Array | End, out_channels: int, changes_channels: bool, train: bool
    ) -> tuple[jax.Array | End, jax.Array | End]:
        """Options A to D of He et al. 2015, Section 4.1, and He, T. et al. 2019, Figure 2c; and x, closed by then.

        The identity alone leaves it open.
        """
        spec, stride = self.spec, self.stride
        if spec.shortcut == "A" and (changes_channels or stride > 1):
            # Option A: subsample, then zero channels behind; no parameters.
            x = closed(x)
            channels = out_channels - x.shape[-1]
            return jnp.pad(subsample(x, stride), ((0, 0), (0, 0), (0, 0), (0, channels))), x
        if stride > 1 and (spec.shortcut == "D" or not self._adapts(changes_channels)):
            x = closed(x)
        entry = x
        if spec.shortcut == "D" and stride > 1:
            entry, stride = average_pool(closed(x), stride), 1
        if not self._adapts(changes_channels):
            return entry if stride == 1 else subsample(closed(entry), stride), x
        layer = convolution(
            spec,
            out_channels,
            1,
            stride=stride,
            normed=not spec.preactivated,
            bias=self._bias_for("downsample_bn"),
            name="downsample_conv",
            dtype=self.dtype,
            backend=self.backend,
        )
        # No norm on a pre-activated shortcut, as in the authors' code (KaimingHe/resnet-1k-layers): the next block's
        # own comes first. That is full pre-activation; of ReLU-only neither code nor paper says.
        behind = None if spec.preactivated else self._norm(out_channels, "downsample_bn", train)
        y, taken = convolve_and_close([Link(layer, behind)], entry, train=train)
        return y, taken if entry is x else x

    def _transform(
        self, branch: jax.Array, shortcut: jax.Array, x: jax.Array, out_channels: int, changes_shape: bool, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """What He et al. 2016 put on the shortcut in Section 3.1, Figure 2; shape-changing ones stay as they are."""
        spec = self.spec
        if changes_shape or spec.shortcut_transform in ("identity", "conv1x1"):
            return branch, shortcut
        if spec.shortcut_transform == "scale":
            return branch * spec.shortcut_scale, shortcut * spec.shortcut_scale
        if spec.shortcut_transform == "dropout":
            return branch, nn.Dropout(spec.shortcut_dropout, deterministic=not train)(shortcut)
        layer = convolution(
            spec,
            out_channels,
            1,
            name="gate",
            bias=True,
            bias_init=spec.gate_bias,
            dtype=self.dtype,
            backend=self.backend,
        )
        gate = nn.sigmoid(layer(x))
        if spec.shortcut_transform == "exclusive_gate":
            branch = branch * gate
        return branch, shortcut * (1 - gate)

    def _drop_branch(self, branch: jax.Array) -> jax.Array:
        """Drop the branch for a random share of examples, scaled so that its expectation is unchanged."""
        keep = 1.0 - self.spec.stochastic_depth * self.depth_share
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (branch.shape[0], 1, 1, 1))
        return jnp.where(kept, branch / keep, 0).astype(branch.dtype)


def norm_behind(spec: ResNetSpec, number: int, last: bool) -> str | None:
    """The norm directly behind a branch's convolution `number`, counted from 1; None behind which there is none."""
    if spec.order == "full_preactivation":
        # It is the next convolution's, hence its number; behind the last comes the addition.
        return None if last else f"bn{number + 1}"
    return None if last and spec.order == "bn_after_addition" else f"bn{number}"


def norm_ratio(branch: jax.Array, shortcut: jax.Array) -> jax.Array:
    """Root-mean-square of the branch over that of the shortcut: how much a block adds to what passes it."""
    square = lambda x: jnp.mean(jnp.square(x.astype(jnp.float32)))  # noqa: E731
    return jnp.sqrt(square(branch) / jnp.maximum(square(shortcut), 1e-12))


def subsample(x: jax.Array, stride: int) -> jax.Array:
    """Every stride-th row and column of float[B, H, W, C]."""
    # lax.slice, not indexing: that becomes a gather where the batch is symbolic, as in exports.
    return x if stride == 1 else jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1))


def average_pool(x: jax.Array, stride: int) -> jax.Array:
    """Mean over stride×stride windows; a last odd row or column by what it holds (torch: ceil_mode, no padding)."""
    odd = [(0, -size % stride) for size in x.shape[1:3]]
    return nn.avg_pool(x, (stride, stride), (stride, stride), padding=odd, count_include_pad=False)
