"""The rule that turns gradients into updates: SGD, Adam, AdamW, LARS, LAMB, RMSprop; decay, clipping, weight averages.

Gradient accumulation and the guard against non-finite gradients belong to the step, not to this file.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from input_pipeline.errors import InputError

OPTIMIZERS = ("sgd", "adam", "adamw", "lars", "lamb", "rmsprop")
# Those whose updates are proven (tests/train/test_optimizer.py) to be the same whatever the shape of a kernel.
OF_ANY_SHAPE = ("sgd", "adam", "adamw", "lars", "lamb", "rmsprop")


class OfAnyShape(optax.GradientTransformation):
    """An optimizer to which a kernel's shape is nothing: it goes by elements, or by the norm of the whole kernel.

    A step may reshape the kernels of such an optimizer, and of no other, to [1, numbers] (advancing.advanced_if).
    """

    __slots__ = ()


def alike(optimizer: optax.GradientTransformation, of: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer`, which applies the rule of `of`, marked OfAnyShape where `of` is."""
    return OfAnyShape(optimizer.init, optimizer.update) if isinstance(of, OfAnyShape) else optimizer


@dataclass(frozen=True)
class OptimizerSettings:
    """The part of `config.optim` that decides the update, for a given learning rate.

    name: one of OPTIMIZERS.
    momentum, nesterov: of sgd, lars and rmsprop; 0 <= momentum < 1, and nesterov needs momentum above 0.
    beta1, beta2: decay of the first and second moment of adam, adamw and lamb, in [0, 1); rmsprop's decay (torch:
        alpha) is beta2.
    epsilon: added to the root of the second moment by adam, adamw, lamb, rmsprop; > 0.
    weight_decay: >= 0; never applied to leaves of one dimension or none (BN scale and bias, all biases).
    clip_norm: greatest global L2 norm of the gradient, before weight decay; 0 = off.
    trust_coefficient: eta of LARS; > 0.
    """

    name: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float = 0.0
    trust_coefficient: float = 0.001


def make_optimizer(settings: OptimizerSettings, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping, weight decay and the update rule as one optax transformation; `update` needs the parameters.

    Weight decay is coupled for sgd, adam and rmsprop: L2, added to the gradient before momentum and moments, as in
    He et al. 2015 and torch.optim. adamw decays by its own rule (Loshchilov and Hutter 2019, times the learning rate),
    lars by its own (see `scale_by_lars`). lamb is You et al. 2020 (arXiv 1904.00962), Algorithm 2 with φ(z) = z: of
    Adam's step r, moments corrected, each kernel takes w <- w - rate |w| / |r + λ w| (r + λ w), the ratio being 1 where
    a norm is 0; norms and biases take Adam's step, without decay or ratio, as timm has it. The rules of torch.optim are
    matched number for number, rmsprop's included: epsilon outside the root, and the learning rate applied after the
    momentum (optax.rmsprop has it before).
    Raises InputError naming the key of `config.optim` at fault.
    """
    _check(settings)
    chain: list[optax.GradientTransformation] = []
    if settings.clip_norm > 0:
        chain.append(optax.clip_by_global_norm(settings.clip_norm))
    if settings.name in ("sgd", "adam", "rmsprop") and settings.weight_decay > 0:
        chain.append(optax.add_decayed_weights(settings.weight_decay, mask=decayed))
    chain.extend(_rule(settings, schedule))
    optimizer = optax.chain(*chain)
    return OfAnyShape(optimizer.init, optimizer.update) if settings.name in OF_ANY_SHAPE else optimizer


def decayed(params: Any) -> Any:
    """Which leaves weight decay and the trust ratios touch: bool per leaf, True from two dimensions up.

    Kernels are 4-D (convolution) or 2-D (dense); BN scale and bias and every other bias are 1-D and left alone
    (Goyal et al. 2017, Section 5.1; Jia et al. 2018).
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def scale_by_lars(trust_coefficient: float, weight_decay: float) -> optax.GradientTransformation:
    """You et al. 2017, algorithm 1, without momentum: g -> eta |w| / (|g| + beta |w|) * (g + beta w), leaf by leaf.

    optax.lars divides by |g + beta w| instead, which is not the paper's rule (nor MLPerf's). A leaf whose weights or
    gradient are all 0 is not scaled, so that zero-initialised layers can leave 0.
    """

    def scale(gradient: jax.Array, weight: jax.Array) -> jax.Array:
        weight_norm = jnp.linalg.norm(weight.ravel())
        gradient_norm = jnp.linalg.norm(gradient.ravel())
        usable = (weight_norm > 0) & (gradient_norm > 0)
        denominator = jnp.where(usable, gradient_norm + weight_decay * weight_norm, 1.0)
        ratio = jnp.where(usable, trust_coefficient * weight_norm / denominator, 1.0)
        return ratio * (gradient + weight_decay * weight)

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        return jax.tree.map(scale, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def ema_update(ema: Any, params: Any, decay: float, step: jax.Array | int) -> Any:
    """The running average of the weights after update number `step` (0 for the first): a tree like `params`.

    ema <- d ema + (1 - d) params with d = min(decay, (1 + step) / (10 + step)), so that early averages forget the
    initial weights (the rule of TensorFlow's ExponentialMovingAverage). Leaves that are no floats are taken over.
    """
    step = jnp.asarray(step, jnp.float32)
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return (d * old + (1.0 - d) * new).astype(old.dtype)

    return jax.tree.map(average, ema, params)


def _rule(settings: OptimizerSettings, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    """The update rule by name, learning rate included."""
    rate = optax.scale_by_learning_rate(schedule)
    trace = [optax.trace(settings.momentum, settings.nesterov)] if settings.momentum > 0 else []
    if settings.name == "sgd":
        return [*trace, rate]
    if settings.name == "rmsprop":
        return [optax.scale_by_rms(settings.beta2, settings.epsilon, eps_in_sqrt=False), *trace, rate]
    if settings.name == "lars":
        # The paper keeps the learning rate inside the momentum: v <- m v + rate * scaled gradient.
        lars = scale_by_lars(settings.trust_coefficient, settings.weight_decay)
        return [optax.masked(lars, decayed), rate, *trace]
    adam = optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon)
    decay = [optax.add_decayed_weights(settings.weight_decay, mask=decayed)] if settings.weight_decay > 0 else []
    if settings.name == "adamw":
        return [adam, *decay, rate]
    if settings.name == "lamb":
        return [adam, *decay, optax.masked(optax.scale_by_trust_ratio(), decayed), rate]
    if settings.name == "adam":
        return [adam, rate]
    raise _fault("name", settings.name, "_rule of resnet/train/optimizer.py has no line for it")


def _check(settings: OptimizerSettings) -> None:
    """Raise InputError for the first value that makes no optimizer."""
    if settings.name not in OPTIMIZERS:
        raise _fault("name", settings.name, f"known are {', '.join(OPTIMIZERS)}")
    for key in ("momentum", "beta1", "beta2"):
        if not 0 <= getattr(settings, key) < 1:
            raise _fault(key, getattr(settings, key), "it must be at least 0 and below 1")
    for key in ("weight_decay", "clip_norm"):
        value = getattr(settings, key)
        if not (math.isfinite(value) and value >= 0):
            raise _fault(key, value, "it must be finite and not negative")
    for key in ("epsilon", "trust_coefficient"):
        value = getattr(settings, key)
        if not (math.isfinite(value) and value > 0):
            raise _fault(key, value, "it must be finite and above 0")
    if settings.nesterov and settings.name in ("sgd", "lars", "rmsprop") and settings.momentum == 0:
        raise _fault("nesterov", settings.nesterov, "it needs config.optim.momentum above 0")


def _fault(key: str, value: object, rule: str) -> InputError:
    return InputError(f"config.optim.{key} is {value!r}: {rule}")
