"""What an encoded image says of itself, and the audit that reads and decodes every image once, before training.

`sniff` reads a header; nothing is decoded, so a small file that claims a huge picture is refused at no cost. `audit`
runs over a whole dataset and is remembered on disk: in a tf.data pipeline an undecodable image would surface hours
later, without its name. Damage inside a JPEG's compressed data that decoders gloss over is not found.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from input_pipeline.audit_cache import AuditCache, Row
from input_pipeline.bars import Bar
from input_pipeline.encoded_files import MAX_COMMENTS, MAX_EXIF, MAX_SCANS, comments, exif_blocks, scans, webp_size
from input_pipeline.errors import InputError, MissingPackage, printable
from input_pipeline.retries import is_transient, patiently
from input_pipeline.threaded import in_order

# In the order in which a model meets them: what stands in an earlier one leaks into a later one.
SPLITS = ("train", "val", "test")
# A decoded pixel takes 3 bytes, and each thread holds an image: a few bombs exhaust a machine. Pillow's own bound.
MAX_PIXELS = 89_478_485
# As long as a JPEG's can be. A PNG of 1 x 80,000,000 pixels takes 80 kB, and what resizes it a gigabyte.
MAX_SIDE = 65_535
# Part of the cache's key: raise it when the rules of `sniff` or the decoder change, and old verdicts are forgotten.
AUDIT_VERSION = 4
_ORIENTATION_TAG = 0x0112
_OTHER_FORMATS = (
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"8BPS", "PSD"),
    (b"%PDF", "PDF"),
    (b"<", "XML, HTML or SVG"),
)


@dataclass(frozen=True)
class ImageHeader:
    """format: 'JPEG', 'PNG', 'BMP', 'GIF' or 'WebP'. height, width: pixels, upright. orientation: EXIF, 1..8."""

    format: str
    height: int
    width: int
    orientation: int


def sniff(data: bytes, name: str) -> ImageHeader:
    """The header of the encoded image `data`, by its content; the file's extension has no say.

    Raises InputError naming `name` for any format but JPEG, PNG, BMP, GIF, WebP, for a broken header, for more than
    MAX_PIXELS declared pixels, and for a side above MAX_SIDE.
    """
    reason, header = _header(data)
    if header is None:
        raise InputError(f"{printable(name)}: {reason}")
    return header


def _header(data: bytes) -> tuple[str, ImageHeader | None]:
    """('', header), or (why there is none, None)."""
    found = _format(data)
    if found is None:
        return _strange(data), None
    kind, reader = found
    width, height = webp_size(data) if kind == "WebP" else (0, 0)
    if width * height > MAX_PIXELS:
        return _too_large(width, height), None
    if kind == "JPEG" and scans(data) > MAX_SCANS:
        return f"has {scans(data):,} scans, more than {MAX_SCANS}: save it again", None
    if kind == "JPEG" and exif_blocks(data) > MAX_EXIF:
        return f"has {exif_blocks(data):,} blocks of EXIF, more than {MAX_EXIF}: save it without EXIF", None
    if kind == "GIF" and comments(data) > MAX_COMMENTS:
        return f"has a comment of {comments(data):,} bytes: save it without the comment", None
    try:
        # The format's own reader, not Image.open: no other plugin gets to guess, and the bound is ours.
        picture = reader(io.BytesIO(data))
    except Image.DecompressionBombError:  # Of a frame inside: Pillow looks before our own bound below can.
        return f"claims more than {MAX_PIXELS:,} pixels: scale it down", None
    except Exception as error:  # Any: fuzzing found more kinds than Pillow's readers document.
        return f"broken {kind} header ({printable(str(error)[:300]) or type(error).__name__})", None
    width, height = picture.size
    if width * height > MAX_PIXELS:
        return _too_large(width, height), None
    if max(width, height) > MAX_SIDE:
        return f"claims a side of {max(width, height):,} pixels, more than {MAX_SIDE:,}: scale it down", None
    if width * height < 1:
        return f"claims {width} x {height} pixels", None
    orientation = _orientation(picture)
    if orientation >= 5:  # 5 to 8 swap rows and columns
        width, height = height, width
    return "", ImageHeader(kind, height, width, orientation)


def _too_large(width: int, height: int) -> str:
    return f"claims {width:,} x {height:,} pixels, more than {MAX_PIXELS:,}: scale it down"


def _format(data: bytes) -> tuple[str, Callable[[io.BytesIO], ImageFile.ImageFile]] | None:
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG", JpegImageFile
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG", PngImageFile
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF", GifImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP", WebPImageFile
    if data[:2] == b"BM":
        return "BMP", BmpImageFile
    return None


def _strange(data: bytes) -> str:
    """Why bytes of no known format are refused, as helpfully as their first bytes allow."""
    if not data:
        return "empty file"
    if data[4:8] == b"ftyp":
        return "HEIC or AVIF is not supported: convert it to JPEG or PNG"
    for magic, kind in _OTHER_FORMATS:
        if data.startswith(magic):
            return f"{kind} is not supported: convert it to JPEG or PNG"
    return "not an image in JPEG, PNG, BMP, GIF or WebP format"


def _orientation(picture: ImageFile.ImageFile) -> int:
    try:
        # The base class' method: PngImageFile's own decodes the whole picture to look for EXIF behind the pixels.
        value = Image.Image.getexif(picture).get(_ORIENTATION_TAG, 1)
    except Exception:  # Any, as above.
        return 1  # Malformed EXIF says nothing; viewers show such a picture as stored.
    return int(value) if value in range(1, 9) else 1


@dataclass(frozen=True)
class Listing:
    """The N examples that a dataset claims to have, before any was read.

    where: the folder or dataset, for messages. class_names: sorted. ids: N unique names. split_names: of each example
    'train', 'val' or 'test'. paths: absolute, or None. stamp: changes whenever a file changes. examine: encoded bytes
    and label of example i; may raise OSError. known: (mark, label) of example i, without reading it; the mark changes
    whenever the file does, or another takes its name. None where only reading tells.
    """

    where: str
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    split_names: tuple[str, ...]
    paths: tuple[str, ...] | None
    stamp: str
    examine: Callable[[int], tuple[bytes, int]]
    known: Callable[[int], tuple[str, int]] | None = None


@dataclass(frozen=True)
class Audit:
    """What was found of each of a listing's N examples; rows of unreadable ones hold zeros but for the reason.

    labels: int32[N]. byte_sizes: int64[N], encoded. sizes: int32[N, 2], upright height and width in pixels.
    orientations: int8[N], EXIF 1..8. contents: S32[N], `content_of` the encoded bytes, b'' where there are none.
    reasons: why it cannot be read, '' where it can.
    """

    labels: np.ndarray
    byte_sizes: np.ndarray
    sizes: np.ndarray
    orientations: np.ndarray
    contents: np.ndarray
    reasons: tuple[str, ...]


def audit(
    listing: Listing,
    decode: Callable[[bytes, str], tuple[int, int]],
    *,
    cache_dir: str | None = None,
    progress: bool = True,
    announce: bool = True,
    also: Callable[[int, bytes, int], object] | None = None,
) -> Audit:
    """Read, sniff and decode every example once, in threads, or recall what earlier audits found of the same files.

    decode: the feed's decoder: of encoded bytes and a name for messages it gives height and width as stored; whatever
    Exception it raises makes the example unreadable, but for MissingPackage. cache_dir: default resnet-jax/audit under
    $XDG_CACHE_HOME or ~/.cache; one that cannot be written is no error. progress: on standard error, where the set is
    large (`bars`). announce: whether a line says that this process waits for another's audit. also: called in threads
    with number, bytes and label of each example that is read.
    Raises InputError when the disk fails in a way that may pass, and does not for ten seconds, and MissingPackage as
    `decode` does.
    """
    cache = AuditCache(listing, cache_dir, AUDIT_VERSION)
    rows = cache.whole()
    if rows is None:
        with cache.turn(announce=progress and announce):
            rows = cache.whole()
            if rows is None:
                rows = _examined(listing, decode, cache, progress, also)
                cache.keep(rows)
    columns = list(zip(*rows, strict=True)) if rows else [()] * 7
    return Audit(
        labels=np.array(columns[0], np.int32),
        byte_sizes=np.array(columns[1], np.int64),
        sizes=np.array([columns[2], columns[3]], np.int32).T.reshape(-1, 2),
        orientations=np.array(columns[4], np.int8),
        contents=np.array(columns[5], "S32"),
        reasons=tuple(columns[6]),
    )


def _examined(
    listing: Listing,
    decode: Callable[[bytes, str], tuple[int, int]],
    cache: AuditCache,
    progress: bool,
    also: Callable[[int, bytes, int], object] | None,
) -> list[Row]:
    """The verdict on every example, the file read where there is none yet."""
    known = cache.single()
    unknown = [i for i in range(len(listing.ids)) if i not in known]
    bar = Bar("checking images", len(unknown), shown=progress)
    with bar, ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        found = in_order(pool, lambda number: _verdict(listing, unknown[number], decode, also), len(unknown))
        try:
            for i, row in zip(unknown, found, strict=True):
                known[i] = row
                cache.note(i, row)
                bar.update()
        except BaseException:
            # A disk that is gone, or Ctrl-C: hundreds of examples that wait in line would each be tried first.
            pool.shutdown(wait=False, cancel_futures=True)
            cache.close()
            raise
    return [known[i] for i in range(len(listing.ids))]


def _verdict(
    listing: Listing,
    i: int,
    decode: Callable[[bytes, str], tuple[int, int]],
    also: Callable[[int, bytes, int], object] | None,
) -> Row:
    label = size = 0
    content = ""
    try:
        data, label = patiently(lambda: listing.examine(i))
        size, content = len(data), content_of(data)
    except OSError as error:
        if is_transient(error):
            # No verdict on the image, which would be remembered, or left out without a word under on_error='skip'.
            raise InputError(
                f"{printable(listing.ids[i])}: cannot be read from the disk ({error.strerror}) after ten seconds of "
                "retries; fix the disk or its network, or remove the file"
            ) from error
        return label, size, 0, 0, 0, content, f"cannot be read ({error.strerror or error})"
    if also is not None:
        also(i, data, label)
    reason, header = _header(data)
    if header is None:
        return label, size, 0, 0, 0, content, reason
    stored = (header.height, header.width) if header.orientation < 5 else (header.width, header.height)
    try:
        decoded = decode(data, listing.ids[i])
    except MissingPackage:  # No verdict on the image, which would be remembered.
        raise
    except Exception as error:  # Any: one strange file must not end the audit of all the others.
        message = str(error).removeprefix(f"{printable(listing.ids[i])}: ") or type(error).__name__
        return label, size, 0, 0, 0, content, f"{header.format}, {printable(message[:300])}"
    if decoded != stored:
        reason = f"{header.format} header claims {stored} pixels, but {decoded} were decoded"
        return label, size, 0, 0, 0, content, reason
    return label, size, header.height, header.width, header.orientation, content, ""


def content_of(data: bytes | memoryview) -> str:
    """What stands for the bytes of an example wherever one is compared with another: 32 hex digits of their sha256."""
    return hashlib.sha256(data).hexdigest()[:32]
