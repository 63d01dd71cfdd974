"""Every example is counted exactly once, whatever the batch size, and the figures are numpy's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.crops import Crop
from input_pipeline.order import evaluation_batches
from input_pipeline.sources import Split, open_source
from resnet.train import evaluation, parallel
from resnet.train.evaluation import Interrupted, Predictions, evaluate_split, in_order, summarise_subset
from resnet.train.metrics import eval_sums

CROP = Crop(kind="none", image_size=8, resize_shorter=0.0)


def fake_split(count: int, num_classes: int) -> Split:
    """A split of which only the labels are looked at."""
    return Split(
        name="test",
        labels=(np.arange(count) * 7 % num_classes).astype(np.int32),
        ids=tuple(f"{i}.png" for i in range(count)),
        sizes=np.full((count, 2), 8, np.int32),
        orientations=np.ones(count, np.int8),
        paths=None,
        contents=np.zeros(count, "S32"),
        read=lambda i: b"",
    )


def fake_batches(split, batch_size, crop, *, shard, threads):
    """Batches as `stream.eval_batches` gives them; a row's image holds its index, a padding row's is garbage."""
    for index, mask in evaluation_batches(len(split), batch_size):
        image = np.where(mask > 0, index, 999).astype(np.float32)
        yield {"image": image, "label": split.labels[index], "mask": mask, "index": index.astype(np.int32)}


def logits_of(count: int, num_classes: int, invalid: frozenset[int]) -> np.ndarray:
    """What the fake model says of each example: float64[N, C], distinct numbers; NaN for the rows in `invalid`."""
    logits = np.random.default_rng(count).normal(size=(count, num_classes))
    logits[sorted(invalid)] = np.nan
    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum(1, keepdims=True)


def fake_step(table: np.ndarray):
    """An evaluation step in numpy, so that no batch size costs a compilation; `table`: logits by example."""
    num_classes = table.shape[1]

    def step(variables, batch):
        batch = jax.device_get(batch)
        logits = np.full((len(batch["mask"]), num_classes), np.nan)
        real = batch["mask"] > 0
        logits[real] = table[batch["image"][real].astype(int)]
        valid = real & np.isfinite(logits).all(1)
        best = np.nanargmax(np.where(np.isfinite(logits), logits, 0), axis=1)
        confusion = np.zeros((num_classes, num_classes), np.int32)
        np.add.at(confusion, (batch["label"][valid], best[valid]), 1)
        probabilities = softmax(logits).astype(np.float32)
        own = probabilities[np.arange(len(real)), batch["label"]]
        sums = {
            "count": np.float32(real.sum()),
            "loss": np.float32(-np.log(own[valid]).sum()) if valid.any() else np.float32(0),
            "top1": np.float32(np.trace(confusion)),
            "confusion": confusion,
        }
        return sums, {"probabilities": probabilities, **{key: batch[key] for key in ("label", "mask", "index")}}

    return step


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 20), st.integers(1, 25), st.integers(2, 5))
def test_every_example_counts_once_for_every_batch_size(count, batch_size, num_classes):
    split, table = fake_split(count, num_classes), logits_of(count, num_classes, frozenset())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "eval_batches", fake_batches)
        mesh = parallel.make_mesh()
        predictions = evaluate_split(fake_step(table), {}, split, CROP, batch_size=batch_size, mesh=mesh)
    summary = predictions.summary
    np.testing.assert_array_equal(predictions.labels, split.labels)
    np.testing.assert_array_equal(predictions.probabilities, softmax(table).astype(np.float32))
    confusion = np.zeros((num_classes, num_classes), int)
    np.add.at(confusion, (split.labels, table.argmax(1)), 1)
    assert summary["confusion"] == confusion.tolist()
    assert (summary["count"], summary["invalid"]) == (count, 0)
    assert summary["top1"] == np.trace(confusion) / count
    loss = -np.log(softmax(table)[np.arange(count), split.labels]).mean()
    assert summary["loss"] == pytest.approx(loss, rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.sampled_from([3, 8]), st.frozensets(st.integers(0, 19), max_size=3), st.data())
def test_a_subset_is_summarised_as_if_it_had_been_evaluated_alone(count, num_classes, invalid, data):
    """All of it and any part of it; rows without a softmax are wrong in both."""
    invalid = frozenset(i for i in invalid if i < count)
    table = logits_of(count, num_classes, invalid)
    labels = fake_split(count, num_classes).labels
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    predictions = Predictions(softmax(table).astype(np.float32), labels, {})
    for part in (np.ones(count, bool), keep):
        if not part.any():
            continue
        summary = summarise_subset(predictions, part)
        logits, own_labels = table[part], labels[part]
        valid = np.isfinite(logits).all(1)
        ranks = np.argsort(-logits, axis=1)
        right = (ranks == own_labels[:, None]) & valid[:, None]
        assert summary["count"] == part.sum()
        assert summary["invalid"] == (~valid).sum()
        assert summary["top1"] == pytest.approx(right[:, 0].mean())
        assert ("top5" in summary) == (num_classes > 5)
        if num_classes > 5:
            assert summary["top5"] == pytest.approx(right[:, :5].sum(1).mean())
        if valid.all():
            assert summary["loss"] == pytest.approx(
                -np.log(softmax(logits)[np.arange(len(logits)), own_labels]).mean(), rel=1e-5
            )
        assert np.sum(summary["confusion"]) == valid.sum()


@pytest.fixture(scope="module")
def real_split(tmp_path_factory) -> Split:
    """Eleven PNG files of one colour each, in three classes, as a folder of images."""
    data = tmp_path_factory.mktemp("evaluation")
    for i in range(11):
        for split in ("train", "test"):
            folder = data / split / "abc"[i % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9 + i, 12), (20 * i, 255 - 20 * i, 40 + i)).save(folder / f"{i:02}.png")
    source = open_source("folder", str(data), val_fraction=0.0, cache_dir=str(data / "cache"), progress=False)
    return source.splits["test"]


def mean_step(variables, batch):
    """Logits that are the image's mean colour: the real sums, almost nothing to compile."""
    logits = batch["image"].astype(jnp.float32).mean((1, 2)) / 64
    sums = eval_sums(logits, batch["label"], batch["mask"], 3)
    rows = {key: batch[key] for key in ("label", "mask", "index")}
    return sums, {"probabilities": jax.nn.softmax(logits), **rows}


@pytest.mark.parametrize("batch_size", [1, 4, 11, 16])
def test_real_files_give_the_same_figures_for_every_batch_size(real_split, batch_size):
    mesh = parallel.make_mesh()
    step = parallel.compile_eval_step(mean_step, mesh)
    predictions = evaluate_split(step, {}, real_split, CROP, batch_size=batch_size, mesh=mesh, threads=1)
    number = np.array([int(name.rsplit("/", 1)[-1].removesuffix(".png")) for name in real_split.ids])
    logits = np.stack([20 * number, 255 - 20 * number, 40 + number], axis=1) / 64
    np.testing.assert_allclose(predictions.probabilities, softmax(logits), rtol=1e-5)
    np.testing.assert_array_equal(predictions.labels, number % 3)
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (number % 3, logits.argmax(1)), 1)
    assert predictions.summary["confusion"] == confusion.tolist()
    assert predictions.summary["count"] == 11
    assert predictions.summary["loss"] == pytest.approx(-np.log(softmax(logits)[np.arange(11), number % 3]).mean())
    everything = summarise_subset(predictions, np.ones(11, bool))
    assert everything.keys() == predictions.summary.keys()
    assert everything.pop("loss") == pytest.approx(predictions.summary["loss"], rel=1e-6)
    assert everything == {name: value for name, value in predictions.summary.items() if name != "loss"}


def rows(index: list[int], mask: list[float]) -> dict[str, np.ndarray]:
    places = np.array(index, np.int32)
    probabilities = np.stack([places, -places], axis=1).astype(np.float32)
    return {"index": places, "mask": np.array(mask, np.float32), "label": places * 10, "probabilities": probabilities}


def test_rows_come_back_in_the_order_of_the_split():
    probabilities, labels = in_order([rows([3, 1], [1, 1]), rows([0, 2, 0], [1, 1, 0])], 4)
    np.testing.assert_array_equal(labels, [0, 10, 20, 30])
    np.testing.assert_array_equal(probabilities[:, 0], [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("index", "mask"),
    [
        pytest.param([0, 1, 3], [1, 1, 1], id="missing"),
        pytest.param([0, 1, 2, 2], [1, 1, 1, 1], id="twice"),
        pytest.param([0, 1, 2, 4], [1, 1, 1, 1], id="unknown"),
        pytest.param([0, 1, 2, 3], [1, 1, 1, 0], id="masked"),
    ],
)
def test_rows_that_are_not_each_example_once_are_an_error(index, mask):
    with pytest.raises(AssertionError, match="4 examples were to be evaluated once each"):
        in_order([rows(index, mask)], 4)


def test_a_stop_between_batches_is_heeded(monkeypatch):
    monkeypatch.setattr(evaluation, "eval_batches", fake_batches)
    split, asked = fake_split(9, 2), []

    def stop() -> bool:
        asked.append(True)
        return len(asked) == 2

    step = fake_step(logits_of(9, 2, frozenset()))
    with pytest.raises(Interrupted):
        evaluate_split(step, {}, split, CROP, batch_size=2, mesh=parallel.make_mesh(), stop=stop)
    assert len(asked) == 2


def test_a_stop_that_any_of_several_processes_was_told_is_heeded_by_all():
    """It travels in the batch, so that nobody goes on to a batch in which another has no part."""
    seen = []

    def step(variables, batch):
        seen.append(batch)
        return {}, rows([len(seen) - 1], [1]) | {"stop": batch["stop"]}

    with pytest.raises(Interrupted):
        evaluation.predict_batches(step, {}, [{"stop": jnp.eye(4)[3] * told} for told in (0, 1, 0)], 12)
    assert len(seen) == 2


def test_what_watches_sees_every_batch(monkeypatch):
    monkeypatch.setattr(evaluation, "eval_batches", fake_batches)
    seen = []

    def watch(batches):
        for batch in batches:
            seen.append(batch["index"].shape[0])
            yield batch

    step = fake_step(logits_of(9, 2, frozenset()))
    evaluate_split(step, {}, fake_split(9, 2), CROP, batch_size=4, mesh=parallel.make_mesh(), watch=watch)
    assert seen == [4, 4, 4]


def test_predictions_cannot_be_changed():
    predictions = Predictions(np.zeros((1, 2)), np.zeros(1, np.int32), {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        predictions.labels = np.ones(1)
