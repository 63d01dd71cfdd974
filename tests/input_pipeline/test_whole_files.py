"""A file is the old one or the new one, whatever happens in between."""

import os

import pytest

from input_pipeline.whole_files import beside, clear_parts, write_whole
from resnet.train.workdir import claimed


def test_a_text_takes_the_place_of_another(tmp_path):
    file = tmp_path / "page.html"
    for text in ("old", "né"):
        write_whole(file, text)
        assert file.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [file]


def test_what_utf_8_lacks_is_an_error_or_written_as_asked(tmp_path):
    file = tmp_path / "page.html"
    write_whole(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "new \udcff")
    assert file.read_text() == "old"
    write_whole(file, "new \udcff", errors="backslashreplace")
    assert file.read_text() == r"new \udcff"
    assert list(tmp_path.iterdir()) == [file]


def test_the_old_file_stands_until_the_end_and_after_an_error(tmp_path):
    file = tmp_path / "batch.png"
    file.write_bytes(b"old")

    def fail_halfway() -> None:
        with beside(file) as part:
            part.write_bytes(b"half")
            assert file.read_bytes() == b"old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_disk_that_refuses_is_an_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        write_whole(tmp_path / "absent" / "page.html", "text")


def test_a_link_that_lies_in_wait_is_not_followed(tmp_path, monkeypatch):
    """In /tmp anybody may make one; that its name cannot be guessed is the first defence, this the second."""
    monkeypatch.setattr("secrets.token_hex", lambda count: "guessed")
    (tmp_path / "mine").write_text("precious")
    (tmp_path / ".page.html.guessed.part").symlink_to("mine")
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "page.html", "text")
    assert (tmp_path / "mine").read_text() == "precious"


def test_what_a_kill_left_is_gone_once_the_folder_is_claimed_again(tmp_path):
    for name in (".table.md.part", "kept.part", ".hidden"):
        (tmp_path / name).write_text("not a part of ours")
    kept = sorted(tmp_path.iterdir())
    with beside(tmp_path / "curves.png") as part:
        os.link(part, left := tmp_path / ".curves.png.0123456789abcdef.part")
    (tmp_path / "curves.png").unlink()
    assert left.exists()
    with claimed(tmp_path):
        assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / ".lock"])
    clear_parts(tmp_path / "absent")


def test_the_longest_name_has_a_part_too(tmp_path):
    write_whole(tmp_path / ("n" * 255), "text")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]
