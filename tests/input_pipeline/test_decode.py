import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from input_pipeline import decode as graph
from input_pipeline.crops import Crop, stored_boxes
from input_pipeline.cuts import cuts
from input_pipeline.errors import InputError
from input_pipeline.stream import decode, decode_eval
from tests.input_pipeline.test_cuts import row


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth, coloured, unlike its mirror images: what a lossy codec expects."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(np.random.default_rng(1).integers(0, 256, image.size[::-1], np.uint8)))
    return image


BASE = photo(40, 53)
LOSSLESS = {"lossless": True, "exact": True}
MORE = {"save_all": True, "append_images": [BASE.rotate(180)]}
FILES = {
    "jpeg": encoded(BASE, "JPEG", quality=90),
    "progressive jpeg": encoded(BASE, "JPEG", quality=90, progressive=True),
    "grey jpeg": encoded(BASE.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(BASE.convert("CMYK"), "JPEG"),
    "png": encoded(BASE, "PNG"),
    "grey png": encoded(BASE.convert("L"), "PNG"),
    "grey png with alpha": encoded(BASE.convert("LA"), "PNG"),
    "palette png": encoded(BASE.convert("P"), "PNG"),
    "1-bit png": encoded(BASE.convert("1"), "PNG"),
    "rgba png": encoded(with_alpha(BASE), "PNG"),
    "gif": encoded(BASE, "GIF"),
    "animated gif": encoded(BASE, "GIF", **MORE),
    "bmp": encoded(BASE, "BMP"),
    "palette bmp": encoded(BASE.convert("P"), "BMP"),
    "1-bit bmp": encoded(BASE.convert("1"), "BMP"),
    "webp": encoded(BASE, "WEBP", quality=80),
    "rgba webp": encoded(with_alpha(BASE), "WEBP", **LOSSLESS),
    "animated webp": encoded(BASE, "WEBP", **LOSSLESS, **MORE),
}


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_pixels_that_pillow_gives(name):
    pixels = decode(FILES[name])
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, by_pillow(FILES[name]))


def test_a_16_bit_png_keeps_its_upper_8_bits():
    grey = np.asarray(BASE.convert("L"))
    data = encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    np.testing.assert_array_equal(decode(data), np.repeat(grey[..., None], 3, axis=2))


def test_alpha_is_dropped_and_the_colour_under_it_counts():
    for name in ("rgba png", "rgba webp"):
        np.testing.assert_array_equal(decode(FILES[name]), np.asarray(BASE))


def test_a_colour_to_be_seen_through_is_seen_and_black_in_a_gif():
    palette = BASE.convert("P")
    colours = np.asarray(palette.convert("RGB"))
    hidden = int(np.asarray(palette)[0, 0])
    for transparency in (hidden, bytes([0] * 256)):
        np.testing.assert_array_equal(decode(encoded(palette, "PNG", transparency=transparency)), colours)
    seen = decode(encoded(palette, "GIF", transparency=hidden))
    black = (np.asarray(palette) == hidden)[..., None]
    np.testing.assert_array_equal(seen, np.where(black, 0, colours))
    assert colours[0, 0].any()


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"no image", b"BM", FILES["jpeg"][:500], FILES["png"][:500]])
def test_bytes_that_are_no_whole_image_are_named_in_one_line(data):
    with pytest.raises(InputError, match=r"a\.jpg: cannot be decoded") as raised:
        decode(data, "a.jpg")
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"a\.jpg: cannot be decoded"):
        decode_eval(data, Crop("none", 8), name="a.jpg")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(17, 90), (40, 53), (64, 20), (128, 128)])
def test_resize_is_tensorflows_own_in_another_order(size, interpolation):
    image = tf.constant(np.asarray(BASE))
    expected = tf.image.resize(image, size, interpolation, antialias=True).numpy()
    got = graph.resize(tf, image, *size, interpolation).numpy()
    np.testing.assert_allclose(got, np.clip(expected, 0, 255), atol=0.501)


def torchvision_evaluation(image: Image.Image, crop: Crop) -> np.ndarray:
    """torchvision's Resize(shorter) and CenterCrop(size) on a Pillow image, from its documentation."""
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[crop.interpolation]
    size = crop.image_size
    if crop.resize_shorter == 0:
        return np.asarray(image.resize((size, size), method))
    shorter, (width, height) = round(size * crop.resize_shorter), image.size
    if width <= height:
        image = image.resize((shorter, int(shorter * height / width)), method)
    else:
        image = image.resize((int(shorter * width / height), shorter), method)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize_shorter", [0.0, 1.0, 256 / 224])
@pytest.mark.parametrize("shape", [(300, 401), (401, 300), (90, 91), (64, 64), (500, 73)])
def test_evaluation_matches_torchvision_on_pillow(shape, resize_shorter, interpolation):
    crop = Crop("none", 64, resize_shorter=resize_shorter, interpolation=interpolation)
    image = photo(*shape)
    for data in (encoded(image, "PNG"), encoded(image, "JPEG", quality=90)):
        got = decode_eval(data, crop)
        expected = torchvision_evaluation(Image.fromarray(by_pillow(data)), crop)
        assert got.shape == (64, 64, 3)
        difference = np.abs(got.astype(int) - expected)
        assert difference.mean() < 0.35  # Pillow rounds to 8 bits between its two passes
        assert difference.max() <= {"bilinear": 2, "bicubic": 5}[interpolation]


def test_an_image_of_the_right_size_passes_bit_for_bit():
    image = photo(32, 32)
    crop = Crop("none", 32, resize_shorter=0)
    np.testing.assert_array_equal(decode_eval(encoded(image, "PNG"), crop), np.asarray(image))


# Pillow's way from upright to stored pixels, for each orientation.
TO_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TO_STORED)
def test_evaluation_turns_every_orientation_upright(orientation):
    image = photo(61, 90)
    data = encoded(image.transpose(TO_STORED[orientation]), "PNG")
    for resize_shorter in (0.0, 256 / 224):
        crop = Crop("none", 33, resize_shorter=resize_shorter)
        difference = decode_eval(data, crop, orientation).astype(int) - decode_eval(encoded(image, "PNG"), crop)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("orientation", [1, *TO_STORED])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_training_box_cut_from_stored_pixels_is_the_box_of_the_upright_image(kind, orientation):
    upright = photo(80, 120)
    stored = upright if orientation == 1 else upright.transpose(TO_STORED[orientation])
    data = encoded(stored, kind, **({"quality": 95} if kind == "JPEG" else {}))
    top, left, height, width = 13, 45, 50, 61
    box = stored_boxes(np.array([[top, left, height, width]]), np.array([[80, 120]]), np.array([orientation]))
    crop = Crop("random_resized", 32)
    cut = row(cuts(crop, box, np.array([[stored.height, stored.width]])))
    got = graph.training_image(tf, tf.constant(data), tf.constant(orientation), cut, crop).numpy()
    pixels = Image.fromarray(by_pillow(data))
    if orientation != 1:
        back = {6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}
        pixels = pixels.transpose(back.get(orientation, TO_STORED[orientation]))
    piece = pixels.crop((left, top, left + width, top + height)).resize((32, 32), Image.Resampling.BILINEAR)
    difference = np.abs(got.astype(int) - np.asarray(piece))
    assert difference.mean() < 0.5
    assert difference.max() <= 1


def test_pad_shows_the_image_within_its_black_border():
    image = photo(32, 32)
    crop = Crop("pad", 32, padding=4, resize_shorter=0)
    cut = row(cuts(crop, np.array([[1, 6, 32, 32]], np.int32), np.array([[32, 32]])))
    got = graph.training_image(tf, tf.constant(encoded(image, "PNG")), tf.constant(1), cut, crop).numpy()
    np.testing.assert_array_equal(got, np.pad(np.asarray(image), [(4, 4), (4, 4), (0, 0)])[1:33, 6:38])
