"""What the doctor knows of copies, put to use on the splits that a run has: told, left out, kept together."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_doctor_copies import drawing, encoded, put
from test_doctor_findings import noise

from input_pipeline import sources
from input_pipeline.carving import choose_whole, keep_together, stratified_choice
from input_pipeline.doctor_summary import leak_lines, warning_lines
from input_pipeline.errors import InputError
from input_pipeline.images import sniff
from input_pipeline.leaks import families, find_leaks


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """Caches of its own, and headers believed: nothing here needs TensorFlow."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sources, "_decode", lambda data, name: (sniff(data, name).height, sniff(data, name).width))


@pytest.fixture
def leaky(tmp_path) -> Path:
    """Of three test images of class a one stands in train byte for byte, one as a copy, one nowhere."""
    rose, tulip = drawing("rose", 1), drawing("tulip", 2)
    contents = {
        "train/a/rose.png": encoded(rose), "train/a/lily.png": encoded(tulip), "train/b/1.png": encoded(noise(1)),
        "val/a/rose.jpg": encoded(rose, "JPEG", quality=70), "val/b/4.png": encoded(noise(4)),
        "test/a/same.png": encoded(rose), "test/a/again.jpg": encoded(tulip, "JPEG", quality=60),
        "test/a/other.png": encoded(noise(3)), "test/b/2.png": encoded(noise(2)),
    }  # fmt: skip
    return put(tmp_path / "data", contents)


def opened(folder: Path, **options: object) -> sources.Source:
    return sources.open_source("folder", str(folder), progress=False, **options)  # type: ignore[arg-type]


def test_leaks_are_told_with_the_doctor_and_without(leaky):
    with_doctor, without = opened(leaky, doctor=True), opened(leaky)
    assert without.report is None
    leaks = find_leaks(with_doctor, "test")
    found = leaks.ids(with_doctor.splits["test"])
    assert found == {"exact": ("test/a/same.png",), "near": ("test/a/again.jpg",)}
    assert leaks.searched
    assert find_leaks(with_doctor, "val").ids(with_doctor.splits["val"]) == {"exact": (), "near": ("val/a/rose.jpg",)}
    assert not find_leaks(with_doctor, "train").either.any()
    plain = find_leaks(without, "test")
    assert plain.ids(without.splits["test"]) == {"exact": ("test/a/same.png",), "near": ()}
    assert not plain.searched


def test_leaks_are_dropped_counted_and_part_of_the_fingerprint(leaky):
    whole, clean = opened(leaky, doctor=True), opened(leaky, doctor=True, drop_leaks=True)
    assert clean.splits["test"].ids == ("test/a/other.png", "test/b/2.png")
    assert clean.splits["val"].ids == ("val/b/4.png",)
    assert clean.splits["train"].ids == whole.splits["train"].ids
    assert clean.dropped["test"] == {"exact": ("test/a/same.png",), "near": ("test/a/again.jpg",)}
    assert clean.fingerprint != whole.fingerprint
    assert not find_leaks(clean, "test").either.any()
    assert opened(leaky, drop_leaks=True).dropped == {"test": {"exact": ("test/a/same.png",), "near": ()}}


def test_the_screen_says_it(leaky):
    val, test = leak_lines(opened(leaky, doctor=True))
    assert val.startswith("of 2 val images, also in train: 1 as copies")
    assert test.startswith("of 4 test images, also in train or val: 1 byte for byte, 1 as copies")
    val, test = leak_lines(opened(leaky, doctor=True, drop_leaks=True))
    assert "left out of test" in test
    assert test.endswith("; 2 remain")
    assert leak_lines(opened(leaky)) == warning_lines(opened(leaky)) == []
    lines = warning_lines(opened(leaky, doctor=True))
    assert any(line.startswith("warning: ") for line in lines)
    assert not any("byte-identical copy" in line for line in lines), "told by leak_lines"
    assert lines[-1].endswith(str(leaky))


def test_nothing_to_drop_changes_nothing(tmp_path):
    contents = {f"{split}/{c}/{i}{c}{split}.png": encoded(noise(3 * i + 40 * (c == "b") + 7 * (split == "test")))
                for split in ("train", "test") for c in "ab" for i in range(2)}  # fmt: skip
    folder = put(tmp_path / "data", contents)
    plain, asked = (opened(folder, doctor=True, val_fraction=0.0, drop_leaks=drop) for drop in (False, True))
    assert plain.fingerprint == asked.fingerprint
    assert asked.dropped == {}


def test_a_split_of_nothing_but_leaks_is_refused(tmp_path):
    same = {c: encoded(noise(i)) for i, c in enumerate("ab")}
    folder = put(tmp_path / "data", {f"{s}/{c}/1.png": same[c] for s in ("train", "test") for c in "ab"})
    with pytest.raises(InputError, match="drop_leaks leaves no test image: all 2"):
        opened(folder, val_fraction=0.0, drop_leaks=True)


@pytest.mark.parametrize("seed", range(3))
def test_copies_are_kept_together_where_the_split_is_ours(tmp_path, seed):
    """Five pictures of a class, each in two copies: a random split tears some, this one none, and both keep shares."""
    contents = {}
    for label, c in enumerate("ab"):
        for i in range(5):
            picture = drawing("rose", 10 * label + i)
            contents |= {f"{c}/{i}.png": encoded(picture), f"{c}/{i}.jpg": encoded(picture, "JPEG", quality=75)}
            contents[f"{c}/{i}again.png"] = encoded(picture)
    folder = put(tmp_path / "data", contents)
    options = {"doctor": True, "split_seed": seed, "test_fraction": 0.3, "val_fraction": 0.2}
    torn, whole = opened(folder, **options), opened(folder, **options, keep_copies_together=True)
    assert find_leaks(torn, "test").either.any()
    assert whole.report is not None
    side = {example: name for name, split in whole.splits.items() for example in split.ids}
    assert all(len({side[example] for example in family}) == 1 for family in families(whole.report))
    assert not any(find_leaks(whole, name).either.any() for name in whole.splits)
    assert sorted(side) == sorted(contents)


def in_copies(**copies: int) -> dict[str, bytes]:
    """Two pictures, each in so many copies, for each class."""
    contents = {}
    for label, (c, number) in enumerate(copies.items()):
        for i in range(2):
            picture = drawing("rose", 10 * label + i)
            contents |= {f"{c}/{i}_{n}.jpg": encoded(picture, "JPEG", quality=95 - 10 * n) for n in range(number)}
    return contents


@pytest.mark.parametrize("seed", range(8))
def test_a_split_of_few_images_that_keeps_copies_together_is_not_empty(tmp_path, seed):
    """One image is drawn for each split: where its family's first stands in train, a whole family goes in its place."""
    contents = in_copies(a=2, b=2) | {f"{c}/alone.png": encoded(noise(40 + i)) for i, c in enumerate("ab")}
    folder = put(tmp_path / "data", contents)
    options = {"doctor": True, "split_seed": seed, "test_fraction": 0.1, "val_fraction": 0.1}
    source = opened(folder, **options, keep_copies_together=True)
    assert source.report is not None
    side = {example: name for name, split in source.splits.items() for example in split.ids}
    assert sorted(side) == sorted(contents)
    assert set(side.values()) == {"train", "val", "test"}
    assert all(len({side[example] for example in family}) == 1 for family in families(source.report))
    assert set(source.splits["train"].labels.tolist()) == {0, 1}
    again = opened(folder, **options, keep_copies_together=True)
    assert again.fingerprint == source.fingerprint


def test_where_no_family_can_go_the_split_is_refused(tmp_path):
    contents = {name: data for name, data in in_copies(a=3, b=3).items() if Path(name).name.startswith("0_")}
    folder = put(tmp_path / "data", contents)
    options = {"doctor": True, "val_fraction": 0.0, "keep_copies_together": True}
    with pytest.raises(InputError, match=r"keep_copies_together=True leaves no image for test: .* add other") as error:
        opened(folder, **options)
    assert "\n" not in str(error.value)
    assert set(opened(folder, **options, test_fraction=0.0).splits) == {"train"}


def test_only_the_doctor_can_keep_copies_together(leaky):
    with pytest.raises(InputError, match="keep_copies_together"):
        opened(leaky, keep_copies_together=True)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=1, max_size=12), st.data())
def test_groups_stand_on_one_side_and_no_class_is_lost(rows, data):
    chosen, labels = np.array([c for c, _ in rows]), np.array([label for _, label in rows])
    for label in set(labels.tolist()):  # as stratified_choice leaves it
        chosen[np.flatnonzero(labels == label)[0]] = False
    order = data.draw(st.permutations(range(len(rows))))
    cut = data.draw(st.integers(0, len(rows)))
    groups = [order[:cut], order[cut:]]
    kept = keep_together(chosen, labels, groups)
    assert all(len(set(kept[group].tolist())) <= 1 for group in groups)
    assert set(labels[~kept].tolist()) == set(labels.tolist())
    single = keep_together(chosen, labels, [[row] for row in order])
    assert single.tolist() == chosen.tolist()


@st.composite
def families_of_two_classes(draw: st.DrawFn) -> tuple[np.ndarray, list[list[int]]]:
    """Labels of at least two examples a class, and disjoint groups of some of them."""
    labels = np.array(draw(st.permutations([0, 0, 1, 1, *draw(st.lists(st.integers(0, 1), max_size=8))])), np.int32)
    names = draw(st.lists(st.integers(0, 5), min_size=len(labels), max_size=len(labels)))
    groups = [[row for row, other in enumerate(names) if other == name] for name in range(1, 6)]
    return labels, [rows for rows in groups if rows]


@given(families_of_two_classes(), st.sampled_from((0.05, 0.3, 0.6)), st.integers(0, 50))
def test_whole_families_are_chosen_wherever_one_can_be(made, fraction, seed):
    labels, groups = made
    drawn = stratified_choice(labels, fraction, seed=seed, stream=1, class_names=("a", "b"))
    chosen = choose_whole(labels, drawn, groups, seed=seed, stream=1)
    grouped = {row for rows in groups for row in rows}
    whole = [*groups, *([row] for row in range(len(labels)) if row not in grouped)]
    lost = [set(np.delete(labels, rows).tolist()) != {0, 1} for rows in whole]
    assert chosen.any() == (not all(lost))
    assert all(len(set(chosen[rows].tolist())) == 1 for rows in whole)
    assert set(labels[~chosen].tolist()) == {0, 1}
    more = np.bincount(labels[chosen], minlength=2) > np.bincount(labels[drawn], minlength=2)
    assert not more.any() or sum(chosen[rows[0]] for rows in whole) == 1, "more than was drawn, but one family"
    assert choose_whole(labels, drawn, groups, seed=seed, stream=1).tolist() == chosen.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_few_images_of_each_class_leave_no_copy_of_them_in_test(tmp_path, seed):
    """Four pictures of a class, two in two copies: as many train as asked for, and no test image is a copy of one."""
    contents = in_copies(a=2, b=2)
    contents |= {f"{c}/alone{i}.png": encoded(noise(40 + 2 * i + n)) for n, c in enumerate("ab") for i in range(2)}
    folder = put(tmp_path / "data", contents)
    options = {"doctor": True, "val_fraction": 0.0, "split_seed": seed, "keep_copies_together": True}
    source = opened(folder, **options, per_class=3)
    assert np.bincount(source.splits["train"].labels).tolist() == [3, 3]
    assert len(source.splits["test"]) == 6
    assert not find_leaks(source, "test").either.any()


def test_where_families_make_no_such_number_it_is_refused(tmp_path):
    folder = put(tmp_path / "data", in_copies(a=2, b=2))
    options = {"doctor": True, "val_fraction": 0.0, "per_class": 3}
    with pytest.raises(InputError, match=r"cannot pick 3 images \(config\.data\.per_class\) of class 'a'"):
        opened(folder, **options, keep_copies_together=True)
    assert len(opened(folder, **options).splits["test"]) == 2
