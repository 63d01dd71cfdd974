"""Which example stands at which place of which step: a pure function of (seed, step).

Position p = step * batch_size + row of the endless stream belongs to epoch p // N and shows example
permutation(seed, epoch)[p % N]. A batch may cross from one epoch into the next, so no remainder is dropped, and the
sequence of examples is the same for every batch size and every number of hosts. Nothing needs saving to resume.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from input_pipeline.errors import InputError

_SEED_LIMIT = 2**64


class _Permutations:
    """The permutations of the last few epochs: one costs 0.47 s for 1.28 M examples, and every step asks again."""

    KEPT = 3

    def __init__(self, num_examples: int, seed: int):
        self._num_examples = num_examples
        self._seed = seed
        self._by_epoch: dict[int, np.ndarray] = {}

    def of(self, epoch: int) -> np.ndarray:
        permutation = self._by_epoch.get(epoch)
        if permutation is None:
            draws = np.random.Philox(key=np.array([self._seed, epoch], np.uint64)).random_raw(self._num_examples)
            permutation = np.argsort(draws, kind="stable")
            # A new dict, not a changed one: two threads may ask at once, and each must find a whole one.
            kept = dict(list(self._by_epoch.items())[-(self.KEPT - 1) :])
            self._by_epoch = {**kept, epoch: permutation}
        return permutation


@dataclasses.dataclass(frozen=True)
class Order:
    """The order in which `num_examples` examples are shown, `batch_size` (global) at a step, under `seed` (0..2**64-1).

    Raises InputError for an empty set, a batch size below 1 or a seed outside its range.
    """

    num_examples: int
    batch_size: int
    seed: int = 0
    _permutations: _Permutations = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise InputError("the training split holds no examples; check data.dir and data.source")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {self.batch_size}")
        if not 0 <= self.seed < _SEED_LIMIT:
            raise InputError(f"seed must be between 0 and 2**64 - 1, not {self.seed}")
        object.__setattr__(self, "_permutations", _Permutations(self.num_examples, self.seed))

    def epochs(self, step: int) -> np.ndarray:
        """Epoch of each row of the global batch at `step` (from 0): int64[batch_size]."""
        return self._positions(step) // self.num_examples

    def indices(self, step: int) -> np.ndarray:
        """Example shown in each row of the global batch at `step` (from 0): int64[batch_size] in 0..num_examples-1."""
        epochs, places = np.divmod(self._positions(step), self.num_examples)
        indices = np.empty(self.batch_size, np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            rows = epochs == epoch
            indices[rows] = self._permutations.of(epoch)[places[rows]]
        return indices

    def _positions(self, step: int) -> np.ndarray:
        if step < 0:
            raise ValueError(f"step must not be negative: {step}")
        return step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)


def dealt(rows: Any, parts: int, group: int = 1) -> Any:
    """The rows of a batch (a NumPy or JAX array [B, …]) as `parts` of it, [parts, B / parts, …].

    They are dealt out in turn, row by row or in groups of `group` neighbours, so that groups stay whole.
    """
    hands = rows.reshape(rows.shape[0] // (parts * group), parts, group, *rows.shape[1:])
    return hands.swapaxes(0, 1).reshape(parts, rows.shape[0] // parts, *rows.shape[1:])


def evaluation_batches(num_examples: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every example once, in order: (indices int64[batch_size], mask float32[batch_size]) per batch.

    The last batch is filled up with index 0 under mask 0, so the masks sum to `num_examples`. No examples, no batches.
    Raises InputError for a batch size below 1 (at the first batch).
    """
    if batch_size < 1:
        raise InputError(f"eval_batch_size must be at least 1, not {batch_size}")
    for first in range(0, num_examples, batch_size):
        indices = first + np.arange(batch_size, dtype=np.int64)
        inside = indices < num_examples
        yield np.where(inside, indices, 0), inside.astype(np.float32)
