"""How each operation of a traced network is written in ONNX: one function for each, listed in RULES.

A rule is called with the graph, the equation and its operands, of which at least one is a Tensor, and gives the result.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from resnet.study.export_onnx_shapes import (
    broadcast,
    concatenate,
    cut,
    pad,
    reshape,
    reverse,
    squeeze,
    transpose,
    without,
)
from resnet.study.export_onnx_values import Constant, Graph, NoRule, Tensor, Value, aligned, full, shape_of, traced


def elementwise(operator: str) -> Callable[..., Value]:
    """The rule of an operation that ONNX has under the name `operator` and broadcasts."""

    def rule(graph: Graph, eqn: JaxprEqn, *operands: Value) -> Value:
        order, names, shape = aligned(graph, operands)
        return Tensor(graph.add(operator, names), order, shape)

    return rule


def add(graph: Graph, eqn: JaxprEqn, left: Value, right: Value) -> Value:
    """A constant for each channel that is added to a convolution's result becomes the convolution's bias."""
    for value, other in ((left, right), (right, left)):
        if not (isinstance(value, Tensor) and isinstance(other, Constant) and value.name in graph.unbiased):
            continue
        if other.array.ndim == len(value.order):
            array = other.array.transpose(value.order)
            if array.shape == (1, value.shape[value.order[1]], *[1] * (array.ndim - 2)):
                convolution = graph.unbiased[value.name]
                convolution.input.append(graph.constant(array.reshape(-1), other.name))
                del graph.unbiased[value.name]
                return value
    return elementwise("Add")(graph, eqn, left, right)


def maximum(graph: Graph, eqn: JaxprEqn, left: Value, right: Value) -> Value:
    for value, other in ((left, right), (right, left)):
        if not (isinstance(value, Tensor) and isinstance(other, Constant)):
            continue
        if other.array.size == 1 and not other.array.any():
            return Tensor(graph.add("Relu", [value.name]), value.order, value.shape)
        if np.all(np.isneginf(other.array)):
            return value
    return elementwise("Max")(graph, eqn, left, right)


def composed(*operators: str) -> Callable[..., Value]:
    """Operations of one operand, one after another."""

    def rule(graph: Graph, eqn: JaxprEqn, operand: Tensor) -> Value:
        name = operand.name
        for operator in operators:
            name = graph.add(operator, [name])
        return Tensor(name, operand.order, operand.shape)

    return rule


def square(graph: Graph, eqn: JaxprEqn, operand: Tensor) -> Value:
    return Tensor(graph.add("Mul", [operand.name, operand.name]), operand.order, operand.shape)


def expm1(graph: Graph, eqn: JaxprEqn, operand: Tensor) -> Value:
    """ONNX has no such operation; the difference loses a part in 10⁷ of 1, not of the result."""
    name = graph.add("Sub", [graph.add("Exp", [operand.name]), graph.constant(np.float32(1))])
    return Tensor(name, operand.order, operand.shape)


def integer_power(graph: Graph, eqn: JaxprEqn, operand: Tensor) -> Value:
    power = graph.constant(np.float32(eqn.params["y"]))
    return Tensor(graph.add("Pow", [operand.name, power]), operand.order, operand.shape)


def erfc(graph: Graph, eqn: JaxprEqn, operand: Tensor) -> Value:
    name = graph.add("Sub", [graph.constant(np.float32(1)), graph.add("Erf", [operand.name])])
    return Tensor(name, operand.order, operand.shape)


def same(graph: Graph, eqn: JaxprEqn, operand: Tensor, *_: Value) -> Value:
    return operand


def convert(graph: Graph, eqn: JaxprEqn, operand: Tensor) -> Value:
    from onnx import helper

    if traced(eqn.invars[0]).dtype == eqn.params["new_dtype"]:
        return operand
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params["new_dtype"]))
    return Tensor(graph.add("Cast", [operand.name], to=kind), operand.order, operand.shape)


def select(graph: Graph, eqn: JaxprEqn, which: Value, *cases: Value) -> Value:
    if len(cases) != 2 or traced(eqn.invars[0]).dtype != np.bool_:
        raise NoRule("select_n of other than two cases has no rule that writes it in ONNX")
    order, (condition, false, true), shape = aligned(graph, (which, *cases))
    return Tensor(graph.add("Where", [condition, true, false]), order, shape)


def reduction(operator: str) -> Callable[..., Value]:
    def rule(graph: Graph, eqn: JaxprEqn, operand: Tensor) -> Value:
        axes = eqn.params["axes"]
        full(eqn, 0, operand, axes)
        places = sorted(operand.order.index(axis) for axis in axes)
        name = graph.add(operator, [operand.name, graph.integers(places)], keepdims=0)
        return without(name, operand, axes)

    return rule


def convolution(graph: Graph, eqn: JaxprEqn, image: Value, kernel: Value) -> Value:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise NoRule("a transposed or batch-grouped convolution has no rule that writes it in ONNX")
    for number, value in enumerate((image, kernel)):
        full(eqn, number, value, range(1, len(shape_of(value))))
    kernel_shape = [traced(eqn.invars[1]).shape[axis] for axis in numbers.rhs_spec[2:]]
    padding = params["padding"]
    name = graph.add(
        "Conv",
        [graph.named(image, tuple(numbers.lhs_spec)), graph.named(kernel, tuple(numbers.rhs_spec))],
        kernel_shape=kernel_shape,
        strides=list(params["window_strides"]),
        pads=[low for low, _ in padding] + [high for _, high in padding],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    graph.unbiased[name] = graph.nodes[-1]
    return Tensor(name, tuple(numbers.out_spec), traced(eqn.outvars[0]).shape)


def product(graph: Graph, eqn: JaxprEqn, left: Value, right: Value) -> Value:
    (contracted, batch) = eqn.params["dimension_numbers"]
    (a,), (b,) = contracted if all(len(axes) == 1 for axes in contracted) else ((-1,), (-1,))
    ranks = [len(shape_of(value)) for value in (left, right)]
    if any(map(len, batch)) or a < 0 or ranks[1] != 2:
        raise NoRule("a product of other than matrices has no rule that writes it in ONNX")
    for number, value in enumerate((left, right)):
        full(eqn, number, value, range(ranks[number]))
    rows = tuple(axis for axis in range(ranks[0]) if axis != a)
    names = [graph.named(left, (*rows, a)), graph.named(right, (b, 1 - b))]
    return Tensor(graph.add("MatMul", names), tuple(range(ranks[0])), traced(eqn.outvars[0]).shape)


def pooling(operator: str) -> Callable[..., Value]:
    """MaxPool, or the sum over windows as AveragePool (padding counted) times the window's size."""

    def rule(graph: Graph, eqn: JaxprEqn, operand: Tensor) -> Value:
        params = eqn.params
        sizes, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
        axes = [axis for axis, about in enumerate(zip(sizes, strides, padding, strict=True)) if about != (1, 1, (0, 0))]
        dilated = set(params["base_dilation"]) | set(params["window_dilation"]) != {1}
        if dilated or len(sizes) != 4 or len(axes) > 2:
            raise NoRule(f"{eqn.primitive.name} of this window has no rule that writes it in ONNX")
        full(eqn, 0, operand, axes)
        order = tuple(operand.order)
        if set(order[2:]) != set(axes):
            # Rank 4, of which the last two axes are the window's: a window of one cell is a window too.
            axes = axes if len(axes) == 2 else [1, 2]
            order = (*(axis for axis in range(4) if axis not in axes), *axes)
        name = graph.add(
            operator,
            [graph.named(operand, order)],
            kernel_shape=[sizes[axis] for axis in order[2:]],
            strides=[strides[axis] for axis in order[2:]],
            pads=[int(padding[axis][side]) for side in (0, 1) for axis in order[2:]],
            **({"count_include_pad": 1} if operator == "AveragePool" else {}),
        )
        if operator == "AveragePool":
            name = graph.add("Mul", [name, graph.constant(np.float32(np.prod(sizes)))])
        return Tensor(name, order, traced(eqn.outvars[0]).shape)

    return rule


RULES: dict[str, Callable[..., Any]] = {
    "add": add,
    "max": maximum,
    "min": elementwise("Min"),
    "sub": elementwise("Sub"),
    "mul": elementwise("Mul"),
    "div": elementwise("Div"),
    "pow": elementwise("Pow"),
    "gt": elementwise("Greater"),
    "ge": elementwise("GreaterOrEqual"),
    "lt": elementwise("Less"),
    "le": elementwise("LessOrEqual"),
    "eq": elementwise("Equal"),
    "and": elementwise("And"),
    "or": elementwise("Or"),
    "not": composed("Not"),
    "neg": composed("Neg"),
    "exp": composed("Exp"),
    "log": composed("Log"),
    "tanh": composed("Tanh"),
    "logistic": composed("Sigmoid"),
    "sqrt": composed("Sqrt"),
    "rsqrt": composed("Sqrt", "Reciprocal"),
    "abs": composed("Abs"),
    "erf": composed("Erf"),
    "erfc": erfc,
    "square": square,
    "expm1": expm1,
    "integer_pow": integer_power,
    "stop_gradient": same,
    "copy": same,
    "convert_element_type": convert,
    "select_n": select,
    "broadcast_in_dim": broadcast,
    "reshape": reshape,
    "squeeze": squeeze,
    "transpose": transpose,
    "reduce_sum": reduction("ReduceSum"),
    "reduce_max": reduction("ReduceMax"),
    "reduce_min": reduction("ReduceMin"),
    "pad": pad,
    "slice": cut,
    "rev": reverse,
    "concatenate": concatenate,
    "conv_general_dilated": convolution,
    "dot_general": product,
    "reduce_window_max": pooling("MaxPool"),
    "reduce_window_sum": pooling("AveragePool"),
}
