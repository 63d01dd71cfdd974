"""The layers of blocks, as a spec asks for them: convolution, norm, activation, squeeze-and-excitation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet.model import blocked
from resnet.model.broadcasting import scaled, shifted
from resnet.model.convolution import window_for_onednn
from resnet.model.convolution_forms import Window
from resnet.model.errors import SpecError
from resnet.model.normalisation import BatchNorm
from resnet.model.proven import is_proven
from resnet.model.spec import ResNetSpec

Convolution = Callable[..., jax.Array]
Norm = BatchNorm | nn.GroupNorm

# He et al. 2015 (arXiv 1502.01852), eq. 14 (fan-out form), which keeps the gradients' variance; torchvision's choice.
HE_INITIALIZER = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,
    "elu": nn.elu,
    "gelu": nn.gelu,
    "silu": nn.silu,
}


class Conv(nn.Module):
    """A convolution, float[B, H, W, I] -> float[B, H', W', features], with linen.Conv's variables and results."""

    features: int
    kernel: int
    stride: int
    groups: int
    use_bias: bool
    bias_init: nn.initializers.Initializer
    dtype: Any
    backend: Convolution
    # Not in one call with what is behind it, which reads `variables_for` and never comes by `__call__`.
    alone: bool = False

    @nn.compact
    def variables_for(self, channels: int) -> tuple[jax.Array, jax.Array | None]:
        """The kernel for so many channels of the input, float32[k, k, channels / groups, features], and the bias."""
        kernel = self.param("kernel", HE_INITIALIZER, self._kernel_shape(channels), jnp.float32)
        return kernel, self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel, bias = self._promoted(x)
        y = self.backend(
            x,
            kernel,
            (self.stride, self.stride),
            self._padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        return y if bias is None else shifted(y, bias)

    def by_blocks(self, x: jax.Array) -> jax.Array:
        """A stem's 7×7 convolution of stride 2, in blocks (`blocked.stem`): float[B, H/4, W/4, 4, features]."""
        x, kernel, bias = self._promoted(x)
        return blocked.stem(x, kernel, bias)

    def _promoted(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        kernel, bias = self.variables_for(x.shape[-1])
        # The bias stays as it is: `shifted` casts it.
        return *cast(Any, nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)), bias

    @property
    def _padding(self) -> tuple[tuple[int, int], ...]:
        # Torch's, on all sides. SAME differs from it at stride 2 (it pads less on the left), which breaks converted
        # weights silently.
        return ((self.kernel // 2, self.kernel // 2),) * 2

    def window(self, x: jax.ShapeDtypeStruct) -> Window | None:
        """The window, where oneDNN computes this convolution of x, so that it can do what is behind it as well."""
        if self.dtype != jnp.float32 or self.alone:
            return None
        kernel = jax.ShapeDtypeStruct(self._kernel_shape(x.shape[-1]), jnp.float32)
        return window_for_onednn(self.backend, x, kernel, (self.stride, self.stride), self._padding, self.groups)

    def shape_of(self, x: jax.ShapeDtypeStruct) -> tuple[int, ...]:
        """The output's shape for that of x."""
        sides = ((side + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1 for side in x.shape[1:3])
        return x.shape[0], *sides, self.features

    def _kernel_shape(self, channels: int) -> tuple[int, ...]:
        return self.kernel, self.kernel, channels // self.groups, self.features


def convolution(
    spec: ResNetSpec,
    features: int,
    kernel: int,
    *,
    name: str,
    dtype: Any,
    backend: Convolution,
    stride: int = 1,
    groups: int = 1,
    bias: bool | None = None,
    normed: bool = True,
    bias_init: float = 0.0,
) -> Conv:
    """A kernel×kernel convolution with torch's padding of kernel // 2 on all sides.

    `normed`: whether a norm follows, which would take a bias away again. `bias`: whatever the spec says.
    """
    own = spec.conv_bias or spec.norm == "none" or (spec.bias_without_norm and not normed)
    return Conv(
        features,
        kernel,
        stride,
        groups,
        use_bias=own if bias is None else bias,
        bias_init=nn.initializers.constant(bias_init),
        dtype=dtype,
        backend=backend,
        alone=not is_proven(spec),
        name=name,
    )


def norm(
    spec: ResNetSpec, channels: int, *, name: str, train: bool, dtype: Any, zero_scale: bool = False
) -> Norm | None:
    """What normalises float[B, H, W, channels]; statistics, scale and bias are float32 whatever `dtype` is.

    Under jit over a mesh the batch statistics are those of the global batch or, with `spec.ghost_batch_size`, of its
    groups. Raises SpecError, when it is called, where these do not divide the batch. None where the spec has no norms.
    """
    scale_init = nn.initializers.zeros if zero_scale else nn.initializers.ones
    if spec.norm == "batch":
        return BatchNorm(
            channels,
            spec.norm_momentum,
            spec.norm_epsilon,
            dtype,
            scale_init,
            use_running_average=not train,
            group=spec.ghost_batch_size if train else 0,
            name=name,
        )
    if spec.norm == "group":
        return nn.GroupNorm(spec.norm_groups, epsilon=spec.norm_epsilon, dtype=dtype, scale_init=scale_init, name=name)
    if spec.norm == "none":
        return None
    raise SpecError(f"norm={spec.norm!r} is one of the choices, but resnet/model/layers.py has no layer for it")


def classify(spec: ResNetSpec, pooled: jax.Array, train: bool) -> jax.Array:
    """Logits from pooled features float32[B, C]: dropout, a hidden layer where the spec has one, the dense layer."""
    x = nn.Dropout(spec.dropout, deterministic=not train)(pooled)
    if spec.head_hidden:
        hidden = nn.Dense(
            spec.head_hidden, kernel_init=nn.initializers.he_normal(), dtype=jnp.float32, name="fc_hidden"
        )
        x = nn.relu(hidden(x))
    # Goyal et al. 2017, Section 5.1: the head's weights start at N(0, 0.01²).
    head = nn.Dense(spec.num_classes, kernel_init=nn.initializers.normal(0.01), dtype=jnp.float32, name="fc")
    return head(x)


class SqueezeExcitation(nn.Module):
    """Channel-wise gating of float[B, H, W, C] by its pooled self through two dense layers (Hu et al. 2018, eq. 3).

    From the pooling to the gate in float32, as the network's head is.
    """

    reduction: int
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        pooled = x.mean(axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        squeezed = nn.Dense(max(channels // self.reduction, 1), dtype=pooled.dtype, name="fc1")(pooled)
        gate = nn.Dense(channels, dtype=pooled.dtype, name="fc2")(ACTIVATIONS[self.activation](squeezed))
        return scaled(x, nn.sigmoid(gate)[:, None, None, :])


class BranchScale(nn.Module):
    """One learned scalar, zero at the start: SkipInit (De and Smith 2020), what stands in for the norms."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros, (), jnp.float32)
        return scaled(x, scale)
