"""The tables: rows, ratios and bars out of given records, and pages that say what the files say."""

import json

import pytest

from benchmarks import comparisons, record, tables
from input_pipeline.errors import InputError

STEP = {
    "benchmark": "step",
    "command": "python -m benchmarks.step --rounds=7",
    "date": "2026-11-26",
    "device": "2-core X CPU",
    "versions": {"torch": "2.13.0+cpu", "flax": "0.12.8"},
    "model": "resnet50",
    "image_size": 64,
    "batch_size": 32,
    "images_per_second": {
        "ours": {"train": 60.0, "eval": 1200.0},
        "linen": {"train": 12.0, "eval": 400.0},
        "torch": {"train": 50.0, "eval": 1500.0},
    },
    "compile_seconds": {"ours": {"train": {"wall": 4.0}}, "linen": {"train": {"wall": 10.0}}},
    "left_out": {"keras": "keras is not installed"},
}
INFERENCE = {
    "benchmark": "inference",
    "date": "2026-11-26",
    "device": "2-core X CPU",
    "image_size": 224,
    "milliseconds": {"ours": {"1": 20.0}, "torch_folded": {"1": 30.0}},
    "images_per_second": {"ours": {"1": 50.0}, "torch_folded": {"1": 33.3}},
}
FEED = {
    "benchmark": "feed",
    "data": "flower_photos",
    "mean_width": 300.0,
    "mean_height": 200.0,
    "mean_bytes": 50e3,
    "images": 3670,
    "image_size": 224,
    "batch_size": 32,
    "model": "resnet18",
    "fed_images_per_second": {"decode": 2000.0, "stream": 1200.0, "resident": 300.0, "torch": 400.0},
    "trained_images_per_second": {"synthetic": 20.0, "stream": 19.5, "resident": 18.0},
}
GPU_ROWS = [
    {"part": "ceilings", "batch_size": 0, "copy_bytes_per_second": 3e12, "matrix_flops_per_second": 8e14},
    {"part": "ours", "batch_size": 128, "images_per_second": 2900.0, "peak_bytes": 1e10},
    {"part": "ours", "batch_size": 256, "images_per_second": 3000.0, "peak_bytes": 2e10},
    {"part": "ours", "batch_size": 512, "failed": "out of memory"},
    {"part": "torch_compiled", "batch_size": 256, "images_per_second": 2500.0, "peak_bytes": 1.6e10},
    {"part": "ours_resident", "batch_size": 256, "images_per_second": 2880.0},
    {"part": "ours_eval", "batch_size": 1, "images_per_second": 900.0},
    {"part": "torch_compiled_eval", "batch_size": 1, "images_per_second": 600.0},
]
GPU = {"benchmark": "gpu", "date": "2026-11-27", "device": "NVIDIA H100 80GB HBM3", "rows": GPU_ROWS}


def records(folder, **documents):
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return record.read_all(folder)


def rows_of(found):
    return {(row.what, row.peer): row for row in comparisons.compared(found)}


def test_each_peer_has_a_line_with_ratio_and_bar(tmp_path):
    rows = rows_of(records(tmp_path, step_resnet50_64_cpu2=STEP))
    train, evaluation = (f"ResNet-50, 64 px, batch 32, {step} step" for step in ("train", "evaluation"))
    verdicts = {(what, peer): (row.ratio, row.verdict) for (what, peer), row in rows.items() if row.note == ""}
    assert verdicts == {
        (train, "plain flax"): (5.0, "≥ 4, met"),
        (train, "torch, eager"): (1.2, "≥ 1, met"),
        (evaluation, "plain flax"): (3.0, "≥ 4, missed"),
        (evaluation, "torch, eager"): (0.8, "≥ 1, missed"),
        ("ResNet-50, 64 px, train step compiled", "plain flax"): (0.4, "≤ 0.5, met"),
    }
    assert rows[train, "Keras on TensorFlow"].note == "keras is not installed"


def test_a_table_has_no_empty_columns(tmp_path):
    """A record of --rounds=0 is one of compilation."""
    bare = STEP | {"images_per_second": {name: {} for name in STEP["images_per_second"]}}
    text = tables.step_tables(records(tmp_path, step_resnet50_64_cpu2=bare))
    assert text.startswith("batch 32, float32, compilation\n")
    assert [line.split() for line in text.splitlines() if line.startswith("| ours")] == [["|", "ours", "|", "4.0", "|"]]
    assert "train" not in text
    whole = tables.step_tables(records(tmp_path, step_resnet50_64_cpu2=STEP)).splitlines()[3]
    heads = [cell.strip() for cell in whole.split("|")[2:-1]]
    assert heads == ["train", "ours / it", "eval", "ours / it", "compiled in, s"]


def test_of_two_records_the_newer_counts_and_other_machines_stay(tmp_path):
    older, other = STEP | {"date": "2026-11-01", "batch_size": 16}, STEP | {"device": "8-core Y CPU"}
    found = records(tmp_path, step_64_cpu2=older, step_resnet50_64_cpu2=STEP, step_resnet50_64_cpu8=other)
    assert [each.file.stem for each in comparisons.newest(found)] == ["step_resnet50_64_cpu2", "step_resnet50_64_cpu8"]


def test_bars_of_feeding_are_for_photographs(tmp_path):
    rows = rows_of(records(tmp_path, feed_224_cpu2=FEED))
    stream = "feed, flower_photos (300×200 px) at 224 px, stream"
    assert (rows[stream, "torch's DataLoader"].ratio, rows[stream, "torch's DataLoader"].verdict) == (3.0, "≥ 2.4, met")
    assert rows[stream, "bare decoding"].verdict == "≥ 0.7, missed"
    trained = [row.verdict for row in rows.values() if row.what.startswith("training resnet18")]
    assert trained == ["≥ 0.95, met", "≥ 0.95, missed"]
    drawn = rows_of(records(tmp_path, feed_224_cpu2=FEED | {"data": "demo_large"}))
    assert not any(row.bar for row in drawn.values() if row.what.startswith("feed, "))


def test_gpu_results_stand_beside_peers_published_figures_and_bounds(tmp_path):
    rows = rows_of(records(tmp_path, gpu_nvidia_h100_80gb_hbm3=GPU))
    train = "ResNet-50, 224 px, bfloat16, train step, batch 256"
    assert rows[train, "torch.compile, batch 256"].verdict == "≥ 1.3, missed"
    assert rows[train, "PyTorch, published by Lambda for one H100"].verdict == "≥ 1, met"
    assert rows[train, "bound: bytes, elementwise work fused"].theirs == pytest.approx(3e12 * 256 / 91.6e9)
    assert rows["peak memory of the train step, batch 256", "torch.compile"].verdict == "≤ 1, missed"
    assert rows["ResNet-50, 224 px, bfloat16, inference, batch 1", "torch.compile"].verdict == "≥ 1.3, met"
    assert (
        rows["ResNet-50, 224 px, bfloat16, training, batch 256, resident", "a batch that is there already"].ratio
        == 0.96
    )
    missing = {comparisons.NOT_MEASURED[part][0] for part in (("gpu", "torch"), ("gpu_cifar", "torch"))}
    assert {row.what for row in rows.values() if row.note} == missing


def test_cifar_on_a_gpu_stands_beside_torchs_loops(tmp_path):
    rows = [{"part": "ours", "images_per_second": 90.0}, {"part": "torch", "images_per_second": 8.0}]
    rows.append({"part": "torch_compiled", "failed": "stopped after 160 s"})
    document = {"benchmark": "gpu_cifar", "date": "2026-11-26", "device": "Card 9", "rows": rows}
    found = rows_of(records(tmp_path, gpu_cifar_card_9=document))
    row = found["CIFAR ResNet-20, batch 128, bfloat16, training", "torch with its DataLoader"]
    assert (row.ratio, row.verdict) == (11.25, "≥ 10, met")
    assert not any(what.startswith("CIFAR") and each.note for (what, _), each in found.items())


def test_what_nobody_has_measured_says_so(tmp_path):
    table = tables.everything([])
    assert table.count(comparisons.NOT_YET) == len(comparisons.NOT_MEASURED)
    small = records(tmp_path, gpu_cpu=GPU | {"small": True})
    assert tables.everything(small) == table
    assert all("not measured yet" in make([]) for make in tables.TABLES.values())


def test_the_pages_tables_hold_figures_versions_and_where_from(tmp_path):
    found = records(tmp_path, step_resnet50_64_cpu2=STEP, inference_cpu2=INFERENCE, feed_224_cpu2=FEED)
    text = tables.step_tables(found)
    assert "| torch, eager (torch 2.13.0) |    50 | 1.20 (bar 1) | 1,500 | 0.80 (bar 1) |" in text
    assert "`python -m benchmarks.step --rounds=7`, 2026-11-26, 2-core X CPU" in text
    assert "| torch, BN folded  |          30 |     33.3 | 1.50 (bar 1) |" in tables.inference_tables(found)
    assert "90.0% of a batch that is there already" in tables.feed_tables(found)


def test_a_changed_figure_or_word_is_found_and_mended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").mkdir()
    found = records(tmp_path / "results", step_resnet50_64_cpu2=STEP)
    monkeypatch.setattr(record, "read_all", lambda: found)
    for page in ("README.md", "docs/speed.md"):
        (tmp_path / page).write_text("# Before\n\n<!-- speed: step -->\n<!-- end of speed -->\n\nafter\n")
    monkeypatch.setattr("sys.argv", ["tables"])
    assert tables.main() == 0
    text = (tmp_path / "docs" / "speed.md").read_text()
    assert text.startswith("# Before\n\n<!-- speed: step -->\n\nbatch 32")
    assert text.endswith("\n\n<!-- end of speed -->\n\nafter\n")
    assert "](../benchmarks/results/step_resnet50_64_cpu2.json)" in text
    assert "](benchmarks/results/step_resnet50_64_cpu2.json)" in (tmp_path / "README.md").read_text()
    monkeypatch.setattr("sys.argv", ["tables", "--check"])
    assert tables.main() == 0
    (tmp_path / "docs" / "speed.md").write_text(text.replace("1.20", "1.30"))
    capsys.readouterr()
    assert tables.main() == 1
    shown = capsys.readouterr().out
    assert "docs/speed.md" in shown
    assert "README.md" not in shown
    assert "1.30" in shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- speed: stpe -->\n<!-- end of speed -->\n", "stpe -->: no table; those are everything, step"),
        ("<!-- speed: step -->\n", "has no line <!-- end of speed -->"),
    ],
)
def test_marks_that_mean_nothing_are_refused(text, words):
    with pytest.raises(InputError, match=words):
        tables.renewed(tables.ROOT / "README.md", text, [])


def test_the_pages_say_what_the_files_say(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tables", "--check"])
    assert tables.main() == 0, capsys.readouterr().out
