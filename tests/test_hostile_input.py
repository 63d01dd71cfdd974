"""Files made to do harm: each is refused before it does, in words, and nothing waits, swells or leads elsewhere."""

import contextlib
import io
import json
import os
import socket
import zipfile
from collections.abc import Iterator

import h5py
import numpy as np
import pytest
from PIL import Image

from input_pipeline.crops import Crop
from input_pipeline.doctor import look_over
from input_pipeline.encoded_files import MAX_COMMENTS, MAX_EXIF, MAX_SCANS, first_frame, read_encoded
from input_pipeline.errors import InputError
from input_pipeline.folder import find_images
from input_pipeline.images import sniff
from input_pipeline.sources import open_source
from input_pipeline.stream import decode_eval
from resnet.model.spec import ResNetSpec
from resnet.study.run_record import read_run
from resnet.train.checkpoints import FOLDER, Meta, load
from resnet.train.integrity import MANIFEST, TIMES
from resnet.train.predictions import read_predictions
from resnet.weights import formats
from tests import bad_input_table, bombs
from tests.bombs import encoded
from tests.fuzz.targets import checkpoint_seeds, metadata_seeds


@contextlib.contextmanager
def refused(match: str = "") -> Iterator[None]:
    """Asserts an InputError of one printable line that `match`es, and notes it for docs/bad-input.md."""
    with pytest.raises(InputError, match=match or None) as caught:
        yield
    assert str(caught.value).isprintable()
    bad_input_table.note(str(caught.value))


@pytest.mark.parametrize("make", bombs.ALL, ids=lambda make: make.__name__)
def test_a_bomb_of_any_format_is_refused_by_its_declared_size(make):
    data = make()
    assert len(data) < 2000
    with refused(r"claims .*pixels"):
        sniff(data, "bomb")


def test_every_webp_tells_its_size_before_pillow_is_asked():
    from input_pipeline.encoded_files import webp_size

    image = Image.new("RGB", (37, 21), "red")
    for options in ({"quality": 50}, {"lossless": True}, {"exif": Image.Exif().tobytes() or b"Exif\0\0II*\0"}):
        assert webp_size(encoded(image, "WEBP", **options)) == (37, 21)
    assert webp_size(encoded(image, "WEBP", save_all=True, append_images=[image.rotate(180)])) == (37, 21)


def test_a_jpeg_of_endless_scans_is_refused():
    data = encoded(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    sniff(data, "progressive")
    start = data.rindex(b"\xff\xda")
    scan = data[start:-2]
    with refused("scans"):
        sniff(data[:-2] + scan * (MAX_SCANS + 1) + data[-2:], "slow")


def test_a_gif_of_endless_comments_is_refused():
    """Pillow joins their blocks one by one: 30 MB of them take more than a minute."""
    data = encoded(Image.new("P", (8, 8)), "GIF")
    at = data.index(b"\x2c")
    blocks = b"\x21\xfe" + (b"\xff" + bytes(255)) * (MAX_COMMENTS // 256 - 1) + b"\0"
    for long in (data[:at] + blocks * 2 + data[at:], data[:-1] + blocks + b"\x3b"):
        sniff(long, "comments")
        with refused("has a comment"):
            sniff(long.replace(b"\x21\xfe\xff", b"\x21\xfe\xff" + bytes(255) + b"\xff"), "comments")


def test_a_jpeg_of_endless_exif_is_refused():
    """Pillow joins its blocks one by one as well: 100 MB of them take 46 s."""
    data = encoded(Image.new("RGB", (8, 8)), "JPEG")
    block = b"\xff\xe1\0\x0aExif\0\0xx"
    sniff(data[:2] + block * MAX_EXIF + data[2:], "exif")
    with refused("blocks of EXIF"):
        sniff(data[:2] + block * (MAX_EXIF + 1) + data[2:], "exif")


@pytest.mark.parametrize("size", [(1, 65_535), (65_535, 1)])
def test_of_a_long_picture_the_middle_is_resized(size):
    """The whole, its shorter side made 256, would take 13 GB."""
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    seen = decode_eval(encoded(picture, "PNG"), Crop("none", 224))
    middle = np.asarray(picture).reshape(-1, 3)[65_535 // 2]
    assert seen.shape == (224, 224, 3)
    assert np.abs(seen.astype(int) - middle).max() <= 1


def test_of_a_gif_only_the_first_frame_is_decoded():
    frames = [Image.effect_noise((30, 20), 60 + i).convert("P") for i in range(5)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], loop=0)
    cut = first_frame(data)
    assert len(cut) < len(data) / 3
    whole, first = (Image.open(io.BytesIO(content)) for content in (data, cut))
    assert (whole.n_frames, first.n_frames) == (5, 1)
    assert np.array_equal(np.asarray(whole.convert("RGB")), np.asarray(first.convert("RGB")))
    for length in range(len(cut)):
        first_frame(data[:length])


def test_pipes_devices_and_sockets_are_never_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    data = tmp_path / "data"
    for name in "ab":
        (data / name).mkdir(parents=True)
        (data / name / "1.png").write_bytes(encoded(Image.effect_noise((40, 40), 50), "PNG"))
    os.mkfifo(data / "a" / "pipe.png")
    (data / "a" / "zero.png").symlink_to("/dev/zero")
    monkeypatch.chdir(data / "a")  # A socket's path may have 107 bytes.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
        assert find_images(data).ids == ("a/1.png", "b/1.png")
        assert "special" in {finding.code for finding in look_over(data).findings}
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(OSError, match="not a regular file"):
            read_encoded(data / "a" / name)
    with refused("not a regular file"):
        formats.read(data / "a" / "pipe.png")


def test_a_file_of_a_terabyte_is_not_read(tmp_path):
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="too large for any image"):
        read_encoded(tmp_path / "sparse.jpg")


def test_folders_that_are_links_in_a_circle_end(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"")
        (tmp_path / name / "up").symlink_to(tmp_path)
        (tmp_path / name / "itself").symlink_to("itself")
    assert len(find_images(tmp_path).ids) < 20


def test_names_with_newlines_and_escapes_are_printed_escaped(tmp_path):
    name = "a\n\x1b[2Jb\u202e.png"
    for label in ("x", "y"):
        (tmp_path / label).mkdir()
        (tmp_path / label / name).write_bytes(b"")
    (tmp_path / "x\n\x1b[31m").mkdir()
    with refused():
        open_source("folder", str(tmp_path), cache_dir=str(tmp_path / "cache"), progress=False)


def test_a_keras_archive_unpacks_nothing_and_may_not_swell(tmp_path):
    def attempt(name: str, members: dict[str, bytes], words: str) -> None:
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        before = sorted(tmp_path.rglob("*"))
        with refused(words):
            formats.read(tmp_path / name)
        assert sorted(tmp_path.rglob("*")) == before

    attempt("bomb", {"model.weights.h5": bytes(10_000_000)}, "would expand")
    slip = {"../../evil": b"x", "/tmp/evil": b"x", "model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(40)}
    attempt("slip", slip, "damaged HDF5")


def test_a_virtual_dataset_reads_no_other_file(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["kernel"] = np.ones(4, np.float32)
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "kernel", (4,))
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_group("conv1_conv").create_virtual_dataset("kernel", layout)
    with refused("link to somewhere else"):
        formats.read(tmp_path / "w.h5")


def test_an_hdf5_file_of_endless_groups_is_refused(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        group = file
        for _ in range(3000):
            group = group.create_group("g")
    with refused():
        formats.read(tmp_path / "w.h5")


def test_a_safetensors_header_of_endless_nesting_is_refused(tmp_path):
    header = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header)
    with refused("header cannot be read"):
        formats.read(tmp_path / "w")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict:
    return json.loads(metadata_seeds(tmp_path_factory.mktemp("meta"))[0])


META = {
    "no_object": lambda meta: [meta],
    "other_format": lambda meta: meta | {"format": 99},
    "missing": lambda meta: {key: value for key, value in meta.items() if key != "contract"},
    "unknown": lambda meta: meta | {"run\n\x1b[31m": 1},
    "huge_image": lambda meta: meta | {"image_size": 10**9},
    "word_for_a_number": lambda meta: meta | {"image_size": "224"},
    "infinite_crop": lambda meta: meta | {"resize_shorter": float("inf")},
    "resized_to_gigabytes": lambda meta: meta | {"image_size": 4096, "resize_shorter": 16.0},
    "split_by_a_word": lambda meta: meta | {"config": {"data.val_fraction": "half"}},
    "exclude_no_texts": lambda meta: meta | {"config": {"data.exclude": [{}]}},
    "fold_by_a_word": lambda meta: meta | {"config": {"data.folds": "3"}},
    "loss_in_a_list": lambda meta: meta | {"config": {"optim.loss": ["softmax"]}},
    "huge_arrays": lambda meta: meta | {"config": {"data.image_size": 10**9}},
    "endless_number": lambda meta: meta | {"resize_shorter": 10**400},
    "endless_stage": lambda meta: meta | {"spec": meta["spec"] | {"stage_sizes": [10**12]}},
    "endless_stages": lambda meta: meta | {"spec": meta["spec"] | {"stage_sizes": [1] * 100}},
    "wide": lambda meta: meta | {"spec": meta["spec"] | {"width": 10**9}},
    "wide_stem": lambda meta: meta | {"spec": meta["spec"] | {"stem_width": 10**6}},
    "unknown_field": lambda meta: meta | {"spec": meta["spec"] | {"hook": "os.system"}},
    "impossible": lambda meta: meta | {"spec": meta["spec"] | {"block": "eval"}},
    "too_few_names": lambda meta: meta | {"class_names": ["a"]},
    "names_no_texts": lambda meta: meta | {"class_names": [{}, {}, {}]},
    "nan_contract": lambda meta: meta | {"contract": meta["contract"] | {"mean": [float("nan")] * 3}},
    "zero_std": lambda meta: meta | {"contract": meta["contract"] | {"std": [0, 1, 1]}},
}


@pytest.mark.parametrize("case", META)
def test_metadata_that_no_checkpoint_has_is_named(case, sound):
    Meta.from_json(sound)
    with refused():
        Meta.from_json(META[case](sound))


def test_metadata_of_every_kind_comes_back(sound):
    meta = Meta.from_json(sound)
    assert Meta.from_json(json.loads(json.dumps(meta.to_json()))) == meta
    assert meta.spec == ResNetSpec(block="basic", stage_sizes=(1, 1), width=8, num_classes=3)


def test_metadata_of_before_a_field_came_has_its_default(sound):
    older = {name: value for name, value in sound["spec"].items() if name != "stem_width"}
    assert Meta.from_json(sound | {"spec": older}) == Meta.from_json(sound)
    assert Meta.from_json(sound | {"config": {"data.per_class": 0}}).loss == "softmax"


def test_a_checkpoint_of_links_and_pipes_is_refused(tmp_path):
    checkpoint_seeds(tmp_path)
    step = tmp_path / "step"
    load(step)
    os.mkfifo(step / "variables" / "pipe")
    with refused("no checkpoint holds"):
        load(step)
    (step / "variables" / "pipe").unlink()
    (step / "variables" / "link").symlink_to("/etc/passwd")
    with refused("no checkpoint holds"):
        load(step)


@pytest.mark.parametrize("name", [TIMES, MANIFEST, "meta/metadata"])
def test_a_pipe_in_place_of_what_is_looked_at_first_is_not_waited_for(name, tmp_path):
    """Also in a run's folder, where the best checkpoint is looked for."""
    checkpoint_seeds(tmp_path)
    step = tmp_path / "run" / FOLDER / "3"
    step.parent.mkdir(parents=True)
    (tmp_path / "step").rename(step)
    if name != MANIFEST:
        (step / MANIFEST).unlink()
    (step / name).unlink(missing_ok=True)
    os.mkfifo(step / name)
    for place in (step, tmp_path / "run"):
        with refused("not a regular file|none of the checkpoints can be read"):
            load(place)
    (step / name).unlink()
    (step / name).write_bytes(b"[" * 100_000)
    with refused():
        load(step)


@pytest.mark.parametrize("name", ["config.json", "classes.json", "metrics.jsonl", "predictions.npz"])
def test_a_run_of_pipes_and_endless_nesting_is_refused(name, tmp_path):
    files = {"config.json": "{}", "classes.json": '["a"]', "metrics.jsonl": "", "provenance.json": "{}"}
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    read_run(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with refused(name):
        read_run(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).write_text("[" * 100_000 + "\n{}\n")
    with refused(name):
        read_run(tmp_path)


def test_predictions_that_would_swell_are_refused(tmp_path):
    whole = {"labels": np.zeros(1, np.int32), "ids": np.array(["a"]), "leaked": np.zeros(1, bool), "step": 1}
    np.savez_compressed(tmp_path / "predictions.npz", probabilities=np.zeros((1, 100_000), np.float32), **whole)
    with refused("compressed"):
        read_predictions(tmp_path)
    np.savez(tmp_path / "predictions.npz", probabilities=np.zeros((1, 2), np.float32), **whole)
    data = (tmp_path / "predictions.npz").read_bytes()
    lie = b"(999999999999, 2), }"
    assert b"(1, 2), }".ljust(len(lie)) in data
    (tmp_path / "predictions.npz").write_bytes(data.replace(b"(1, 2), }".ljust(len(lie)), lie))
    with refused():
        read_predictions(tmp_path)


def test_docs_say_what_was_printed():
    bad_input_table.check("tests/test_hostile_input.py")
