"""The ONNX operations that move, cut and add axes, rows and columns, for `export_onnx_rules.RULES`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from resnet.study.export_onnx_values import (
    Constant,
    Graph,
    NoRule,
    Tensor,
    Value,
    aligned,
    full,
    is_one,
    shape_of,
    traced,
)

# 'slice' up to and including the first element, backwards.
_BEFORE_THE_FIRST = -(2**31)


def broadcast(graph: Graph, eqn: JaxprEqn, operand: Tensor) -> Value:
    """Only new axes are written; ONNX broadcasts where it is needed."""
    places, rank = eqn.params["broadcast_dimensions"], len(traced(eqn.outvars[0]).shape)
    shape: list[Any] = [1] * rank
    for axis, place in enumerate(places):
        shape[place] = operand.shape[axis]
    if rank == len(places):
        return Tensor(operand.name, operand.order, tuple(shape))
    plain, channels_first = tuple(range(rank)), (0, rank - 1, *range(1, rank - 1))
    placed = [places[axis] for axis in operand.order]
    name = operand.name
    for order in (channels_first, plain):
        if [axis for axis in order if axis in places] == placed:
            break
    else:
        order, name = plain, graph.named(operand, tuple(range(len(places))))
    new = [number for number, axis in enumerate(order) if axis not in places]
    return Tensor(graph.add("Unsqueeze", [name, graph.integers(new)]), order, tuple(shape))


def reshape(graph: Graph, eqn: JaxprEqn, operand: Tensor) -> Value:
    """In JAX' order; the batch stays in its place, where ONNX writes 0."""
    old, new = traced(eqn.invars[0]).shape, eqn.params["new_sizes"]
    operand = expanded(graph, operand, old)
    sizes = [size if isinstance(size, int) else 0 for size in new]
    if any(size == 0 and (number >= len(old) or old[number] != new[number]) for number, size in enumerate(sizes)):
        raise NoRule("a reshape that moves the batch has no rule that writes it in ONNX")
    name = graph.named(operand, tuple(range(len(old))))
    return Tensor(graph.add("Reshape", [name, graph.integers(sizes)]), tuple(range(len(new))), tuple(new))


def expanded(graph: Graph, operand: Tensor, shape: Sequence[Any]) -> Tensor:
    """The operand with its broadcast axes written out; the batch, which ONNX does not know, must be there already."""
    if operand.shape == tuple(shape):
        return operand
    sizes = [shape[axis] if is_one(operand.shape[axis]) else 1 for axis in operand.order]
    return Tensor(graph.add("Expand", [operand.name, graph.integers(sizes)]), operand.order, tuple(shape))


def squeeze(graph: Graph, eqn: JaxprEqn, operand: Tensor) -> Value:
    axes = [axis % len(operand.order) for axis in eqn.params["dimensions"]]
    places = [operand.order.index(axis) for axis in axes]
    name = graph.add("Squeeze", [operand.name, graph.integers(sorted(places))])
    return without(name, operand, axes)


def without(name: str, operand: Tensor, axes: Sequence[int]) -> Tensor:
    """A tensor that lacks some of the operand's axes."""
    left = [axis for axis in range(len(operand.order)) if axis not in axes]
    order = tuple(left.index(axis) for axis in operand.order if axis in left)
    return Tensor(name, order, tuple(operand.shape[axis] for axis in left))


def transpose(graph: Graph, eqn: JaxprEqn, operand: Tensor) -> Value:
    permutation = eqn.params["permutation"]
    order = tuple(permutation.index(axis) for axis in operand.order)
    return Tensor(operand.name, order, tuple(operand.shape[axis] for axis in permutation))


def pad(graph: Graph, eqn: JaxprEqn, operand: Tensor, filling: Value) -> Value:
    config = [tuple(map(int, side)) for side in eqn.params["padding_config"]]
    if not isinstance(filling, Constant) or any(low < 0 or high < 0 or between for low, high, between in config):
        raise NoRule("a pad that cuts, or puts gaps between, has no rule that writes it in ONNX")
    full(eqn, 0, operand, [axis for axis, (low, high, _) in enumerate(config) if low or high])
    sides = [config[axis][side] for side in (0, 1) for axis in operand.order]
    shape = [size + low + high if low or high else size for size, (low, high, _) in zip(operand.shape, config)]  # noqa: B905
    value = graph.constant(np.asarray(filling.array).reshape(()))
    return Tensor(graph.add("Pad", [operand.name, graph.integers(sides), value]), operand.order, tuple(shape))


def cut(graph: Graph, eqn: JaxprEqn, operand: Tensor) -> Value:
    shape, params = traced(eqn.invars[0]).shape, eqn.params
    strides = params["strides"] or (1,) * len(shape)
    bounds = list(zip(params["start_indices"], params["limit_indices"], strides, strict=True))
    axes = [axis for axis, (start, stop, step) in enumerate(bounds) if (start, step) != (0, 1) or stop != shape[axis]]
    full(eqn, 0, operand, axes)
    if not axes:
        return operand
    starts, stops, steps = zip(*(bounds[axis] for axis in axes), strict=True)
    return sliced(graph, eqn, operand, axes, starts, stops, steps)


def reverse(graph: Graph, eqn: JaxprEqn, operand: Tensor) -> Value:
    axes = eqn.params["dimensions"]
    full(eqn, 0, operand, axes)
    count = len(axes)
    return sliced(graph, eqn, operand, axes, [-1] * count, [_BEFORE_THE_FIRST] * count, [-1] * count)


def sliced(
    graph: Graph,
    eqn: JaxprEqn,
    operand: Tensor,
    axes: Sequence[int],
    starts: Sequence[int],
    stops: Sequence[int],
    steps: Sequence[int],
) -> Tensor:
    places = [operand.order.index(axis) for axis in axes]
    bounds = [graph.integers(values) for values in (starts, stops, places, steps)]
    new = traced(eqn.outvars[0]).shape
    shape = [new[axis] if axis in axes else size for axis, size in enumerate(operand.shape)]
    return Tensor(graph.add("Slice", [operand.name, *bounds]), operand.order, tuple(shape))


def concatenate(graph: Graph, eqn: JaxprEqn, *operands: Value) -> Value:
    for number, operand in enumerate(operands):
        full(eqn, number, operand, range(len(shape_of(operand))))
    order, names, _ = aligned(graph, operands)
    name = graph.add("Concat", names, axis=order.index(eqn.params["dimension"]))
    return Tensor(name, order, traced(eqn.outvars[0]).shape)
