import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline import stream
from input_pipeline.crops import Crop
from input_pipeline.errors import InputError
from input_pipeline.images import content_of
from input_pipeline.order import Order
from input_pipeline.sources import Split
from input_pipeline.stream import decode_eval, eval_batches, train_batches

N = 11
CROP = Crop("random_resized", 16)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    rng = np.random.default_rng(0)
    paths, sizes = [], []
    for i in range(N):
        height, width = rng.integers(20, 50, 2)
        path = tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        paths.append(str(path))
        sizes.append((height, width))
    return Split(
        name="train",
        labels=np.arange(N, dtype=np.int32) % 3,
        ids=tuple(f"class/{Path(path).name}" for path in paths),
        sizes=np.array(sizes, np.int32),
        orientations=np.ones(N, np.int8),
        paths=tuple(paths),
        contents=np.array([content_of(Path(path).read_bytes()) for path in paths], "S32"),
        read=lambda i: Path(paths[i]).read_bytes(),
    )


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(stream, "_BACKOFF_SECONDS", 0.0)


def without_paths(split: Split, read=None) -> Split:
    return dataclasses.replace(split, paths=None, read=read or split.read)


def equal(one: list[dict], two: list[dict]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_batches_hold_what_the_order_says_in_the_promised_types(split):
    order = Order(N, 4, 9)
    batches = list(train_batches(split, order, CROP, num_steps=6))
    assert len(batches) == 6
    for step, batch in enumerate(batches):
        shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
        assert shapes == {
            "image": ((4, 16, 16, 3), "uint8"),
            "label": ((4,), "int32"),
            "mask": ((4,), "float32"),
            "index": ((4,), "int32"),
        }
        np.testing.assert_array_equal(batch["index"], order.indices(step))
        np.testing.assert_array_equal(batch["label"], split.labels[order.indices(step)])
        np.testing.assert_array_equal(batch["mask"], 1)


@pytest.mark.parametrize("kind", ["random_resized", "pad", "none"])
def test_starting_at_a_step_gives_the_batches_that_walking_there_gives(split, kind):
    order, crop = Order(N, 4, 9), Crop(kind, 16)
    walked = list(train_batches(split, order, crop, num_steps=7))
    equal(list(train_batches(split, order, crop, start_step=3, num_steps=4, threads=3)), walked[3:])


def test_shards_laid_side_by_side_are_the_whole_batch(split):
    order = Order(N, 6, 1)
    whole = list(train_batches(split, order, CROP, num_steps=4))
    parts = [list(train_batches(split, order, CROP, num_steps=4, shard=(i, 3))) for i in range(3)]
    joined = [{key: np.concatenate([p[step][key] for p in parts]) for key in whole[0]} for step in range(4)]
    equal(joined, whole)


def test_chosen_rows_are_those_of_the_whole_batch(split):
    order, rows = Order(N, 6, 1), np.array([0, 1, 5])
    whole = list(train_batches(split, order, CROP, start_step=2, num_steps=2))
    chosen = list(train_batches(split, order, CROP, start_step=2, num_steps=2, shard=(1, 4), rows=rows))
    equal(chosen, [{key: values[rows] for key, values in batch.items()} for batch in whole])


def test_the_images_of_an_example_do_not_depend_on_the_batch_size(split):
    small = list(train_batches(split, Order(N, 3, 1), CROP, num_steps=8))
    large = list(train_batches(split, Order(N, 8, 1), CROP, num_steps=3))
    for key in small[0]:
        np.testing.assert_array_equal(np.concatenate([b[key] for b in small]), np.concatenate([b[key] for b in large]))


def test_a_split_without_files_gives_the_same_as_one_with(split):
    order = Order(N, 4, 2)
    equal(
        list(train_batches(without_paths(split), order, CROP, num_steps=3)),
        list(train_batches(split, order, CROP, num_steps=3)),
    )


def test_training_without_an_end_goes_on_past_the_epochs(split):
    batches = train_batches(split, Order(N, 8, 2), CROP)
    seen = np.concatenate([next(batches)["index"] for _ in range(11)])
    np.testing.assert_array_equal(np.bincount(seen), 8)


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_counts_each_example_once_cut_as_decode_eval_cuts(split, processes):
    crop = Crop("random_resized", 16)
    parts = [list(eval_batches(split, 4, crop, shard=(i, processes))) for i in range(processes)]
    assert {len(part) for part in parts} == {3}
    batches = [batch for part in parts for batch in part]
    rows = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    real = rows["mask"] == 1
    assert sorted(rows["index"][real]) == list(range(N))
    assert not rows["index"][~real].any()
    assert not rows["image"][~real].any()
    for i, label, image in zip(rows["index"][real], rows["label"][real], rows["image"][real], strict=True):
        assert label == split.labels[i]
        np.testing.assert_array_equal(image, decode_eval(split.read(i), crop))


def test_none_trains_on_evaluations_images(split):
    crop = Crop("none", 16)
    batch = next(train_batches(split, Order(N, 4, 0), crop, num_steps=1))
    np.testing.assert_array_equal(batch["image"][0], decode_eval(split.read(batch["index"][0]), crop))


@pytest.mark.parametrize("fault", ["truncated", "deleted", "smaller"])
def test_a_file_that_broke_meanwhile_is_named_at_its_step(split, fault):
    path = Path(split.paths[5])
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    elif fault == "deleted":
        path.unlink()
    else:
        Image.new("RGB", (3, 3)).save(path)
    order = Order(N, 2, 4)
    step_of_5 = next(step for step in range(N) if 5 in order.indices(step))
    batches = train_batches(split, order, CROP)
    for _ in range(step_of_5):
        next(batches)
    with pytest.raises(InputError, match=r"^class/5\.jpg: cannot be read") as raised:
        next(batches)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [OSError("gone"), InputError("bad record")])
def test_an_example_that_cannot_be_fetched_is_named(split, error):
    def read(i: int) -> bytes:
        if i == 7:
            raise error
        return split.read(i)

    with pytest.raises(InputError, match=r"^class/7\.jpg: cannot be read"):
        list(eval_batches(without_paths(split, read), 4, CROP))


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_read_error_that_passes_leaves_no_trace_in_the_batches(split, failures):
    left = [failures]

    def read(i: int) -> bytes:
        if i == 7 and left[0]:
            left[0] -= 1
            raise OSError("timed out")
        return split.read(i)

    order = Order(N, 4, 0)
    expected = list(train_batches(split, order, CROP, num_steps=6))
    equal(list(train_batches(without_paths(split, read), order, CROP, num_steps=6)), expected)
    assert not left[0]


def test_what_does_not_fit_is_refused_at_once(split):
    with pytest.raises(InputError, match="batch_size"):
        train_batches(split, Order(N, 4), CROP, shard=(0, 3))
    with pytest.raises(InputError, match="eval_batch_size"):
        eval_batches(split, 4, CROP, shard=(0, 3))
    with pytest.raises(InputError, match="threads"):
        train_batches(split, Order(N, 4), CROP, threads=0)
    with pytest.raises(InputError, match="12 examples"):
        train_batches(split, Order(12, 4), CROP)


def test_importing_the_feed_does_not_import_tensorflow():
    code = "import sys, input_pipeline.stream; sys.exit('tensorflow' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
