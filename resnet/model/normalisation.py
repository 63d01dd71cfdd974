"""Batch norm whose backward pass reads its input and its gradient twice, and keeps nothing but its input.

Differentiating the definition, as flax does, keeps the centred input too and sums over it in passes of its own: forward
and backward of 8×56×56×256 with the ReLU behind take 8.6 ms on two cores, this 5.3. The gradient is Ioffe and Szegedy
2015, Section 3, solved for the input: with x̂ = (x - μ)/σ over n values a channel and g the gradient by the output,

    ∂β = Σ g,   ∂γ = Σ g·x̂ = (Σ g·x - μ·Σ g)/σ,   ∂x = γ/σ · (g - ∂β/n - x̂·∂γ/n).

Both sums are taken in one pass over g and x, ∂x in the second. Measured and left out: Σ g·(x - μ), which XLA does not
put into one pass (6.7 ms); sums as products with ones (10.4 ms); one reduction of two operands (21.3 ms).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from resnet.model.errors import SpecError


class BatchNorm(nn.Module):
    """Batch norm of float[B, H, W, C], with flax.linen.BatchNorm's variables, results and running statistics.

    Statistics are float32 and biased, var = max(0, E[x²] - E[x]²), and under jit over a mesh those of the global batch;
    running <- m · running + (1 - m) · batch's (torch's running variance takes n / (n - 1) of a batch's, of n values a
    channel). use_running_average: normalise by the running ones, which stay.

    group: 0, or how many images are normalised together in training (ghost batch norm, Hoffer et al. 2017). Group i is
    the rows i·group to (i+1)·group - 1, normalised by its own mean and variance, so that no gradient passes from group
    to group, and nothing is sent where a group lies on one device. The running statistics move once, by the mean over
    the groups of their means and variances. (Hoffer et al. move them once a group, in an order, which parts of a batch
    could not keep; Goyal et al. 2017, Section 2.3, those of one worker's group alone.) Raises SpecError unless `group`
    divides B.
    """

    channels: int
    momentum: float
    epsilon: float
    dtype: Any
    scale_init: nn.initializers.Initializer
    use_running_average: bool = False
    group: int = 0

    def setup(self) -> None:
        shape = (self.channels,)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        self.var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        self.scale = self.param("scale", self.scale_init, shape, jnp.float32)
        self.bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)

    def affine(self) -> tuple[Array, Array]:
        """(scale, shift), float32[C]: what normalising by the running statistics does to each channel."""
        factor = lax.rsqrt(self.var.value + self.epsilon) * self.scale
        return factor, self.bias - self.mean.value * factor

    def parameters(self) -> tuple[Array, Array]:
        """The learned (scale, bias), float32[C]."""
        return self.scale, self.bias

    def follow(self, mean: Array, var: Array) -> None:
        """Move the running statistics by a batch's, float32[C] or [groups, C]; not while variables are made."""
        if self.is_initializing():
            return
        one = lambda new: new if new.ndim == 1 else new.mean(0)  # noqa: E731
        move = lambda old, new: self.momentum * old + (1 - self.momentum) * one(new)  # noqa: E731
        self.mean.value, self.var.value = move(self.mean.value, mean), move(self.var.value, var)

    def __call__(self, x: Array) -> Array:
        if self.use_running_average:
            factor = lax.rsqrt(self.var.value + self.epsilon) * self.scale
            return ((x - self.mean.value) * factor + self.bias).astype(self.dtype)
        groups, normalise = x, _normalise
        if self.group:
            if x.shape[0] % self.group:
                raise SpecError(f"ghost_batch_size={self.group} does not divide a batch of {x.shape[0]} images")
            groups = x.reshape(-1, self.group, *x.shape[1:])
            normalise = jax.vmap(_normalise, in_axes=(None, 0, None, None))
        y, mean, var = normalise(self.epsilon, groups, self.scale, self.bias)
        # A gradient of a gradient would else pass through them to x.
        self.follow(lax.stop_gradient(mean), lax.stop_gradient(var))
        return y.reshape(x.shape).astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalise(epsilon: float, x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    """(y float32[B, H, W, C], mean float32[C], var float32[C]); the gradient is y's, the statistics count as given."""
    return _forward(epsilon, x, scale, bias)[0]


def _wide(x: Array) -> Array:
    """float32, or float64 if it is that."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _forward(epsilon: float, x: Array, scale: Array, bias: Array) -> tuple[tuple[Array, Array, Array], tuple[Any, ...]]:
    wide = _wide(x)
    axes = tuple(range(x.ndim - 1))
    mean = wide.mean(axes)
    var = jnp.maximum(0.0, jnp.square(wide).mean(axes) - jnp.square(mean))
    inverse = lax.rsqrt(var + epsilon)
    return ((wide - mean) * (inverse * scale) + bias, mean, var), (x, scale, mean, inverse)


def _backward(epsilon: float, kept: tuple[Any, ...], gradients: tuple[Array, Array, Array]) -> tuple[Array, ...]:
    x, scale, mean, inverse = kept
    g, wide = gradients[0], _wide(x)
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    by_bias = g.sum(axes)
    by_scale = ((g * wide).sum(axes) - mean * by_bias) * inverse
    centred = g - by_bias / count - (wide - mean) * (inverse * by_scale / count)
    by_input = ((scale * inverse) * centred).astype(x.dtype)
    return by_input, by_scale.astype(scale.dtype), by_bias.astype(scale.dtype)


_normalise.defvjp(_forward, _backward)
