"""The doctor's memory of single files, and what it takes from those who read them anyway."""

import errno
import os
import shutil

import pytest
from test_doctor_copies import encoded, put
from test_doctor_findings import noise

from input_pipeline import looking, sources
from input_pipeline.doctor import Doctor, look_over
from input_pipeline.findings import Report
from input_pipeline.folder import find_images
from input_pipeline.look_cache import ROW


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def seen(monkeypatch) -> list[bytes]:
    """The bytes of every file that is looked at."""
    found: list[bytes] = []
    really = looking.look

    def look(data, *rest, **options):
        found.append(data)
        return really(data, *rest, **options)

    monkeypatch.setattr(looking, "look", look)
    return found


@pytest.fixture
def root(tmp_path):
    return put(
        tmp_path / "data",
        {f"{name}/{i}.png": encoded(noise(10 * i + len(name))) for name in ("a", "bb") for i in range(3)},
    )


def looks_file(tmp_path):
    (path,) = (tmp_path / "home" / "resnet-jax" / "doctor").glob("*.looks")
    return path


def forget_reports(tmp_path) -> None:
    for path in (tmp_path / "home" / "resnet-jax" / "doctor").glob("*.json"):
        path.unlink()


def fresh(root, tmp_path) -> Report:
    return look_over(root, cache_dir=str(tmp_path / "another"))


def test_one_changed_file_is_looked_at_and_no_other(root, seen, tmp_path):
    look_over(root)
    assert len(seen) == 6
    seen.clear()
    (root / "a" / "1.png").write_bytes(encoded(noise(77), "JPEG", quality=95))
    (root / "bb" / "2.png").unlink()
    (root / "b").mkdir()
    (root / "b" / "new.png").write_bytes(encoded(noise(78)))
    report = look_over(root)
    assert len(seen) == 2
    assert report == fresh(root, tmp_path)


def test_a_file_that_comes_to_share_its_size_is_compared(tmp_path, seen):
    """Only the bytes of files of equal size are summed; the one that was there alone has no sum yet."""
    content = encoded(noise(1))
    root = put(tmp_path / "data", {"a/1.png": content, "b/1.png": encoded(noise(2, (30, 30)))})
    assert look_over(root).identical == ()
    (root / "b" / "2.png").write_bytes(content)
    assert look_over(root).identical == (("a/1.png", "b/2.png"),)


def test_what_the_audit_reads_is_not_read_again(root, seen, tmp_path, monkeypatch):
    monkeypatch.setattr(looking.Looking, "_open", None)  # Whoever reads a file now, fails.
    monkeypatch.setattr(sources, "_decode", lambda data, name: (48, 48))  # TensorFlow takes seconds to start.
    source = sources.open_source("folder", str(root), doctor=True, cache_dir=str(tmp_path / "audit"), progress=False)
    assert len(seen) == 6
    monkeypatch.undo()
    assert source.report == fresh(root, tmp_path)


def test_a_look_that_was_cut_short_goes_on(root, seen, tmp_path):
    """Also behind a torn row, and past one whose bytes are others."""
    doctor = Doctor(find_images(root))
    for i in range(4):
        doctor.take(i, *doctor.listing.examine(i))
    doctor._looking._cache.close()  # As the end of the process does.
    with looks_file(tmp_path).open("r+b") as file:
        file.seek(ROW.itemsize + 300)
        file.write(b"\0\0\0\0")
        file.seek(-10, os.SEEK_END)
        file.truncate()
    seen.clear()
    assert look_over(root) == fresh(root, tmp_path)
    assert len(seen) == 4 + 6  # Of four rows one is damaged and one torn.
    seen.clear()
    forget_reports(tmp_path)
    look_over(root)
    assert seen == []


def test_rows_of_files_that_are_gone_are_left_behind(root, tmp_path, monkeypatch):
    monkeypatch.setattr("input_pipeline.look_cache._STALE", 0)
    for i in range(5):
        (root / "a" / "0.png").write_bytes(encoded(noise(100 + i), "JPEG", quality=40 + 10 * i))
        (root / "a" / "1.png").write_bytes(encoded(noise(200 + i), "JPEG", quality=40 + 10 * i))
        report = look_over(root)
    assert looks_file(tmp_path).stat().st_size <= (2 * 6 + 2) * ROW.itemsize
    assert report == fresh(root, tmp_path)


@pytest.mark.parametrize(("number", "again"), [(errno.EACCES, True), (errno.EIO, True), (errno.ELOOP, False)])
def test_a_file_that_was_not_given_is_asked_for_again(root, monkeypatch, number, again):
    """chmod mends it and leaves its size and time as they were."""

    def examine(i: int) -> tuple[bytes, int]:
        raise OSError(number, os.strerror(number))

    listing = find_images(root)
    closed = type(listing)(**{**vars(listing), "examine": examine})
    assert {finding.code for finding in Doctor(closed).look_over().findings} >= {"unreadable"}
    codes = {finding.code for finding in Doctor(listing).look_over().findings}
    assert ("unreadable" not in codes) == again


def test_a_second_process_leaves_the_file_to_the_first(root, seen, tmp_path):
    first = Doctor(find_images(root))
    first.take(0, *first.listing.examine(0))
    assert look_over(root) == fresh(root, tmp_path)
    assert first.look_over() == look_over(root)
    assert looks_file(tmp_path).stat().st_size == 6 * ROW.itemsize


def test_what_another_process_saw_in_the_meantime_is_not_read_again(root, seen, tmp_path):
    """As the processes of one machine do, all but one of which wait for its audit."""
    waiting, reading = Doctor(find_images(root)), Doctor(find_images(root))
    with reading.quietly():
        for i in range(6):
            reading.take(i, *reading.listing.examine(i))
    assert len(seen) == 6
    assert waiting.look_over() == fresh(root, tmp_path)
    assert len(seen) == 6 + 6  # Those of `fresh`.


def test_a_disk_with_little_room_is_left_to_the_audit(root, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * 6 * ROW.itemsize - 1))
    look_over(root)
    assert not list((tmp_path / "home" / "resnet-jax" / "doctor").glob("*.looks"))
