import dataclasses

import numpy as np
from shared_data import shared

from input_pipeline import sources
from input_pipeline.images import content_of, sniff
from input_pipeline.leaks import byte_identical
from input_pipeline.sources import Split


def split_of(contents: list[bytes]) -> Split:
    n = len(contents)
    ids = tuple(str(i) for i in range(n))
    held = np.array([content_of(data) for data in contents], "S32")
    columns = (np.zeros(n, np.int32), ids, np.ones((n, 2), np.int32), np.ones(n, np.int8), None, held)
    return Split("train", *columns, contents.__getitem__)


def test_only_the_very_same_bytes_count():
    reference = split_of([b"one", b"two", b"three"])
    other = split_of([b"two", b"six", b"seven", b"eight", b"three", b"two"])
    assert byte_identical(reference, other).tolist() == [True, False, False, False, True, True]


def test_nothing_is_read_again():
    def gone(i: int) -> bytes:
        raise FileNotFoundError(i)

    reference, other = (dataclasses.replace(split_of(held), read=gone) for held in ([b"22", b"333"], [b"1", b"333"]))
    assert byte_identical(reference, other).tolist() == [False, True]


def test_empty_splits_have_no_leaks():
    assert byte_identical(split_of([]), split_of([b"a"])).tolist() == [False]
    assert byte_identical(split_of([b"a"]), split_of([])).tolist() == []


def test_the_known_leaks_of_the_brain_tumour_set_are_found(tmp_path, monkeypatch):
    def declared(data: bytes, name: str) -> tuple[int, int]:
        header = sniff(data, name)
        return header.height, header.width

    # None of this set's images is turned; decoding its 7,019 would be most of the test's time.
    monkeypatch.setattr(sources, "_decode", declared)
    source = sources.open_source("folder", str(shared("brain_mri")), val_fraction=0, cache_dir=str(tmp_path))
    found = byte_identical(source.splits["train"], source.splits["test"])
    assert len(found) == 1311
    assert int(found.sum()) == 216
