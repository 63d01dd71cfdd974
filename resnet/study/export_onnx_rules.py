"""How each operation of a traced network is written in ONNX: one function for each, listed in RULES.

A rule is called with the graph, the equation and its operands, of which at least one is a Tensor, and gives the result.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.extend.core import JaxprEqn

if TYPE_CHECKING:
    from resnet.study.export_onnx_graph import Graph, Tensor, Value

# 'slice' up to and including the first element, backwards.
_BEFORE_THE_FIRST = -(2**31)


def tensor(name: str, order: Sequence[int], shape: Sequence[Any]) -> "Tensor":
    from resnet.study.export_onnx_graph import Tensor

    return Tensor(name, tuple(order), tuple(shape))


def is_tensor(value: "Value") -> bool:
    return hasattr(value, "order")


def shape_of(value: "Value") -> tuple[Any, ...]:
    return value.shape if is_tensor(value) else value.array.shape  # type: ignore[union-attr]


def elementwise(operator: str) -> Callable[..., "Value"]:
    """The rule of an operation that ONNX has under the name `operator` and broadcasts."""

    def rule(graph: "Graph", eqn: JaxprEqn, *operands: "Value") -> "Value":
        order, names, shape = aligned(graph, operands)
        return tensor(graph.add(operator, names), order, shape)

    return rule


def aligned(graph: "Graph", operands: Sequence["Value"]) -> tuple[tuple[int, ...], list[str], tuple[Any, ...]]:
    """(order, names, shape) of operands whose axes are brought into one order, that of the largest of them."""
    sizes = [sum(size != 1 for size in shape_of(operand)) if is_tensor(operand) else -1 for operand in operands]
    order = operands[sizes.index(max(sizes))].order  # type: ignore[union-attr]
    shapes = [shape_of(operand) for operand in operands if len(shape_of(operand)) == len(order)]
    shape = tuple(next((size for size in sizes if not is_one(size)), 1) for sizes in zip(*shapes, strict=True))
    return order, [graph.named(operand, order) for operand in operands], shape


def is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def full(eqn: JaxprEqn, number: int, value: "Value", axes: Sequence[int]) -> None:
    """Raise ValueError where an operation looks along an axis that is broadcast, and so not there."""
    shape = eqn.invars[number].aval.shape
    missing = [axis for axis in axes if is_one(shape_of(value)[axis]) and not is_one(shape[axis])]
    if missing:
        raise ValueError(f"{eqn.primitive.name} along a broadcast axis has no rule that writes it in ONNX")


def add(graph: "Graph", eqn: JaxprEqn, left: "Value", right: "Value") -> "Value":
    """A constant for each channel that is added to a convolution's result becomes the convolution's bias."""
    for value, other in ((left, right), (right, left)):
        convolution = graph.unbiased.get(value.name) if is_tensor(value) else None
        if convolution is not None and not is_tensor(other):
            array = other.array.transpose(value.order)  # type: ignore[union-attr]
            if array.shape == (1, shape_of(value)[value.order[1]], *[1] * (array.ndim - 2)):  # type: ignore[union-attr]
                convolution.input.append(graph.constant(array.reshape(-1), other.name))
                del graph.unbiased[value.name]
                return value
    return elementwise("Add")(graph, eqn, left, right)


def maximum(graph: "Graph", eqn: JaxprEqn, left: "Value", right: "Value") -> "Value":
    for value, other in ((left, right), (right, left)):
        if is_tensor(value) and not is_tensor(other) and other.array.size == 1 and not other.array.any():  # type: ignore[union-attr]
            return tensor(graph.add("Relu", [value.name]), value.order, shape_of(value))  # type: ignore[union-attr]
        if is_tensor(value) and not is_tensor(other) and np.all(np.isneginf(other.array)):  # type: ignore[union-attr]
            return value
    return elementwise("Max")(graph, eqn, left, right)


def composed(*operators: str) -> Callable[..., "Value"]:
    """Operations of one operand, one after another."""

    def rule(graph: "Graph", eqn: JaxprEqn, operand: "Tensor") -> "Value":
        name = operand.name
        for operator in operators:
            name = graph.add(operator, [name])
        return tensor(name, operand.order, operand.shape)

    return rule


def square(graph: "Graph", eqn: JaxprEqn, operand: "Tensor") -> "Value":
    return tensor(graph.add("Mul", [operand.name, operand.name]), operand.order, operand.shape)


def expm1(graph: "Graph", eqn: JaxprEqn, operand: "Tensor") -> "Value":
    """ONNX has no such operation; the difference loses a part in 10⁷ of 1, not of the result."""
    name = graph.add("Sub", [graph.add("Exp", [operand.name]), graph.constant(np.float32(1))])
    return tensor(name, operand.order, operand.shape)


def integer_power(graph: "Graph", eqn: JaxprEqn, operand: "Tensor") -> "Value":
    power = graph.constant(np.float32(eqn.params["y"]))
    return tensor(graph.add("Pow", [operand.name, power]), operand.order, operand.shape)


def erfc(graph: "Graph", eqn: JaxprEqn, operand: "Tensor") -> "Value":
    name = graph.add("Sub", [graph.constant(np.float32(1)), graph.add("Erf", [operand.name])])
    return tensor(name, operand.order, operand.shape)


def same(graph: "Graph", eqn: JaxprEqn, operand: "Tensor", *_: "Value") -> "Value":
    return operand


def convert(graph: "Graph", eqn: JaxprEqn, operand: "Tensor") -> "Value":
    from onnx import helper

    if eqn.invars[0].aval.dtype == eqn.params["new_dtype"]:
        return operand
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params["new_dtype"]))
    return tensor(graph.add("Cast", [operand.name], to=kind), operand.order, operand.shape)


def select(graph: "Graph", eqn: JaxprEqn, which: "Value", *cases: "Value") -> "Value":
    if len(cases) != 2 or eqn.invars[0].aval.dtype != np.bool_:
        raise ValueError("select_n of other than two cases has no rule that writes it in ONNX")
    order, (condition, false, true), shape = aligned(graph, (which, *cases))
    return tensor(graph.add("Where", [condition, true, false]), order, shape)


def broadcast(graph: "Graph", eqn: JaxprEqn, operand: "Tensor") -> "Value":
    """Only new axes are written; ONNX broadcasts where it is needed."""
    places, rank = eqn.params["broadcast_dimensions"], len(eqn.outvars[0].aval.shape)
    shape: list[Any] = [1] * rank
    for axis, place in enumerate(places):
        shape[place] = operand.shape[axis]
    if rank == len(places):
        return tensor(operand.name, operand.order, shape)
    plain, channels_first = tuple(range(rank)), (0, rank - 1, *range(1, rank - 1))
    placed = [places[axis] for axis in operand.order]
    name = operand.name
    for order in (channels_first, plain):
        if [axis for axis in order if axis in places] == placed:
            break
    else:
        order, name = plain, graph.named(operand, tuple(range(len(places))))
    new = [number for number, axis in enumerate(order) if axis not in places]
    return tensor(graph.add("Unsqueeze", [name, graph.integers(new)]), order, shape)


def reshape(graph: "Graph", eqn: JaxprEqn, operand: "Tensor") -> "Value":
    """In JAX' order; the batch stays in its place, where ONNX writes 0."""
    old, new = eqn.invars[0].aval.shape, eqn.params["new_sizes"]
    operand = expanded(graph, operand, old)
    sizes = [size if isinstance(size, int) else 0 for size in new]
    if any(size == 0 and (number >= len(old) or old[number] != new[number]) for number, size in enumerate(sizes)):
        raise ValueError("a reshape that moves the batch has no rule that writes it in ONNX")
    name = graph.named(operand, tuple(range(len(old))))
    return tensor(graph.add("Reshape", [name, graph.integers(sizes)]), range(len(new)), new)


def expanded(graph: "Graph", operand: "Tensor", shape: Sequence[Any]) -> "Tensor":
    """The operand with its broadcast axes written out; the batch, which ONNX does not know, must be there already."""
    if operand.shape == tuple(shape):
        return operand
    sizes = [shape[axis] if is_one(operand.shape[axis]) else 1 for axis in operand.order]
    return tensor(graph.add("Expand", [operand.name, graph.integers(sizes)]), operand.order, shape)


def squeeze(graph: "Graph", eqn: JaxprEqn, operand: "Tensor") -> "Value":
    axes = [axis % len(operand.order) for axis in eqn.params["dimensions"]]
    places = [operand.order.index(axis) for axis in axes]
    name = graph.add("Squeeze", [operand.name, graph.integers(sorted(places))])
    return without(name, operand, axes)


def without(name: str, operand: "Tensor", axes: Sequence[int]) -> "Tensor":
    """A tensor that lacks some of the operand's axes."""
    left = [axis for axis in range(len(operand.order)) if axis not in axes]
    order = [left.index(axis) for axis in operand.order if axis in left]
    return tensor(name, order, [operand.shape[axis] for axis in left])


def transpose(graph: "Graph", eqn: JaxprEqn, operand: "Tensor") -> "Value":
    permutation = eqn.params["permutation"]
    order = [permutation.index(axis) for axis in operand.order]
    return tensor(operand.name, order, [operand.shape[axis] for axis in permutation])


def reduction(operator: str) -> Callable[..., "Value"]:
    def rule(graph: "Graph", eqn: JaxprEqn, operand: "Tensor") -> "Value":
        axes = eqn.params["axes"]
        full(eqn, 0, operand, axes)
        places = sorted(operand.order.index(axis) for axis in axes)
        name = graph.add(operator, [operand.name, graph.integers(places)], keepdims=0)
        return without(name, operand, axes)

    return rule


def pad(graph: "Graph", eqn: JaxprEqn, operand: "Tensor", filling: "Value") -> "Value":
    config = [tuple(map(int, side)) for side in eqn.params["padding_config"]]
    if is_tensor(filling) or any(low < 0 or high < 0 or between for low, high, between in config):
        raise ValueError("a pad that cuts, or puts gaps between, has no rule that writes it in ONNX")
    full(eqn, 0, operand, [axis for axis, (low, high, _) in enumerate(config) if low or high])
    sides = [config[axis][side] for side in (0, 1) for axis in operand.order]
    shape = [size + low + high if low or high else size for size, (low, high, _) in zip(operand.shape, config)]  # noqa: B905
    value = graph.constant(np.asarray(filling.array).reshape(()))  # type: ignore[union-attr]
    return tensor(graph.add("Pad", [operand.name, graph.integers(sides), value]), operand.order, shape)


def cut(graph: "Graph", eqn: JaxprEqn, operand: "Tensor") -> "Value":
    shape, params = eqn.invars[0].aval.shape, eqn.params
    strides = params["strides"] or (1,) * len(shape)
    bounds = list(zip(params["start_indices"], params["limit_indices"], strides, strict=True))
    axes = [axis for axis, (start, stop, step) in enumerate(bounds) if (start, step) != (0, 1) or stop != shape[axis]]
    full(eqn, 0, operand, axes)
    if not axes:
        return operand
    starts, stops, steps = zip(*(bounds[axis] for axis in axes), strict=True)
    return sliced(graph, eqn, operand, axes, starts, stops, steps)


def reverse(graph: "Graph", eqn: JaxprEqn, operand: "Tensor") -> "Value":
    axes = eqn.params["dimensions"]
    full(eqn, 0, operand, axes)
    count = len(axes)
    return sliced(graph, eqn, operand, axes, [-1] * count, [_BEFORE_THE_FIRST] * count, [-1] * count)


def sliced(
    graph: "Graph",
    eqn: JaxprEqn,
    operand: "Tensor",
    axes: Sequence[int],
    starts: Sequence[int],
    stops: Sequence[int],
    steps: Sequence[int],
) -> "Tensor":
    places = [operand.order.index(axis) for axis in axes]
    bounds = [graph.integers(values) for values in (starts, stops, places, steps)]
    new = eqn.outvars[0].aval.shape
    shape = [new[axis] if axis in axes else size for axis, size in enumerate(operand.shape)]
    return tensor(graph.add("Slice", [operand.name, *bounds]), operand.order, shape)


def concatenate(graph: "Graph", eqn: JaxprEqn, *operands: "Value") -> "Value":
    for number, operand in enumerate(operands):
        full(eqn, number, operand, range(len(shape_of(operand))))
    order, names, _ = aligned(graph, operands)
    name = graph.add("Concat", names, axis=order.index(eqn.params["dimension"]))
    return tensor(name, order, eqn.outvars[0].aval.shape)


def convolution(graph: "Graph", eqn: JaxprEqn, image: "Value", kernel: "Value") -> "Value":
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise ValueError("a transposed or batch-grouped convolution has no rule that writes it in ONNX")
    for number, value in enumerate((image, kernel)):
        full(eqn, number, value, range(1, len(shape_of(value))))
    kernel_shape = [eqn.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:]]
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
    return tensor(name, numbers.out_spec, eqn.outvars[0].aval.shape)


def product(graph: "Graph", eqn: JaxprEqn, left: "Value", right: "Value") -> "Value":
    (contracted, batch) = eqn.params["dimension_numbers"]
    (a,), (b,) = contracted if all(len(axes) == 1 for axes in contracted) else ((-1,), (-1,))
    ranks = [len(shape_of(value)) for value in (left, right)]
    if any(map(len, batch)) or a < 0 or ranks[1] != 2:
        raise ValueError("a product of other than matrices has no rule that writes it in ONNX")
    for number, value in enumerate((left, right)):
        full(eqn, number, value, range(ranks[number]))
    rows = tuple(axis for axis in range(ranks[0]) if axis != a)
    names = [graph.named(left, (*rows, a)), graph.named(right, (b, 1 - b))]
    return tensor(graph.add("MatMul", names), range(ranks[0]), eqn.outvars[0].aval.shape)


def pooling(operator: str) -> Callable[..., "Value"]:
    """MaxPool, or the sum over windows as AveragePool (padding counted) times the window's size."""

    def rule(graph: "Graph", eqn: JaxprEqn, operand: "Tensor") -> "Value":
        params = eqn.params
        sizes, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
        axes = [axis for axis, about in enumerate(zip(sizes, strides, padding, strict=True)) if about != (1, 1, (0, 0))]
        dilated = set(params["base_dilation"]) | set(params["window_dilation"]) != {1}
        if dilated or len(sizes) != 4 or len(axes) > 2:
            raise ValueError(f"{eqn.primitive.name} of this window has no rule that writes it in ONNX")
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
        return tensor(name, order, eqn.outvars[0].aval.shape)

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
