"""Programs that evaluate one network many times: what depends on its variables alone is computed once, beforehand.

That is above all the layout in which oneDNN wants the kernels, 95 MB of ResNet-50. One image at 224 px on two cores
takes 53 ms where each call lays them out anew, 44 where it does not (2026-11-26). So a program is cut in two: what can
be computed before the images come, and the rest, in which `onednn.evaluated` is given the kernels laid out.

How a kernel is laid out depends on its convolution's shape, and so on the number of images. `Prepared` keeps one set
for all numbers of images with the same layouts.
"""

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Literal, Primitive, Var
from jax.interpreters import mlir

from resnet.model import onednn_library
from resnet.model.onednn import EVALUATED, Step, in_place, numbers
from resnet.model.onednn_library import KERNELS, PREPARED, THREADS, target

_PREPARED, _KERNELS = Primitive(target(PREPARED)), Primitive(target(KERNELS))
_KERNELS.multiple_results = True
Shape = tuple[int, ...]


def pays() -> bool:
    """Whether programs are worth preparing here: on one CPU device, with oneDNN."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1 and not onednn_library.missing()


class Prepared:
    """`function`, of (variables, x), as a function of x alone, compiled for each shape and dtype of x that comes.

    x: one array. The result is that of `function` up to rounding. Inside an inner jax.jit nothing is done beforehand.
    """

    def __init__(self, function: Callable[[Any, Any], Any], variables: Any) -> None:
        self._function = function
        leaves, self._tree = jax.tree.flatten(variables)
        self._leaves: list[Array] = jax.device_put(leaves)
        self._kernels: dict[Any, list[Array]] = {}
        self._programs: dict[Any, Callable[[np.ndarray | Array], Any]] = {}

    def __call__(self, x: np.ndarray | Array) -> Any:
        if isinstance(x, jax.core.Tracer):
            # Part of a larger program, whose values must not be kept here.
            return self._given_leaves(self._leaves, x)
        key = (x.shape, x.dtype)
        if key not in self._programs:
            self._programs[key] = self._compile(jax.ShapeDtypeStruct(*key))
        return self._programs[key](x)

    def _given_leaves(self, leaves: Sequence[Array], x: np.ndarray | Array) -> Any:
        return self._function(jax.tree.unflatten(self._tree, leaves), x)

    def _compile(self, x: jax.ShapeDtypeStruct) -> Callable[[np.ndarray | Array], Any]:
        parts = _Parts(self._given_leaves, self._leaves, x)
        # What a kernel was computed of may depend on x' shape and type.
        key = (x.shape, x.dtype) if parts.laid_out is None else (parts.layouts, parts.laid_out)
        if key not in self._kernels:
            self._kernels[key] = jax.jit(parts.lay_out)(self._leaves)
        # Not through the compiled function, which would copy them.
        variables = [self._leaves[number] for number in parts.variables]
        return functools.partial(
            jax.jit(parts.after), variables, jax.jit(parts.before)(self._leaves), self._kernels[key]
        )


class _Call:
    """A call of `onednn.evaluated` whose kernels are known before x."""

    def __init__(self, equation: Any) -> None:
        self.result, self.steps = equation.outvars[0], equation.params["steps"]
        self.kernels = _kernels_of(equation)
        # A kernel may be an addend as well: told by its place, not by what it is.
        self.others = {place: atom for place, atom in enumerate(equation.invars) if place not in _places(self.steps)}
        self.shapes = tuple(kernel.aval.shape for kernel in self.kernels)
        added = len(equation.invars) % 3 == 2 or self.steps[-1].residual
        self.image = (*equation.invars[0].aval.shape, int(added))
        self.sizes, self.layouts = _layouts(self.image, self.shapes, self.steps)

    def lay_out(self, kernels: Sequence[Array]) -> list[Array]:
        return _KERNELS.bind(*kernels, steps=self.steps, image=self.image, sizes=self.sizes)

    def convolve(self, operands: Mapping[int, Array], kernels: Sequence[Array]) -> Array:
        """operands: of `evaluated` those that are no kernels, by their places."""
        given = {**operands, **dict(zip(_places(self.steps), kernels, strict=True))}
        return _PREPARED.bind(
            *(given[place] for place in range(len(given))),
            steps=self.steps,
            shapes=self.shapes,
            result=self.result.aval.shape,
        )


class _Parts:
    """A function of (leaves, x) in three: `before` and `lay_out`, of leaves, and `after`, of their results and x.

    variables: numbers of the leaves that `after` takes as they are. layouts: of all kernels that `lay_out` gives;
    laid_out: numbers of the leaves that these are, or None where one is no leaf but computed.
    """

    def __init__(self, function: Callable[[Any, Any], Any], leaves: Sequence[Array], x: jax.ShapeDtypeStruct) -> None:
        self._program, result = jax.make_jaxpr(function, return_shape=True)(leaves, x)
        self._tree = jax.tree.structure(result)
        program = self._program.jaxpr
        *self._leaves, self._x = program.invars
        known = {*program.constvars, *self._leaves}
        self._early: list[Any] = []
        self._late: list[tuple[Any, _Call | None]] = []
        for equation in program.eqns:
            if not equation.effects and _are_known(equation.invars, known):
                known.update(equation.outvars)
                self._early.append(equation)
                continue
            prepared = equation.primitive is EVALUATED and _are_known(_kernels_of(equation), known)
            self._late.append((equation, _Call(equation) if prepared else None))
        self._calls = [call for _, call in self._late if call]
        self.layouts = tuple(layout for call in self._calls for layout in call.layouts)
        kernels = [kernel for call in self._calls for kernel in call.kernels]
        leaves_only = all(kernel in self._leaves for kernel in kernels)
        self.laid_out = tuple(map(self._leaves.index, kernels)) if leaves_only else None
        self._taken = [atom for atom in dict.fromkeys(self._read_late()) if atom in known]
        self.variables = [number for number, leaf in enumerate(self._leaves) if leaf in self._taken]
        self._found = [variable for variable in self._taken if variable not in self._leaves]

    def _read_late(self) -> list[Var]:
        read = list(self._program.jaxpr.outvars)
        for equation, call in self._late:
            read += call.others.values() if call else equation.invars
        return [atom for atom in read if isinstance(atom, Var)]

    def before(self, leaves: Sequence[Array]) -> list[Array]:
        values = self._known_values(leaves)
        return [values[variable] for variable in self._found]

    def lay_out(self, leaves: Sequence[Array]) -> list[Array]:
        values = self._known_values(leaves)
        return [array for call in self._calls for array in call.lay_out(list(map(values.read, call.kernels)))]

    def _known_values(self, leaves: Sequence[Array]) -> "_Values":
        values = _Values(zip(self._program.jaxpr.constvars, self._program.consts, strict=True))
        values.update(zip(self._leaves, leaves, strict=True))
        for equation in self._early:
            values.evaluate(equation)
        return values

    def after(self, variables: Sequence[Array], found: Sequence[Array], kernels: Sequence[Array], x: Array) -> Any:
        values = _Values(zip((self._leaves[number] for number in self.variables), variables, strict=True))
        values.update(zip([*self._found, self._x], [*found, x], strict=True))
        rest = iter(kernels)
        for equation, call in self._late:
            if call is None:
                values.evaluate(equation)
                continue
            others = {place: values.read(atom) for place, atom in call.others.items()}
            values[call.result] = call.convolve(others, [next(rest) for _ in call.steps])
        return jax.tree.unflatten(self._tree, map(values.read, self._program.jaxpr.outvars))


class _Values(dict[Any, Any]):
    """What the atoms of a program are."""

    def read(self, atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else self[atom]

    def evaluate(self, equation: Any) -> None:
        # Functions among the parameters come apart in some versions of JAX.
        how = equation.primitive.get_bind_params(equation.params)
        functions, how = how if isinstance(how, tuple) else ((), how)
        # The settings under which it was traced, such as how random bits are drawn.
        with equation.ctx.manager:
            found = equation.primitive.bind(*functions, *map(self.read, equation.invars), **how)
        self.update(zip(equation.outvars, found if equation.primitive.multiple_results else [found], strict=True))


def _places(steps: Sequence[Step]) -> range:
    """Of the kernels among the operands of `evaluated`."""
    return range(1, 1 + 3 * len(steps), 3)


def _kernels_of(equation: Any) -> list[Any]:
    return [equation.invars[place] for place in _places(equation.params["steps"])]


def _are_known(atoms: Sequence[Any], known: set[Any]) -> bool:
    return all(isinstance(atom, Literal) or atom in known for atom in atoms)


def _windows(steps: Sequence[Step]) -> np.ndarray:
    return np.array([numbers(*step) for step in steps], np.int64).reshape(-1)


@functools.cache
def _threads() -> int:
    """How many XLA has for the work of one call."""
    with jax.ensure_compile_time_eval():
        return int(jax.ffi.ffi_call(target(THREADS), jax.ShapeDtypeStruct((), jnp.int32))())


def _layouts(image: Shape, kernels: Sequence[Shape], steps: Sequence[Step]) -> tuple[Shape, Shape]:
    """(how many float32 each kernel is once it is laid out, in what order, as a number). Raises ValueError."""
    given = [np.array(numbers, np.int64) for numbers in (image, kernels, _windows(steps))]
    sizes, layouts = np.zeros(len(kernels), np.int64), np.zeros(len(kernels), np.int64)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (*given, sizes, layouts)]
    ask = onednn_library.function("prepared_layouts")
    ask.restype = ctypes.c_char_p
    wrong = ask(*pointers[:3], ctypes.c_int(len(kernels)), ctypes.c_int(_threads()), *pointers[3:])
    if wrong:
        raise ValueError(f"a convolution by oneDNN {wrong.decode()}")
    return tuple(sizes.tolist()), tuple(layouts.tolist())


def _kernel_shapes(*kernels: Any, steps: Any, image: Shape, sizes: Shape) -> list[Any]:
    return [kernel.update(shape=(size,)) for kernel, size in zip(kernels, sizes, strict=True)]


def _lower_kernels(ctx: Any, *kernels: Any, steps: Sequence[Step], image: Shape, sizes: Shape) -> Any:
    lower = jax.ffi.ffi_lowering(target(KERNELS))
    return lower(ctx, *kernels, image=np.array(image, np.int64), window=_windows(steps))


def _lower_prepared(ctx: Any, *operands: Any, steps: Sequence[Step], shapes: Sequence[Shape], result: Shape) -> Any:
    lower = jax.ffi.ffi_lowering(target(PREPARED), **in_place(steps, operands))
    return lower(ctx, *operands, kernels=np.array(shapes, np.int64).reshape(-1), window=_windows(steps))


_KERNELS.def_abstract_eval(_kernel_shapes)
mlir.register_lowering(_KERNELS, _lower_kernels, platform="cpu")
_PREPARED.def_abstract_eval(lambda x, *operands, steps, shapes, result: x.update(shape=result))
mlir.register_lowering(_PREPARED, _lower_prepared, platform="cpu")
