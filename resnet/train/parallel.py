"""Devices: one mesh, the batch split over it, the state on all of it or divided. Nothing else knows of devices."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from input_pipeline.errors import InputError, printable

DATA, FSDP = "data", "fsdp"
AXIS = re.compile(r"(data|fsdp)=(-1|[1-9][0-9]{0,6})")
# Numbers in a leaf below which dividing it saves nothing: a BN scale in 8 parts costs more in messages than in memory.
LEAST_DIVIDED = 4096


def mesh_shape(text: str, devices: int) -> dict[str, int]:
    """'data=4,fsdp=2' -> {'data': 4, 'fsdp': 2}; -1 stands for what the other axis leaves of `devices`.

    An axis that is not named has size 1. Raises InputError for anything that is no such text or does not fill the
    devices.
    """
    shape = {DATA: 1, FSDP: 1}
    seen: set[str] = set()
    for part in text.split(","):
        match = AXIS.fullmatch(part.strip())
        if not match or match[1] in seen:
            raise InputError(
                f"config.run.mesh={printable(text)!r} must look like data=-1, fsdp=-1 or data=4,fsdp=2, each axis once"
            )
        seen.add(match[1])
        shape[match[1]] = int(match[2])
    if list(shape.values()).count(-1) > 1:
        raise InputError(f"config.run.mesh={printable(text)!r}: only one axis can be -1")
    for name, size in shape.items():
        if size == -1:
            shape[name] = devices // math.prod(s for s in shape.values() if s != -1)
    if math.prod(shape.values()) != devices:
        raise InputError(f"config.run.mesh={printable(text)!r} does not fill the {devices} devices there are")
    return shape


def make_mesh(text: str = "data=-1", devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes (or those given) as a grid of two axes.

    The batch is divided over both; parameters, optimizer state and averages over 'fsdp' alone (ZeRO, Rajbhandari et al.
    2020, stage 3), which is 1 by default. Raises InputError as `mesh_shape` does.
    """
    shape = mesh_shape(text, jax.device_count() if devices is None else len(devices))
    kinds = (jax.sharding.AxisType.Auto,) * len(shape)
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=kinds, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """This axis divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, (DATA, FSDP)))


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Where each leaf of a state (arrays or their shapes) lives: a tree of shardings like `state`.

    A leaf of LEAST_DIVIDED numbers or more is divided over 'fsdp' along its longest axis that divides evenly (of equal
    ones the last); all others are on every device.
    """
    parts = mesh.shape[FSDP]

    def place(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or not axes or math.prod(leaf.shape) < LEAST_DIVIDED:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*(FSDP if axis == longest else None for axis in range(leaf.ndim))))

    return jax.tree.map(place, state)


def check_batch_size(key: str, batch_size: int, mesh: Mesh, accumulation: int = 1) -> None:
    """Raise InputError unless the global batch, and each of its parts, divides evenly over the devices."""
    if batch_size % (mesh.size * accumulation):
        parts = f" in {accumulation} parts" if accumulation > 1 else ""
        raise InputError(
            f"{key}={batch_size} cannot be divided over {mesh.size} devices{parts}; use a multiple of "
            f"{mesh.size * accumulation}"
        )


def round_up(batch_size: int, mesh: Mesh) -> int:
    """The least multiple of the number of devices that holds `batch_size` rows (evaluation pads and masks)."""
    return -(-batch_size // mesh.size) * mesh.size


def put_batches(
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
    stop: Callable[[], bool] | None = None,
    *,
    rows_axis: int = 0,
) -> Iterator[dict[str, jax.Array]]:
    """Each host batch as global arrays split over the mesh along `rows_axis`; the transfer does not block.

    A process gives its own rows; together they are the global batch. `stop` (of runs of several processes): its answer
    travels in the batch as 'stop', float32 like 'mask', so that all processes learn of one's signal at the same step.
    """
    sharding = split_rows(mesh, rows_axis)
    for batch in batches:
        if stop is not None:
            batch = {**batch, "stop": np.full(batch["mask"].shape, stop(), np.float32)}
        # Asked for here, but of several processes JAX takes this transfer for a hidden one.
        with jax.transfer_guard_host_to_device("allow"):
            arrays = {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
        yield arrays


def put_count(count: int, mesh: Mesh) -> jax.Array:
    """int32 scalar on every device of every process."""
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(replicated(mesh), np.asarray(count, np.int32))


def compiler_options() -> dict[str, str] | None:
    """What jax.jit is to compile the programs of a run with: XLA's own choices, on every backend.

    Tests and benchmarks put others here. Those for a GPU must leave convolutions out of CUDA graphs, as XLA does. With
    them in, commands ran where XLA compiled and timed kernels anew, and failed with "cudnn status 5003" elsewhere, as
    with the compilation cache (H200, jax 0.11.2, 2026-11-28). Most likely: XLA records a graph before anything in it
    has run, and cuDNN cannot load a kernel meanwhile (benchmarks/gpu_notes.md).
    """
    return None


def compile_train_step(
    step: Callable[..., Any], mesh: Mesh, many: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """jit of (state, batch, *kept) -> (state, pulse), the state's buffers given up to the new one.

    The new state lies as `state_shardings` says, where the old one has to lie already; the pulse is on every device.
    kept: what `step` takes besides, the same at every step. many: dispatch.repeat, for (state, batches, count, *kept)
    -> (state, pulses).
    """

    def placed(state: Any, batch: Any, *kept: Any) -> tuple[Any, Any]:
        new, pulse = step(state, batch, *kept)
        return place(mesh, new), jax.lax.with_sharding_constraint(pulse, replicated(mesh))

    if many is None:
        return jax.jit(placed, donate_argnums=0, compiler_options=compiler_options())

    def all_placed(state: Any, batches: Any, count: Any, *kept: Any) -> tuple[Any, Any]:
        several = many(lambda state, batch: placed(state, batch, *kept))
        new, pulses = several(state, batches, count)
        return place(mesh, new), jax.lax.with_sharding_constraint(pulses, replicated(mesh))

    return jax.jit(all_placed, donate_argnums=0, compiler_options=compiler_options())


def compile_placed(function: Callable[..., Any], mesh: Mesh, **options: Any) -> Callable[..., Any]:
    """jit of `function` whose result lies as `state_shardings` says; options are jax.jit's."""
    return jax.jit(lambda *arguments: place(mesh, function(*arguments)), **options)


def place(mesh: Mesh, state: Any) -> Any:
    """Inside jit: `state` where `state_shardings` wants it."""
    return jax.lax.with_sharding_constraint(state, state_shardings(mesh, state))


def compile_eval_step(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """jit of (variables, batch) -> (sums, rows), both on every device, so that each host can read them.

    The variables stay where they are: divided or on every device.
    """
    return jax.jit(step, out_shardings=replicated(mesh), compiler_options=compiler_options())


def peak_memory() -> dict[str, int]:
    """{'device_memory': most bytes in use so far} of this process' first device; {} where it does not tell (CPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"device_memory": int(stats["peak_bytes_in_use"])} if "peak_bytes_in_use" in stats else {}
