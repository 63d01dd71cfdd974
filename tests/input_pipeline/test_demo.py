import hashlib
import json
import threading

import numpy as np
import pytest
from PIL import Image

from input_pipeline import demo
from input_pipeline.demo import SPECIES, write_demo
from input_pipeline.errors import InputError
from input_pipeline.folder import find_images

SMALL = {"per_class": (3, 2), "size_range": (24, 40)}


def digest(directory) -> str:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def test_the_demo_is_a_folder_of_images(tmp_path):
    write_demo(tmp_path / "demo", **SMALL)
    listing = find_images(tmp_path / "demo")
    assert listing.class_names == tuple(sorted(SPECIES))
    assert [listing.split_names.count(name) for name in ("train", "val", "test")] == [15, 0, 10]
    sizes = {Image.open(path).size for path in listing.paths}
    assert len(sizes) > 10
    assert all(24 <= side <= 40 for size in sizes for side in size)
    assert len({listing.examine(i)[0] for i in range(25)}) == 25


def test_the_same_parameters_draw_the_same_and_others_do_not(tmp_path):
    write_demo(tmp_path / "one", **SMALL)
    write_demo(tmp_path / "two", **SMALL)
    write_demo(tmp_path / "three", seed=1, **SMALL)
    assert digest(tmp_path / "one") == digest(tmp_path / "two") != digest(tmp_path / "three")


def test_a_demo_that_is_there_is_not_drawn_again_unless_the_parameters_differ(tmp_path):
    write_demo(tmp_path / "demo", **SMALL)
    some = next((tmp_path / "demo").rglob("*.jpg"))
    before = some.stat().st_mtime_ns
    write_demo(tmp_path / "demo", **SMALL)
    assert some.stat().st_mtime_ns == before
    write_demo(tmp_path / "demo", per_class=(1, 1), size_range=(24, 40))
    assert len(list((tmp_path / "demo").rglob("*.jpg"))) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(demo.SPECIES, "tulip", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_demo(tmp_path / "demo", **SMALL)
    assert list(tmp_path.iterdir()) == []
    write_demo(tmp_path / "demo", **SMALL)
    assert len(list((tmp_path / "demo").rglob("*.jpg"))) == 25


def test_two_who_draw_at_once_both_find_it_whole(tmp_path):
    failures = []

    def draw() -> None:
        try:
            write_demo(tmp_path / "demo", **SMALL)
        except InputError as error:
            failures.append(error)

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(list((tmp_path / "demo").rglob("*.jpg"))) == 25
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_folder_of_anything_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("draft")
    with pytest.raises(InputError, match="mine: holds something other than the demo"):
        write_demo(tmp_path / "mine", **SMALL)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="file: holds something other"):
        write_demo(tmp_path / "file", **SMALL)
    with pytest.raises(InputError, match="cannot be written there"):
        write_demo(tmp_path / "file" / "demo", **SMALL)
    (tmp_path / "empty").mkdir()
    write_demo(tmp_path / "empty", **SMALL)
    assert json.loads((tmp_path / "empty" / "demo.json").read_text())["seed"] == 0


def test_the_mean_colour_does_not_settle_the_species():
    """Colours and backgrounds are typical of a species, no more: a fit of mean colours stays below the promise."""
    draws = [(label, number) for label in range(len(SPECIES)) for number in range(60)]
    names = list(SPECIES)
    pictures = (
        demo.draw_flower(names[label], np.random.default_rng([label, number]), (30, 50)) for label, number in draws
    )
    colours = np.array([np.asarray(picture).reshape(-1, 3).mean(0) / 255 for picture in pictures])
    labels = np.array([label for label, _ in draws])
    products = colours[:, :, None] * colours[:, None, :]
    features = np.concatenate([np.ones((len(draws), 1)), colours, products.reshape(-1, 9)], 1)
    train = np.arange(len(draws)) % 3 > 0
    weights = np.linalg.lstsq(features[train], np.eye(len(SPECIES))[labels[train]], rcond=None)[0]
    assert np.mean((features[~train] @ weights).argmax(1) == labels[~train]) < 0.75
