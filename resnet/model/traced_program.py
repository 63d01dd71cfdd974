"""What a traced program does: multiply-adds of each convolution and matrix product, values kept for its gradient."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

Scope = tuple[str, ...]

# Equations that hand on their operand in another shape or type: no new value to keep.
RESHAPING = ("broadcast_in_dim", "reshape", "squeeze", "convert_element_type", "copy")
# ReLU is a custom_jvp_call, which stands for every activation.
ACTIVATION = "custom_jvp_call"
# Equations whose gradient needs what leaves them: the sigmoid of gates, and what designs of one's own may have.
GATING = ("logistic", "tanh", "exp", "exp2", "sqrt", "rsqrt", "cbrt")
# Equations whose gradient needs what enters them.
CONSUMING = (
    *("conv_general_dilated", "dot_general", "reduce_window_max"),
    *("reduce_max", "reduce_min", "log", "log1p", "sin", "cos", "erf", "abs", "pow", "integer_pow", "square"),
)
NORM_SCOPE = re.compile(r"(downsample_)?bn")
# Primitives whose work no program tells: kernels, and calls of C, as ours of oneDNN (onednn_library.target).
_OTHER_LANGUAGES = ("pallas_call", "ffi_call", "resnet_convolution")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One convolution or matrix product; `times` is how often scans around it repeat it."""

    # Names of the modules around it, outermost first, as jax.named_scope recorded them.
    scope: Scope
    # Over the whole batch of the traced program, repetitions included.
    multiply_adds: int
    # Height and width of a convolution's kernel; empty for a matrix product.
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    features: int
    groups: int
    # Shape of the result.
    output: tuple[int, ...]
    times: int = 1


def operations(program: ClosedJaxpr) -> list[Operation]:
    """Every convolution and matrix product of a program, in its order, those of nested programs included.

    A scan's count times its length; of a conditional's branches the costliest counts. Products with padding count: they
    are what the papers count, and what a dense implementation does. Raises ValueError for what cannot be counted before
    it runs (a while loop around a convolution) or lies outside the program (a kernel of another language).
    """
    return list(_walk(program.jaxpr, (), 1))


def _walk(jaxpr: Jaxpr, outer: Scope, times: int) -> Iterator[Operation]:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "conv_general_dilated":
            yield _convolution(eqn, outer + scope_of(eqn), times)
        elif name == "dot_general":
            yield _product(eqn, outer + scope_of(eqn), times)
        elif name.startswith(_OTHER_LANGUAGES):
            where = "/".join(outer + scope_of(eqn)) or "the top"
            raise ValueError(f"multiply-adds inside {name} at {where} cannot be counted")
        elif programs := list(_nested(eqn)):
            scope = outer + scope_of(eqn)
            repeats = eqn.params["length"] if name == "scan" else 1
            inner = [list(_walk(nested, scope, times * repeats)) for nested in programs]
            if name == "while" and any(inner):
                raise ValueError(f"multiply-adds inside {name} at {'/'.join(scope) or 'the top'} cannot be counted")
            if name == "cond":
                inner = [max(inner, key=lambda found: sum(operation.multiply_adds for operation in found))]
            yield from (operation for found in inner for operation in found)


def scope_of(eqn: JaxprEqn) -> Scope:
    """The names around an equation, relative to the program that it stands in."""
    return tuple(part for part in str(eqn.source_info.name_stack).split("/") if part)


def _nested(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """Programs that an equation calls: of jit, scan, while, remat, custom_jvp, custom_vjp, shard_map and the like."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _convolution(eqn: JaxprEqn, scope: Scope, times: int) -> Operation:
    """Each output element is a product over the kernel and the input channels of its group.

    Where the input is dilated (a transposed convolution, as in the gradient of a strided one), most of those factors
    are zeros put between pixels; counted is then what each input element is multiplied with, as for the strided
    convolution whose transpose it is.
    """
    left, right, output = map(_shape, (*eqn.invars, eqn.outvars[0]))
    numbers = eqn.params["dimension_numbers"]
    kernel = tuple(right[axis] for axis in numbers.rhs_spec[2:])
    features, channels_in_group = right[numbers.rhs_spec[0]], right[numbers.rhs_spec[1]]
    groups = eqn.params["feature_group_count"]
    if any(dilation > 1 for dilation in eqn.params["lhs_dilation"]):
        count = math.prod(left) * math.prod(kernel) * features // (groups * eqn.params["batch_group_count"])
    else:
        count = math.prod(output) * math.prod(kernel) * channels_in_group
    strides = tuple(eqn.params["window_strides"])
    return Operation(scope, count * times, kernel, strides, features, groups, output, times)


def _product(eqn: JaxprEqn, scope: Scope, times: int) -> Operation:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left, output = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    count = math.prod(output) * math.prod(left[axis] for axis in contracted)
    return Operation(scope, count * times, (), (), output[-1] if output else 1, 1, output, times)


def _shape(value: Any) -> tuple[int, ...]:
    return value.aval.shape


def kept_values(
    program: ClosedJaxpr, inputs: Sequence[Any], rectifies: Callable[[Scope], bool] = lambda made_at: True
) -> list[tuple[Scope, int]]:
    """What the gradient of a forward pass on a batch needs from it: (names around it, its size), in order of making.

    `inputs` are those of the program's arguments that are the batch. Each value that depends on them counts once, if it
    enters a convolution, a dense layer, a norm, max pooling or a product (a gate, a learned scale), or leaves a ReLU or
    a sigmoid; and what other elementary functions need (GATING, CONSUMING). Each ReLU of which `rectifies`, given the
    names around what enters it, says no stands for an activation whose gradient needs that instead. Sizes are numbers
    of elements; the inputs themselves do not count. Read at the top level of the program, where a network without
    rematerialisation has all of it.
    """
    made_at: dict[Any, int] = dict.fromkeys(inputs, -1)
    same_as: dict[Any, Any] = {}
    scopes: list[Scope] = []
    kept: dict[Any, int] = {}
    for number, eqn in enumerate(program.jaxpr.eqns):
        scopes.append(scope_of(eqn))
        variables = [same_as.get(v, v) for v in eqn.invars if not isinstance(v, Literal)]
        operands = [v for v in variables if v in made_at]
        if not operands:
            continue
        if eqn.primitive.name in RESHAPING:
            same_as[eqn.outvars[0]] = operands[0]
            continue
        made_at.update((out, number) for out in eqn.outvars)
        scope, name = scopes[-1], eqn.primitive.name
        # By what depends on the batch: by a number or an array known before, the gradient needs neither.
        divides = name == "div" and not isinstance(eqn.invars[1], Literal) and variables[-1] in made_at
        if scope and NORM_SCOPE.match(scope[-1]):
            # What enters a norm from outside; its inner steps are recomputed from that and the statistics.
            needed = [v for v in operands if made_at[v] < 0 or scopes[made_at[v]] != scope]
        elif name in GATING or (name == ACTIVATION and rectifies(scopes[made_at[operands[0]]])):
            needed = eqn.outvars
        elif name in (*CONSUMING, ACTIVATION) or (name == "mul" and len(variables) == 2) or divides:
            needed = operands
        else:
            needed = []
        kept.update((value, made_at[value]) for value in needed)
    made = sorted((number, math.prod(_shape(value))) for value, number in kept.items() if number >= 0)
    return [(scopes[number], size) for number, size in made]
