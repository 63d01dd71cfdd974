"""The layers of blocks, as a spec asks for them: convolution, norm, activation, squeeze-and-excitation."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet.model.normalisation import BatchNorm
from resnet.model.spec import ResNetSpec

Convolution = Callable[..., jax.Array]

# He et al. 2015 (arXiv 1502.01852), eq. 14 (fan-out form), which keeps the gradients' variance; torchvision's choice.
HE_INITIALIZER = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

# The layers behind the pooling, by their names among the network's parameters; all else is the backbone.
HEAD = ("fc_hidden", "fc")

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,
    "elu": nn.elu,
    "gelu": nn.gelu,
    "silu": nn.silu,
}


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
) -> nn.Conv:
    """A kernel×kernel convolution with torch's explicit padding of kernel // 2 on all sides.

    SAME padding differs from it at stride 2 (it pads less on the left), which breaks converted weights silently.
    `normed`: whether a norm follows, which would take a bias away again. `bias`: whatever the spec says.
    """
    own = spec.conv_bias or spec.norm == "none" or (spec.bias_without_norm and not normed)
    use_bias = own if bias is None else bias
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=[(kernel // 2, kernel // 2)] * 2,
        feature_group_count=groups,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=HE_INITIALIZER,
        bias_init=nn.initializers.constant(bias_init),
        conv_general_dilated=backend,
        name=name,
    )


def norm(spec: ResNetSpec, x: jax.Array, *, name: str, train: bool, dtype: Any, zero_scale: bool = False) -> jax.Array:
    """Normalise float[B, H, W, C]; statistics, scale and bias are float32 whatever `dtype` is.

    Under jit over a mesh the batch statistics are those of the global batch or, with `spec.ghost_batch_size`, of its
    groups. Raises SpecError where these do not divide the batch.
    """
    scale_init = nn.initializers.zeros if zero_scale else nn.initializers.ones
    if spec.norm == "batch":
        return BatchNorm(
            spec.norm_momentum,
            spec.norm_epsilon,
            dtype,
            scale_init,
            use_running_average=not train,
            group=spec.ghost_batch_size if train else 0,
            name=name,
        )(x)
    if spec.norm == "group":
        return nn.GroupNorm(spec.norm_groups, epsilon=spec.norm_epsilon, dtype=dtype, scale_init=scale_init, name=name)(
            x
        )
    return x


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
    """Channel-wise gating of float[B, H, W, C] by its pooled self through two dense layers (Hu et al. 2018, eq. 3)."""

    reduction: int
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        pooled = x.mean(axis=(1, 2))
        squeezed = nn.Dense(max(channels // self.reduction, 1), dtype=self.dtype, name="fc1")(pooled)
        gate = nn.Dense(channels, dtype=self.dtype, name="fc2")(ACTIVATIONS[self.activation](squeezed))
        return x * nn.sigmoid(gate)[:, None, None, :]


class BranchScale(nn.Module):
    """One learned scalar, zero at the start: SkipInit (De and Smith 2020), what stands in for the norms."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros, (), jnp.float32)
        return x * scale.astype(x.dtype)
