"""StableHLO: `model.stablehlo`, one file with the weights, by jax.export; read back by jax alone."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax import export

from resnet.study.export_program import Program

FILE = "model.stablehlo"
# What one file runs on: the convolution's form is chosen when it is loaded.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write(program: Program, folder: Path) -> None:
    """Write `folder`/model.stablehlo. Raises OSError where the disk refuses."""
    variables = jax.tree.map(np.asarray, program.variables)
    function = jax.jit(lambda images: program.function(variables, images))
    exported = export.export(function, platforms=PLATFORMS)(program.input_shape())
    (folder / FILE).write_bytes(exported.serialize())


def load(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The exported function uint8[B, S, S, 3] -> float32[B, C], compiled by jax for each batch size."""
    exported = export.deserialize(bytearray((folder / FILE).read_bytes()))
    call = jax.jit(exported.call)
    return lambda images: np.asarray(call(images))
