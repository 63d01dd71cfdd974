"""Run weights in their own framework and converted in ours on the same input; name the first layer that differs.

    python -m resnet.weights.compare --source=FILE [--model=resnet50] [--checkpoint=DIR] [--json]

Without --checkpoint the file is converted in memory; with it, the file is compared with an earlier
conversion. The error of a layer is the largest difference over the standard deviation of the layer's values there. Exit
code 1 where a layer differs by more than --tolerance.
"""

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from input_pipeline.errors import InputError, printable
from resnet import command
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from resnet.train.checkpoints import Meta, load
from resnet.train.state import Variables
from resnet.weights import formats, zoo
from resnet.weights.convert import Converted, convert
from resnet.weights.faults import fault
from resnet.weights.mapping import pads_on_both_sides
from resnet.weights.recognise import Recognised, differing_field
from resnet.weights.shortcut_padding import channel_orders

# NumPy has no words for an array of sides beyond all memory; up to here it says that there is too little.
LARGEST_SIDE = 1 << 16

Features = dict[str, np.ndarray]


def main() -> int:
    parser = command.Parser(description=__doc__)
    parser.add_argument("--source", required=True, help=f"{formats.FORMATS}; or a known name such as {zoo.EXAMPLE}")
    parser.add_argument(
        "--model", default="", help="the network it must hold, such as resnet50 (default: whatever it holds)"
    )
    parser.add_argument(
        "--checkpoint", default="", help="an earlier conversion of it (default: converted now, in memory)"
    )
    parser.add_argument(
        "--image_size", type=int, default=0, help="side of the random images (default: as the weights are used)"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest error that counts as equal (default: 1e-4)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    arguments = parser.parse_args()
    if not 0 <= arguments.tolerance < math.inf:
        raise InputError(f"--tolerance={arguments.tolerance} must be a finite number of at least 0")
    errors = compare(arguments.source, arguments.model, arguments.checkpoint, arguments.image_size)
    different = first_difference(errors, arguments.tolerance)
    if arguments.json:
        print(json.dumps({"source": arguments.source, "errors": errors, "first_difference": different}))
    else:
        for layer, error in errors.items():
            print(f"{layer:12} {error:.1e}{'   differs' if layer == different else ''}")
        verdict = f"differ first in {different}" if different else f"agree in every layer to {arguments.tolerance:.0e}"
        print(f"{printable(arguments.source)}: the two {verdict}")
    return 1 if different else 0


def compare(
    source: str, model: str = "", checkpoint: str = "", image_size: int = 0, images: np.ndarray | None = None
) -> dict[str, float]:
    """Layer -> largest difference over the layer's standard deviation, in the order of the network.

    images: float32[B, S, S, C], already normalised; None draws two from N(0, 1). Raises InputError as `convert` does,
    and for a checkpoint of another network.
    """
    if not 0 <= image_size <= LARGEST_SIDE:
        raise InputError(
            f"--image_size={image_size} must lie in 1..{LARGEST_SIDE}, or be 0 for the size that the weights have"
        )
    converted = convert(source, model=model)
    variables, meta = (converted.variables, converted.meta) if not checkpoint else load(checkpoint)
    require_same_network(source, converted, checkpoint, meta)
    side = image_size or converted.meta.image_size
    if images is None:
        images = np.random.default_rng(0).normal(size=(2, side, side, meta.spec.in_channels)).astype(np.float32)
    meta.spec.check_image_size(images.shape[1])
    if converted.file.is_keras:
        theirs = keras_features(converted.file.path, converted.meta, images)
    else:
        theirs = torch_features(converted.file.tensors, converted.meta.spec.stride_place, images)
        if pads_on_both_sides(converted.meta.spec, converted.recognised.dialect):
            theirs = in_our_order(theirs, converted.meta)
    return layer_errors(our_features(variables, meta, images, converted.recognised), theirs)


def require_same_network(source: str, converted: Converted, checkpoint: str, meta: Meta) -> None:
    """Raise InputError, naming the field, where the checkpoint is not of the network that the source holds."""
    field = differing_field(meta.spec, converted.meta.spec, has_head=converted.recognised.has_head)
    if field:
        mine, theirs = getattr(meta.spec, field), getattr(converted.meta.spec, field)
        # Shapes do not tell where a bottleneck strides.
        advice = "name the network by --model, or give" if field == "stride_place" else "give"
        raise InputError(
            f"--checkpoint={printable(checkpoint)} has {field}={mine!r} where --source={printable(source)} has "
            f"{theirs!r}: the two are different networks; {advice} the checkpoint that was converted from this source"
        )


def first_difference(errors: Mapping[str, float], tolerance: float) -> str | None:
    """The first layer whose error is not within the tolerance (NaN is not)."""
    return next((layer for layer, error in errors.items() if not error <= tolerance), None)


def layer_errors(ours: Features, theirs: Features) -> dict[str, float]:
    """Largest absolute difference over the standard deviation of their values, for every layer that both name."""
    errors = {}
    for layer, values in theirs.items():
        if ours[layer].shape != values.shape:
            raise InputError(
                f"{layer} has shape {ours[layer].shape} here and {values.shape} there: the two are different networks"
            )
        errors[layer] = float(np.abs(ours[layer] - values).max() / max(float(values.std()), 1e-30))
    return errors


def our_features(variables: Variables, meta: Meta, images: np.ndarray, recognised: Recognised) -> Features:
    """'stem', 'layer1_0', …, 'pooled' and, where there is a head, 'logits'; NHWC."""
    network = ResNet(meta.spec)
    run = jax.jit(lambda weights, x: network.apply(weights, x, train=False, return_features=True))
    logits, features = jax.device_get(run(variables, images))
    found = {name: np.asarray(value) for name, value in features.items()}
    return {**found, "logits": np.asarray(logits)} if recognised.has_head else found


def torch_features(tensors: Mapping[str, np.ndarray], stride_place: str, images: np.ndarray) -> Features:
    """The same of a torch file's own tensors, in torch; NHWC."""
    if importlib.util.find_spec("torch") is None:
        raise InputError("comparing needs torch, which is not installed: pip install torch")
    import torch

    from resnet.weights import torch_network

    state = {name: torch.from_numpy(np.array(tensor, np.float32)) for name, tensor in tensors.items()}
    with torch.inference_mode():
        found = torch_network.features(
            state, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), stride_place=stride_place
        )
    return {name: to_nhwc(value.numpy()) for name, value in found.items()}


def to_nhwc(values: np.ndarray) -> np.ndarray:
    return values.transpose(0, 2, 3, 1) if values.ndim == 4 else values


def in_our_order(features: Features, meta: Meta) -> Features:
    """Channels of each stage sorted as ours are where option A pads elsewhere; see shortcut_padding.py."""
    orders = channel_orders(meta.spec)
    stage_of = {"stem": 0, "pooled": len(orders) - 1}
    sorted_features = {}
    for name, values in features.items():
        stage = int(name[len("layer") :].split("_")[0]) if name.startswith("layer") else stage_of.get(name)
        sorted_features[name] = values if stage is None else values[..., orders[stage]]
    return sorted_features


def keras_features(path: Path, meta: Meta, images: np.ndarray) -> Features:
    """The same of keras.applications' own network with the file loaded by Keras itself."""
    if importlib.util.find_spec("keras") is None:
        raise InputError("comparing a Keras file needs keras, which is not installed: pip install keras")
    has_head = meta.progress.get("head") != "none"
    network = keras_network(meta.spec, images.shape[1:], has_head=has_head)
    if network is None:
        raise fault(path, f"keras.applications has no {keras_name(meta.spec)} to compare with")
    try:
        network.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise fault(
            path, f"Keras cannot load it into its {keras_name(meta.spec)} ({printable(reason[:160])})"
        ) from error
    return keras_outputs(network, meta.spec, images, has_head=has_head)


def keras_name(spec: ResNetSpec) -> str:
    """What keras.applications calls a network of this depth."""
    return f"ResNet{3 * sum(spec.stage_sizes) + 2}{'V2' if spec.preactivated else ''}"


def keras_network(spec: ResNetSpec, image_shape: tuple[int, ...], *, has_head: bool) -> Any:
    """keras.applications' network of this depth with fresh weights; a head gives logits. None where it has none."""
    import keras

    builder = getattr(keras.applications, keras_name(spec), None)
    top = {"classes": spec.num_classes, "classifier_activation": None} if has_head else {}
    return builder and builder(weights=None, include_top=has_head, input_shape=image_shape, **top)


def keras_outputs(network: Any, spec: ResNetSpec, images: np.ndarray, *, has_head: bool) -> Features:
    """'stem', 'layer1_0', … and, with a head, 'pooled' and 'logits' of a network of keras.applications; NHWC."""
    import keras

    outputs = {"stem": "pool1_pool"}
    for stage, blocks in enumerate(spec.stage_sizes, start=1):
        outputs |= {f"layer{stage}_{index}": f"conv{stage + 1}_block{index + 1}_out" for index in range(blocks)}
    if has_head:
        outputs |= {"pooled": "avg_pool", "logits": "predictions"}
    layers = {name: network.get_layer(layer).output for name, layer in outputs.items()}
    found = keras.Model(network.input, layers)(images, training=False)
    return {name: keras.ops.convert_to_numpy(found[name]) for name in outputs}


if __name__ == "__main__":
    command.run(main)
