"""The planning model against what can be worked out by hand, and against its own limits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cluster_model import Cluster, Job, plan, published_runs, ring, step_seconds, tree


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
