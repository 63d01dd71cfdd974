"""Several steps as one call of the device: which of them go together, and the program that does them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from resnet.train.state import TrainState

Batch = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Batch]]


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """The steps first .. last - 1, done by one call of the program."""

    first: int
    last: int

    @property
    def steps(self) -> int:
        """How many they are."""
        return self.last - self.first


def next_dispatch(step: int, total: int, marks: tuple[int, ...], longest: int) -> Dispatch:
    """The dispatch that begins at `step`: up to `longest` steps, to the next multiple of each mark, or the end."""
    stops = [total, step + longest, *((step // mark + 1) * mark for mark in marks)]
    return Dispatch(step, min(stops))


def loops_pay(platform: str, dtype: str) -> bool:
    """Whether steps on a platform ('cpu', 'gpu', …) in a dtype ('float32', 'bfloat16') may go into a loop.

    On a CPU bfloat16 convolutions are lax' own, whose gradients XLA gives naive code inside loops (convolution_forms).
    """
    return platform != "cpu" or dtype != "bfloat16"


def repeat(step: Step) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Batch]]:
    """`step` repeated: (state, batches of K steps, count) -> (state after the first `count` steps, their pulses).

    Batches and pulses are stacked along a first axis of K; pulses of steps that were not done are zero. The count is no
    constant of the program, so that another one changes neither it nor a single bit of its results.
    """

    def steps(state: TrainState, piece: Batch, count: jax.Array) -> tuple[TrainState, Batch]:
        longest = len(jax.tree.leaves(piece)[0])
        shapes = jax.eval_shape(step, state, jax.tree.map(lambda rows: rows[0], piece))[1]
        pulses = jax.tree.map(lambda one: jnp.zeros((longest, *one.shape), one.dtype), shapes)

        def one(number: jax.Array, carry: Any) -> Any:
            state, pulses = carry
            batch = jax.tree.map(lambda rows: jax.lax.dynamic_index_in_dim(rows, number, keepdims=False), piece)
            state, pulse = step(state, batch)
            note = lambda all_, new: jax.lax.dynamic_update_index_in_dim(all_, new, number, 0)  # noqa: E731
            return state, jax.tree.map(note, pulses, pulse)

        return jax.lax.fori_loop(0, count, one, (state, pulses))

    return steps
