"""A traced JAX program as an ONNX graph, operation by operation, so that it holds for every network that can be traced.

Two things make the graph what a person would write. Axes: ONNX convolves channels first, JAX here channels last. A
value remembers which of its axes stands where (`Tensor.order`), operations are told in those places, and only where
nothing else fits is anything transposed: once, at the input. Constants: what depends on no input is computed here and
now; what is broadcast stays small, for ONNX broadcasts by itself.

Written with onnx' own helpers: jax2onnx, which does the same and more, downgrades orbax (see requirements-export.txt).
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from resnet.study import export_onnx_rules as rules

# Opset 18 (ONNX 1.13, 2022): the first in which every reduction takes its axes as an input.
OPSET = 18
IR_VERSION = 8


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

    def constant(self, array: np.ndarray, name: str = "") -> str:
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


def build(program: ClosedJaxpr, names: Sequence[str], arrays: Sequence[np.ndarray], source: str, target: str) -> Graph:
    """The graph of a program whose first arguments are `arrays` under `names`, the last one the input `source`.

    It has one result, `target`, with its axes in JAX' order. Raises ValueError that names the operation for which there
    is no rule.
    """
    graph = Graph()
    *_, images = program.jaxpr.invars
    rank = len(images.aval.shape)
    first = Tensor(source, tuple(range(rank)), images.aval.shape)
    if rank == 4:
        # Here, where a pixel is one byte.
        order = (0, 3, 1, 2)
        first = Tensor(graph.named(first, order), order, first.shape)
    known: list[Value] = [Constant(np.asarray(array), name) for name, array in zip(names, arrays, strict=True)]
    constants: list[Value] = [Constant(np.asarray(array)) for array in program.consts]
    (result,) = _walk(graph, program.jaxpr, constants, [*known, first])
    if not isinstance(result, Tensor):
        raise ValueError("the program's result does not depend on its input")
    last = graph.named(result, tuple(range(len(result.order))))
    from onnx import helper

    graph.nodes.append(helper.make_node("Identity", [last], [target], name=target))
    return graph


def _walk(graph: Graph, jaxpr: Jaxpr, constants: Sequence[Value], arguments: Sequence[Value]) -> list[Value]:
    """The values of a program's results."""
    values: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))
    uses = collections.Counter(
        id(v) for v in [*(v for eqn in jaxpr.eqns for v in eqn.invars), *jaxpr.outvars] if not isinstance(v, Literal)
    )

    def read(variable: Any) -> Value:
        return Constant(np.asarray(variable.val)) if isinstance(variable, Literal) else values[variable]

    for eqn in jaxpr.eqns:
        operands = [read(variable) for variable in eqn.invars]
        results = _apply(graph, eqn, operands)
        for variable, result in zip(eqn.outvars, results, strict=True):
            values[variable] = result
            # Its bias may only join a convolution whose bare result nobody else reads.
            if isinstance(result, Tensor) and uses[id(variable)] != 1:
                graph.unbiased.pop(result.name, None)
    return [read(variable) for variable in jaxpr.outvars]


def _apply(graph: Graph, eqn: JaxprEqn, operands: list[Value]) -> list[Value]:
    if inner := called(eqn):
        return _walk(graph, inner.jaxpr, [Constant(np.asarray(array)) for array in inner.consts], operands)
    if all(isinstance(operand, Constant) for operand in operands):
        return _evaluate(eqn, operands)
    name = eqn.primitive.name
    rule: Callable[..., Value] | None = rules.RULES.get(name)
    if rule is None:
        raise ValueError(f"there is no rule that writes {name} in ONNX")
    return [rule(graph, eqn, *operands)]


def called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The program that an equation calls as it is: jit, custom_jvp_call, custom_vjp_call, remat; None for others."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        program = eqn.params.get(name)
        if isinstance(program, ClosedJaxpr):
            return program
        if isinstance(program, Jaxpr):
            return ClosedJaxpr(program, ())
    return None


def _evaluate(eqn: JaxprEqn, operands: list[Any]) -> list[Value]:
    """The equation's results, computed here. A symbolic dimension counts as 1: what is known does not depend on it."""
    if eqn.primitive.name in ("broadcast_in_dim", "reshape", "squeeze"):
        (operand,), out = operands[:1], eqn.outvars[0].aval.shape
        if eqn.primitive.name == "broadcast_in_dim":
            places = eqn.params["broadcast_dimensions"]
            shape = [1] * len(out)
            for axis, place in enumerate(places):
                shape[place] = operand.array.shape[axis]
            return [Constant(operand.array.reshape(shape), operand.name)]
        array = np.broadcast_to(operand.array, concrete(eqn.invars[0].aval.shape))
        return [Constant(array.reshape(concrete(out)), operand.name)]
    arrays = [
        np.broadcast_to(operand.array, concrete(variable.aval.shape))
        for operand, variable in zip(operands, eqn.invars, strict=True)
    ]
    results = eqn.primitive.bind(*(jax.numpy.asarray(array) for array in arrays), **eqn.params)
    return [Constant(np.asarray(array)) for array in (results if eqn.primitive.multiple_results else [results])]


def concrete(shape: Sequence[Any]) -> tuple[int, ...]:
    """A shape with 1 for each symbolic dimension."""
    return tuple(size if isinstance(size, int) else 1 for size in shape)
