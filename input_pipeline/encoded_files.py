"""Reading an image file that may be anything: only ordinary files, only up to a sensible size, and only what is needed.

What stands in a folder of images may be a pipe that nobody writes to, a device without end, or a few kilobytes that
would decode to gigabytes; none of it is to be found out by trying.
"""

from __future__ import annotations

from pathlib import Path

from input_pipeline.ordinary_files import read_ordinary

# An uncompressed picture of images.MAX_PIXELS with four 16-bit channels: no honest file is larger.
MAX_BYTES = 8 * 89_478_485
# Ten in a usual progressive JPEG. Each is a pass over all pixels, and an empty one takes 20 bytes.
MAX_SCANS = 100
# Pillow puts the comments of a GIF together block by block, each time copying what it has: 30 MB keep it busy for more
# than a minute, 1 MB for 0.03 s (12.3.0).
MAX_COMMENTS = 1 << 20
# And the EXIF of a JPEG, which stands in blocks of 64 kB where it is long: 1,600 of them keep it busy for 46 s.
MAX_EXIF = 100


def read_encoded(path: str | Path) -> bytes:
    """The bytes of an ordinary file. Raises OSError for all else, without waiting for it, and above MAX_BYTES."""
    return read_ordinary(path, MAX_BYTES, "any image")


def webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) that a WebP file declares, (0, 0) where it declares none (RFC 9649, sections 2.5 to 2.7).

    Pillow allocates the whole canvas, twice, before it tells the size.
    """
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return 0, 0
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return 0, 0


def scans(data: bytes) -> int:
    """Scans of a JPEG file, those of thumbnails in its metadata included: its markers of their beginning."""
    # In compressed data 0xFF is always followed by 0, so the two bytes stand together nowhere else.
    return data.count(b"\xff\xda")


def exif_blocks(data: bytes) -> int:
    """Blocks of EXIF in a JPEG file, those of thumbnails and further pictures in it included."""
    return data.count(b"Exif\0\0")


def first_frame(data: bytes) -> bytes:
    """A GIF file cut behind its first picture (GIF89a, sections 15 to 27); as it is where its blocks make no sense.

    TensorFlow decodes all frames before it gives the first: a megabyte of a thousand frames takes gigabytes.
    """
    at = 13 + _colour_table(data, 10)
    while at < len(data):
        introducer = data[at]
        if introducer == 0x21:  # an extension: label, then sub-blocks
            at = _behind_sub_blocks(data, at + 2)
        elif introducer == 0x2C:  # a picture: position and size, colours, one byte, sub-blocks
            end = _behind_sub_blocks(data, at + 11 + _colour_table(data, at + 9))
            return data if end >= len(data) else data[:end] + b"\x3b"
        else:
            break
    return data


def comments(data: bytes) -> int:
    """Bytes of the longest comment in a GIF file; blocks that make no sense end the search."""
    at, longest = 13 + _colour_table(data, 10), 0
    while at < len(data):
        if data[at] == 0x21:
            end = _behind_sub_blocks(data, at + 2)
            if data[at + 1 : at + 2] == b"\xfe":
                longest = max(longest, end - at)
            at = end
        elif data[at] == 0x2C:
            at = _behind_sub_blocks(data, at + 11 + _colour_table(data, at + 9))
        else:
            break
    return longest


def _colour_table(data: bytes, at: int) -> int:
    """Bytes of the colour table that the packed field at `at` announces."""
    packed = data[at] if at < len(data) else 0
    return 3 << (packed & 7) + 1 if packed & 0x80 else 0


def _behind_sub_blocks(data: bytes, at: int) -> int:
    """The place behind a chain of sub-blocks, each led by its length, the last of length 0."""
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1
