"""The state of a run: everything that the next step depends on, as one pytree."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from resnet.train.freezing import Names, partition

Variables = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """What one train step turns into the next; float32 but for the counters.

    step: int32 scalar, steps done. params, batch_stats: the network's variables. opt_state: optax' state.
    ema: {} or {'params', 'batch_stats'}, the running averages that evaluation uses instead.
    sums: masked sums of loss, top-1 … since the last training line. They are part of the state so that a resumed run
    logs what an uninterrupted one does. bad_steps: int32 scalar, non-finite steps in a row; bad_steps_total: in all.
    """

    step: jax.Array
    params: Variables
    batch_stats: Variables
    opt_state: Any
    ema: Variables
    sums: dict[str, jax.Array]
    bad_steps: jax.Array
    bad_steps_total: jax.Array

    def evaluated(self) -> Variables:
        """The variables that evaluation and export use: the averages where there are any, else the newest."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    variables: Variables,
    optimizer: optax.GradientTransformation,
    *,
    ema: bool,
    sum_names: tuple[str, ...],
    learning: Names | None = None,
) -> TrainState:
    """The state before the first step, from the network's fresh or converted variables.

    learning: names of the parameters that the optimizer is of; None: all.
    """
    params, batch_stats = variables["params"], variables["batch_stats"]
    # Copies: the step donates the state's buffers, and no buffer may be donated twice.
    averages = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else {}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(partition(params, learning)[0]),
        ema=averages,
        sums={name: jnp.zeros((), jnp.float32) for name in sum_names},
        bad_steps=jnp.zeros((), jnp.int32),
        bad_steps_total=jnp.zeros((), jnp.int32),
    )


def divide(state: TrainState) -> tuple[Variables, dict[str, Any]]:
    """(variables that evaluation uses, everything else): together exactly the state, nothing twice."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    newest = {"params": fields.pop("params"), "batch_stats": fields.pop("batch_stats")}
    averages = fields.pop("ema")
    return (averages, fields | {"newest": newest}) if averages else (newest, fields)


def unite(variables: Variables, training: dict[str, Any]) -> TrainState:
    """The inverse of `divide`."""
    rest = dict(training)
    newest = rest.pop("newest", None)
    averages = variables if newest else {}
    return TrainState(**(newest or variables), ema=averages, **rest)
