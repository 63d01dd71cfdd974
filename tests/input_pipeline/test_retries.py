"""A hiccup of the disk is sat out within bounds; then the file is named, and no verdict is remembered."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from input_pipeline import folder, retries, stream
from input_pipeline.crops import Crop
from input_pipeline.errors import InputError
from input_pipeline.order import Order
from input_pipeline.retries import ATTEMPTS, patiently
from input_pipeline.sources import open_source
from input_pipeline.stream import train_batches
from tests.tiny import tiny_data


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """The seconds that would have been waited."""
    noted: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", noted.append)
    monkeypatch.setattr(stream, "_BACKOFF_SECONDS", 0.0)
    return noted


def failing(number: int, times: int):
    """(a function that raises OSError(number) `times` times and then returns 'read', how often it was called)."""
    calls: list[int] = []

    def read() -> str:
        calls.append(number)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number), "a.jpg")
        return "read"

    return read, calls


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTUNREACH])
@pytest.mark.parametrize("times", range(ATTEMPTS))
def test_what_passes_is_sat_out(number, times, waits):
    read, calls = failing(number, times)
    assert patiently(read) == "read"
    assert len(calls) == times + 1
    assert waits == [0.3 * 2**attempt for attempt in range(times)]


def test_what_does_not_pass_is_raised_after_ten_seconds(waits):
    read, calls = failing(errno.EIO, 100)
    with pytest.raises(OSError, match="Input/output error"):
        patiently(read)
    assert len(calls) == ATTEMPTS
    assert 9 < sum(waits) < 10


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR])
def test_what_waiting_cannot_mend_is_raised_at_once(number, waits):
    read, calls = failing(number, 100)
    with pytest.raises(OSError, match=os.strerror(number)):
        patiently(read)
    assert len(calls) == 1
    assert waits == []


@pytest.fixture
def sick(monkeypatch):
    """Makes the reading of files whose name ends so fail `times` times with EIO: sick(ending, times)."""
    read_encoded = folder.read_encoded
    left: dict[str, int] = {}

    def read(path: str | Path) -> bytes:
        for ending, times in left.items():
            if str(path).endswith(ending) and times:
                left[ending] -= 1
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read_encoded(path)

    monkeypatch.setattr(folder, "read_encoded", read)
    return lambda ending, times: left.update({ending: times})


def test_the_audit_sits_out_a_hiccup_and_remembers_no_verdict_of_a_lasting_one(tmp_path, sick):
    data, cache = tiny_data(tmp_path, per_class=2), str(tmp_path / "cache")
    victim = sorted(path.relative_to(data).as_posix() for path in (data / "train").rglob("*.jpg"))[0]
    arguments = {"val_fraction": 0.0, "cache_dir": cache, "on_error": "skip"}
    sick(victim, 10**6)
    with pytest.raises(InputError, match=rf"^{victim}: cannot be read from the disk \(Input/output error\)"):
        open_source("folder", str(data), **arguments)
    assert not Path(cache).exists()
    sick(victim, ATTEMPTS - 1)
    assert open_source("folder", str(data), **arguments).skipped == ()


def test_training_sits_out_a_hiccup_and_names_the_file_of_a_lasting_one(tmp_path, sick):
    data = tiny_data(tmp_path, per_class=2)
    train = open_source("folder", str(data), val_fraction=0.0, cache_dir=str(tmp_path / "cache")).splits["train"]
    order, crop = Order(len(train), 2, 0), Crop("none", 16)
    expected = list(train_batches(train, order, crop, num_steps=3))
    victim = int(order.indices(1)[0])
    original = Path(train.paths[victim]).read_bytes()

    def restore_after(times: int):
        # TensorFlow's own reader fails as the file is away; ours finds it back after so many errors.
        Path(train.paths[victim]).unlink()
        left = [times]

        def read() -> bytes:
            if left[0]:
                left[0] -= 1
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), train.paths[victim])
            Path(train.paths[victim]).write_bytes(original)
            return original

        return lambda i: patiently(read) if i == victim else train.read(i)

    healed = type(train)(**{**vars(train), "read": restore_after(ATTEMPTS - 1)})
    for got, wanted in zip(train_batches(healed, order, crop, num_steps=3), expected, strict=True):
        assert got.keys() == wanted.keys()
        assert all(np.array_equal(got[name], wanted[name]) for name in got)
    lost = type(train)(**{**vars(train), "read": restore_after(10**6)})
    with pytest.raises(InputError, match=rf"{Path(train.ids[victim]).name}: cannot be read \(Stale file handle\)"):
        list(train_batches(lost, order, crop, num_steps=3))
