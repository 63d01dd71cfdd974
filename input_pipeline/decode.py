"""Encoded bytes to upright, cut and resized pixels, as TensorFlow operations: the part of the feed that runs per image.

The functions take the module `tf` as their first argument, so that importing this file does not import TensorFlow.
They work inside a tf.data graph and eagerly alike; `stream` uses both. Failures are tf.errors.OpError, for BMP and
WebP outside a graph ValueError.
"""

import io
import struct
from typing import Any

import numpy as np

from input_pipeline import resampling
from input_pipeline.crops import Crop
from input_pipeline.cuts import Cut
from input_pipeline.encoded_files import first_frame

# libjpeg's accurate transform gives Pillow's pixels to the last bit, also for grey and CMYK; TensorFlow's default is
# off by 0.9 levels on average and no faster (measured on 294 flower photos).
_ACCURATE = "INTEGER_ACCURATE"
# Of a longer picture only the middle, so many times as long as wide, is resized. A PNG of 1 x 65,535 pixels takes 200
# bytes; with its shorter side made 256 the whole would take 13 GB, of which the centre is kept.
LONGEST = 32
_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}


def training_image(tf: Any, data: Any, orientation: Any, cut: Cut, crop: Crop) -> Any:
    """uint8[S, S, 3] of the encoded image `data` (string scalar), cut by `cut`; 'none' does not look at it.

    orientation: EXIF, int32 scalar 1..8.
    """
    if crop.kind != "random_resized":
        image = evaluation_image(tf, stored_pixels(tf, data), orientation, crop)
        if crop.kind == "none":
            return image
        padded = tf.pad(image, [[crop.padding, crop.padding], [crop.padding, crop.padding], [0, 0]])
        return tf.slice(padded, [cut.box[0], cut.box[1], 0], [crop.image_size, crop.image_size, 3])
    piece, place = tf.cond(
        tf.io.is_jpeg(data),
        lambda: (_jpeg_window(tf, data, cut), cut.place),
        lambda: (stored_pixels(tf, data), tf.cast(cut.box, tf.float32)),
    )
    # Resized before it is turned: the filter is symmetric, and the square is the smaller picture to turn.
    square = resize(tf, piece, crop.image_size, crop.image_size, crop.interpolation, place)
    return upright(tf, square, orientation)


def evaluation_image(tf: Any, stored: Any, orientation: Any, crop: Crop) -> Any:
    """uint8[S, S, 3] of stored pixels uint8[H, W, 3]: shorter side resized, turned upright, centre cut out.

    The sizes and margins are torchvision's (Resize, CenterCrop), of pictures up to LONGEST times as long as wide. With
    crop.resize_shorter 0: squashed to the square.
    """
    size = crop.image_size
    if crop.resize_shorter == 0:
        return upright(tf, resize(tf, stored, size, size, crop.interpolation), orientation)
    sides = tf.shape(stored)[:2]
    shorter = tf.minimum(sides[0], sides[1])
    kept = tf.minimum(sides, LONGEST * shorter)
    # Of any other picture everything, which costs no copy.
    stored = tf.slice(stored, tf.concat([(sides - kept) // 2, [0]], 0), tf.concat([kept, [3]], 0))
    height, width = kept[0], kept[1]
    new_height, new_width = crop.shorter_side * height // shorter, crop.shorter_side * width // shorter
    image = upright(tf, resize(tf, stored, new_height, new_width, crop.interpolation), orientation)
    # tf.round takes halves to even, as the Python round in CenterCrop does.
    margins = tf.cast(tf.round(tf.cast(tf.shape(image)[:2] - size, tf.float32) / 2), tf.int32)
    return tf.slice(image, [margins[0], margins[1], 0], [size, size, 3])


def stored_pixels(tf: Any, data: Any) -> Any:
    """uint8[H, W, 3], RGB as stored (not turned), of the encoded image `data`; alpha is dropped, not composited."""

    def other() -> Any:
        # TensorFlow 2.21 fails on WebP with alpha, on animated WebP and on 1-bit BMP, and decodes a BMP's palette
        # indices as grey levels without a word.
        return tf.cond(
            tf.strings.regex_full_match(tf.strings.substr(data, 0, 2), "BM|RI"),
            lambda: tf.numpy_function(_decode_by_pillow, [data], tf.uint8),
            lambda: tf.io.decode_image(_one_frame(tf, data), channels=3, expand_animations=False),
        )

    image = tf.cond(tf.io.is_jpeg(data), lambda: tf.io.decode_jpeg(data, channels=3, dct_method=_ACCURATE), other)
    return tf.ensure_shape(image, (None, None, 3))


def _one_frame(tf: Any, data: Any) -> Any:
    """Encoded bytes; of a GIF only its first picture."""
    cut = tf.cond(
        tf.equal(tf.strings.substr(data, 0, 3), "GIF"),
        lambda: tf.numpy_function(lambda whole: first_frame(_bytes(whole)), [data], tf.string),
        lambda: data,
    )
    return tf.ensure_shape(cut, ())


def _bytes(data: bytes | np.ndarray) -> bytes:
    # TensorFlow hands over bytes inside a graph, a scalar array of them eagerly.
    return data if isinstance(data, bytes) else bytes(data.item())


def _decode_by_pillow(data: bytes | np.ndarray) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(_bytes(data)), formats=("BMP", "WEBP")) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:  # Pillow's text names a memory address.
        raise ValueError("broken header of a BMP or WebP image") from error
    except (OSError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"broken BMP or WebP image: {error}") from error


def _jpeg_window(tf: Any, data: Any, cut: Cut) -> Any:
    """uint8[h, w, 3]. libjpeg leaves out the high frequencies instead of computing and then averaging them away."""

    def at(ratio: int) -> Any:
        return lambda: tf.image.decode_and_crop_jpeg(data, cut.window, channels=3, ratio=ratio, dct_method=_ACCURATE)

    return tf.switch_case(cut.halvings, [at(1), at(2), at(4), at(8)])


def resize(tf: Any, image: Any, height: Any, width: Any, interpolation: str, box: Any = None) -> Any:
    """uint8[height, width, 3] of uint8[H, W, 3], antialiased, rounded; the same size comes out bit for bit.

    box: what of the image is resized, (top, left, height, width) in pixels, float32[4]; None: all of it. It is as if
    cut out first: no filter looks over its edge, and of a pixel that the edge divides as much counts as lies inside.
    """
    if not resampling.missing(tf):
        return resampling.resized(tf, image, height, width, interpolation, box)
    return resize_by_tensorflow(tf, image, height, width, interpolation, box)


def resize_by_tensorflow(tf: Any, image: Any, height: Any, width: Any, interpolation: str, box: Any = None) -> Any:
    """The same by TensorFlow's own operations: the same bits, where pixels are divided but for ties.

    The same numbers as tf.image.resize(antialias=True) in a third of its time: of the operation's two passes only the
    one down the rows runs along memory, so each axis takes its turn as rows, all else flattened into channels.
    """
    down, across = None, None
    if box is not None:
        first, end = tf.floor(box[:2]), tf.math.ceil(box[:2] + box[2:])
        corner, extent = tf.cast(first, tf.int32), tf.cast(end - first, tf.int32)
        image = tf.slice(image, tf.concat([corner, [0]], 0), tf.concat([extent, [3]], 0))
        down, across = (box[0] - first[0], box[2]), (box[1] - first[1], box[3])
    rows, columns = tf.shape(image)[0], tf.shape(image)[1]
    tall = _resize_rows(tf, tf.reshape(image, [rows, columns * 3]), height, interpolation, down)
    turned = tf.transpose(tf.reshape(tall, [height, columns, 3]), [1, 0, 2])
    wide = _resize_rows(tf, tf.reshape(turned, [columns, height * 3]), width, interpolation, across)
    pixels = tf.transpose(tf.reshape(wide, [width, height, 3]), [1, 0, 2])
    if interpolation == "bicubic":  # the only one that overshoots
        pixels = tf.clip_by_value(pixels, 0.0, 255.0)
    return tf.cast(pixels + 0.5, tf.uint8)


def _resize_rows(tf: Any, image: Any, new_rows: Any, interpolation: str, part: tuple[Any, Any] | None) -> Any:
    """float32[new_rows, n] of [rows, n]. part: where in the first row it begins, and how many rows long it is."""
    rows = tf.cast(tf.shape(image)[0], tf.float32)
    start, length = part or (tf.constant(0.0), rows)
    scale = tf.cast(new_rows, tf.float32) / length

    def filtered(pixels: Any) -> Any:
        return tf.raw_ops.ScaleAndTranslate(
            images=pixels[None, :, None, :],
            size=tf.stack([new_rows, 1]),
            scale=tf.stack([scale, 1.0]),
            translation=tf.stack([-start * scale, 0.0]),
            kernel_type=_KERNELS[interpolation],
            antialias=True,
        )[0, :, 0, :]

    if part is None:
        return filtered(image)
    number = tf.range(rows)
    shares = (tf.minimum(number + 1, start + length) - tf.maximum(number, start))[:, None]
    # The operation scales the weights of all rows to the sum of 1, here it is to be that of weights times shares.
    weighed = tf.cond(
        tf.reduce_all(shares == 1),
        lambda: filtered(image),
        lambda: filtered(tf.cast(image, tf.float32) * shares) / filtered(shares),
    )
    return tf.ensure_shape(weighed, (None, None))


def upright(tf: Any, image: Any, orientation: Any) -> Any:
    """Turn stored pixels [H, W, 3] upright by EXIF orientation: 5 to 8 swap the axes, then up to two flips."""

    def flipped(pixels: Any, axis: int, orientations: tuple[int, ...]) -> Any:
        wanted = tf.reduce_any(tf.equal(orientation, orientations))
        return tf.cond(wanted, lambda: tf.reverse(pixels, [axis]), lambda: pixels)

    def turned() -> Any:
        swapped = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        return flipped(flipped(swapped, 1, (2, 3, 6, 7)), 0, (3, 4, 7, 8))

    return tf.cond(orientation > 1, turned, lambda: image)
