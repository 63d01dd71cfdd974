"""What one file looks like, from outside and from inside: facts of its header, a digest, and a small picture of it.

Nothing here raises for a bad file: what is wrong with it is said in its `Look`. The small pictures are what `copies`
compares. Decoding is Pillow's, so that a folder can be looked over on a machine without TensorFlow.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFile

from input_pipeline.errors import InputError, printable
from input_pipeline.images import sniff

SIDE = 32
CHROMA_SIDE = 4
# Chroma of a picture without colour: what JPEG stores for grey.
NEUTRAL = 128
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Look:
    """Facts of one file; where it cannot be read only `reason` and `byte_size` say something.

    reason: why it cannot be read, '' where it can. format: 'JPEG', 'PNG', 'BMP', 'GIF' or 'WebP', by content. mode:
    Pillow's, as stored ('RGB', 'L', 'P', 'CMYK', 'RGBA', 'I;16' ...). bits: per channel, 8 or 16. height, width:
    pixels, upright. orientation: EXIF, 1..8. animated: more than one frame. byte_size: encoded. digest: sha256 of the
    encoded bytes where another file has the same size, else b''. transparent: an alpha channel, or a colour or colours
    of a palette that are to be seen through (PNG's tRNS, GIF's transparent index), used or not. lasting: False where
    the file was not given (no permission, a disk that failed), which may be mended and leave size and time as they are.
    """

    reason: str
    format: str = ""
    mode: str = ""
    bits: int = 8
    height: int = 0
    width: int = 0
    orientation: int = 1
    animated: bool = False
    byte_size: int = 0
    digest: bytes = b""
    transparent: bool = False
    lasting: bool = True


@dataclass(frozen=True)
class Gallery:
    """The looks of a listing's N files, and small pictures of them, upright.

    labels: int32[N], -1 where a file was not even opened. grey: uint8[N, SIDE, SIDE], squashed to the square. chroma:
    uint8[N, 2, CHROMA_SIDE, CHROMA_SIDE], Cb and Cr, 128 where there is no colour. The pictures hold zeros where a file
    cannot be read.
    """

    looks: tuple[Look, ...]
    labels: np.ndarray
    grey: np.ndarray
    chroma: np.ndarray
    readable: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "readable", np.array([not look.reason for look in self.looks], bool))


def look(data: bytes, grey: np.ndarray, chroma: np.ndarray, *, hashed: bool = True) -> Look:
    """The look of the encoded image `data`; a picture too large by its header is refused before it is decoded.

    grey, chroma: one row each of a `Gallery`'s arrays, written to. hashed: whether the sha256 is taken.
    """
    digest = hashlib.sha256(data).digest() if hashed else b""
    try:
        header = sniff(data, "")
    except InputError as error:
        return Look(str(error).removeprefix(": "), byte_size=len(data), digest=digest)
    try:
        with Image.open(io.BytesIO(data), formats=(header.format.upper(),)) as picture:
            mode, animated = picture.mode, bool(getattr(picture, "is_animated", False))
            transparent = picture.has_transparency_data
            _shrink(picture, header.orientation, grey, chroma)
    except Exception as error:  # Any: one strange file must not end the looking over of all the others.
        grey[:], chroma[:] = 0, 0
        reason = f"{header.format}, {printable(str(error)[:300]) or type(error).__name__}"
        return Look(reason, byte_size=len(data), digest=digest)
    # The bit depth in a PNG's first chunk; Pillow tells of it only where the picture is grey.
    bits = 16 if header.format == "PNG" and data[24] == 16 else 8
    sides = header.height, header.width
    return Look(
        "", header.format, mode, bits, *sides, header.orientation, animated, len(data), digest, transparent=transparent
    )


def _shrink(picture: ImageFile.ImageFile, orientation: int, grey: np.ndarray, chroma: np.ndarray) -> None:
    """Decode, JPEG at a fraction of its size where that is enough, and write the small pictures."""
    draft = picture.draft("YCbCr", (2 * SIDE, 2 * SIDE))
    # Half of 133 pixels is 66.5: without the box the last half pixel would shift a turned copy against its original.
    box = draft[1] if draft else None
    whole: Image.Image = picture
    if picture.mode.startswith("I"):  # 16 bits, which Pillow's own conversion clips at 255
        whole = Image.fromarray((np.asarray(picture, np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif picture.mode in ("1", "LA"):
        whole = picture.convert("L")
    elif picture.mode not in ("L", "RGB", "YCbCr"):
        # Alpha is dropped, as the feed drops it.
        whole = picture.convert("RGB")
    small = whole.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
    if orientation in _TURNS:
        small = small.transpose(_TURNS[orientation])
    if small.mode == "L":
        grey[:], chroma[:] = np.asarray(small), NEUTRAL
        return
    pixels = np.asarray(small if small.mode == "YCbCr" else small.convert("YCbCr"))
    grey[:] = pixels[..., 0]
    step = SIDE // CHROMA_SIDE
    blocks = pixels[..., 1:].reshape(CHROMA_SIDE, step, CHROMA_SIDE, step, 2)
    chroma[:] = blocks.mean((1, 3)).round().transpose(2, 0, 1)
