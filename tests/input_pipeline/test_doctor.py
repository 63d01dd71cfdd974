import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from shared_data import shared
from test_doctor_copies import drawing, encoded, put
from test_doctor_findings import noise

from input_pipeline import doctor
from input_pipeline.doctor import look_over, main, table
from input_pipeline.doctor_page import page
from input_pipeline.errors import InputError

HOSTILE = "<script>alert(1)</script>\x1b[31m\n\"'&.png"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def leaky(tmp_path) -> Path:
    image = drawing("rose", 1)
    contents = {
        "train/a/1.png": encoded(image), "train/b/1.png": encoded(noise(1)), "test/b/1.png": encoded(noise(2)),
        f"test/a/{HOSTILE.replace('/', '')}": encoded(image, "JPEG", quality=60),
    }  # fmt: skip
    return put(tmp_path / "data", contents)


def test_the_table_is_safe_to_print(leaky, capsys):
    assert main([str(leaky)]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"^error +1 of 2 test images has a copy", out, re.MULTILINE)
    assert all(character == "\n" or character.isprintable() for character in out)
    assert "\\x1b[31m\\n" in out


def test_json_holds_every_case_and_the_names_as_they_are(leaky, capsys):
    assert main([str(leaky), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["leaks"]["test"]["near"] == [f"test/a/{HOSTILE.replace('/', '')}"]
    assert told["counts"] == {"train": [1, 1], "test": [1, 1]}
    assert {finding["level"] for finding in told["findings"]} <= {"error", "warning", "note"}


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_shows_pairs_and_runs_nothing(leaky, tmp_path, capsys):
    target = tmp_path / "out" / "page.html"
    target.parent.mkdir()
    assert main([str(leaky), "--html", str(target)]) == 1
    text = target.read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.tags.count("img") >= 2
    assert "script" not in reader.tags
    assert all(link.startswith(("data:image/jpeg;base64,", "#f")) for link in reader.links)
    assert "http" not in text.replace("http-equiv", "")
    assert "&lt;script&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_page_stays_below_five_megabytes_and_survives_lost_files(tmp_path, monkeypatch):
    picture = noise(3, (300, 300)).convert("RGB")
    names = [f"{'x' * 180}{i}.jpg" for i in range(40)]
    contents = {f"{c}/{name}": encoded(picture, "JPEG", quality=95) for c in "abc" for name in names}
    root = put(tmp_path / "data", contents)
    report = look_over(root)
    (root / "a" / names[0]).unlink()
    assert "no picture" in page(report)
    monkeypatch.setattr("input_pipeline.doctor_page._PICTURE_BYTES", 20_000)
    assert len(page(report).encode()) < 100_000


def test_the_page_can_be_written_nowhere_but_where_it_can(leaky, tmp_path, capsys):
    assert main([str(leaky), "--html", str(tmp_path / "no" / "such" / "page.html")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no\nwhere"], "no\\nwhere: no such folder"),
        ([], "DATA_DIR"),
        (["--bogus", "x"], "--bogus"),
        (["empty"], "empty: no images"),
        (["file.txt"], "no such folder"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_link_to_itself_ends_in_words(tmp_path, capsys):
    root = put(tmp_path / "data", {"a/1.png": encoded(noise(1)), "b/1.png": encoded(noise(2))})
    (root / "a" / "self.png").symlink_to("self.png")
    # Listing it or refusing it is the listing's choice; a traceback is not.
    assert main([str(root)]) in (1, 2)
    assert "self.png" in "".join(capsys.readouterr())


def test_a_report_is_remembered_until_something_changes(leaky, monkeypatch):
    first = look_over(leaky)
    monkeypatch.setattr(doctor, "gather", None)  # whoever looks again now, fails
    assert look_over(leaky) == first
    monkeypatch.undo()
    (leaky / "train" / "a" / "pipe").mkdir()
    os.mkfifo(leaky / "train" / "a" / "pipe" / "x")
    assert "special" in {finding.code for finding in look_over(leaky).findings}
    (leaky / "train" / "a" / "2.png").write_bytes(b"")
    assert "unreadable" in {finding.code for finding in look_over(leaky).findings}


@pytest.mark.parametrize("garbage", ["", "{", "[]", "7", "null", '{"where": 1}'])
def test_a_damaged_memory_is_another_look(leaky, tmp_path, garbage):
    first = look_over(leaky, cache_dir=str(tmp_path / "c"))
    for cache in (tmp_path / "c").iterdir():
        cache.write_text(garbage)
    assert look_over(leaky, cache_dir=str(tmp_path / "c")) == first


def test_a_memory_that_cannot_be_kept_is_no_error(leaky, tmp_path):
    (tmp_path / "file").touch()
    assert look_over(leaky, cache_dir=str(tmp_path / "file" / "below")).exit_code == 1
    with pytest.raises(InputError, match="no such folder"):
        look_over(tmp_path / "nowhere")


def test_the_command_needs_neither_tensorflow_nor_jax(leaky):
    program = (
        "import sys; from input_pipeline.doctor import main; code = main(sys.argv[1:]); "
        "print(sorted({'tensorflow', 'jax', 'resnet'} & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    root = Path(doctor.__file__).parent.parent
    told = subprocess.run([sys.executable, "-c", program, str(leaky)], capture_output=True, text=True, cwd=root)
    assert (told.returncode, told.stderr) == (1, "[]\n")


def test_the_brain_tumour_set_is_seen_through():
    report = look_over(shared("brain_mri"))
    assert report.exit_code == 1
    exact, near = report.leaks["test"]["exact"], report.leaks["test"]["near"]
    assert len(exact) == 216
    # Looked at side by side; a change of a few is a change of decoder, a change of many a change of rules.
    assert 240 <= len(near) <= 300
    (groups,) = (finding for finding in report.findings if finding.code == "exact_copies")
    assert (len(groups.items), sum(len(item.files) - 1 for item in groups.items)) == (300, 426)
    assert not [finding for finding in report.findings if finding.code == "exact_two_labels"]
    assert any("216 of 1,311 test images" in line for line in table(report))
