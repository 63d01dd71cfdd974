"""The planning model against what can be worked out by hand, and against its own limits."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import plan as command
from benchmarks.cluster_model import Cluster, Job, plan, published_runs, ring, step_seconds, tree
from input_pipeline.errors import InputError
from resnet.model.errors import SpecError
from tests.commands import ROOT


def test_all_reduce_times_are_the_textbooks():
    # 4 members, 100 MB at 10 GB/s: each sends 2 · 3/4 of it; 6 messages of 5 µs.
    assert ring(4, 1e8, 1e10, 5e-6) == pytest.approx(0.015 + 30e-6)
    assert tree(4, 1e8, 1e10, 5e-6) == pytest.approx(0.020 + 20e-6)
    assert ring(1, 1e8, 1e10, 5e-6) == tree(1, 1e8, 1e10, 5e-6) == 0


def test_one_device_is_what_was_measured():
    row = plan(1, Job(2500.0, 250), Cluster(), epochs=90, price_per_hour=2.0)
    assert row.step_milliseconds == pytest.approx(100)
    assert row.efficiency == 1
    assert row.training_hours == pytest.approx(90 * 1_281_167 / 2500 / 3600)
    assert row.price == pytest.approx(2 * row.training_hours)
    assert row.input_gigabytes == pytest.approx(2500 * 110_000 / 1e9)


def test_without_overlap_and_statistics_the_message_is_simply_added():
    job = Job(2500.0, 250, parameters=25_000_000, overlap=0.0, sync_bn=False, algorithm="ring")
    cluster = Cluster(devices_per_node=8, link_bandwidth=100.0, link_latency=0.0)
    assert step_seconds(8, job, cluster) == pytest.approx(0.1 + 2 * 7 / 8 * 1e8 / 1e11)


def test_synchronous_statistics_cost_latency():
    with_bn, without = Job(2500.0, 250), Job(2500.0, 250, sync_bn=False)
    cluster = Cluster(link_latency=3.0)
    difference = step_seconds(8, with_bn, cluster) - step_seconds(8, without, cluster)
    # Two messages a layer over a pair of trees: latencies, and two float32 a channel each time.
    assert difference == pytest.approx(2 * 53 * 2 * math.log2(8) * 3e-6 + 2 * 2 * 26_560 * 8 / 300e9)


@given(
    devices=st.integers(1, 1024),
    rate=st.floats(10, 1e4),
    batch=st.integers(1, 1024),
    overlap=st.floats(0, 1),
    bandwidth=st.floats(1, 1000),
)
def test_efficiency_is_at_most_one_and_never_rises_with_a_slower_network(devices, rate, batch, overlap, bandwidth):
    job = Job(rate, batch, overlap=overlap)
    fast = plan(devices, job, Cluster(network_bandwidth=bandwidth))
    slow = plan(devices, job, Cluster(network_bandwidth=bandwidth / 2))
    assert 0 < slow.efficiency <= fast.efficiency <= 1 + 1e-9


def test_published_runs_are_met_within_a_tenth():
    for run in published_runs():
        assert abs(run.error) < 0.1, run


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("resnet50", (25_557_032, 53, 26_560)),
        ("resnet18", (11_689_512, 20, 4_800)),
        ("cifar_resnet20", (269_722, 19, 688)),
    ],
)
def test_the_gradient_is_the_real_networks(model, sizes):
    # 26,560 channels: ResNet-50's 53,120 running statistics are two each.
    assert command.network_sizes(model) == sizes


def test_an_unknown_network_is_refused():
    with pytest.raises(SpecError, match="resnet51"):
        command.network_sizes("resnet51")


def test_the_single_device_step_comes_from_a_results_file(tmp_path):
    stored = json.loads((ROOT / "benchmarks" / "results" / "step_resnet50_64_cpu2.json").read_text())
    speed = command.measured(ROOT / "benchmarks" / "results" / "step_resnet50_64_cpu2.json")
    assert speed == (stored["images_per_second"]["ours"]["train"], 32)
    rows = [
        {"part": "ours", "batch_size": 128, "images_per_second": 2000.0},
        {"part": "ours", "batch_size": 256, "images_per_second": 2500.0},
        {"part": "ours", "batch_size": 512, "failed": "out of memory"},
        {"part": "torch", "batch_size": 256, "images_per_second": 3000.0},
    ]
    (tmp_path / "gpu.json").write_text(json.dumps({"benchmark": "gpu", "rows": rows}))
    assert command.measured(tmp_path / "gpu.json") == (2500.0, 256)
    rows = [{"devices": 1, "global_batch": 32, "images_per_second": 10.0}, {"devices": 2}]
    (tmp_path / "scaling.json").write_text(json.dumps({"benchmark": "scaling", "rows": rows}))
    assert command.measured(tmp_path / "scaling.json") == (10.0, 32)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": []}', '{"benchmark": "step", "images_per_second": {}}'])
def test_a_file_without_a_speed_is_refused(text, tmp_path):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(InputError, match="holds no train step of ours"):
        command.measured(tmp_path / "file.json")
    with pytest.raises(InputError, match="No such file"):
        command.measured(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--images_per_second or --results"),
        (["--images_per_second=0"], "--images_per_second=0.0 must be above 0"),
        (["--images_per_second=nan"], "--images_per_second=nan must be above 0"),
        (["--images_per_second=1", "--overlap=2"], "--overlap=2.0 must be from 0 to 1"),
        (["--images_per_second=1", "--devices", "0"], "--devices=0 must be at least 1"),
        (["--images_per_second=1", "--network_latency=-1"], "--network_latency=-1.0 must be at least 0"),
        (["--images_per_second=fast"], "invalid float value"),
    ],
)
def test_numbers_that_cannot_be_are_refused(flags, words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["plan", *flags])
    with pytest.raises(InputError, match=words):
        command.main()


def test_the_page_shows_what_the_command_prints(capsys, monkeypatch):
    page = (ROOT / "docs" / "many-hosts.md").read_text()
    for flags in (["--check"], ["--images_per_second=2790", "--batch_per_device=256", "--price_per_hour=2.5"]):
        assert f"python -m benchmarks.plan {' '.join(flags)}" in page
        monkeypatch.setattr("sys.argv", ["plan", *flags])
        assert command.main() == 0
        assert capsys.readouterr().out in page
