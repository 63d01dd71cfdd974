import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from input_pipeline import copies
from input_pipeline.copies import MAX_DISTANCE, blank, identical, near_pairs, perceptual_hash
from input_pipeline.demo import draw_flower
from input_pipeline.doctor import look_over
from input_pipeline.fingerprints import CHROMA_SIDE, SIDE, Gallery, Look, look


def drawing(species: str, number: int, size: tuple[int, int] = (128, 160)) -> Image.Image:
    return draw_flower(species, np.random.default_rng([7, number]), size)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def scaled(image: Image.Image, factor: float) -> Image.Image:
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)


def brightened(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.1)


VARIANTS = {
    "quality50": lambda image: encoded(image, "JPEG", quality=50),
    "scaled60": lambda image: encoded(scaled(image, 0.6)),
    "brightened": lambda image: encoded(brightened(image)),
    "all": lambda image: encoded(brightened(scaled(image, 0.6)), "JPEG", quality=50),
    "webp": lambda image: encoded(image, "WEBP", quality=70),
    "grey": lambda image: encoded(image.convert("L")),
    "upside_down_by_exif": lambda image: encoded(image.rotate(180), "JPEG", exif=turned(3)),
}


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def gallery_of(contents: list[bytes], labels: list[int] | None = None) -> Gallery:
    n = len(contents)
    grey = np.zeros((n, SIDE, SIDE), np.uint8)
    chroma = np.zeros((n, 2, CHROMA_SIDE, CHROMA_SIDE), np.uint8)
    looks = tuple(look(data, grey[i], chroma[i]) for i, data in enumerate(contents))
    return Gallery(looks, np.array(labels or [0] * n, np.int32), grey, chroma)


def put(root: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def found(report, code: str):
    (finding,) = (finding for finding in report.findings if finding.code == code)
    return finding


def test_copies_are_found_in_the_other_split_and_nothing_but_copies(tmp_path):
    images = {(species, i): drawing(species, i) for species in ("daisy", "tulip") for i in range(8)}
    contents, expected = {}, set()
    for (species, i), image in images.items():
        contents[f"train/{species}/{i}.jpg"] = encoded(image, "JPEG", quality=95)
        for variant, make in VARIANTS.items():
            name = f"test/{species}/{i}_{variant}.jpg"
            contents[name] = make(image)
            expected.add(name)
    # As many that have none in train: of the same species, on as many backgrounds.
    for species in ("daisy", "tulip"):
        for i in range(100, 130):
            contents[f"test/{species}/{i}.jpg"] = encoded(drawing(species, i), "JPEG", quality=95)
    report = look_over(put(tmp_path, contents), cache_dir=str(tmp_path / "cache"))
    assert report.exit_code == 1
    assert report.leaks == {"test": {"exact": (), "near": tuple(sorted(report.leaks["test"]["near"]))}}
    assert set(report.leaks["test"]["near"]) == expected
    for item in found(report, "near_leak").items:
        one, other = item.files
        assert one.split("/")[1:][0] == other.split("/")[1:][0]
        assert one.split("/")[2].split("_")[0] == other.split("/")[2].split(".")[0]
    assert not [finding for finding in report.findings if "two_labels" in finding.code]
    assert not [finding for finding in report.findings if "alike" in finding.code]


def test_small_pictures_are_found_again_and_not_mixed_up():
    images = [drawing(species, i, (32, 32)) for species in ("rose", "sunflower") for i in range(20)]
    n = len(images)
    for make in (VARIANTS["quality50"], VARIANTS["scaled60"], VARIANTS["brightened"]):
        gallery = gallery_of([encoded(image) for image in images] + [make(image) for image in images])
        pairs = near_pairs(gallery, range(2 * n))
        certain = {tuple(rows) for rows in pairs.rows[pairs.copy].tolist()}
        assert certain <= {(i, i + n) for i in range(n)}
        assert len(certain) >= 0.8 * n
        assert {(i, i + n) for i in range(n)} - {tuple(rows) for rows in pairs.rows.tolist()} == set()


def test_one_shape_in_two_colours_is_no_copy():
    image = drawing("tulip", 3)
    hue, saturation, value = image.convert("HSV").split()
    other = Image.merge("HSV", (hue.point(lambda level: (level + 90) % 256), saturation, value)).convert("RGB")
    # The same luminance, so that only the colours tell them apart.
    luminance, _, _ = image.convert("YCbCr").split()
    _, *chroma = other.convert("YCbCr").split()
    recoloured = Image.merge("YCbCr", (luminance, *chroma)).convert("RGB")
    pairs = near_pairs(gallery_of([encoded(image), encoded(recoloured)]), range(2))
    assert not pairs.copy.any()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=0, max_size=30), st.lists(st.integers(0, 63), max_size=12))
def test_every_pair_of_close_hashes_is_proposed(values, flips):
    close = [value ^ sum({1 << bit for bit in flips}) for value in values]
    hashes = np.array(values + close, np.uint64)
    proposed = np.concatenate([pairs for pairs, _ in copies._proposals(hashes)] or [np.zeros((0, 2), np.int64)])
    n = len(hashes)
    expected = {
        (i, j)
        for i in range(n)
        for j in range(i + 1, n)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= MAX_DISTANCE
    }
    assert {tuple(pair) for pair in proposed.tolist()} == expected
    assert len(proposed) == len(expected)


def test_pairs_across_blocks_are_proposed():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 6000, np.uint64)
    hashes[[70, 5999]] = hashes[0]
    pairs = np.concatenate([pairs for pairs, _ in copies._proposals(hashes)])
    assert {(0, 70), (0, 5999), (70, 5999)} <= {tuple(pair) for pair in pairs.tolist()}


def test_the_hash_stays_under_brightness_and_contrast():
    grey = gallery_of([encoded(drawing("rose", i)) for i in range(5)]).grey
    darker = grey // 2
    np.testing.assert_array_equal(perceptual_hash(darker), perceptual_hash(darker + 100))
    np.testing.assert_array_equal(perceptual_hash(darker), perceptual_hash(darker * 2))


def test_a_search_that_finds_too_much_is_given_up_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "MAX_FOUND", 3)
    image = drawing("daisy", 0)
    contents = {f"a/{quality}.jpg": encoded(image, "JPEG", quality=quality) for quality in range(60, 70)}
    contents |= {f"b/{i}.jpg": encoded(drawing("rose", i)) for i in range(100)}
    report = look_over(put(tmp_path, contents), cache_dir=str(tmp_path / "cache"))
    assert "abandoned" in found(report, "search_given_up").summary


def test_blank_pictures_are_reported_and_not_compared(tmp_path):
    contents = {f"train/a/{i}.png": encoded(Image.new("RGB", (40 + i, 40), (i, i, i))) for i in range(4)}
    contents |= {"train/b/1.png": encoded(drawing("rose", 1)), "test/b/2.png": encoded(drawing("rose", 2))}
    contents |= {"test/a/1.png": encoded(Image.new("RGB", (50, 40), (1, 1, 1)))}
    report = look_over(put(tmp_path, contents), cache_dir=str(tmp_path / "cache"))
    assert len(found(report, "blank").items) == 5
    assert report.leaks == {}


def test_comparing_takes_little_memory_beside_the_small_pictures():
    """A million pictures are a gigabyte already; the deviation of all at once, in float64, took eight."""
    count = 20_000
    grey = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE), np.uint8)
    looks = (Look("", "PNG", "L", height=SIDE, width=SIDE),) * count
    gallery = Gallery(looks, np.zeros(count, np.int32), grey, np.zeros((count, 2, CHROMA_SIDE, CHROMA_SIDE), np.uint8))
    tracemalloc.start()
    try:
        assert not blank(gallery).any()
        assert not len(near_pairs(gallery, np.arange(count)).rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < grey.nbytes


def test_identical_bytes_are_grouped_and_unreadable_files_are_not():
    one, two = encoded(drawing("rose", 1)), encoded(drawing("rose", 2))
    gallery = gallery_of([one, two, one, b"", b"", one])
    assert identical(gallery) == [[0, 2, 5]]
    assert blank(gallery).tolist() == [False] * 6


def test_leaks_labels_and_repeats_are_told_apart(tmp_path):
    pictures = [encoded(drawing("rose", i)) for i in range(6)]
    again = [encoded(drawing("rose", i), "JPEG", quality=60) for i in range(6)]
    contents = {
        "train/a/0.png": pictures[0], "test/a/0.png": pictures[0],      # exact leak
        "train/a/1.png": pictures[1], "val/a/1.jpg": again[1],          # near leak into val
        "train/a/2.png": pictures[2], "train/b/2.png": pictures[2],     # two labels, exact
        "val/b/3.png": pictures[3], "val/a/3.jpg": again[3],            # two labels, near
        "train/b/4.png": pictures[4], "train/b/5.png": pictures[4],     # twice
        "val/b/5.png": pictures[5], "test/b/5.jpg": again[5],           # from val into test
    }  # fmt: skip
    report = look_over(put(tmp_path, contents), cache_dir=str(tmp_path / "cache"))
    assert report.leaks == {
        "val": {"exact": (), "near": ("val/a/1.jpg",)},
        "test": {"exact": ("test/a/0.png",), "near": ("test/b/5.jpg",)},
    }
    leaks = [finding for finding in report.findings if finding.code.endswith("_leak")]
    assert [finding.level for finding in leaks] == ["error"] * 3
    assert [finding.items[0].files for finding in leaks] == [
        ("test/a/0.png", "train/a/0.png"), ("test/b/5.jpg", "val/b/5.png"), ("val/a/1.jpg", "train/a/1.png"),
    ]  # fmt: skip
    assert "1 of 2 test images has a byte-identical copy in train" in leaks[0].summary
    assert found(report, "exact_two_labels").items[0].files == ("train/a/2.png", "train/b/2.png")
    assert set(found(report, "near_two_labels").items[0].files) == {"val/a/3.jpg", "val/b/3.png"}
    assert "3 groups" in found(report, "exact_copies").summary
    assert "3 surplus" in found(report, "exact_copies").summary
    assert "3 groups" in found(report, "near_copies").summary


def test_a_copy_of_a_twin_leaks_by_way_of_it(tmp_path):
    """The pair search sees one of each group of identical files; the others must not be lost by that."""
    picture, again = encoded(drawing("rose", 1)), encoded(drawing("rose", 1), "JPEG", quality=60)
    contents = {
        "train/a/1.jpg": again, "test/a/1.png": picture, "test/a/2.png": picture,
        "train/b/1.png": encoded(drawing("rose", 5)),
    }  # fmt: skip
    report = look_over(put(tmp_path, contents), cache_dir=str(tmp_path / "cache"))
    assert report.leaks == {"test": {"exact": (), "near": ("test/a/1.png", "test/a/2.png")}}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_the_small_picture_is_the_same_in_every_mode(mode):
    grey = drawing("sunflower", 2).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = grey.convert("RGB").convert(mode) if mode in ("P", "CMYK") else grey.convert(mode)
    data = encoded(image, "JPEG", quality=95) if mode == "CMYK" else encoded(image)
    gallery = gallery_of([encoded(grey), data])
    assert gallery.looks[1] == Look("", *(getattr(gallery.looks[1], name) for name in Look.__slots__[1:]))
    tolerance = 60 if mode == "1" else 6  # black and white dots, averaged
    assert np.abs(gallery.grey[0].astype(int) - gallery.grey[1]).max() <= tolerance
