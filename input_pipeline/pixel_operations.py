"""Operations on one image's pixels in JAX, as Pillow defines them: its integers, its rounding, its edges."""

import jax
import jax.numpy as jnp
import numpy as np


def grey_of(image: jax.Array) -> jax.Array:
    """Pillow's conversion to mode L, in its fixed point (ITU-R BT.601): uint8[..., 3] -> int32[...]."""
    red, green, blue = (image[..., channel].astype(jnp.int32) for channel in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def smoothed(image: jax.Array) -> jax.Array:
    """Pillow's ImageFilter.SMOOTH: uint8[H, W, 3] -> int32[H, W, 3]; the outermost pixels stay as they are."""
    pixels = image.astype(jnp.int32)
    if min(image.shape[:2]) < 3:
        return pixels
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    # The centre weighs 5 of 13, its neighbours 1 each; no sum of levels lies half way between two thirteenths.
    inner = (around + 4 * pixels[1:-1, 1:-1] + 6) // 13
    return jax.lax.dynamic_update_slice(pixels, inner, (1, 1, 0))


def adjusted(other: jax.Array, pixels: jax.Array, factor: jax.Array) -> jax.Array:
    """ImageEnhance: `other` at factor 0, `pixels` at 1, beyond them above 1; uint8 of the shapes' broadcast."""
    other, pixels = other.astype(jnp.float32), pixels.astype(jnp.float32)
    return jnp.clip(other + factor * (pixels - other), 0, 255).astype(jnp.uint8)


def places_of(image: jax.Array) -> jax.Array:
    """Each value's place in a table of the 256 levels of red, of green and of blue: uint8[..., 3] -> int32[..., 3]."""
    return image.astype(jnp.int32) + np.arange(3, dtype=np.int32) * 256


def histograms(image: jax.Array) -> jax.Array:
    """How many pixels have each level, by channel: uint8[H, W, 3] -> int32[3, 256]."""
    return jnp.zeros(768, jnp.int32).at[places_of(image)].add(1, mode="promise_in_bounds").reshape(3, 256)


def warped(image: jax.Array, matrix: jax.Array, fill: np.ndarray) -> jax.Array:
    """Image.transform(AFFINE, NEAREST), in its fixed point of 16 bits: uint8[H, W, 3] -> uint8[H, W, 3].

    matrix: float32[2, 3], which takes (x, y, 1) of a pixel of the result to its place in `image`, where the first pixel
    reaches from 0 to 1. fill: uint8[3], of what lies outside.
    """
    height, width = image.shape[:2]
    # The middle of the first pixel, and from there by whole steps.
    start = matrix[:, 2] + 0.5 * (matrix[:, 0] + matrix[:, 1])
    steps = jnp.floor(jnp.concatenate([matrix[:, :2], start[:, None]], 1) * 65536 + 0.5).astype(jnp.int32)
    columns, rows = jnp.arange(width, dtype=jnp.int32)[None, :], jnp.arange(height, dtype=jnp.int32)[:, None]
    x, y = ((step[0] * columns + step[1] * rows + step[2]) >> 16 for step in steps)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    place = jnp.where(inside, y * width + x, 0)
    found = image.reshape(-1, 3).at[place].get(mode="promise_in_bounds")
    return jnp.where(inside[..., None], found, fill)
