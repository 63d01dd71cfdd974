import dataclasses
import errno
import hashlib
import io
import os
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from input_pipeline.audit_cache import AuditCache
from input_pipeline.bars import BAR_FROM
from input_pipeline.errors import InputError
from input_pipeline.folder import find_images
from input_pipeline.images import MAX_PIXELS, MAX_SIDE, Audit, Listing, audit, sniff

PIXELS = np.arange(12 * 20 * 3, dtype=np.uint8).reshape(12, 20, 3)
COLOUR = Image.fromarray(PIXELS)
GREY16 = Image.fromarray((PIXELS[..., 0].astype(np.uint16) << 8) + 7)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def with_orientation(orientation: object) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (encoded(COLOUR, "JPEG"), "JPEG"),
        (encoded(COLOUR.convert("L"), "JPEG"), "JPEG"),
        (encoded(COLOUR.convert("CMYK"), "JPEG"), "JPEG"),
        (encoded(COLOUR, "PNG"), "PNG"),
        (encoded(COLOUR.convert("RGBA"), "PNG"), "PNG"),
        (encoded(COLOUR.convert("P"), "PNG"), "PNG"),
        (encoded(GREY16, "PNG"), "PNG"),
        (encoded(COLOUR, "BMP"), "BMP"),
        (encoded(COLOUR.convert("L"), "BMP"), "BMP"),
        (encoded(COLOUR, "GIF", save_all=True, append_images=[COLOUR.rotate(180)]), "GIF"),
        (encoded(COLOUR, "WEBP"), "WebP"),
        (encoded(COLOUR.convert("RGBA"), "WEBP", lossless=True), "WebP"),
    ],
)
def test_formats_are_told_by_content(data, form):
    header = sniff(data, "wrong_name.txt")
    assert (header.format, header.height, header.width, header.orientation) == (form, 12, 20, 1)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_upright(form, orientation):
    header = sniff(encoded(COLOUR, form, exif=with_orientation(orientation)), "x")
    assert header.orientation == orientation
    assert (header.height, header.width) == ((12, 20) if orientation < 5 else (20, 12))


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_a_strange_orientation_is_none(orientation):
    assert sniff(encoded(COLOUR, "JPEG", exif=with_orientation(orientation)), "x").orientation == 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_malformed_exif_is_no_orientation():
    data = encoded(COLOUR, "JPEG", exif=b"Exif\0\0" + b"MM\0*\0\0\0\x08\xff\xff garbage")
    assert sniff(data, "x").orientation == 1


def test_a_bomb_is_refused_before_it_is_decoded():
    with pytest.raises(InputError, match=r"^bomb\.png: claims 50,000 x 50,000 pixels"):
        sniff(png_claiming(50_000, 50_000), "bomb.png")
    assert sniff(png_claiming(MAX_PIXELS // 3277, 3277), "large.png").width == MAX_PIXELS / 3277
    with pytest.raises(InputError, match=r"^larger\.png: claims 27,305 x 3,278 pixels"):
        sniff(png_claiming(MAX_PIXELS // 3277, 3278), "larger.png")
    assert sniff(png_claiming(MAX_SIDE, 1), "long.png").width == MAX_SIDE
    with pytest.raises(InputError, match=r"^longer\.png: claims a side of 65,536 pixels"):
        sniff(png_claiming(1, MAX_SIDE + 1), "longer.png")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"hello, world", "not an image"),
        (encoded(COLOUR, "TIFF"), "TIFF is not supported"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"<html>404</html>", "HTML"),
        (b"\xff\xd8\xff\xe0", "broken JPEG header"),
        (b"\x89PNG\r\n\x1a\n\0\0", "broken PNG header"),
        (b"GIF89a", "broken GIF header"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "broken WebP header"),
        (b"BM", "broken BMP header"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(data, message):
    with pytest.raises(InputError, match=message) as caught:
        sniff(data, "a\nb.jpg")
    assert str(caught.value).startswith("a\\nb.jpg: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_a_header_cut_anywhere_gives_an_answer_or_an_input_error(form):
    data = encoded(COLOUR, form)
    for length in range(0, len(data), 3):
        try:
            header = sniff(data[:length], "cut")
        except InputError:
            continue
        assert (header.height, header.width) == (12, 20)


def decode(data: bytes, name: str) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).shape[:2]


def listing_of(contents: list[bytes | OSError], stamp: str = "stamp") -> Listing:
    def examine(i: int) -> tuple[bytes, int]:
        content = contents[i]
        if isinstance(content, OSError):
            raise content
        return content, i % 2

    ids = tuple(f"{i}.png" for i in range(len(contents)))
    return Listing("here", ("a", "b"), ids, ("train",) * len(ids), None, stamp, examine)


def test_the_audit_says_of_each_example_what_it_is(tmp_path):
    turned = encoded(COLOUR, "JPEG", exif=with_orientation(6))
    whole = encoded(Image.effect_noise((64, 64), 90), "JPEG")
    contents = [encoded(COLOUR, "PNG"), turned, whole[: len(whole) // 2], b"text", OSError(13, "Permission denied")]
    found = audit(listing_of(contents), decode, cache_dir=str(tmp_path))
    assert found.sizes.tolist() == [[12, 20], [20, 12], [0, 0], [0, 0], [0, 0]]
    assert found.orientations.tolist() == [1, 6, 0, 0, 0]
    assert found.labels.tolist()[:4] == [0, 1, 0, 1]
    assert found.byte_sizes.tolist()[:4] == [len(content) for content in contents[:4]]
    known = [hashlib.sha256(content).hexdigest()[:32].encode() for content in contents[:4]]
    assert found.contents.tolist() == [*known, b""]
    assert found.reasons[:2] == ("", "")
    assert "truncated" in found.reasons[2]
    assert "not an image" in found.reasons[3]
    assert "Permission denied" in found.reasons[4]


def test_a_header_that_contradicts_the_pixels_is_found(tmp_path):
    found = audit(listing_of([encoded(COLOUR, "PNG")]), lambda data, name: (5, 5), cache_dir=str(tmp_path))
    assert "claims (12, 20)" in found.reasons[0]


def test_the_order_of_verdicts_is_that_of_the_examples(tmp_path):
    contents = [encoded(Image.new("L", (1 + i % 50, 1 + i // 50)), "PNG") for i in range(700)]
    found = audit(listing_of(contents), decode, cache_dir=str(tmp_path))
    assert found.sizes.tolist() == [[1 + i // 50, 1 + i % 50] for i in range(700)]


def test_an_audit_is_remembered_until_a_file_changes(tmp_path):
    contents = [encoded(COLOUR, "PNG"), b"text"]
    seen = []

    def counting(data: bytes, name: str) -> tuple[int, int]:
        seen.append(name)
        return decode(data, name)

    first = audit(listing_of(contents), counting, cache_dir=str(tmp_path))
    again = audit(listing_of(contents), counting, cache_dir=str(tmp_path))
    assert seen == ["0.png"]
    for name in ("labels", "byte_sizes", "sizes", "orientations", "contents"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert getattr(first, name).dtype == getattr(again, name).dtype
    assert first.reasons == again.reasons
    audit(listing_of(contents, "another stamp"), counting, cache_dir=str(tmp_path))
    assert seen == ["0.png", "0.png"]
    assert not list(tmp_path.glob("*.part"))


def test_an_audit_that_is_cut_short_goes_on(tmp_path):
    """Whatever its last line is worth; and its end leaves nothing of it."""
    contents = [encoded(COLOUR, "PNG") + bytes(i) for i in range(40)]
    seen = []

    def stopping(data: bytes, name: str) -> tuple[int, int]:
        if len(seen) == 30:
            raise KeyboardInterrupt
        seen.append(name)
        return decode(data, name)

    with pytest.raises(KeyboardInterrupt):
        audit(listing_of(contents), stopping, cache_dir=str(tmp_path))
    (part,) = tmp_path.glob("*.part")
    part.write_text(part.read_text() + '["39",0,1')
    noted, again = len(part.read_text().splitlines()) - 1, []
    counting = lambda data, name: again.append(name) or decode(data, name)  # noqa: E731
    found = audit(listing_of(contents), counting, cache_dir=str(tmp_path))
    assert noted >= 20
    assert len(again) == 40 - noted
    assert found.byte_sizes.tolist() == [len(data) for data in contents]
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_of_two_audits_of_the_same_files_one_reads_them(tmp_path):
    """flock is of a file that was opened, so two threads stand for two processes."""
    listing, seen, begun = listing_of([encoded(COLOUR, "PNG")] * 3), [], threading.Event()

    def slow(data: bytes, name: str) -> tuple[int, int]:
        begun.set()
        time.sleep(0.1)
        seen.append(name)
        return decode(data, name)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(audit, listing, slow, cache_dir=str(tmp_path))
        begun.wait()
        second = pool.submit(audit, listing, slow, cache_dir=str(tmp_path))
        assert first.result().sizes.tolist() == second.result().sizes.tolist()
    assert len(seen) == 3
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize("told", [True, False])
def test_who_waits_for_another_process_says_so_where_it_speaks_for_all(tmp_path, capsys, told):
    verdicts = AuditCache(listing_of([b""] * BAR_FROM), str(tmp_path), 1)
    held, waiting = threading.Event(), threading.Thread(target=lambda: enter(verdicts.turn(announce=told)))

    def enter(turn) -> None:
        with turn:
            held.set()

    with verdicts.turn():
        waiting.start()
        assert not held.wait(0.05)
    waiting.join()
    assert ("waiting for its result" in capsys.readouterr().err) == told


def test_of_a_folder_only_what_changed_is_read_again(tmp_path):
    """A class that comes first moves the labels of all others; a file that changed in place is another."""
    for name in ("b/1", "b/2", "c/1"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / f"{name}.png").write_bytes(encoded(COLOUR, "PNG"))
    seen = []

    def counting(data: bytes, name: str) -> tuple[int, int]:
        seen.append(name)
        return decode(data, name)

    def audited() -> tuple[list[str], Audit]:
        seen.clear()
        found = audit(find_images(tmp_path / "data"), counting, cache_dir=str(tmp_path / "cache"))
        return sorted(seen), found

    assert audited()[0] == ["b/1.png", "b/2.png", "c/1.png"]
    (tmp_path / "data" / "a").mkdir()
    (tmp_path / "data" / "a" / "new.png").write_bytes(encoded(COLOUR, "PNG"))
    (tmp_path / "data" / "b" / "2.png").write_bytes(b"no image")
    names, found = audited()
    assert names == ["a/new.png"]
    assert found.labels.tolist() == [0, 1, 1, 2]
    assert [bool(reason) for reason in found.reasons] == [False, False, True, False]
    assert audited()[0] == []


def test_a_file_that_was_not_given_is_asked_for_again(tmp_path):
    """chmod mends it and leaves its size and time as they were."""
    listing = listing_of([encoded(COLOUR, "PNG")] * 2)
    closed = {1}

    def examine(i: int) -> tuple[bytes, int]:
        if i in closed:
            raise PermissionError(errno.EACCES, "Permission denied")
        return listing.examine(i)

    guarded = dataclasses.replace(listing, examine=examine)
    assert audit(guarded, decode, cache_dir=str(tmp_path)).reasons == ("", "cannot be read (Permission denied)")
    closed.clear()
    assert audit(guarded, decode, cache_dir=str(tmp_path)).reasons == ("", "")


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "{",
        "[]",
        "7",
        "[[1],[2],[3],[4],[5],[6],[7]]",
        '[["a"],[1],[1],[1],[1],[""],[""]]',
        '[[1],[1],[1],[1],[1],["\u00e9"],[""]]',
    ],
)
def test_a_damaged_cache_is_another_audit(tmp_path, garbage):
    contents = [encoded(COLOUR, "PNG")]
    audit(listing_of(contents), decode, cache_dir=str(tmp_path))
    (cache,) = tmp_path.glob("*.json")
    cache.write_text(garbage)
    assert audit(listing_of(contents), decode, cache_dir=str(tmp_path)).sizes.tolist() == [[12, 20]]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = audit(listing_of([encoded(COLOUR, "PNG")]), decode, cache_dir=str(tmp_path / "file" / "cache"))
    assert found.reasons == ("",)


def test_the_default_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    audit(listing_of([encoded(COLOUR, "PNG")]), decode)
    assert len(os.listdir(tmp_path / "resnet-jax" / "audit")) == 1


def test_no_examples_are_no_error(tmp_path):
    found = audit(listing_of([]), decode, cache_dir=str(tmp_path))
    assert found.sizes.shape == (0, 2)
    assert audit(listing_of([]), decode, cache_dir=str(tmp_path)).sizes.shape == (0, 2)
