import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.errors import InputError
from input_pipeline.sources import Source, Split, open_source


def jpeg(value: int, size: tuple[int, int] = (9, 7), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value % 256, 255 - value % 256, value // 256)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def plant(root: Path, **folders: int) -> Path:
    """JPEG files, all different; a folder's name has '__' for '/', its value is the number of images."""
    value = 0
    for name, count in folders.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"{i:03d}.jpg").write_bytes(jpeg(value))
            value += 1
    return root


@pytest.fixture
def opened(tmp_path):
    def opener(root: Path, **options) -> Source:
        return open_source("folder", str(root), cache_dir=str(tmp_path / "cache"), **options)

    return opener


def per_class(split: Split) -> list[int]:
    return np.bincount(split.labels).tolist()


def test_a_split_says_all_of_its_examples(tmp_path, opened):
    root = plant(tmp_path / "data", train__a=2, train__b=1, val__a=1, test__b=1)
    exif = Image.Exif()
    exif[0x0112] = 8
    (root / "train" / "b" / "turned.jpg").write_bytes(jpeg(7, (20, 10), exif=exif))
    source = opened(root)
    assert source.class_names == ("a", "b")
    assert list(source.splits) == ["train", "val", "test"]
    train = source.splits["train"]
    assert train.ids == ("train/a/000.jpg", "train/a/001.jpg", "train/b/000.jpg", "train/b/turned.jpg")
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert train.sizes.tolist() == [[7, 9], [7, 9], [7, 9], [20, 10]]
    assert train.orientations.tolist() == [1, 1, 1, 8]
    assert (train.labels.dtype, train.sizes.dtype, train.orientations.dtype) == (np.int32, np.int32, np.int8)
    assert train.paths is not None
    for i, path in enumerate(train.paths):
        assert train.read(i) == Path(path).read_bytes()
        assert train.contents[i] == hashlib.sha256(train.read(i)).hexdigest()[:32].encode()
    assert source.skipped == ()


def test_an_image_changed_in_place_at_equal_length_changes_the_digest_and_a_copy_elsewhere_does_not(tmp_path, opened):
    root = plant(tmp_path / "data", train__a=4, train__b=4)
    before = opened(root)
    copy = opened(shutil.copytree(root, tmp_path / "copy"))
    assert copy.splits["train"].digest() == before.splits["train"].digest()
    image = root / "train" / "a" / "000.jpg"
    content = bytearray(image.read_bytes())
    content[-5] ^= 1
    image.write_bytes(content)
    after = opened(root)
    assert after.by_sizes == before.by_sizes
    assert after.fingerprint != before.fingerprint
    assert copy.fingerprint == before.fingerprint
    assert after.splits["train"].digest() != before.splits["train"].digest()


def test_taking_examples_keeps_all_columns_together(tmp_path, opened):
    train = opened(plant(tmp_path / "data", a=5, b=5), val_fraction=0, test_fraction=0).splits["train"]
    some = train.take([7, 1, 4]).take(np.array([2, 0]), "val")
    assert (some.name, len(some)) == ("val", 2)
    assert some.ids == (train.ids[4], train.ids[7])
    assert some.labels.tolist() == [0, 1]
    assert some.paths == (train.paths[4], train.paths[7])
    assert some.read(1) == train.read(7)
    assert some.contents.tolist() == [train.contents[4], train.contents[7]]
    assert len(train.take([])) == 0


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 0.6), st.floats(0, 0.6), st.integers(0, 2**64 - 1))
def test_carved_splits_part_the_images_by_class(tmp_path_factory, val_fraction, test_fraction, seed):
    root = tmp_path_factory.getbasetemp() / "carved"
    if not root.exists():
        plant(root, a=40, b=20, c=10)
    options = {"val_fraction": val_fraction, "test_fraction": test_fraction, "split_seed": seed}
    source = open_source("folder", str(root), cache_dir=str(root.parent / "cache"), **options)
    ids = [name for split in source.splits.values() for name in split.ids]
    assert len(ids) == len(set(ids)) == 70
    assert ("test" in source.splits, "val" in source.splits) == (test_fraction > 0, val_fraction > 0)
    assert set(source.made) == source.splits.keys() - {"train"}
    left = np.array([40, 20, 10])
    for name, fraction in (("test", test_fraction), ("val", val_fraction)):
        if name in source.splits:
            counts = np.bincount(source.splits[name].labels, minlength=3)
            assert np.all(np.abs(counts - left * fraction) <= 1)
            left = left - counts
    assert per_class(source.splits["train"]) == left.tolist()
    assert np.all(left >= 1)


def test_a_given_split_is_left_as_it_is(tmp_path, opened):
    root = plant(tmp_path / "data", Training__a=20, Training__b=10, Testing__a=3, Testing__b=4)
    source = opened(root)
    assert per_class(source.splits["test"]) == [3, 4]
    assert per_class(source.splits["val"]) == [2, 1]
    assert per_class(source.splits["train"]) == [18, 9]


def test_the_split_is_a_function_of_seed_and_names(tmp_path, opened):
    plant(tmp_path / "data", a=30, b=30)
    moved = tmp_path / "moved"
    for path in sorted((tmp_path / "data").rglob("*.jpg"), reverse=True):  # another order of creation
        target = moved / path.relative_to(tmp_path / "data")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    one, two, other = opened(tmp_path / "data"), opened(moved), opened(tmp_path / "data", split_seed=1)
    assert {name: split.ids for name, split in one.splits.items()} == {n: s.ids for n, s in two.splits.items()}
    assert one.fingerprint == two.fingerprint != other.fingerprint
    assert one.splits["test"].ids != other.splits["test"].ids


def test_the_fingerprint_follows_names_labels_contents_and_splits(tmp_path, opened):
    root = plant(tmp_path / "data", train__a=3, train__b=3, val__a=1, test__b=1)
    first = opened(root)
    prints = [first.fingerprint]
    assert opened(root).fingerprint == prints[0]
    (root / "train" / "a" / "000.jpg").write_bytes(jpeg(0) + b"\0")
    prints.append(opened(root).fingerprint)
    (root / "train" / "a" / "000.jpg").write_bytes(jpeg(0) + b"\1")
    of_the_same_size = opened(root)
    prints.append(of_the_same_size.fingerprint)
    # Runs begun when fingerprints were of sizes go on.
    assert of_the_same_size.is_of(of_the_same_size.by_sizes)
    assert not of_the_same_size.is_of(first.fingerprint)
    assert not of_the_same_size.is_of("")
    (root / "train" / "a" / "000.jpg").rename(root / "train" / "a" / "9.jpg")
    prints.append(opened(root).fingerprint)
    (root / "train" / "a" / "9.jpg").rename(root / "train" / "b" / "9.jpg")
    prints.append(opened(root).fingerprint)
    for split in ("train", "val", "test"):
        if (root / split / "b").exists():
            (root / split / "b").rename(root / split / "c")
    prints.append(opened(root).fingerprint)
    assert len(set(prints)) == len(prints)


def test_a_truncated_image_is_found_before_training(tmp_path, opened):
    root = plant(tmp_path / "data", a=4, b=4)
    whole = io.BytesIO()
    Image.effect_noise((80, 80), 90).save(whole, "JPEG")
    (root / "a" / "cut\n.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (root / "b" / "text.png").write_text("not a picture")
    for _ in range(2):  # the second time from the cache
        with pytest.raises(InputError, match=r"^a/cut\\n\.jpg: JPEG, .* \(and 1 more\)") as caught:
            opened(root)
        assert "--config.data.on_error=skip" in str(caught.value)
        assert "\n" not in str(caught.value)
    source = opened(root, on_error="skip", val_fraction=0, test_fraction=0)
    assert [name for name, _ in source.skipped] == ["a/cut\n.jpg", "b/text.png"]
    assert len(source.splits["train"]) == 8
    assert not set(source.splits["train"].ids) & {name for name, _ in source.skipped}


def test_a_dead_link_is_an_unreadable_image(tmp_path, opened):
    root = plant(tmp_path / "data", a=2, b=2)
    (root / "a" / "dead.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"a/dead\.jpg: cannot be read \(No such file"):
        opened(root)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"a": 3}, "only one class, 'a'"),
        ({"a": 3, "b": 3, "empty": 0}, "class 'empty' has no readable image"),
        ({"train__a": 3, "train__b": 3, "test__a": 1, "test__c": 1}, "class 'c' is in test but has no image in train"),
        ({"train__a": 3, "train__b": 3, "val__c": 1, "test__a": 1}, "class 'c' is in val but has no image in train"),
        ({"a": 3, "b": 1}, "class 'b' has a single image"),
    ],
)
def test_classes_that_cannot_be_learned_are_named(tmp_path, opened, folders, message):
    with pytest.raises(InputError, match=message):
        opened(plant(tmp_path / "data", **folders))


def test_a_class_whose_images_are_all_unreadable_is_named(tmp_path, opened):
    root = plant(tmp_path / "data", a=3, b=3, c=0)
    (root / "c" / "1.jpg").write_text("no")
    with pytest.raises(InputError, match="class 'c' has no readable image"):
        opened(root, on_error="skip")


def test_a_class_without_test_images_is_allowed(tmp_path, opened):
    source = opened(plant(tmp_path / "data", train__a=3, train__b=3, val__a=1, test__a=1))
    assert per_class(source.splits["test"]) == [1]


def test_a_class_is_excluded(tmp_path, opened):
    root = plant(tmp_path / "data", wrapper__a=5, wrapper__b=5, wrapper__BACKGROUND=5)
    assert opened(root, exclude=("BACKGROUND",)).class_names == ("a", "b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, "config.data.val_fraction=1.0"),
        ({"test_fraction": -0.1}, "config.data.test_fraction=-0.1"),
        ({"test_fraction": float("nan")}, "config.data.test_fraction=nan"),
        ({"split_seed": -1}, "config.data.split_seed=-1"),
        ({"on_error": "ignore"}, "config.data.on_error='ignore'"),
    ],
)
def test_values_out_of_range_are_named(tmp_path, opened, options, message):
    with pytest.raises(InputError, match=message):
        opened(plant(tmp_path / "data", a=3, b=3), **options)


def test_sources_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(InputError, match=r"config\.data\.source='imagenet'"):
        open_source("imagenet", str(tmp_path))
    with pytest.raises(InputError, match=r"config\.data\.dir is empty"):
        open_source("folder")


def test_the_demo_goes_the_way_of_a_folder(tmp_path, monkeypatch):
    from input_pipeline import demo

    monkeypatch.chdir(tmp_path)
    demo.write_demo(".data/demo", size_range=(8, 8))
    monkeypatch.setattr(demo, "write_demo", lambda folder: None)
    source = open_source("demo", cache_dir=str(tmp_path / "cache"))
    assert source.class_names == tuple(sorted(demo.SPECIES))
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 540, "val": 60, "test": 200}


def test_so_many_images_of_each_class_train_and_the_others_test(tmp_path, opened):
    root = plant(tmp_path / "data", a=9, b=5)
    source = opened(root, per_class=4, val_fraction=0.25)
    assert {name: per_class(split) for name, split in source.splits.items()} == {
        "train": [3, 3],
        "val": [1, 1],
        "test": [5, 1],
    }
    ids = [name for split in source.splits.values() for name in split.ids]
    assert len(set(ids)) == len(ids) == 14
    assert opened(root, per_class=4, val_fraction=0.25).fingerprint == source.fingerprint
    assert opened(root, per_class=4, val_fraction=0.25, split_seed=1).fingerprint != source.fingerprint
    with pytest.raises(InputError, match=r"config\.data\.per_class=5 leaves no image of class 'b', which has 5 images"):
        opened(root, per_class=5)


def test_a_test_split_of_the_data_stays_where_training_is_cut(tmp_path, opened):
    root = plant(tmp_path / "data", train__a=6, train__b=5, test__a=2, test__b=2)
    source = opened(root, per_class=3, val_fraction=0.0)
    assert {name: per_class(split) for name, split in source.splits.items()} == {"train": [3, 3], "test": [2, 2]}


def test_who_asks_for_a_test_split_that_is_there_has_no_other_drawn(tmp_path, opened):
    """Not even one that could not be: a class with one training image."""
    folder = plant(tmp_path / "data", train__a=1, train__b=3, test__a=1, test__b=1)
    with pytest.raises(InputError, match="a single image"):
        opened(folder)
    assert list(opened(folder, for_test=True).splits) == ["train", "test"]
    whole = plant(tmp_path / "whole", a=8, b=8)
    assert opened(whole, for_test=True).fingerprint == opened(whole).fingerprint
