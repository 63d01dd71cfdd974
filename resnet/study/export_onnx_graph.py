"""A traced JAX program as an ONNX graph, operation by operation, so that it holds for every network that can be traced.

Two things make the graph what a person would write. Axes: ONNX convolves channels first, JAX here channels last. A
value remembers which of its axes stands where (`Tensor.order`), operations are told in those places, and only where
nothing else fits is anything transposed: once, at the input. Constants: what depends on no input is computed here and
now; what is broadcast stays small, for ONNX broadcasts by itself.

Written with onnx' own helpers: jax2onnx, which does the same and more, downgrades orbax (see requirements-export.txt).
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from resnet.study.export_onnx_rules import RULES
from resnet.study.export_onnx_values import Constant, Graph, NoRule, Tensor, Value, traced

# Opset 18 (ONNX 1.13, 2022): the first in which every reduction takes its axes as an input.
OPSET = 18
IR_VERSION = 8


def build(program: ClosedJaxpr, names: Sequence[str], arrays: Sequence[np.ndarray], source: str, target: str) -> Graph:
    """The graph of a program whose first arguments are `arrays` under `names`, the last one the input `source`.

    It has one result, `target`, with its axes in JAX' order. Raises NoRule that names the operation for which there
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
    rule: Callable[..., Value] | None = RULES.get(name)
    if rule is None:
        raise NoRule(f"there is no rule that writes {name} in ONNX")
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
        (operand,), out = operands[:1], traced(eqn.outvars[0]).shape
        if eqn.primitive.name == "broadcast_in_dim":
            places = eqn.params["broadcast_dimensions"]
            shape = [1] * len(out)
            for axis, place in enumerate(places):
                shape[place] = operand.array.shape[axis]
            return [Constant(operand.array.reshape(shape), operand.name)]
        array = np.broadcast_to(operand.array, concrete(traced(eqn.invars[0]).shape))
        return [Constant(array.reshape(concrete(out)), operand.name)]
    arrays = [
        np.broadcast_to(operand.array, concrete(traced(variable).shape))
        for operand, variable in zip(operands, eqn.invars, strict=True)
    ]
    results = eqn.primitive.bind(*(jax.numpy.asarray(array) for array in arrays), **eqn.params)
    return [Constant(np.asarray(array)) for array in (results if eqn.primitive.multiple_results else [results])]


def concrete(shape: Sequence[Any]) -> tuple[int, ...]:
    """A shape with 1 for each symbolic dimension."""
    return tuple(size if isinstance(size, int) else 1 for size in shape)
