"""ResNet-50's training forward pass with pieces that can be exchanged: what benchmarks/gpu_ideas.py measures.

A pure function of the variables of `resnet.model.network.ResNet`, for specs of bottlenecks in the original order with
batch norm, shortcut B, the stride in the 3×3 and the ImageNet stem. `IdeaNetwork` has what a train step asks of a
network. It stands here and not in resnet/model/ until a piece has won on a GPU.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from benchmarks.gpu_idea_kernels import Tiles, product
from resnet.model import blocked
from resnet.model.pooling import max_pool, max_pool_by_xla
from resnet.model.spec import ResNetSpec, block_stride

_NHWC = ("NHWC", "HWIO", "NHWC")


def dots(lhs: Array, rhs: Array, window_strides: Any, padding: Any, **options: Any) -> Array:
    """A `linen.Conv(conv_general_dilated=)`: 1×1 kernels as matrix products of the pixels that the stride leaves."""
    groups = options.get("feature_group_count", 1)
    if rhs.shape[:2] != (1, 1) or groups != 1 or any(side for pair in padding for side in pair):
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    down, across = window_strides
    seen = lax.slice(lhs, (0, 0, 0, 0), lhs.shape, (1, down, across, 1))
    flat = lax.dot(seen.reshape(-1, seen.shape[-1]), rhs[0, 0], preferred_element_type=lhs.dtype)
    return flat.reshape(*seen.shape[:-1], rhs.shape[-1])


def space_to_depth(lhs: Array, rhs: Array, window_strides: Any, padding: Any, **options: Any) -> Array:
    """A `linen.Conv(conv_general_dilated=)`: a 7×7 kernel of stride 2 as a 4×4 one of stride 1 over 2×2 pixels at once.

    The same sums: with a row and a column of zeros before it the kernel has 8×8 taps, of which tap (2a + b) of an axis
    meets pixel b of cell a. Twelve input channels instead of three feed a matrix unit better (as in MLPerf's ResNets).
    """
    even = not (lhs.shape[1] % 2 or lhs.shape[2] % 2)
    if rhs.shape[:2] != (7, 7) or tuple(window_strides) != (2, 2) or not even or list(padding) != [(3, 3), (3, 3)]:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    rows, high, wide, channels = lhs.shape
    cells = lhs.reshape(rows, high // 2, 2, wide // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    cells = cells.reshape(rows, high // 2, wide // 2, 4 * channels)
    taps = jnp.pad(rhs, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(4, 2, 4, 2, channels, rhs.shape[3])
    taps = taps.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, 4 * channels, rhs.shape[3])
    return lax.conv_general_dilated(cells, taps, (1, 1), [(2, 1), (2, 1)], dimension_numbers=_NHWC)


def _moments(x: Array, wide: Any) -> tuple[Array, Array]:
    """Mean and biased variance of each channel, both sums in one pass over the activations."""
    pixels = x.astype(wide)
    mean = pixels.mean((0, 1, 2))
    return mean, jnp.maximum(0, jnp.square(pixels).mean((0, 1, 2)) - jnp.square(mean))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def two_pass_norm(epsilon: float, relu: bool, x: Array, gamma: Array, beta: Array) -> tuple[Array, Array, Array]:
    """(relu of the normalised x, mean, variance) of float[B, H, W, C]; mean and variance carry no gradient.

    Backward reads x and dy twice in all: once for Σ dy and Σ dy·x̂ together, once to write dx = γ/σ · (dy - mean(dy) -
    x̂ · mean(dy·x̂)) (Ioffe and Szegedy 2015, Section 3); ReLU's mask is computed again from x, not kept.
    """
    return _two_pass_save(epsilon, relu, x, gamma, beta)[0]


def _two_pass_save(epsilon: float, relu: bool, x: Array, gamma: Array, beta: Array) -> Any:
    mean, variance = _moments(x, gamma.dtype)
    scale = gamma * lax.rsqrt(variance + epsilon)
    y = (x.astype(gamma.dtype) - mean) * scale + beta
    return ((nn.relu(y) if relu else y).astype(x.dtype), mean, variance), (x, gamma, beta, mean, variance)


def _two_pass_differentiate(epsilon: float, relu: bool, saved: Any, gradients: Any) -> tuple[Array, Array, Array]:
    x, gamma, beta, mean, variance = saved
    deviation = lax.rsqrt(variance + epsilon)
    standard = (x.astype(gamma.dtype) - mean) * deviation
    dy = gradients[0].astype(gamma.dtype)
    if relu:
        dy = jnp.where(standard * gamma + beta > 0, dy, 0)
    by_beta, by_gamma = dy.sum((0, 1, 2)), (dy * standard).sum((0, 1, 2))
    count = x.size // x.shape[-1]
    dx = gamma * deviation * (dy - by_beta / count - standard * (by_gamma / count))
    return dx.astype(x.dtype), by_gamma, by_beta


two_pass_norm.defvjp(_two_pass_save, _two_pass_differentiate)


@jax.custom_vjp
def rectified(x: Array) -> Array:
    """nn.relu, whose gradient reads what it gave: one array, where what a sum was given is computed again from two."""
    return _rectify(x)[0]


def _rectify(x: Array) -> tuple[Array, Array]:
    # Else XLA writes max(x, 0) > 0 as x > 0, and computes x again.
    y = lax.optimization_barrier(nn.relu(x))
    return y, y


def _rectify_back(y: Array, g: Array) -> tuple[Array]:
    return (jnp.where(y > 0, g, jnp.zeros((), g.dtype)),)


rectified.defvjp(_rectify, _rectify_back)


@dataclasses.dataclass(frozen=True)
class IdeaNetwork:
    """A network for `make_train_step`: `apply` gives (logits, {'batch_stats'}) as ResNet.apply does in training.

    one_by_one: 1×1 convolutions as lax' convolution, as products, or as benchmarks/gpu_idea_kernels' fused products.
    norm: 'plain' as JAX differentiates it, or 'two_pass' (not for what is fused). stem: resnet.model.blocked's, lax'
    convolution or space_to_depth. pool: resnet.model.pooling's, or XLA's with its select-and-scatter, where the stem is
    not in blocks. ends: the ReLU behind an addition as JAX differentiates it, 'input', or by what it gave, 'output'.
    """

    spec: ResNetSpec
    dtype: Any = jnp.float32
    one_by_one: str = "conv"
    norm: str = "plain"
    stem: str = "blocks"
    pool: str = "ours"
    ends: str = "input"
    tiles: Tiles = dataclasses.field(default_factory=Tiles)
    frozen: frozenset[str] = frozenset()

    def apply(self, variables: Any, images: Array, *, train: bool, mutable: Any, rngs: Any = None) -> Any:
        """As ResNet.apply(..., train=True, mutable=['batch_stats'])."""
        return Forward(self, variables["params"], variables["batch_stats"]).run(images)


class Forward:
    """One forward pass; `statistics` gathers the new running statistics."""

    def __init__(self, network: IdeaNetwork, params: Any, batch_stats: Any) -> None:
        self.network, self.params, self.old = network, params, batch_stats
        self.statistics: dict[str, Any] = {}

    def run(self, images: Array) -> tuple[Array, dict[str, Any]]:
        dtype = self.network.dtype
        images, kernel = images.astype(dtype), self.params["conv1"]["kernel"].astype(dtype)
        if self.network.stem == "blocks":
            y = blocked.stem(images, kernel)
            rows = self.normalised(y.reshape(*y.shape[:2], -1, y.shape[-1]), "bn1", relu=True)
            return self.stages(blocked.max_pool(rows.reshape(y.shape), fill=-jnp.inf))
        stem: Callable[..., Array] = space_to_depth if self.network.stem == "space_to_depth" else _convolution
        x = stem(images, kernel, (2, 2), [(3, 3), (3, 3)], dimension_numbers=_NHWC)
        x = self.normalised(x, "bn1", relu=True)
        return self.stages((max_pool_by_xla if self.network.pool == "xla" else max_pool)(x))

    def stages(self, x: Array) -> tuple[Array, dict[str, Any]]:
        """All behind the stem."""
        spec = self.network.spec
        for stage, blocks in enumerate(spec.stage_sizes):
            for index in range(blocks):
                x = self.block(x, f"layer{stage + 1}_{index}", block_stride(spec, stage, index))
        pooled, head = x.astype(jnp.float32).mean((1, 2)), self.params["fc"]
        return pooled @ head["kernel"] + head["bias"], {"batch_stats": self.statistics}

    def block(self, x: Array, name: str, stride: int) -> Array:
        """A bottleneck; only its output and the input of its 3×3 are ever written normalised if products are fused."""
        shortcut = x
        if "downsample_conv" in self.params[name]:
            shortcut = self.one_by_one(x, name, "downsample_conv", "downsample_bn", stride=stride)
        inner = self.one_by_one(x, name, "conv1", "bn1", relu=True)
        kernel = self.params[name]["conv2"]["kernel"].astype(inner.dtype)
        raw = _convolution(inner, kernel, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=_NHWC)
        if self.network.one_by_one == "fused":
            mean, variance = _moments(raw, self.wide)
            outer = self.one_by_one(raw, name, "conv3", "bn3", before=self.affine(f"{name}/bn2", mean, variance))
        else:
            outer = self.one_by_one(self.normalised(raw, f"{name}/bn2", relu=True), name, "conv3", "bn3")
        return (rectified if self.network.ends == "output" else nn.relu)(outer + shortcut)

    def one_by_one(
        self,
        x: Array,
        block: str,
        layer: str,
        norm: str,
        *,
        stride: int = 1,
        relu: bool = False,
        before: tuple[Array, Array] | None = None,
    ) -> Array:
        """The norm of a 1×1 convolution of x or, given `before` = (scale, shift), of relu(x · scale + shift)."""
        kernel = self.params[block][layer]["kernel"].astype(x.dtype)
        if self.network.one_by_one != "fused":
            convolve = dots if self.network.one_by_one == "dot" else _convolution
            raw = convolve(x, kernel, (stride, stride), [(0, 0), (0, 0)], dimension_numbers=_NHWC)
            return self.normalised(raw, f"{block}/{norm}", relu=relu)
        seen = lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1))
        flat = seen.reshape(-1, seen.shape[-1])
        unread = jnp.zeros(flat.shape[-1], self.wide)
        scale, shift = before or (unread, unread)
        y, sums, squares = product(self.network.tiles, before is not None, flat, scale, shift, kernel[0, 0])
        mean = sums / len(flat)
        scale, shift = self.affine(f"{block}/{norm}", mean, jnp.maximum(0, squares / len(flat) - jnp.square(mean)))
        out = y.astype(self.wide) * scale + shift
        return (nn.relu(out) if relu else out).astype(x.dtype).reshape(*seen.shape[:-1], -1)

    @property
    def wide(self) -> Any:
        """What statistics are computed in: float32, or float64 for a network of it."""
        return jnp.promote_types(self.network.dtype, jnp.float32)

    def normalised(self, x: Array, name: str, *, relu: bool) -> Array:
        """Batch norm in training, with ReLU behind it where asked; its statistics are noted."""
        if self.network.norm == "two_pass":
            gamma, beta = self.parameters(name)
            y, mean, variance = two_pass_norm(self.network.spec.norm_epsilon, relu, x, gamma, beta)
            self.note(name, mean, variance)
            return y
        mean, variance = _moments(x, self.wide)
        scale, shift = self.affine(name, mean, variance)
        out = x.astype(self.wide) * scale + shift
        return (nn.relu(out) if relu else out).astype(x.dtype)

    def affine(self, name: str, mean: Array, variance: Array) -> tuple[Array, Array]:
        """(scale, shift) that a norm of these statistics comes to; they are noted."""
        gamma, beta = self.parameters(name)
        self.note(name, mean, variance)
        scale = gamma * lax.rsqrt(variance + self.network.spec.norm_epsilon)
        return scale, beta - mean * scale

    def parameters(self, name: str) -> tuple[Array, Array]:
        own = self.params
        for part in name.split("/"):
            own = own[part]
        return own["scale"].astype(self.wide), own["bias"].astype(self.wide)

    def note(self, name: str, mean: Array, variance: Array) -> None:
        """Move the running statistics as linen's BatchNorm does; no gradient goes that way."""
        old, new, momentum = self.old, self.statistics, self.network.spec.norm_momentum
        *outer, last = name.split("/")
        for part in outer:
            old, new = old[part], new.setdefault(part, {})
        moved = {
            kind: (momentum * old[last][kind] + (1 - momentum) * lax.stop_gradient(value)).astype(jnp.float32)
            for kind, value in (("mean", mean), ("var", variance))
        }
        new[last] = moved


def _convolution(lhs: Array, rhs: Array, window_strides: Any, padding: Any, **options: Any) -> Array:
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
