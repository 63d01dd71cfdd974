"""By pixels or by blocks of them: ResNet's stem and the small convolutions of CIFAR networks, timed alone on a GPU.

Parts of benchmarks/gpu_ideas.py. `stems`: 7×7 convolution of stride 2, norm, ReLU and max pooling, forward and back.
Three input channels fill little of a matrix unit, and the stem's map is the network's largest: by pixels it took 7.2 ms
of a step of 43.9 (H100, 256 images, bfloat16, 2026-11-26), where its bytes need 2. `chains`: 3×3 convolution, norm and
ReLU, six of them, as in each stage of a CIFAR network.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from benchmarks.gpu_idea_network import space_to_depth, two_pass_norm
from benchmarks.gpu_kernels import kernels_of
from benchmarks.gpu_parts import images_of, of_jax
from benchmarks.part_processes import wait_for_turn
from resnet.model import blocked
from resnet.model.pooling import max_pool, max_pool_by_xla

BATCH = 256
EPSILON = 1e-5
_NHWC = ("NHWC", "HWIO", "NHWC")
# Channels and sides of CIFAR ResNets' three stages, images, and layers of a chain.
CHAINS = ((16, 32), (32, 16), (64, 8))
CHAIN_BATCH, LAYERS = 128, 6


def direct(images: Array, kernel: Array) -> Array:
    """float[B, H, W, 3] -> float[B, H/2, W/2, 64]."""
    return lax.conv_general_dilated(images, kernel, (2, 2), [(3, 3), (3, 3)], dimension_numbers=_NHWC)


def cells(images: Array, kernel: Array) -> Array:
    """The same by 2×2 cells: a 4×4 kernel over twelve channels."""
    return space_to_depth(images, kernel, (2, 2), [(3, 3), (3, 3)], dimension_numbers=_NHWC)


# Name -> (convolution, pooling). Cells of sixteen channels, four of them zero, and a pooling whose gradient is a sum of
# nine arrays with holes were measured, too, and left out (gpu_notes.md).
STEMS: dict[str, tuple[Callable[..., Array], Callable[..., Array]]] = {
    "direct": (direct, max_pool),
    "direct_xla_pool": (direct, max_pool_by_xla),
    "cells": (cells, max_pool),
    "blocks": (blocked.stem, partial(blocked.max_pool, fill=-jnp.inf)),
}


def stem(name: str, images: Array, kernel: Array, gamma: Array, beta: Array) -> tuple[Array, Array, Array]:
    """(pooled float[B, H/4, W/4, 64], mean, variance)."""
    convolve, pooling = STEMS[name]
    y = convolve(images, kernel)
    # In blocks a row of a block's outputs is as good as a row of pixels.
    flat = y.reshape(*y.shape[:2], -1, y.shape[-1])
    normalised, mean, variance = two_pass_norm(EPSILON, True, flat, gamma, beta)
    return pooling(normalised.reshape(y.shape)), mean, variance


def both_ways(name: str) -> Callable[..., Any]:
    """(uint8 images, kernel, gamma, beta, g) -> (values, gradients by kernel, gamma and beta), in g's dtype."""

    def run(images: Array, kernel: Array, gamma: Array, beta: Array, g: Array) -> Any:
        normal = ((images.astype(jnp.float32) - 120.0) / 60.0).astype(g.dtype)

        def of(kernel: Array, gamma: Array, beta: Array) -> Any:
            return stem(name, normal, kernel.astype(g.dtype), gamma, beta)

        values, back = jax.vjp(of, kernel, gamma, beta)
        return values, back((g, jnp.zeros_like(values[1]), jnp.zeros_like(values[2])))

    return run


def stems(small: bool) -> dict[str, Any]:
    """Milliseconds that the kernels of each way to compute the stem take, values and gradients."""
    batch, side = (2, 32) if small else (BATCH, 224)
    pixels, _ = images_of(batch, small)
    keys = jax.random.split(jax.random.key(0), 2)
    kernel = jax.random.normal(keys[0], (7, 7, 3, 64)) * 0.1
    g = jax.random.normal(keys[1], (batch, side // 4, side // 4, 64), jnp.bfloat16)
    given = (jax.device_put(pixels), kernel, jnp.ones(64), jnp.zeros(64), g)
    return busy({name: (both_ways(name), given) for name in STEMS})


def chains(small: bool) -> dict[str, Any]:
    """Milliseconds that the kernels of a chain take, values and gradients, by pixels and by blocks of 2×2."""

    def pixels(x: Array, w: Array) -> Array:
        return lax.conv_general_dilated(x, w, (1, 1), [(1, 1), (1, 1)], dimension_numbers=_NHWC)

    programs = {}
    for channels, side in CHAINS:
        keys = jax.random.split(jax.random.key(0), 2)
        x = jax.random.normal(keys[0], (2 if small else CHAIN_BATCH, side, side, channels), jnp.bfloat16)
        w = jax.random.normal(keys[1], (LAYERS, 3, 3, channels, channels)) * 0.1
        for form, convolve in (("pixels", pixels), ("blocks", blocked.convolution)):
            programs[f"{channels}_{form}"] = (jax.value_and_grad(partial(chain, convolve), argnums=(0, 1)), (x, w))
    return busy(programs)


def chain(convolve: Callable[..., Array], x: Array, w: Array) -> Array:
    """Sum of squares behind six layers."""
    for kernel in w:
        ones = jnp.ones(kernel.shape[-1])
        x = two_pass_norm(EPSILON, True, convolve(x, kernel.astype(x.dtype)), ones, 0 * ones)[0]
    return jnp.square(x.astype(jnp.float32)).sum()


def busy(programs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]) -> dict[str, Any]:
    """{'shapes': [{name: milliseconds of all kernels of a call}]}, words where it does not compile; and the device."""
    row: dict[str, Any] = {}
    compiled: dict[str, Any] = {}
    for name, (function, given) in programs.items():
        try:
            compiled[name] = jax.jit(function).lower(*given).compile()
        except Exception as error:  # Any: what does not compile is a finding, too.
            row[name] = f"{type(error).__name__}: {error}"[:200]
    wait_for_turn()
    for name, program in compiled.items():
        given = programs[name][1]
        call = lambda program=program, given=given: jax.block_until_ready(program(*given))  # noqa: E731
        call()
        row[name] = kernels_of(call, lambda: None, 5)["busy_ms"]
    return {"shapes": [row], **of_jax()}
