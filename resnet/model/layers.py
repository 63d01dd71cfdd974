"""The layers of blocks, as a spec asks for them: convolution, norm, activation, squeeze-and-excitation."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet.model.errors import SpecError
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
    if spec.norm == "batch" and spec.ghost_batch_size and train:
        return GhostBatchNorm(
            spec.ghost_batch_size, spec.norm_momentum, spec.norm_epsilon, dtype, scale_init, name=name
        )(x)
    if spec.norm == "batch":
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=spec.norm_momentum,
            epsilon=spec.norm_epsilon,
            dtype=dtype,
            scale_init=scale_init,
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


class GhostBatchNorm(nn.Module):
    """Batch norm in training over groups of `group` images, with nn.BatchNorm's variables (Hoffer et al. 2017).

    Group i is the rows i·group to (i+1)·group - 1 of float[B, H, W, C]; each is normalised by its own mean and biased
    variance, so that no gradient passes from group to group, and nothing is sent where a group lies on one device. The
    running statistics move once: running <- m · running + (1 - m) · mean over the groups of their means and variances.
    (Hoffer et al. move them once a group, in an order, which parts of a batch could not keep; Goyal et al. 2017,
    Section 2.3, those of one worker's group alone.) Raises SpecError unless `group` divides B.
    """

    group: int
    momentum: float
    epsilon: float
    dtype: Any
    scale_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rows, channels = x.shape[0], x.shape[-1]
        if rows % self.group:
            raise SpecError(f"ghost_batch_size={self.group} does not divide a batch of {rows} images")
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        groups = x.reshape(rows // self.group, self.group, *x.shape[1:]).astype(jnp.float32)
        inside = tuple(range(1, groups.ndim - 1))
        mean = groups.mean(inside, keepdims=True)
        # E[x²] - E[x]², as nn.BatchNorm has it: both sums in one pass over the activations.
        var = jnp.maximum(0.0, jnp.square(groups).mean(inside, keepdims=True) - jnp.square(mean))
        if not self.is_initializing():
            move = lambda old, new: self.momentum * old + (1 - self.momentum) * new.mean(0).reshape(channels)  # noqa: E731
            running_mean.value, running_var.value = move(running_mean.value, mean), move(running_var.value, var)
        normalised = (groups - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
        return normalised.reshape(x.shape).astype(self.dtype)


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
