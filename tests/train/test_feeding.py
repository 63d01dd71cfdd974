"""The resident feed trains on what the stream trains on, resumes bit for bit, and is taken where it can be."""

import itertools
import signal

import jax
import numpy as np
import pytest

from input_pipeline.crops import Crop
from input_pipeline.errors import InputError
from input_pipeline.order import Order
from input_pipeline.stream import train_batches
from resnet.train import feeding, parallel
from resnet.train.evaluation import Interrupted
from resnet.train.feeding import choose_feed
from resnet.train.loop import train
from tests.input_pipeline.test_canvas import noise, split_of
from tests.tiny import tiny_config, tiny_data
from tests.train.test_resume import final_arrays, lines, stop_after

SIZES = ((20, 31), (33, 18), (12, 12), (40, 25), (16, 60), (24, 24))


pytestmark = pytest.mark.usefixtures("bare")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def choice(asked="auto", crop="random_resized", processes=1, epochs=2.0, platform="gpu"):
    split = split_of(noise(*SIZES))
    return choose_feed(
        asked, split, Order(len(split), 4), Crop(crop, 16), processes=processes, epochs=epochs, platform=platform
    )


@pytest.mark.parametrize("kind", ["random_resized", "pad", "none"])
def test_batches_hold_what_the_streamed_ones_hold(kind):
    split = split_of(noise(*SIZES), [1, 1, 1, 6, 3, 8])
    order, crop = Order(len(split), 4, seed=5), Crop(kind, 16, padding=2)
    resident, mesh = (
        choose_feed("resident", split, order, crop, processes=1, epochs=1.0, platform="cpu"),
        parallel.make_mesh(),
    )
    kept = resident.load(mesh)
    whole = jax.jit(resident.whole)
    for step, streamed in enumerate(train_batches(split, order, crop, num_steps=5, threads=1)):
        batch = jax.device_get(whole(kept, resident.rows(step)))
        assert batch.keys() == streamed.keys()
        for name in ("label", "mask", "index"):
            np.testing.assert_array_equal(batch[name], streamed[name])
            assert batch[name].dtype == streamed[name].dtype
        difference = np.abs(batch["image"].astype(int) - streamed["image"])
        assert difference.max() <= (1 if kind == "random_resized" else 0)


@pytest.mark.parametrize("kind", ["random_resized", "pad", "none"])
def test_rows_drawn_and_sent_together_are_those_of_each_step(kind, monkeypatch):
    """From step 1 on over three blocks of three steps, in which batches of 4 cross from one epoch of 6 to the next."""
    split, mesh = split_of(noise(*SIZES), [1, 1, 1, 6, 3, 8]), parallel.make_mesh()
    order, crop = Order(len(split), 4, seed=5), Crop(kind, 16, padding=2)
    resident = choose_feed("resident", split, order, crop, processes=1, epochs=1.0, platform="cpu")
    monkeypatch.setattr(feeding, "DRAWN_AT_A_TIME", 13)
    assert resident.together == 3
    with jax.transfer_guard("disallow"):
        sent = list(itertools.islice(feeding.put_blocks(resident.blocks(1), mesh), 7))
    for step, rows in enumerate(sent, 1):
        alone = resident.rows(step)
        assert rows.keys() == alone.keys()
        for name, values in alone.items():
            assert rows[name].sharding == parallel.split_rows(mesh)
            assert rows[name].dtype == values.dtype
            np.testing.assert_array_equal(rows[name], values)


def test_a_batch_larger_than_what_is_drawn_at_a_time_is_drawn_alone(monkeypatch):
    monkeypatch.setattr(feeding, "DRAWN_AT_A_TIME", 3)
    resident = choice("resident", crop="pad")
    assert [len(block["index"]) for block in itertools.islice(resident.blocks(0), 2)] == [1, 1]


def test_auto_keeps_what_fits_where_it_is_shown_again(monkeypatch):
    assert choice().layout is not None
    assert choice(crop="pad").layout is None
    assert choice(epochs=1.0) is None
    assert choice(processes=2) is None
    assert choice("stream") is None
    assert choice(platform="cpu") is None
    assert choice(platform="cpu", crop="pad").layout is None
    monkeypatch.setattr(feeding, "AUTO_BYTES", 10_000)
    # As they are they do not fit, and only who asks for it gets reduced images.
    assert choice() is None
    assert choice(crop="pad").layout is None
    monkeypatch.setattr(feeding, "MOST_BYTES", 10_000)
    assert choice("resident").layout.reduced > 0


def test_what_cannot_be_kept_is_refused(monkeypatch):
    with pytest.raises(InputError, match=r"feed='resident' works with one process only; use stream"):
        choice("resident", processes=2)
    monkeypatch.setattr(feeding, "MOST_BYTES", 1_000)
    for crop in ("pad", "random_resized"):
        with pytest.raises(InputError, match=r"feed='resident': 6 images for 16 px take more than 0\.0 GB decoded"):
            choice("resident", crop=crop)


@pytest.mark.parametrize("feed", ["stream", "resident"])
def test_either_feed_resumes_bit_for_bit(feed, tmp_path, monkeypatch):
    """`test_resume` does this at every step with the feed that 'auto' takes."""
    config = tiny_config(tiny_data(tmp_path))
    config.data.feed = feed
    assert train(config, tmp_path / "straight") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert train(config, tmp_path / "stopped") == 128 + signal.SIGTERM
    assert train(config, tmp_path / "stopped") == 0
    assert lines(tmp_path / "stopped") == lines(tmp_path / "straight")
    pairs = zip(final_arrays(config, tmp_path / "stopped"), final_arrays(config, tmp_path / "straight"), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)


def test_the_two_feeds_train_alike(tmp_path):
    config = tiny_config(tiny_data(tmp_path))
    losses = {}
    for feed in ("stream", "resident"):
        config.data.feed = feed
        assert train(config, tmp_path / feed) == 0
        losses[feed] = [line["loss"] for line in lines(tmp_path / feed) if line["kind"] == "train"]
    np.testing.assert_allclose(losses["resident"], losses["stream"], rtol=0.02)


def test_a_signal_while_images_are_decoded_ends_the_run(tmp_path):
    split = split_of(noise(*SIZES))
    resident = choose_feed(
        "resident", split, Order(6, 4), Crop("random_resized", 16), processes=1, epochs=1.0, platform="cpu"
    )
    with pytest.raises(Interrupted):
        resident.load(parallel.make_mesh(), stop=lambda: True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
