"""SavedModel: TensorFlow's folder of a graph and variables, by jax2tf; read back by TensorFlow alone."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from input_pipeline.muting import muted_errors
from resnet.study.export_program import INPUT, OUTPUT, Program

PLATFORMS = ("cpu", "cuda")


def write(program: Program, folder: Path) -> None:
    """Write the SavedModel into `folder`, with the weights as tf.Variables and one signature, serving_default.

    Raises OSError where the disk refuses.
    """
    tf = started()
    from jax.experimental import jax2tf

    size = program.image_size
    converted = jax2tf.convert(
        program.function,
        polymorphic_shapes=[None, f"batch, {size}, {size}, 3"],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    module = tf.Module()
    module.weights = jax.tree.map(lambda array: tf.Variable(array, trainable=False), program.variables)
    spec = tf.TensorSpec((None, size, size, 3), tf.uint8, name=INPUT)

    @tf.function(autograph=False, input_signature=[spec])
    def predict(images: Any) -> dict[str, Any]:
        return {OUTPUT: converted(module.weights, images)}

    module.predict = predict
    try:
        tf.saved_model.save(module, str(folder), signatures={"serving_default": predict})
    except tf.errors.OpError as error:
        # Its text begins with the graph's node and ends with what the system said.
        full = os.strerror(errno.ENOSPC)
        raise OSError(full if full in error.message else error.message.splitlines()[0]) from error


def started() -> Any:
    """TensorFlow, imported, without the lines that it prints while it starts."""
    with muted_errors():
        import tensorflow as tf

        tf.constant(0)
    return tf


def load(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The exported function uint8[B, S, S, 3] -> float32[B, C], run by TensorFlow."""
    tf = started()
    predict = tf.saved_model.load(str(folder)).signatures["serving_default"]
    return lambda images: predict(**{INPUT: tf.constant(images)})[OUTPUT].numpy()
