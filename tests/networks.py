"""Networks for tests: variables drawn by numpy, because compiling an initialisation costs more than what is tested."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from resnet.model.network import ResNet, initialise
from resnet.model.spec import ResNetSpec

Variables = dict[str, Any]


@functools.cache
def variable_shapes(spec: ResNetSpec) -> Variables:
    """The network's variables as shapes and dtypes; nothing is compiled."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda k: initialise(ResNet(spec), k, spec.total_stride), key)


def by_name(tree: Any) -> dict[str, Any]:
    """{'layer1_0/conv1/kernel': leaf, …} in the tree's own order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def parameter_count(spec: ResNetSpec) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(spec)["params"]))


def draw(shapes: Any, values: Callable[[str, tuple[int, ...], np.random.Generator], np.ndarray], seed: int) -> Any:
    """A tree of float32 arrays, leaf by leaf from `values(leaf's own name, shape, generator)`."""
    generator = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.asarray(values(path[-1].key, leaf.shape, generator), np.float32), shapes
    )


def random_variables(spec: ResNetSpec, seed: int = 0) -> Variables:
    """As after some training: no scale is 1, no bias and mean 0, no variance 1, so that a missing one is seen."""
    return draw(variable_shapes(spec), trained, seed)


def fresh_variables(spec: ResNetSpec, seed: int = 0) -> Variables:
    """As `initialise` gives them (without zero_init_last_gamma), by numpy."""
    return draw(variable_shapes(spec), untrained, seed)


def trained(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    if name == "kernel":
        return generator.normal(0, (1 / np.prod(shape[:-1])) ** 0.5, shape)
    if name in ("scale", "var"):
        return generator.uniform(0.5, 1.5, shape)
    return generator.normal(0, 0.2, shape)


def untrained(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    if name == "kernel":
        fan_out = shape[0] * shape[1] * shape[3] if len(shape) == 4 else 2 / 0.01**2
        return generator.normal(0, (2 / fan_out) ** 0.5, shape)
    # A scale of no dimension is SkipInit's, which starts at zero.
    return np.ones(shape) if name == "var" or (name == "scale" and shape) else np.zeros(shape)
