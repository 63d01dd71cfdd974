"""Devices: one mesh, the batch split over it, the state on all of it. Nothing else in the project knows of devices."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from input_pipeline.errors import InputError

DATA = "data"


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, 'data'."""
    return jax.make_mesh((jax.device_count(),), (DATA,), axis_types=(jax.sharding.AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """The first axis divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def check_batch_size(key: str, batch_size: int, mesh: Mesh) -> None:
    """Raise InputError unless the global batch divides evenly over the devices."""
    if batch_size % mesh.size:
        raise InputError(f"{key}={batch_size} does not divide over {mesh.size} devices; take a multiple of {mesh.size}")


def round_up(batch_size: int, mesh: Mesh) -> int:
    """The least multiple of the number of devices that holds `batch_size` rows (evaluation pads and masks)."""
    return -(-batch_size // mesh.size) * mesh.size


def put_batches(batches: Iterable[dict[str, np.ndarray]], mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
    """Each host batch as global arrays split over the mesh; the transfer does not block.

    A process gives its own rows; together they are the global batch.
    """
    sharding = split_rows(mesh)
    for batch in batches:
        yield {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def compile_train_step(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """jit of (state, batch) -> (state, pulse) with the state replicated and its buffers given up to the new one."""
    same = replicated(mesh)
    return jax.jit(step, in_shardings=(same, split_rows(mesh)), out_shardings=same, donate_argnums=0)


def compile_eval_step(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """jit of (variables, batch) -> (sums, rows), both on every device, so that each host can read them."""
    same = replicated(mesh)
    return jax.jit(step, in_shardings=(same, split_rows(mesh)), out_shardings=same)
