"""ONNX: `model.onnx`, opset 18, written from the traced program; read back by onnxruntime."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from input_pipeline.errors import InputError
from resnet.study import export_onnx_graph
from resnet.study.export_onnx_values import NoRule
from resnet.study.export_program import INPUT, OUTPUT, Program

FILE = "model.onnx"


def write(program: Program, folder: Path) -> None:
    """Write `folder`/model.onnx: weights, class names and preprocessing in one file.

    Raises OSError where the disk refuses, InputError for a network with an operation that has no rule.
    """
    import onnx

    try:
        model = make_model(program)
    except NoRule as error:
        raise InputError(
            f"--format=onnx: {error}; use stablehlo or savedmodel, or write it (resnet/study/export_onnx_rules.py)"
        ) from error
    onnx.checker.check_model(model, full_check=True)
    (folder / FILE).write_bytes(model.SerializeToString())


def make_model(program: Program) -> Any:
    """The onnx.ModelProto of a program. Raises NoRule for an operation without a rule."""
    from onnx import helper, numpy_helper

    # lax' own convolution, whose traced program is one convolution; what runs it has forms of its own.
    traced = program.with_backend(jax.lax.conv_general_dilated)
    names, arrays = zip(*sorted(flatten_dict(traced.variables, sep="/").items()), strict=True)

    def function(*arguments: Any) -> jax.Array:
        variables = unflatten_dict(dict(zip(names, arguments[:-1], strict=True)), sep="/")
        return traced.function({"params": {}, "batch_stats": {}} | variables, arguments[-1])

    jaxpr = jax.make_jaxpr(function)(*arrays, traced.input_shape())
    # Without 'params' and 'batch_stats' in front: a layer has no two variables of one name.
    graph = export_onnx_graph.build(jaxpr, [name.partition("/")[2] for name in names], arrays, INPUT, OUTPUT)
    source, target = (
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["batch", *shape])
        for name, dtype, shape in (
            (INPUT, np.uint8, traced.input_shape().shape[1:]),
            (OUTPUT, np.float32, (len(program.class_names),)),
        )
    )
    weights = [numpy_helper.from_array(array, name) for name, array in graph.initializers.items()]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "resnet", [source], [target], weights),
        opset_imports=[helper.make_opsetid("", export_onnx_graph.OPSET)],
        ir_version=export_onnx_graph.IR_VERSION,
        producer_name="resnet.study.export",
    )
    helper.set_model_props(model, {"metadata": json.dumps(program.describe())})
    return model


def load(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The exported function uint8[B, S, S, 3] -> float32[B, C], run by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]
