"""What the GPU benchmarks are made of that needs no GPU: bytes counted, parts as processes, recipes, tables."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks import (
    cifar_arrays,
    gpu,
    gpu_cifar,
    gpu_cifar_parts,
    gpu_idea_parts,
    gpu_ideas,
    gpu_kernels,
    gpu_parts,
    part_processes,
)
from benchmarks.gpu_idea_bytes import (
    ELEMENTWISE,
    EVERYTHING,
    NOTHING,
    PRODUCTS,
    PROLOGUES,
    Fusion,
    layers,
    step_bytes,
)
from configs import cifar10_fast
from input_pipeline import resident
from input_pipeline.errors import InputError
from resnet.model.counts import count
from resnet.model.variants import variant
from resnet.train.configuration import make_spec, validate


@pytest.mark.parametrize(("fusion", "gigabytes"), [(NOTHING, 121.5), (ELEMENTWISE, 91.6), (EVERYTHING, 61.4)])
def test_a_step_of_resnet50_moves_the_bytes_that_were_counted_before(fusion, gigabytes):
    """For 256 images at 224 px in bfloat16; the two counts share no code, and differ where they fuse small kernels."""
    assert step_bytes(256, fusion) / 1e9 == pytest.approx(gigabytes, rel=0.012)


def test_each_fusion_saves_bytes_and_bytes_go_with_the_batch():
    ordered = [step_bytes(256, fusion) for fusion in (NOTHING, ELEMENTWISE, PROLOGUES, PRODUCTS, EVERYTHING)]
    assert ordered == sorted(ordered, reverse=True)
    assert step_bytes(512, PRODUCTS) == 2 * ordered[3]
    assert step_bytes(256, Fusion()) == ordered[1]


def test_the_layers_are_those_of_resnet50():
    """By the multiply-adds that follow from their sizes, and the dense layer's."""
    stem, blocks = layers()
    spec = variant("resnet50").spec
    found = sum(
        one.outputs * one.channels * one.kernel**2 for one in (stem, *(one for block in blocks for one in block))
    )
    assert found + 2048 * spec.num_classes == count(spec, 224).multiply_adds


def test_every_part_that_is_named_exists():
    parts = {name for group in gpu_ideas.GROUPS.values() for name in group}
    assert parts >= {*gpu_ideas.PIECES, *gpu_ideas.FLAGS, *gpu_ideas.LENGTHS, *gpu_idea_parts.ALONE}
    for name in parts:
        part = gpu_ideas.part_of(name)
        assert part.arguments[0] in {*gpu_ideas.PIECES, *gpu_idea_parts.ALONE}
        assert ("XLA_FLAGS" in part.environment) == (name in gpu_ideas.FLAGS)
    assert gpu_ideas.PREDICTED.keys() <= gpu_ideas.PIECES.keys()
    named = {part.partition(":")[0] for group in gpu.PARTS for part in group.split("+")}
    assert named <= gpu_parts.PARTS.keys()
    known = {*gpu_cifar_parts.RATES, "fast", *(f"fast_{name}" for name in gpu_cifar_parts.CANDIDATES)}
    assert {part for group in gpu_cifar.PARTS for part in group.split("+")} <= known


@pytest.mark.parametrize("candidate", gpu_cifar_parts.CANDIDATES)
def test_a_candidate_is_a_valid_recipe(candidate):
    config = cifar10_fast.get_config()
    for key, value in gpu_cifar_parts.CANDIDATES[candidate].items():
        section, name = key.split(".")
        config[section][name] = value
    validate(config)
    make_spec(config, 10)


PART = """
import json, os, sys, time
from pathlib import Path

out, name = Path(sys.argv[1]), sys.argv[2]
if name == "slow":
    out.write_text(json.dumps({"images_per_second": 5.0}))
    time.sleep(600)
if name == "broken":
    sys.exit(f"ValueError: no such thing")
out.write_text(json.dumps({"device": "Card 9", "word": os.environ["WORD"], "small": sys.argv[3:] == ["small"]}))
"""


def test_a_part_that_fails_or_hangs_costs_no_other(tmp_path, monkeypatch):
    (tmp_path / "a_part.py").write_text(PART)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(part_processes, "LEAST_SECONDS", 0)
    parts = [part_processes.Part({"part": name}, (name,), {"WORD": "up"}) for name in ("slow", "broken", "well")]
    rows = part_processes.run_all(
        "some", "a_part", parts, seconds=60, longest=2, out=str(tmp_path / "found.json"), small=True
    )
    told = json.loads((tmp_path / "found.json").read_text())
    assert told["rows"] == rows
    assert (told["device"], told["small"], told["benchmark"]) == ("Card 9", True, "some")
    slow, broken, well = rows
    assert slow["images_per_second"] == 5.0
    assert slow["failed"].startswith("stopped after")
    assert broken["failed"] == "ValueError: no such thing"
    assert (well["word"], well["small"]) == ("up", True)
    assert "failed" not in well


def test_half_of_cifar10_is_refused(tmp_path, monkeypatch, capsys):
    """Five of its classes run as well, are learnt far better, and are not what the benchmark is named for."""
    monkeypatch.setattr(cifar_arrays, "IMAGES", {"train": 80, "test": 40})
    for split, rows in (("train", 2), ("test", 1)):
        for number in range(10):
            sheet = np.full((32 * rows, 1280, 3), 20 * number, np.uint8)
            Image.fromarray(sheet).save(tmp_path / f"{split}_class{number}.webp", lossless=True)
    arrays = tmp_path / "cifar10.npz"
    cifar_arrays.write_cifar([str(tmp_path)], arrays)
    read = resident.read_arrays(arrays, 32)
    assert [len(split) for split in read.splits.values()] == [800, 400]
    np.testing.assert_array_equal(read.splits["test"].images[::40, 0, 0, 0], 20 * np.arange(10))

    (tmp_path / "test_class3.webp").unlink()
    with pytest.raises(
        InputError, match="mosaics of 10 classes, 19 files; CIFAR-10 has 10 classes, each as train_CLASS"
    ):
        cifar_arrays.write_cifar([str(tmp_path)], arrays)
    (tmp_path / "train_class3.webp").unlink()
    monkeypatch.setattr("sys.argv", ["gpu_cifar", f"--sheets={tmp_path}"])
    with pytest.raises(SystemExit) as left:
        gpu_cifar.main()
    assert left.value.code == 2
    assert "holds mosaics of 9 classes, 18 files" in capsys.readouterr().err

    Image.fromarray(np.zeros((64, 1280, 3), np.uint8)).save(tmp_path / "test_class3.webp", lossless=True)
    Image.fromarray(np.zeros((64, 1280, 3), np.uint8)).save(tmp_path / "train_class3.webp", lossless=True)
    with pytest.raises(InputError, match=r"each test_CLASS\.webp of CIFAR-10 holds 40 images"):
        cifar_arrays.write_cifar([str(tmp_path)], arrays)


GROUPED = """
import json, sys, time
from pathlib import Path

from benchmarks.part_processes import wait_for_turn

out, name, log = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])

def note(what):
    with log.open("a") as stream:
        stream.write(f"{what} {name}\\n")

if name == "broken":
    sys.exit("ValueError: no such thing")
note("compiles")
if name == "slow":
    for _ in range(60):
        time.sleep(0.05)
        note("compiling")
wait_for_turn()
note("begins")
time.sleep(0.5)
note("ends")
out.write_text(json.dumps({"word": name}))
"""


def test_parts_of_a_group_compile_side_by_side_and_measure_alone(tmp_path, monkeypatch):
    """A slow compiler is halted while others measure, and has its turn after them."""
    (tmp_path / "grouped_part.py").write_text(GROUPED)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    monkeypatch.setattr(part_processes, "LEAST_SECONDS", 0)
    log = tmp_path / "log"
    group = [part_processes.Part({"part": name}, (name, str(log))) for name in ("slow", "one", "two", "broken")]
    rows = part_processes.run_all(
        "some", "grouped_part", [group], seconds=60, longest=1.5, out=str(tmp_path / "found.json"), small=False
    )
    assert {row["part"]: row.get("word", row.get("failed")) for row in rows} == {
        "one": "one",
        "two": "two",
        "broken": "ValueError: no such thing",
        "slow": "slow",
    }
    lines = log.read_text().split("\n")
    begins = {name: lines.index(f"begins {name}") for name in ("one", "two", "slow")}
    ends = {name: lines.index(f"ends {name}") for name in ("one", "two", "slow")}
    assert max(lines.index(f"compiles {name}") for name in ("one", "two", "slow")) < min(begins.values())
    assert ends["one"] < begins["two"] < ends["two"] < begins["slow"]
    for name in ("one", "two"):
        assert ends[name] == begins[name] + 1, "something else was at work"


EVENTS = [
    {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}},
    {"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "/host:CPU"}},
    {"ph": "M", "name": "thread_name", "pid": 1, "tid": 5, "args": {"name": "Stream #5(Compute)"}},
    {"ph": "M", "name": "thread_name", "pid": 1, "tid": 6, "args": {"name": "XLA Ops"}},
    {"ph": "M", "name": "thread_name", "pid": 2, "tid": 5, "args": {"name": "Stream of a host"}},
    {"ph": "X", "name": "gemm", "pid": 1, "tid": 5, "ts": 100.0, "dur": 30.0, "args": {"hlo_op": "dot.1"}},
    {"ph": "X", "name": "add", "pid": 1, "tid": 5, "ts": 140.0, "dur": 10.0, "args": {"hlo_op": "fusion.2"}},
    {"ph": "X", "name": "gemm", "pid": 1, "tid": 5, "ts": 200.0, "dur": 50.0, "args": {"hlo_op": "dot.1"}},
    {"ph": "X", "name": "dot.1", "pid": 1, "tid": 6, "ts": 100.0, "dur": 900.0},
    {"ph": "X", "name": "python", "pid": 2, "tid": 5, "ts": 0.0, "dur": 900.0},
]


def test_a_trace_is_summed_by_operation_and_kernel():
    found = gpu_kernels.summary(EVENTS, calls=2)
    assert found["span_ms"] == pytest.approx(0.075)
    assert found["busy_ms"] == pytest.approx(0.045)
    assert found["launches"] == 1.5
    assert found["rows"] == [
        {"name": "dot.1", "kernel": "gemm", "count": 1.0, "ms": pytest.approx(0.04)},
        {"name": "fusion.2", "kernel": "add", "count": 0.5, "ms": pytest.approx(0.005)},
    ]
    assert gpu_kernels.summary([], calls=1)["rows"] == []


def test_a_trace_of_a_cpu_has_no_kernels(tmp_path):
    kept = tmp_path / "trace.json.gz"
    found = gpu_kernels.kernels_of(lambda: jax.numpy.ones(3).sum(), lambda: None, 1, str(kept))
    assert (found["rows"], found["busy_ms"]) == ([], 0)
    assert kept.stat().st_size > 0


def test_the_tables_show_what_there_is():
    rate = {"images_per_second": 100.0, "step_milliseconds": 2.0, "compile_seconds": 1.0, "peak_bytes": 1e9}
    rows = [
        {"part": "reference", "batch_size": 8, **rate},
        {"part": "fused", "batch_size": 8, "failed": "no time left"},
    ]
    rows.append({"part": "kernels", "shapes": [{"side": 7, "xla": 0.5, "fused_0": "ValueError: too large"}]})
    table = gpu_ideas.table(rows)
    assert "| reference | 8 | 100 | 1.000 | 1.000 |" in table
    assert "no time left" in table
    assert "side 7, xla 0.500 ms, fused_0 ValueError: too large" in table
    cifar = [{"part": "ours", **rate}, {"part": "torch", **rate, "images_per_second": 8.0}]
    spread = {"accuracy_mean": 94.0, "accuracy_std": 0.1, "seconds_mean": 3.0, "seconds_std": 0.2}
    cifar.append({"part": "fast", "seeds": 10, "compile_seconds": 9.0, **spread})
    table = gpu_cifar.table(cifar)
    assert "DataLoader: 12.5 (bar: 10)" in table
    assert "| fast | 10 | 3.00 ± 0.20 | 94.00 ± 0.10 | 9.0 |" in table
