"""Whether a checkpoint holds the arrays that this code's state has: another optimizer's state is no damage."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


def difference(folder: Path, wanted: dict[str, Any]) -> str:
    """In words, the first array by which a step's folder differs from `wanted`; '' for none, or where nobody can say.

    wanted: part of the folder ('variables', 'training') -> tree of what has a shape.
    """
    for part, tree in wanted.items():
        try:
            stored = _shapes(ocp.StandardCheckpointHandler().metadata(folder / part).tree)
        except Exception:  # Any: what is damaged raises what it likes, and is told by whoever tried to read it.
            return ""
        here = _shapes(tree)
        for name in sorted(stored.keys() | here.keys()):
            if stored.get(name) != here.get(name):
                of = lambda shapes, name=name: f"of shape {shapes[name]}" if name in shapes else "absent"  # noqa: E731
                return f"{name} is {of(stored)} in it and {of(here)} here"
    return ""


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """'opt_state.1.trace.fc.kernel' -> its shape. Fields and keys are named alike: a stored tree has keys alone."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}
