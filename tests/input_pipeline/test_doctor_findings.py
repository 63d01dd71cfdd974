import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_doctor_copies import encoded, found, put, turned
from test_images import png_claiming

from input_pipeline.doctor import look_over
from input_pipeline.file_findings import about_classes, about_giveaways
from input_pipeline.findings import Finding, Item, Report
from input_pipeline.fingerprints import CHROMA_SIDE, SIDE, Gallery, Look, look
from input_pipeline.images import Listing
from input_pipeline.name_groups import about_names, group_of


def noise(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    """Blocks of random grey: no two alike, none blank."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).resize(size, Image.Resampling.BICUBIC)


def codes(report: Report) -> dict[str, str]:
    return {finding.code: finding.level for finding in report.findings}


def test_every_fault_is_named_and_none_ends_the_looking(tmp_path):
    whole = encoded(noise(1, (200, 200)), "JPEG")
    contents = {
        "a/empty.jpg": b"",
        "a/text.jpg": b"hello",
        "a/cut.jpg": whole[: len(whole) // 2],
        "a/cut.png": encoded(noise(2, (200, 200)))[:3000],
        "a/bomb.png": png_claiming(50_000, 50_000),
        "a/scan.tif": encoded(noise(3), "TIFF"),
        "a/really_png.jpg": encoded(noise(4)),
        "b/cmyk.jpg": encoded(noise(5).convert("CMYK"), "JPEG"),
        "b/deep.png": encoded(Image.fromarray(np.asarray(noise(6)).astype(np.uint16) * 257)),
        "b/turned.jpg": encoded(noise(7), "JPEG", exif=turned(6)),
        "b/moving.gif": encoded(noise(8), "GIF", save_all=True, append_images=[noise(9)]),
        "b/moving.webp": encoded(noise(10), "WEBP", save_all=True, append_images=[noise(11)]),
        "b/clear.png": encoded(noise(12).convert("RGBA")),
        "b/palette.png": encoded(noise(15).convert("P"), transparency=bytes([0, 128])),
        "b/colour.png": encoded(noise(16).convert("RGB"), transparency=(9, 9, 9)),
        "b/see_through.gif": encoded(noise(17).convert("P"), "GIF", transparency=0),
        "b/opaque.png": encoded(noise(18).convert("P")),
        "b/long.png": encoded(noise(13, (200, 48))),
        "b/small.png": encoded(noise(14, (16, 16))),
    }
    report = look_over(put(tmp_path, contents), cache_dir=str(tmp_path / "cache"))
    named = {code: {item.files[0].split("/")[-1] for item in found(report, code).items} for code in codes(report)}
    assert named["unreadable"] == {"empty.jpg", "text.jpg", "cut.jpg", "cut.png", "bomb.png", "scan.tif"}
    remarks = {item.files[0]: item.remark for item in found(report, "unreadable").items}
    assert remarks["a/empty.jpg"] == "empty file"
    assert "truncated" in remarks["a/cut.jpg"]
    assert "claims 50,000 x 50,000 pixels" in remarks["a/bomb.png"]
    assert "TIFF" in remarks["a/scan.tif"]
    assert named["misnamed"] == {"really_png.jpg"}
    assert named["cmyk"] == {"cmyk.jpg"}
    assert named["sixteen_bit"] == {"deep.png"}
    assert named["turned"] == {"turned.jpg"}
    assert named["animated"] == {"moving.gif", "moving.webp"}
    assert named["alpha"] == {"clear.png", "palette.png", "colour.png", "see_through.gif"}
    remarks = {item.files[0]: item.remark for item in found(report, "alpha").items}
    assert (remarks["b/clear.png"], remarks["b/palette.png"]) == ("RGBA", "PNG, P with a transparent colour")
    assert named["stretched"] == {"long.png"}
    assert named["small"] == {"small.png"}
    assert report.exit_code == 1
    assert (report.files, sum(map(sum, report.counts.values()))) == (19, 13)


def test_a_sound_folder_has_no_findings(tmp_path):
    contents = {
        f"{split}/{name}/{i}.png": encoded(noise(100 * i + ord(name[0]) + 10_000 * (split == "test")))
        for split in ("train", "test")
        for name in ("a", "b")
        for i in range(12)
    }
    report = look_over(put(tmp_path, contents), cache_dir=str(tmp_path / "cache"))
    assert report.findings == ()
    assert report.exit_code == 0
    assert report.counts == {"train": (12, 12), "test": (12, 12)}
    assert report.sizes["height"] == (48, 48, 48)


def test_a_hidden_folder_of_images_is_named_and_those_of_tools_are_not(tmp_path):
    whole = encoded(noise(1))
    shown = {"a/1.png": encoded(noise(2)), "b/2.png": encoded(noise(3)), "a/._1.png": whole, ".empty/notes.txt": b"x"}
    tools = {f"{name}/1.png": whole for name in (".git/x", ".ipynb_checkpoints", "a/.thumbnails", ".Trash-1000/files")}
    root = put(tmp_path / "data", shown | tools)
    report = look_over(root, cache_dir=str(tmp_path / "cache"))
    assert "hidden_folders" not in codes(report)
    put(root, {".hid\nden/deep/1.png": whole, "a/.old/1.png": whole, ".hid\nden/.deeper/1.png": whole})
    report = look_over(root, cache_dir=str(tmp_path / "cache"))
    hidden = found(report, "hidden_folders")
    assert hidden.summary == r"2 hidden folders with images (.hid\nden, a/.old), not used"
    assert hidden.items == (Item((".hid\nden",)), Item(("a/.old",)))
    # So a run's first screen tells it as well.
    assert hidden.level == "warning"
    assert report.class_names == ("a", "b")


def test_classes_that_are_missing_rare_or_misspelt_are_named():
    names = ("Cat", "cat_", "dog", "owl")
    found = {item.code: item for item in about_classes(names, {"train": (200, 3, 40, 0), "test": (5, 0, 5, 5)})}
    assert {code: finding.level for code, finding in found.items()} == {
        "untrained": "error", "missing": "warning", "spelling": "warning", "imbalance": "warning", "few": "warning",
    }  # fmt: skip
    assert found["untrained"].items == (Item(("owl",), "only in test"),)
    assert found["missing"].items == (Item(("cat_",)),)
    assert found["spelling"].items == (Item(("Cat", "cat_")),)
    assert "66.7 times" in found["imbalance"].summary
    assert [finding.code for finding in about_classes(("a",), {"train": (50,)})] == ["one_class"]
    assert about_classes(("a", "b"), {"train": (50, 60)}) == []


def gallery_of_sizes(heights: list[int], labels: list[int]) -> tuple[Listing, Gallery]:
    n = len(heights)
    looks = tuple(Look("", "PNG", "L", 8, height, 64) for height in heights)
    grey, chroma = np.zeros((n, SIDE, SIDE), np.uint8), np.full((n, 2, CHROMA_SIDE, CHROMA_SIDE), 128, np.uint8)
    ids = tuple(map(str, range(n)))
    listing = Listing("here", ("a", "b"), ids, ("train",) * n, ids, "stamp", lambda i: (b"", labels[i]))
    return listing, Gallery(looks, np.array(labels, np.int32), grey, chroma)


def test_a_size_that_gives_the_class_away_is_noted_and_unique_sizes_are_not():
    labels = [0, 1] * 50
    (finding,) = about_giveaways(*gallery_of_sizes([64 + label for label in labels], labels))
    assert "the size in pixels alone predicts the class of 100%" in finding.summary
    assert about_giveaways(*gallery_of_sizes(list(range(64, 164)), labels)) == []
    assert about_giveaways(*gallery_of_sizes([64] * 100, labels)) == []


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("train/glioma/patient12_slice3.jpg", "patient12"),
        ("train/glioma/0012-03.png", "0012"),
        ("train/glioma/v_Run_g08_c01.jpg", "v_Run_g08"),
        ("train/glioma/case 7 frame 0120.png", "case 7"),
        ("train/glioma/patient12/3.jpg", "patient12"),
        ("train/glioma/IMG_1_jpg.rf.0123456789abcdef0123.jpg", "IMG_1_jpg"),
        ("Training/glioma/Tr-gl_0012.jpg", None),
        ("glioma/image_0001.jpg", None),
        ("glioma/0001.png", None),
        ("glioma/10140303196_b88d3d6cec_n.jpg", None),
        ("glioma/cat.jpg", None),
    ],
)
def test_groups_by_name(name, group):
    assert group_of(name, "glioma") == group


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
@example("1_" * 120 + "x")
@example("_" * 250)
def test_any_name_has_a_group_or_none(name):
    group = group_of(f"a/{name}.jpg", "a")
    assert group is None or any(map(str.isdigit, group)) or ".rf." in name


def names_of(listed: list[tuple[str, str]]) -> list[Finding]:
    ids, splits = tuple(name for name, _ in listed), tuple(split for _, split in listed)
    listing = Listing("here", ("a",), ids, splits, ids, "", lambda i: (b"", 0))
    return about_names(listing, [0] * len(ids))


def test_one_patient_in_two_splits_is_a_note():
    split_by_patient = [(f"a/p{p}_s{s}.jpg", "train" if p < 6 else "test") for p in range(10) for s in range(5)]
    assert names_of(split_by_patient) == []
    split_by_slice = [(f"a/p{p}_s{s}.jpg", "train" if s else "test") for p in range(10) for s in range(5)]
    (note,) = names_of(split_by_slice)
    assert (note.level, len(note.items)) == ("note", 10)
    assert note.items[0] == Item(("a/p0_s0.jpg", "a/p0_s1.jpg"), "p0")
    (note,) = names_of([(name, "train") for name, _ in split_by_slice])
    assert "a random split" in note.summary


def test_a_number_that_names_the_class_or_the_year_is_no_group():
    assert names_of([(f"a/n01440764_{i}.jpg", "train" if i % 2 else "test") for i in range(100)]) == []
    assert names_of([(f"a/200{i % 4}_{i:06d}.jpg", "train" if i % 3 else "test") for i in range(100)]) == []


texts = st.text(st.characters(exclude_categories=()), max_size=8)
findings = st.builds(
    Finding,
    texts,
    st.sampled_from(["error", "warning", "note"]),
    texts,
    st.lists(st.builds(Item, st.lists(texts, max_size=3).map(tuple), texts), max_size=3).map(tuple),
    st.booleans(),
)


@settings(max_examples=30, deadline=None)
@given(texts, st.lists(findings, max_size=3).map(tuple))
def test_a_report_survives_json(where, listed):
    import json

    counts, sizes = {"train": (1, 2)}, {"height": (1.0, 2.5, 3.0)}
    report = Report(where, ("a", "b"), counts, 3, {"PNG": 3}, {"L": 3}, sizes, listed, {"test": {"near": ("x",)}})
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


SOUND = [encoded(noise(1), form) for form in ("JPEG", "PNG", "GIF", "WEBP", "BMP")]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(SOUND), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8), st.floats(0, 1)
)
@example(SOUND[0], [], 1.0)
def test_damaged_files_are_judged_and_never_raise(data, changes, kept):
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    grey, chroma = np.zeros((SIDE, SIDE), np.uint8), np.zeros((2, CHROMA_SIDE, CHROMA_SIDE), np.uint8)
    judged = look(bytes(damaged[: round(kept * len(damaged))]), grey, chroma)
    assert "\n" not in judged.reason
    assert judged.reason or (judged.height and judged.width)
    assert not re.search(r"0x[0-9a-f]{6,}", judged.reason)


def test_pipes_circles_and_hostile_names_are_reported(tmp_path):
    root = put(tmp_path / "data", {
        "a/1.png": encoded(noise(1)), "b/2.png": encoded(noise(2)), "loose.png": encoded(noise(3)),
        "b/\x1b[31mred\nline.png": b"", "a/notes.txt": b"x",
    })  # fmt: skip
    os.mkfifo(root / "a" / "pipe.png")
    os.mkfifo(root / "b" / "pipe")
    (root / "a" / "loop").symlink_to(root / "a")
    (root / "b" / "up").symlink_to(root)
    (root / "b" / "dead.png").symlink_to(root / "nowhere.png")
    report = look_over(root, cache_dir=str(tmp_path / "cache"))
    assert {item.files for item in found(report, "special").items} == {("a/pipe.png",), ("b/pipe",)}
    assert {item.files for item in found(report, "link_loop").items} >= {("a/loop",), ("b/up",)}
    assert found(report, "stray_images").items == (Item(("loose.png",)),)
    assert found(report, "other_files").items == (Item((), "1 .txt"),)
    unreadable = {item.files[0]: item.remark for item in found(report, "unreadable").items}
    assert unreadable == {
        "b/\x1b[31mred\nline.png": "empty file",
        "b/dead.png": "cannot be read (No such file or directory)",
    }
    assert Path(report.where) == root
