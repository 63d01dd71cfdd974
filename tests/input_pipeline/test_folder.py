import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.carving import stratified_choice
from input_pipeline.errors import InputError
from input_pipeline.folder import find_images


def plant(root: Path, *names: str) -> Path:
    """Empty files of these relative names: listing opens none of them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def found(root: Path, **options) -> dict[str, tuple[str, str]]:
    """Split and class of each id."""
    listing = find_images(root, **options)
    assert len(set(listing.ids)) == len(listing.ids)
    names = {}
    for i, name in enumerate(listing.ids):
        data, label = listing.examine(i)
        assert data == b""
        assert listing.paths is not None
        assert Path(listing.paths[i]) == (root / name).absolute()
        names[name] = (listing.split_names[i], listing.class_names[label])
    return names


def test_class_folders_are_one_split(tmp_path):
    plant(tmp_path, "b/2.jpg", "b/1.JPG", "a/deep/er/3.png", "a/4.webp", "c/5.gif", "c/6.bmp", "c/7.jpeg")
    assert found(tmp_path) == {
        "a/4.webp": ("train", "a"), "a/deep/er/3.png": ("train", "a"), "b/1.JPG": ("train", "b"),
        "b/2.jpg": ("train", "b"), "c/5.gif": ("train", "c"), "c/6.bmp": ("train", "c"), "c/7.jpeg": ("train", "c"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Training", "Validation", "Testing"), ("TRAIN", "valid", "Test"),
     ("train_set", "dev", "test_set"), ("training_set", "validation_set", "test_set")],
)  # fmt: skip
def test_split_folders_go_by_any_usual_name(tmp_path, train, val, test):
    plant(tmp_path, f"{train}/a/1.jpg", f"{train}/b/1.jpg", f"{val}/a/1.jpg", f"{test}/b/1.jpg")
    assert found(tmp_path) == {
        f"{train}/a/1.jpg": ("train", "a"), f"{train}/b/1.jpg": ("train", "b"),
        f"{val}/a/1.jpg": ("val", "a"), f"{test}/b/1.jpg": ("test", "b"),
    }  # fmt: skip


def test_wrapping_folders_are_looked_through(tmp_path):
    plant(tmp_path, "download/set/Training/a/1.jpg", "download/set/Training/b/1.jpg", "download/README.txt")
    assert set(found(tmp_path)) == {"download/set/Training/a/1.jpg", "download/set/Training/b/1.jpg"}


def test_what_is_no_image_is_left_alone(tmp_path):
    plant(tmp_path, "a/1.jpg", "b/1.jpg", "labels.csv", "a/notes.txt", "a/Thumbs.db", "a/.hidden.jpg", "a/noextension",
          ".git/x/1.jpg", "__MACOSX/a/1.jpg", "a/.ipynb_checkpoints/1.jpg", "a/._1.jpg")  # fmt: skip
    assert set(found(tmp_path)) == {"a/1.jpg", "b/1.jpg"}


def test_a_class_may_be_called_train(tmp_path):
    plant(tmp_path, "bus/1.jpg", "train/1.jpg", "tram/1.jpg")
    assert find_images(tmp_path).class_names == ("bus", "train", "tram")


def test_links_are_followed_but_not_in_circles(tmp_path):
    plant(tmp_path / "data", "a/1.jpg", "b/1.jpg")
    plant(tmp_path / "elsewhere", "2.jpg")
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path / "data" / "a")
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "b" / "3.jpg").symlink_to(tmp_path / "elsewhere" / "2.jpg")
    names = set(found(tmp_path / "data"))
    assert {"a/1.jpg", "b/1.jpg", "b/3.jpg", "c/2.jpg"} <= names
    assert not any("loop" in name for name in names)


def test_a_pipe_is_not_opened_and_a_dead_link_is_not_lost(tmp_path):
    plant(tmp_path, "a/1.jpg", "b/1.jpg")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "b" / "dead.jpg").symlink_to(tmp_path / "nowhere.jpg")
    listing = find_images(tmp_path)
    assert listing.ids == ("a/1.jpg", "b/1.jpg", "b/dead.jpg")
    with pytest.raises(FileNotFoundError):
        listing.examine(2)


def test_names_that_are_no_text_are_listed(tmp_path):
    plant(tmp_path, "a/1.jpg", "b/new\nline.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b/\xff.jpg")).touch()
    assert set(found(tmp_path)) == {"a/1.jpg", "b/new\nline.jpg", "b/\udcff.jpg"}


def test_classes_are_excluded_by_name(tmp_path):
    plant(tmp_path, "a/1.jpg", "b/1.jpg", "background/1.jpg")
    assert find_images(tmp_path, ("background",)).class_names == ("a", "b")
    with pytest.raises(InputError, match="no class folder 'back' to exclude"):
        find_images(tmp_path, ("back",))


def test_the_stamp_follows_names_sizes_times_and_classes(tmp_path):
    stamps = [find_images(plant(tmp_path, "a/1.jpg", "b/1.jpg")).stamp]
    assert find_images(tmp_path).stamp == stamps[0]
    (tmp_path / "a" / "1.jpg").write_bytes(b"x")
    stamps.append(find_images(tmp_path).stamp)
    os.utime(tmp_path / "a" / "1.jpg", ns=(1, 1))
    stamps.append(find_images(tmp_path).stamp)
    (tmp_path / "a" / "1.jpg").rename(tmp_path / "a" / "2.jpg")
    stamps.append(find_images(tmp_path).stamp)
    # An empty class shifts the labels of those behind it.
    (tmp_path / "aa").mkdir()
    stamps.append(find_images(tmp_path).stamp)
    assert len(set(stamps)) == len(stamps)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no images; expected"),
        (("readme.txt",), "no images; expected"),
        (("a/readme.txt", "b/readme.txt"), "no images; expected"),
        (("1.jpg", "2.jpg"), "no images; expected"),
        (("train/1.jpg", "test/1.jpg"), "images, but no class folders"),
        (("train/a/1.jpg", "train/b/1.jpg", "test/1.jpg"), "test: no class folders with images"),
        (("train/a/1.jpg", "Training/a/1.jpg"), "'Training' and 'train' both name the train split"),
        (("test/a/1.jpg", "val/b/1.jpg"), "test and val, but no train folder"),
        (("train/a/1.jpg", "train/b/1.jpg", "holdout/a/1.jpg"), "holdout: images next to train"),
    ],
)
def test_a_folder_that_cannot_be_understood_is_refused_in_one_line(tmp_path, names, message):
    root = plant(tmp_path / "da\nta", *names)
    root.mkdir(exist_ok=True)
    with pytest.raises(InputError, match=message) as caught:
        find_images(root)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_images(tmp_path / "nowhere")


class_sizes = st.lists(st.integers(2, 60), min_size=1, max_size=8)
fractions = st.floats(0.01, 0.9)


@given(class_sizes, fractions, st.integers(0, 2**64 - 1), st.randoms())
def test_a_stratified_choice_takes_each_class_by_its_share(sizes, fraction, seed, random):
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    random.shuffle(order := list(range(len(labels))))
    labels = labels[order]
    names = tuple(map(str, range(len(sizes))))
    chosen = stratified_choice(labels, fraction, seed=seed, stream=1, class_names=names)
    assert chosen.shape == labels.shape
    for label, size in enumerate(sizes):
        number = int(chosen[labels == label].sum())
        assert number <= size - 1
        assert abs(number - fraction * size) <= 1 + 1e-9
    assert abs(int(chosen.sum()) - fraction * len(labels)) <= 1 + len(sizes) * fraction
    again = stratified_choice(labels, fraction, seed=seed, stream=1, class_names=names)
    np.testing.assert_array_equal(chosen, again)


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_seeds_and_streams_draw_differently(one, other):
    labels = np.repeat(np.arange(2), 100).astype(np.int32)
    draws = {
        stratified_choice(labels, 0.5, seed=seed, stream=stream, class_names=("a", "b")).tobytes()
        for seed in (one, other)
        for stream in (1, 2)
    }
    assert len(draws) == 2 * len({one, other})


def test_exact_shares_are_exact():
    labels = np.repeat(np.arange(3), [50, 30, 20]).astype(np.int32)
    chosen = stratified_choice(labels, 0.1, seed=0, stream=1, class_names=("a", "b", "c"))
    assert np.bincount(labels[chosen]).tolist() == [5, 3, 2]


def test_a_class_with_one_image_cannot_be_split():
    with pytest.raises(InputError, match="class 'b' has a single image"):
        stratified_choice(np.array([0, 0, 1], np.int32), 0.5, seed=0, stream=1, class_names=("a", "b"))


def test_a_link_to_itself_is_listed_and_harms_nothing(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"x")
    (tmp_path / "a" / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "self").symlink_to("self")
    listing = find_images(tmp_path)
    assert listing.class_names == ("a", "b")
    assert sorted(listing.ids) == ["a/1.jpg", "a/self.jpg", "b/1.jpg"]
