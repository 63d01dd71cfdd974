"""The feeds' benchmark: rates count from when they have settled, and a small folder goes all the way."""

import itertools

import pytest

from benchmarks import feed, record
from tests.tiny import tiny_data


@pytest.mark.parametrize(
    ("rates", "taken", "settled"),
    [
        # What was made ahead comes first, at the speed of a copy.
        ([900, 300, 200, 205], 4, True),
        ([200, 195], 2, True),
        # Batches that never come at one rate count as they are.
        (itertools.cycle([100, 200]), feed.MOST_WINDOWS, False),
    ],
)
def test_a_rate_counts_when_it_has_settled(rates, taken, settled):
    calls = []
    source = iter(rates)

    def rate():
        calls.append(next(source))
        return calls[-1]

    assert feed.settle(rate) is settled
    assert len(calls) == taken


def test_a_rate_is_of_whole_batches(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(feed.time, "perf_counter", lambda: now[0])

    def batches():
        while True:
            now[0] += 0.4
            yield None

    # Three batches end behind the first second.
    assert feed.rate_over(batches(), 1.0) == pytest.approx(3 / 1.2)


def test_a_small_folder_goes_all_the_way(tmp_path, monkeypatch):
    data = tiny_data(tmp_path)
    opened = []
    monkeypatch.setitem(
        feed.MAKERS, "stream", lambda setting, make=feed.MAKERS["stream"]: opened.append(1) or make(setting)
    )
    monkeypatch.setitem(feed.MAKERS, "torch", lambda setting: exec("import no_such_module"))
    monkeypatch.setattr(feed, "WINDOW", 0.02)
    flags = ["--image_size=16", "--batch_size=4", "--rounds=2", "--seconds=0.05", "--train_steps=0"]
    monkeypatch.setattr(
        "sys.argv", ["feed", str(data), *flags, "--peers=stream,torch", f"--out={tmp_path / 'feed.json'}"]
    )
    feed.main()
    found = record.read(tmp_path / "feed.json").figures
    # Once to see that it can be, then for each of its turns.
    assert len(opened) == 3
    assert len(found["rounds"]["fed"]["stream"]) == len(found["settled"]["stream"]) == 2
    assert found["fed_images_per_second"]["stream"] > 0
    assert found["left_out"] == {"torch": "no_such_module is not installed"}
    assert (found["data"], found["images"]) == ("data", 40)
    assert 80 <= found["mean_width"] <= 160
    assert 500 < found["mean_bytes"] < 50_000
