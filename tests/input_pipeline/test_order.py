import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.errors import InputError
from input_pipeline.order import Order, evaluation_batches

sizes = st.integers(1, 60)
batches = st.integers(1, 90)
seeds = st.integers(0, 2**64 - 1)


def walk(order: Order, steps: int) -> np.ndarray:
    return np.concatenate([order.indices(step) for step in range(steps)])


@given(sizes, batches, seeds)
def test_each_example_stands_exactly_once_in_each_epoch(n, batch, seed):
    order = Order(n, batch, seed)
    steps = -(-3 * n // batch)
    stream = walk(order, steps)
    epochs = np.concatenate([order.epochs(step) for step in range(steps)])
    np.testing.assert_array_equal(epochs, np.arange(len(stream)) // n)
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(stream[epochs == epoch]), np.arange(n))


@given(sizes, batches, batches, seeds)
def test_the_sequence_does_not_depend_on_the_batch_size(n, batch, other, seed):
    length = 3 * max(n, batch, other)
    one, two = Order(n, batch, seed), Order(n, other, seed)
    np.testing.assert_array_equal(walk(one, -(-length // batch))[:length], walk(two, -(-length // other))[:length])


@given(sizes, batches, seeds, st.integers(0, 400))
def test_any_step_computed_directly_equals_the_walked_one(n, batch, seed, step):
    walked = Order(n, batch, seed)
    for earlier in range(max(0, step - 5), step):
        walked.indices(earlier)
    np.testing.assert_array_equal(walked.indices(step), Order(n, batch, seed).indices(step))


@given(sizes, st.integers(1, 8), st.integers(1, 8), seeds, st.integers(0, 50))
def test_shards_laid_side_by_side_are_the_whole_batch(n, rows, shards, seed, step):
    whole = Order(n, rows * shards, seed).indices(step)
    parts = [Order(n, rows * shards, seed).indices(step)[i * rows : (i + 1) * rows] for i in range(shards)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_epochs_and_seeds_give_different_orders():
    order = Order(1000, 1000, 7)
    assert (order.indices(0) != order.indices(1)).mean() > 0.9
    assert (order.indices(0) != Order(1000, 1000, 8).indices(0)).mean() > 0.9


def test_an_old_epoch_comes_back_the_same_after_it_left_the_cache():
    order = Order(20, 20, 3)
    first = order.indices(0)
    for step in range(1, 30):
        order.indices(step)
    np.testing.assert_array_equal(order.indices(0), first)


def test_far_steps_do_not_overflow():
    assert Order(1_000, 256).epochs(10**12)[0] == 10**12 * 256 // 1_000


def test_an_order_is_a_value():
    assert Order(5, 2, 1) == Order(5, 2, 1)
    assert hash(Order(5, 2, 1)) == hash(Order(5, 2, 1))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(Order(5, 2, 1))).indices(3), Order(5, 2, 1).indices(3))


@given(st.integers(0, 60), batches)
def test_evaluation_shows_each_example_once_and_masks_the_rest(n, batch):
    seen = []
    for indices, mask in evaluation_batches(n, batch):
        assert indices.shape == mask.shape == (batch,)
        assert mask.dtype == np.float32
        assert mask.sum() >= 1
        assert not indices[mask == 0].any()
        seen += indices[mask == 1].tolist()
    assert seen == list(range(n))


@pytest.mark.parametrize("arguments", [(0, 4, 0), (4, 0, 0), (4, 4, -1), (4, 4, 2**64)])
def test_impossible_orders_are_refused(arguments):
    with pytest.raises(InputError):
        Order(*arguments)


def test_an_evaluation_batch_must_hold_something():
    with pytest.raises(InputError, match="eval_batch_size"):
        next(evaluation_batches(3, 0))
