"""Results on disk: what stands beside the figures, what of a command is kept, and that old files can be read."""

import json
import re
import sys

import pytest

from benchmarks import record
from input_pipeline.errors import InputError
from resnet.train.provenance import revision


def test_what_is_written_is_read_again_with_how_it_came_about(tmp_path, capsys):
    words = ["python", "-m", "benchmarks.step", "--rounds=2"]
    file = record.write("step", {"images_per_second": {"ours": 2.5}}, tmp_path / "new" / "step_cpu8.json", words=words)
    found = record.read(file)
    assert (found.benchmark, found.command, found.machine) == ("step", " ".join(words), "cpu8")
    assert found.figures["images_per_second"] == {"ours": 2.5}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found.date)
    assert found.device == f"{found.figures['cpu']['cores']}-core {found.figures['cpu']['model']} CPU"
    assert {"jax", "flax", "numpy"} <= set(found.figures["versions"])
    assert found.figures["revision"] == revision(but_for=(str(record.RESULTS),))
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert str(file) in capsys.readouterr().out


def test_a_device_of_another_kind_has_its_own_name(tmp_path):
    found = record.read(record.write("gpu", {}, tmp_path / "gpu_nvidia_h100.json", device="NVIDIA H100"))
    assert (found.device, found.machine) == ("NVIDIA H100", "nvidia_h100")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["python", "-m", "benchmarks.feed", "/home/somebody/flowers"], "python -m benchmarks.feed PATH/flowers"),
        (["python", "--config.data.dir=/x/cifar10", "--rounds=3"], "python --config.data.dir=PATH/cifar10 --rounds=3"),
        (["python", "--seeds=(0, 1)", "data/flowers"], "python '--seeds=(0, 1)' data/flowers"),
    ],
)
def test_a_command_names_no_place_of_this_machine(words, line):
    assert record.command_line(words) == line


def test_the_command_is_the_one_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/__main__.py", "--table"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", type("Spec", (), {"name": "benchmarks.__main__"}))
    assert record.typed() == ["python", "-m", "benchmarks", "--table"]


def test_every_file_of_results_can_be_read():
    found = record.read_all()
    assert len(found) == len(list(record.RESULTS.glob("*.json"))) > 0
    assert all(each.benchmark and each.figures for each in found)


@pytest.mark.parametrize("text", ["", "[1]", '{"a":'])
def test_what_is_no_record_is_named(text, tmp_path):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(InputError, match=r"broken\.json"):
        record.read_all(tmp_path)


def test_a_record_appears_in_one_piece(tmp_path, monkeypatch):
    file = record.write("step", {"rounds": 1}, tmp_path / "step.json")
    monkeypatch.setattr(json, "dumps", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        record.write("step", {"rounds": 2}, file)
    monkeypatch.undo()
    assert record.read(file).figures["rounds"] == 1
