"""What an ONNX graph under construction is made of: values known now, values it computes, nodes and initializers."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn


class NoRule(ValueError):
    """An operation of the network that nothing here writes in ONNX."""


@dataclasses.dataclass(frozen=True)
class Constant:
    """A value known now. Its array has the rank of the traced value, and may have 1 where that is broadcast."""

    array: np.ndarray
    # Of the parameter that it is, '' for others.
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A value that the graph computes: ONNX axis i holds JAX axis order[i]."""

    name: str
    order: tuple[int, ...]
    # In JAX' order; 1 where the traced value is broadcast, a symbolic dimension for the batch.
    shape: tuple[Any, ...]


Value = Constant | Tensor


class Graph:
    """Nodes and initializers under construction."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: dict[str, np.ndarray] = {}
        # Convolutions without a bias yet, by the name of what they give.
        self.unbiased: dict[str, Any] = {}
        self._count: collections.Counter[str] = collections.Counter()

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node; the name of its one output."""
        from onnx import helper

        name = self._fresh(operator)
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, array: Any, name: str = "") -> str:
        """An initializer; the same array under the same name is one."""
        array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        name = name or self._fresh("constant")
        known = self.initializers.get(name)
        if known is not None and (known.shape != array.shape or not np.array_equal(known, array)):
            name = self._fresh(name)
        self.initializers[name] = array
        return name

    def integers(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def named(self, value: Value, order: tuple[int, ...]) -> str:
        """The name of a value whose axes stand in `order`; it is transposed, or made an initializer, as needed."""
        if isinstance(value, Constant):
            array = value.array.transpose(order) if value.array.ndim == len(order) else value.array
            return self.constant(array, value.name)
        if value.order == order:
            return value.name
        return self.add("Transpose", [value.name], perm=[value.order.index(axis) for axis in order])

    def _fresh(self, stem: str) -> str:
        self._count[stem] += 1
        return f"{stem}_{self._count[stem]}"


def traced(variable: Any) -> Any:
    """The abstract value (shape, dtype) of a variable in the program."""
    return variable.aval


def shape_of(value: Value) -> tuple[Any, ...]:
    """Its shape as it is held: 1 where the traced value is broadcast."""
    return value.shape if isinstance(value, Tensor) else value.array.shape


def is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def full(eqn: JaxprEqn, number: int, value: Value, axes: Sequence[int]) -> None:
    """Raise NoRule where an operation looks along an axis that is broadcast, and so not there."""
    shape = traced(eqn.invars[number]).shape
    missing = [axis for axis in axes if is_one(shape_of(value)[axis]) and not is_one(shape[axis])]
    if missing:
        raise NoRule(f"{eqn.primitive.name} along a broadcast axis has no rule that writes it in ONNX")


def aligned(graph: Graph, operands: Sequence[Value]) -> tuple[tuple[int, ...], list[str], tuple[Any, ...]]:
    """(order, names, shape) of operands whose axes are brought into one order, that of the largest Tensor of them."""
    tensors = [operand for operand in operands if isinstance(operand, Tensor)]
    order = max(tensors, key=lambda operand: sum(not is_one(size) for size in operand.shape)).order
    shapes = [shape_of(operand) for operand in operands if len(shape_of(operand)) == len(order)]
    shape = tuple(next((size for size in sizes if not is_one(size)), 1) for sizes in zip(*shapes, strict=True))
    return order, [graph.named(operand, order) for operand in operands], shape
