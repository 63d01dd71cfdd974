"""What benchmarks/gpu_commands.py notes of commands, and that a second call goes on."""

import json

import pytest

from benchmarks import gpu_command_parts, gpu_commands, record
from benchmarks.command_shell import Shell, Unexpected
from input_pipeline.errors import InputError
from input_pipeline.resident import read_arrays


def test_every_part_that_is_named_exists():
    assert set(gpu_commands.PARTS) == gpu_command_parts.PARTS.keys()


def test_commands_are_noted_and_held_to_what_they_promise(tmp_path):
    shell = Shell(tmp_path / "out.json", {"WORD": "up"})
    assert shell.run("-c", "import os; print(os.environ['WORD'])").out == "up\n"
    shell.refused(
        "memory", "-c", "import sys; print('W0 a remark\\nerror: out of memory', file=sys.stderr); sys.exit(2)"
    )
    with pytest.raises(Unexpected, match="exit code 3, not 0: no output"):
        shell.run("-c", "import sys; sys.exit(3)")
    with pytest.raises(Unexpected, match="no line on 'memory'"):
        shell.refused(
            "memory",
            "-c",
            "import sys; sys.exit('error: another') if 0 else None; print('x', file=sys.stderr); sys.exit(2)",
        )
    shell.compare("its twin", [])
    with pytest.raises(Unexpected, match="differs from its twin: figures"):
        shell.compare("its twin", ["figures from step 3 on"], equal=True)
    noted = json.loads((tmp_path / "out.json").read_text())
    assert [command["code"] for command in noted["commands"]] == [0, 2, 3, 2]
    assert noted["found"][:2] == ["error: out of memory", "x"]
    assert noted["equal"] is False


def test_a_second_call_goes_on_with_what_is_not_done(tmp_path, monkeypatch):
    out, asked = tmp_path / "found.json", []
    rows = [{"part": "float32", "wall_seconds": 1.0}, {"part": "resumed", "failed": "stopped", "wall_seconds": 9.0}]
    record.write("gpu_commands", {"small": True, "rows": rows}, out)
    assert gpu_commands.done_before(out, small=False) == []

    def run_all(benchmark, module, parts, **options):
        asked.extend(part.label["part"] for part in parts)
        return [
            *options["earlier"],
            {"part": "resumed", "wall_seconds": 3.0, "found": ["equal"], "images_per_second": 5.0},
        ]

    monkeypatch.setattr(gpu_commands, "run_all", run_all)
    words = ["--small", "--parts=float32,resumed", f"--out={out}", f"--work={tmp_path / 'work'}"]
    monkeypatch.setattr("sys.argv", ["gpu_commands", *words])
    assert gpu_commands.main() == 0
    assert asked == ["resumed"]
    assert len(read_arrays(tmp_path / "work" / "small" / "drawn.npz", 32).splits["train"]) == 320
    table = gpu_commands.table(rows)
    assert "| resumed | failed | 9 |" in table
    monkeypatch.setattr("sys.argv", ["gpu_commands", "--parts=float16"])
    with pytest.raises(InputError, match="no part 'float16'; choose from float32, "):
        gpu_commands.main()
