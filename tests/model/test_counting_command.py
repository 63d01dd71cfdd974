"""python -m resnet.model.counting: its tables, its check against published figures, and what it says to bad input."""

import csv
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from resnet.model import counting, counting_tables, network
from resnet.model.variants import VARIANTS, variant

ROOT = Path(__file__).resolve().parents[2]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["counting", *arguments])
    return counting.run()


def test_check_agrees_and_the_documentation_shows_its_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The 1202 layers would take as long to trace as all others; arithmetic, in test_counting.py, holds its figures.
    names = [name for name in VARIANTS if name != "cifar_resnet1202"]
    assert call(monkeypatch, "--check", "--model", *names) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    documentation = (ROOT / "docs" / "counts.md").read_text()
    documented = [line for line in documentation.splitlines() if line.startswith(("| model ", "| cifar_resnet1202 "))]
    deepest = variant("cifar_resnet1202")
    assert f"{deepest.parameters:,}" in documented[1]
    assert f"{deepest.multiply_adds:,}" in documented[1]
    missing = [row for row in rows if row not in documentation.splitlines()]
    assert not missing, "paste what python -m resnet.model.counting --check prints into docs/counts.md"
    assert call(monkeypatch) == 0
    assert capsys.readouterr().out.strip() in documentation, "paste what python -m resnet.model.counting prints"


def test_check_names_the_variant_whose_stride_moved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = network.Block

    def moved(*, name: str, stride: int, **fields: object) -> object:
        """The third stage halves its map one block later."""
        return original(name=name, stride={"layer3_0": 1, "layer3_1": 2}.get(name, stride), **fields)

    monkeypatch.setattr(network, "Block", moved)
    assert call(monkeypatch, "--check", "--model", "cifar_resnet20", "cifar_plain20") == 1
    captured = capsys.readouterr()
    assert "0 of 2 models agree" in captured.out
    assert "cifar_resnet20: " in captured.err
    assert "40,551,040 published" in captured.err


def test_check_in_json_tells_the_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = VARIANTS["cifar_resnet20"]
    monkeypatch.setitem(VARIANTS, "cifar_resnet20", dataclasses.replace(named, parameters=named.parameters + 1))
    assert call(monkeypatch, "--check", "--json", "--model", "cifar_resnet20", "--model", "cifar_resnet20_b") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert "difference -1" in report["models"]["cifar_resnet20"]["differences"][0]
    assert report["models"]["cifar_resnet20_b"]["differences"] == []


def test_json_holds_what_the_table_shows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model", "cifar_resnet20", "--set", "shortcut=B", "stage_sizes=(3,3,3)", "--image_size=32", "--json")
    assert call(monkeypatch, *arguments, "--batch_size=128", "--dtype=bfloat16") == 0
    found = json.loads(capsys.readouterr().out)["cifar_resnet20"]
    assert (found["parameters"], found["multiply_adds"]) == (272_474, 40_813_184)
    assert sum(stage["multiply_adds"] for stage in found["stages"]) == found["multiply_adds"]
    assert found["activation_bytes"] == found["activations"] * 128 * 2
    assert found["spec"]["shortcut"] == "B"


def test_csv_has_every_stage_of_every_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = ("--model", "cifar_resnet20", "cifar_plain20", "--set", "num_classes=100", "stage_sizes=1,1,1")
    assert call(monkeypatch, *networks, "--format=csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert call(monkeypatch, *networks, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    for name, counts in found.items():
        own = [row for row in rows if row["model"] == name]
        assert [row["stage"] for row in own] == [*(stage["name"] for stage in counts["stages"]), "total"]
        assert {row["set"] for row in own} == {"num_classes=100 stage_sizes=1,1,1"}
        for field in ("parameters", "statistics", "multiply_adds"):
            wanted = [stage[field] for stage in counts["stages"]] + [counts[field]]
            assert [int(row[field]) for row in own] == wanted
    assert len(rows) == 2 * 6


def test_check_in_other_forms_and_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ("--check", "--model", "cifar_resnet20")
    assert call(monkeypatch, *check, "--format=latex") == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("cifar"))
    assert row.startswith(r"cifar\_resnet20 & 269,722 & 269,722 & closed form & 40,551,040 &")
    monkeypatch.setattr(counting, "terminal_width", lambda: 80)
    assert call(monkeypatch, *check) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == list(counting_tables.NARROW)
    assert lines[2].startswith("| cifar_resnet20 |    269,722 |    40,551,040 | He et al. 2015: 0.27 M")
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "1 of 1 models agree with their published figures"
    # A figure that is off is in the CSV as well as on standard error.
    named = VARIANTS["cifar_resnet20"]
    monkeypatch.setitem(VARIANTS, "cifar_resnet20", dataclasses.replace(named, parameters=named.parameters + 1))
    assert call(monkeypatch, *check, "--format=csv") == 1
    captured = capsys.readouterr()
    (line,) = csv.DictReader(io.StringIO(captured.out))
    assert (line["parameters"], line["published"]) == ("269722", "269723")
    assert line["differences"] in captured.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model=resnet51"], "resnet51"),
        (["--set", "depth=3"], "depth=3"),
        (["--set", "conv_bias=maybe"], "true or false"),
        (["--set", "stage_sizes=3,x"], "stage_sizes=3,x"),
        (["--set", "shortcut=E"], "shortcut='E'"),
        (["--image_size=0"], "--image_size=0"),
        (["--image_size=16"], "too small"),
        (["--batch_size=many"], "--batch_size"),
        (["--check", "--set", "shortcut=C"], "omit --set"),
        (["--check", "--batch_size=8", "--dtype=float32"], "omit --batch_size and --dtype"),
        (["--batch_size=0"], "--batch_size=0"),
        (["--json", "--format=csv"], "--json and --format=csv are two ways to print"),
        (["--format=tex"], "--format"),
        (["--set", "shortcut=A", "shortcut=B"], "shortcut is set twice"),
        (["--set", "width=32", "--set", "width=32"], "width is set twice"),
        (["--set", "norm_groups=8"], "norm_groups=8 applies only where norm is group"),
        (["--set", "norm=group", "gate_bias=0"], "gate_bias=0.0 applies only where shortcut_transform is"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert named in captured.err
    assert captured.err.count("\n") == 1


def test_the_command_as_it_is_typed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "resnet.model.counting", "--model=resnet51"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown model 'resnet51'")
    assert done.stderr.count("\n") == 1
