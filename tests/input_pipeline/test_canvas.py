"""Decoded images lie on the canvas as they are, fit the budget, and what is kept on disk is what was decoded."""

import dataclasses
import fcntl
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from input_pipeline import canvas
from input_pipeline.canvas import canvas_of, lay_out
from input_pipeline.errors import InputError
from input_pipeline.images import content_of
from input_pipeline.sources import Split

SIZES = st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=12)


def split_of(pixels: list[np.ndarray], orientations: list[int] | None = None) -> Split:
    """PNG files in memory. Sizes are those of the upright images."""
    encoded = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    turns = np.array(orientations or [1] * len(pixels), np.int8)
    sizes = [image.shape[1::-1] if turn >= 5 else image.shape[:2] for image, turn in zip(pixels, turns, strict=True)]
    return Split(
        name="train",
        labels=np.zeros(len(pixels), np.int32),
        ids=tuple(f"{number}.png" for number in range(len(pixels))),
        sizes=np.array(sizes, np.int32),
        orientations=turns,
        paths=None,
        contents=np.array([content_of(data) for data in encoded], "S32"),
        read=lambda i: encoded[i],
    )


def noise(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@settings(max_examples=200)
@given(SIZES, st.integers(1, 64), st.integers(1, 4_000_000))
def test_a_layout_fits_its_budget_and_every_box_its_image(sizes, image_size, most_bytes):
    originals = np.array(sizes)
    layout = lay_out(originals, image_size, most_bytes)
    if layout is None:
        assert len(sizes) * 3 * min(image_size, originals.min(axis=1).max()) * originals.max() > most_bytes / 2
        return
    assert layout.nbytes <= most_bytes
    assert (layout.sizes >= 1).all()
    assert (layout.sizes <= [layout.height, layout.width]).all()
    whole = np.concatenate([np.zeros_like(originals), originals], axis=1)
    indices = np.arange(len(sizes))
    boxes = layout.boxes(whole, indices, originals)
    np.testing.assert_allclose(boxes, np.concatenate([np.zeros_like(layout.sizes), layout.sizes], axis=1), rtol=1e-6)
    if not layout.reduced:
        short = layout.sizes.min(axis=1)
        np.testing.assert_array_equal(np.sort(originals, axis=1), np.sort(layout.sizes, axis=1))
        np.testing.assert_array_equal(short, layout.sizes[:, 0])


def test_images_stand_upright_as_they_are_the_shorter_side_along_the_rows():
    pixels = noise((5, 8), (9, 4), (6, 7))
    split = split_of(pixels, [1, 1, 6])  # the last lies on its side: 7 rows and 6 columns when upright
    layout = lay_out(split.sizes, 4, 10**6)
    rows = canvas_of(split, layout, "bilinear")
    assert rows.shape == (3, 6, 9, 3)
    assert layout.turned.tolist() == [False, True, True]
    np.testing.assert_array_equal(rows[0, :5, :8], pixels[0])
    np.testing.assert_array_equal(rows[1, :4, :9], pixels[1].transpose(1, 0, 2))
    upright = np.rot90(pixels[2], -1)
    assert tuple(split.sizes[2]) == upright.shape[:2]
    np.testing.assert_array_equal(rows[2, :6, :7], upright.transpose(1, 0, 2))
    assert not rows[0, 5:].any()
    assert not rows[1, 4:].any()


def test_a_small_budget_keeps_large_images_smaller_and_small_ones_as_they_are():
    pixels = noise((64, 64), (10, 12))
    layout = lay_out(np.array([(64, 64), (10, 12)]), 8, 2 * 40 * 40 * 3)
    assert layout.reduced == 1
    assert layout.sizes[0, 0] == layout.sizes[0, 1] <= 40
    rows = canvas_of(split_of(pixels), layout, "bilinear")
    np.testing.assert_array_equal(rows[1, :10, :12], pixels[1])
    side = layout.sizes[0, 0]
    by_pillow = np.asarray(Image.fromarray(pixels[0]).resize((side, side), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(rows[0, :side, :side] - by_pillow).max() <= 1


def test_what_does_not_fit_at_the_size_of_a_crop_is_no_layout():
    assert lay_out(np.array([(500, 500)] * 10), 224, 10 * 223 * 223 * 3) is None


def test_a_second_run_reads_what_the_first_decoded_and_damage_is_decoded_anew(tmp_path, monkeypatch):
    split = split_of(noise((5, 8), (9, 4)))
    layout = lay_out(split.sizes, 4, 10**6)
    first = np.array(canvas_of(split, layout, "bilinear"))

    def refuse(*arguments, **options):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(canvas, "decode_resized", refuse)
        np.testing.assert_array_equal(canvas_of(split, layout, "bilinear"), first)
        # A copy elsewhere finds them; an image changed in place, under its old name, does not.
        copy = dataclasses.replace(split, ids=("a/0.png", "a/1.png"), labels=split.labels + 1)
        np.testing.assert_array_equal(canvas_of(copy, layout, "bilinear"), first)
        changed = dataclasses.replace(split, contents=split.contents[::-1])
        with pytest.raises(AssertionError, match="decoded again"):
            canvas_of(changed, layout, "bilinear")
    folder = tmp_path / "cache" / "resnet-jax" / "resident"
    (kept,) = folder.glob("*.u8")
    content = bytearray(kept.read_bytes())
    content[3] ^= 1
    kept.write_bytes(content)
    np.testing.assert_array_equal(canvas_of(split, layout, "bilinear"), first)
    assert kept.read_bytes() == first.tobytes()
    assert json.loads(kept.with_suffix(".json").read_text()).keys() == {"sha256"}
    assert not list(folder.glob("*.part"))


def test_an_image_that_cannot_be_read_is_named_and_nothing_is_left(tmp_path):
    split = split_of(noise((5, 8), (9, 4)))
    read = split.read
    broken = dataclasses.replace(split, read=lambda i: read(i)[: 40 if i else None])
    layout = lay_out(split.sizes, 4, 10**6)
    with pytest.raises(InputError, match=r"1\.png"):
        canvas_of(broken, layout, "bilinear")
    assert not [path for path in Path(tmp_path).rglob("*") if path.is_file()]


def test_a_disk_without_room_is_told_before_anything_is_decoded(monkeypatch):
    split = split_of(noise((5, 8)))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 100, 7))
    with pytest.raises(InputError, match=r"need 0 kB, the disk has 0 kB free.*XDG_CACHE_HOME.*feed=stream"):
        canvas_of(split, lay_out(split.sizes, 4, 10**6), "bilinear")


def test_what_a_killed_decode_left_is_removed_and_what_one_is_at_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "resnet-jax" / "resident"
    folder.mkdir(parents=True)
    left, busy = folder / "a.1.part", folder / "b.2.part"
    left.write_bytes(b"half")
    with busy.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        split = split_of([np.full((5, 4, 3), 7, np.uint8)])
        canvas_of(split, lay_out(split.sizes, 4, 10**6), "bilinear")
        assert list(folder.glob("*.part")) == [busy]
