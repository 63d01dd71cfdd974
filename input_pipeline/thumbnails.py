"""Small JPEG copies of pictures for pages that carry everything in themselves."""

import base64
import io

from PIL import Image, ImageOps

from input_pipeline.encoded_files import MAX_BYTES
from input_pipeline.errors import InputError
from input_pipeline.images import sniff


def thumbnail(data: bytes, side: int, quality: int = 80) -> tuple[str, int]:
    """An encoded picture as a JPEG of at most `side` pixels a side, upright, in base64; and its own longer side.

    Raises InputError or what Pillow raises for bytes that are no picture, or one too large to look at.
    """
    if len(data) > MAX_BYTES:
        raise InputError("too large")
    header = sniff(data, "")
    with Image.open(io.BytesIO(data), formats=(header.format.upper(),)) as picture:
        picture.draft("RGB", (side, side))
        # 16 bits first brought to 8: Pillow would clip them.
        wide = picture.mode.startswith("I")
        small = (picture.point(lambda level: level / 256) if wide else picture).convert("L" if wide else "RGB")
        small.thumbnail((side, side))
        upright = ImageOps.exif_transpose(small)
    return encoded(upright, quality), max(header.height, header.width)


def encoded(picture: Image.Image, quality: int = 80) -> str:
    """A picture as JPEG in base64."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
