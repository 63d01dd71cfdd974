"""Layers one behind the other, each with what is behind it: as they are, or by oneDNN in as few calls as can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet.model import onednn, onednn_chain
from resnet.model.convolution import with_kernels_ahead
from resnet.model.convolution_forms import Window
from resnet.model.layers import Conv, Norm
from resnet.model.normalisation import BatchNorm
from resnet.model.onednn_chain import Chain, End, closed
from resnet.model.onednn_training import RELU, Trained


class Link(NamedTuple):
    """activation(norm(layer(x))), of which all but the layer may be missing."""

    layer: Conv
    norm: Norm | None
    activation: Callable[[jax.Array], jax.Array] | None = None


def convolve(
    links: Sequence[Link],
    x: jax.Array | End,
    *,
    train: bool,
    addend: jax.Array | End | None = None,
    left_open: bool = False,
) -> jax.Array | End:
    """One link after the other; `addend` is added to what the last one's norm gives, before its activation.

    In evaluation oneDNN computes in one call what it can of them (`_windows_of_one_call`), in training with their
    norms. The addend may be x itself, also where that is an `End`. left_open: give an `End` where oneDNN can close it
    in the call that follows.
    """
    return _convolved(links, x, train, addend, left_open)[0]


def convolve_and_close(links: Sequence[Link], x: jax.Array | End, *, train: bool) -> tuple[jax.Array | End, jax.Array]:
    """(what `convolve` gives with left_open=True, x closed)."""
    return cast(tuple[jax.Array | End, jax.Array], _convolved(links, x, train, None, True))


def _convolved(
    links: Sequence[Link], x: jax.Array | End, train: bool, addend: jax.Array | End | None, left_open: bool
) -> tuple[jax.Array | End, jax.Array | None]:
    first = None
    while links:
        windows = _windows_with_norms(links, x) if train else _windows_of_one_call(links, x, addend)
        done, links = links[: len(windows) or 1], links[len(windows) or 1 :]
        activation = None if windows and done[-1].activation is nn.relu else done[-1].activation
        if windows and train:
            y, taken = _with_norms(done, windows, x, None if links else addend, left_open and not links)
        else:
            taken = closed(x)
            added = None if links or addend is None else taken if addend is x else closed(addend)
            y = _in_one_call(done, windows, taken, added) if windows else _one(done[0], taken, added)
        y = y if activation is None else activation(closed(y))
        first = taken if first is None else first
        x, addend = y, taken if addend is x else addend
    return x, first


def _one(link: Link, x: jax.Array, addend: jax.Array | None) -> jax.Array:
    """All of a link but its activation."""
    y = link.layer(x)
    y = y if link.norm is None else link.norm(y)
    return y if addend is None else y + addend


def _windows_of_one_call(links: Sequence[Link], x: jax.Array | End, addend: jax.Array | End | None) -> list[Window]:
    """The windows of the first links, as many as oneDNN computes in one call with what is behind them.

    Empty for a convolution with nothing behind it, unless kernels are laid out ahead. An activation other than ReLU
    ends the call and is not part of it; a link with a norm other than batch norm is not part of it either.
    """
    windows: list[Window] = []
    seen = jax.ShapeDtypeStruct(x.shape, x.dtype)
    for link in links[: onednn.MOST_STEPS]:
        window = link.layer.window(seen)
        affine = link.norm is None or (isinstance(link.norm, BatchNorm) and link.norm.use_running_average)
        if window is None or not affine:
            break
        windows.append(window)
        if link.activation not in (None, nn.relu):
            break
        seen = jax.ShapeDtypeStruct(link.layer.shape_of(seen), jnp.float32)
    first = links[0]
    bare = first.norm is None and first.activation is None and (len(links) > 1 or addend is None)
    bare = bare and not first.layer.use_bias and first.layer.backend is not with_kernels_ahead
    return [] if len(windows) == 1 and bare else windows


def _in_one_call(links: Sequence[Link], windows: Sequence[Window], x: jax.Array, addend: jax.Array | None) -> jax.Array:
    steps, parameters, channels = [], [], x.shape[-1]
    for link, window in zip(links, windows, strict=True):
        features = link.layer.features
        kernel, bias = link.layer.variables_for(channels)
        if isinstance(link.norm, BatchNorm):
            scale, shift = link.norm.affine()
        else:
            scale, shift = jnp.ones(features, jnp.float32), jnp.zeros(features, jnp.float32)
        steps.append(onednn.Step(window, relu=link.activation is nn.relu))
        parameters.append((kernel, scale, shift if bias is None else shift + bias * scale))
        channels = features
    return onednn.evaluated(steps, x, parameters, addend)


def _windows_with_norms(links: Sequence[Link], x: jax.Array | End) -> list[Window]:
    """Of the first links those that oneDNN computes in training together with their norms, the last maybe without one.

    Batch norm by the batch's own statistics, with a ReLU behind all but the last, and no bias.
    """
    windows: list[Window] = []
    seen = jax.ShapeDtypeStruct(x.shape, x.dtype)
    for link in links:
        window = None if link.layer.use_bias else link.layer.window(seen)
        batch = isinstance(link.norm, BatchNorm) and not (link.norm.use_running_average or link.norm.group)
        if window is None or not (batch or (link.norm is None and windows)):
            break
        windows.append(window)
        if not batch or link.activation is not nn.relu:
            break
        seen = jax.ShapeDtypeStruct(link.layer.shape_of(seen), jnp.float32)
    return windows


def _with_norms(
    links: Sequence[Link],
    windows: Sequence[Window],
    x: jax.Array | End,
    addend: jax.Array | End | None,
    left_open: bool,
) -> tuple[jax.Array | End, jax.Array | None]:
    """What the links give, and x, closed (see `onednn_chain.trained`)."""
    kernels, channels = [], x.shape[-1]
    for link in links:
        kernels.append(link.layer.variables_for(channels)[0])
        channels = link.layer.features
    norms = [link.norm for link in links if isinstance(link.norm, BatchNorm)]
    before = onednn_chain.before(x)
    forms = [
        Trained(window, before=RELU if number else before, behind=number < len(norms), epsilon=norms[0].epsilon)
        for number, window in enumerate(windows)
    ]
    scales, biases = zip(*(norm.parameters() for norm in norms), strict=True)
    activation, residual = links[-1].activation, addend is x
    left_open = left_open and activation in (None, nn.relu) and len(norms) == len(links)
    chain = Chain(tuple(forms), activation is nn.relu, residual, left_open)
    added = None if residual else addend
    y, taken, statistics = onednn_chain.trained(chain, x, kernels, list(scales), list(biases), added)
    for norm, (mean, var) in zip(norms, statistics, strict=True):
        norm.follow(mean, var)
    return y, taken
