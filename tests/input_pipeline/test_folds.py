"""Folds: every image is tested once, by a network that saw none of its copies where that is asked for."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_doctor_copies import put
from test_splits_and_copies import in_copies

from input_pipeline import sources
from input_pipeline.errors import InputError
from input_pipeline.folds import assign, check_folds
from input_pipeline.images import sniff
from input_pipeline.leaks import families


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """Caches of its own, and headers believed: nothing here needs TensorFlow."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sources, "_decode", lambda data, name: (sniff(data, name).height, sniff(data, name).width))


def opened(folder: Path, **options: object) -> sources.Source:
    return sources.open_source("folder", str(folder), progress=False, **options)  # type: ignore[arg-type]


LABELS = st.lists(st.integers(0, 3), min_size=2, max_size=60).map(lambda found: np.array(sorted(found), np.int32))


@given(LABELS, st.integers(2, 12), st.integers(0, 2**64 - 1))
def test_folds_are_alike_class_by_class_and_in_all(labels, folds, seed):
    parts = assign(labels, folds, [], seed=seed)
    counts = np.array([np.bincount(labels[parts == part], minlength=4) for part in range(folds)])
    assert counts.sum(axis=0).tolist() == np.bincount(labels, minlength=4).tolist()
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 1
    assert parts.tolist() == assign(labels, folds, [], seed=seed).tolist()


@given(LABELS, st.integers(2, 5), st.data())
def test_a_group_is_in_one_fold_and_the_rest_makes_up_for_it(labels, folds, data):
    of_group = data.draw(st.lists(st.integers(0, 9), min_size=len(labels), max_size=len(labels)))
    # The first few groups are families, the rest of the images are single.
    groups = [[row for row, group in enumerate(of_group) if group == number] for number in range(4)]
    parts = assign(labels, folds, groups, seed=0)
    assert all(len(set(parts[rows].tolist())) <= 1 for rows in groups)
    sizes = np.bincount(parts, minlength=folds)
    assert sizes.sum() == len(labels)
    largest = max([1, *map(len, groups)])
    # Four families and single images of four classes: no fold is ahead by more than its families and one of each class.
    assert np.ptp(sizes) <= 4 * largest + 4


def test_another_seed_parts_otherwise():
    labels = np.zeros(40, np.int32)
    assert assign(labels, 4, [], seed=0).tolist() != assign(labels, 4, [], seed=1).tolist()


def test_every_image_is_tested_once(tmp_path):
    contents = {f"{c}/{number}.png": data for c in "ab" for number, data in enumerate(in_copies(x=4).values())}
    folder = put(tmp_path / "data", contents)
    opens = [opened(folder, folds=3, fold=fold, val_fraction=0.2, split_seed=3) for fold in range(3)]
    tested = [name for source in opens for name in source.splits["test"].ids]
    assert sorted(tested) == sorted(contents)
    for source in opens:
        ids = [name for split in source.splits.values() for name in split.ids]
        assert sorted(ids) == sorted(contents)
        assert source.made == ("val", "test")
    assert len({source.fingerprint for source in opens}) == 3


def test_copies_are_tested_together(tmp_path):
    folder = put(tmp_path / "data", in_copies(a=3, b=3))
    options = {"folds": 2, "doctor": True, "keep_copies_together": True, "val_fraction": 0.0}
    one, two = (opened(folder, fold=fold, **options) for fold in range(2))
    assert one.report is not None
    side = {name: fold for fold, source in enumerate((one, two)) for name in source.splits["test"].ids}
    assert len(side) == 12
    assert all(len({side[name] for name in family}) == 1 for family in families(one.report))
    with pytest.raises(InputError, match=r"class 'a' has too few images outside .*keep_copies_together=True keeps"):
        opened(put(tmp_path / "few", {k: v for k, v in in_copies(a=3, b=3).items() if "0_" in k}), fold=0, **options)


def test_a_test_split_of_the_data_is_no_fold(tmp_path):
    contents = in_copies(train__a=2, train__b=2, test__a=1, test__b=1)
    folder = put(tmp_path / "data", {name.replace("__", "/"): data for name, data in contents.items()})
    source = opened(folder, folds=2, fold=1, val_fraction=0.0)
    assert source.made == ()
    assert len(source.splits["test"]) == 4


@pytest.mark.parametrize(
    ("images", "folds", "message"),
    [
        ({"a": 2, "b": 2}, 9, "config.data.folds=9 of 8 images leave a part empty: use fewer, or add images"),
        (
            {"a": 2},
            2,
            "class 'b' has too few images outside one of the 2 parts .*: add images",
        ),
    ],
)
def test_folds_that_cannot_be_are_refused(tmp_path, images, folds, message):
    contents = in_copies(**images)
    if "b" not in images:
        contents["b/0.jpg"] = contents["a/0_0.jpg"] + b"\0"
    with pytest.raises(InputError, match=message):
        opened(put(tmp_path / "data", contents), folds=folds, fold=0, val_fraction=0.0)


def test_a_class_too_small_to_validate_on_is_refused_in_every_fold(tmp_path):
    """Not in those alone whose test split takes one of its two images."""
    folder = put(tmp_path / "data", in_copies(a=6, rare=1))
    for fold in range(3):
        assert opened(folder, folds=3, fold=fold, val_fraction=0.0).made == ("test",)
        with pytest.raises(InputError, match=r"class 'rare' has too few .* and one for validation: add images"):
            opened(folder, folds=3, fold=fold, val_fraction=0.3)


@pytest.mark.parametrize(
    ("folds", "fold", "message"),
    [
        (1, 0, "config.data.folds=1 must be from 2 to 1000, or 0"),
        (-2, 0, "config.data.folds=-2 must be"),
        (1001, 0, "config.data.folds=1001 must be"),
        (5, 5, "config.data.fold=5 must be from 0 to 4, one of config.data.folds=5"),
        (5, -1, "config.data.fold=-1 must be from 0 to 4"),
        (0, 1, "config.data.fold=1 must be 0 without config.data.folds"),
    ],
)
def test_numbers_that_name_no_fold_are_refused(folds, fold, message):
    check_folds(0, 0)
    check_folds(5, 4)
    with pytest.raises(InputError, match=message):
        check_folds(folds, fold)
