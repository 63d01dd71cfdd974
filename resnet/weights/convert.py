"""Turn weights of torchvision, timm, the CIFAR ResNets or Keras into a checkpoint of this project.

    python -m resnet.weights.convert --source=FILE --model=resnet50 --out=DIR
    python -m resnet.weights.convert --source=torchvision:resnet50_v1 --out=DIR

The file's format is recognised from its content and the network from its shapes, with which --model must agree.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from input_pipeline.contract import CONTRACTS, Contract, contract_by_name
from input_pipeline.crops import INTERPOLATIONS
from input_pipeline.errors import InputError, printable
from resnet import command
from resnet.model.spec import ResNetSpec
from resnet.train.checkpoints import Meta, save_converted
from resnet.train.state import Variables
from resnet.train.stored_meta import MOST_PIXELS, MOST_RESIZED, MOST_RESIZED_PIXELS
from resnet.weights import classes, formats, mapping, names, zoo
from resnet.weights.recognise import Recognised, describe, hold_against, name_of, recognise


@dataclasses.dataclass(frozen=True)
class Converted:
    """Weights ready to be saved, and the file that they come from."""

    variables: Variables
    meta: Meta
    file: formats.WeightsFile
    recognised: Recognised


def main() -> int:
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "--source", required=True, help=f"{formats.FORMATS}; or a known name ({zoo.EXAMPLE}; 'list' lists all)"
    )
    parser.add_argument("--out", help="folder to write, which must not exist")
    parser.add_argument(
        "--model", default="", help="the network it must hold, such as resnet50 (default: whatever it holds)"
    )
    parser.add_argument(
        "--contract", default="", choices=("", *CONTRACTS), help="preprocessing (default: as the source's authors do)"
    )
    parser.add_argument(
        "--image_size", type=int, default=0, help="side of the evaluation crop (default: 224, or 32 for CIFAR stems)"
    )
    parser.add_argument(
        "--resize_shorter",
        type=float,
        default=-1.0,
        help="evaluation: the shorter side becomes the image size × this, then the centre is cut; 0: the whole image "
        "is squashed (default: as the source's authors do, 0 for CIFAR stems)",
    )
    parser.add_argument(
        "--interpolation",
        default="",
        choices=("", *INTERPOLATIONS),
        help="of the resize (default: as the source's authors do)",
    )
    parser.add_argument(
        "--classes",
        default="",
        metavar="FILE",
        help="text file of class names, one per line in the order of the outputs",
    )
    parser.add_argument(
        "--in_channels", type=int, default=0, help="channels of the input; the stem is summed or repeated to fit"
    )
    arguments = parser.parse_args()
    if arguments.source == "list":
        print("\n".join(entry.describe() for entry in zoo.ENTRIES.values()))
        return 0
    if not arguments.out:
        raise InputError("--out is missing: give the folder to write")
    converted = convert(
        arguments.source,
        model=arguments.model,
        contract=arguments.contract,
        image_size=arguments.image_size,
        resize_shorter=arguments.resize_shorter,
        interpolation=arguments.interpolation,
        class_file=arguments.classes,
        in_channels=arguments.in_channels,
    )
    save_converted(Path(arguments.out), converted.variables, converted.meta)
    print(summary(converted, arguments.out))
    return 0


def convert(
    source: str,
    *,
    model: str = "",
    contract: str = "",
    image_size: int = 0,
    resize_shorter: float = -1.0,
    interpolation: str = "",
    class_file: str = "",
    in_channels: int = 0,
) -> Converted:
    """Variables and meta from a weights file or a known name; '', 0 and -1 stand for what the source implies.

    Raises InputError, naming the source and the first offender, for anything that is not exactly a known network.
    """
    if not (resize_shorter in (-1, 0) or 1 <= resize_shorter <= MOST_RESIZED):
        raise InputError(f"--resize_shorter={resize_shorter:g} must be 0 or from 1 to {MOST_RESIZED}")
    known = zoo.find(source)
    path = zoo.fetch(known) if known else Path(source)
    file = formats.read(path)
    recognised = recognise({name: tensor.shape for name, tensor in file.tensors.items()}, source, keras=file.is_keras)
    spec = hold_against(recognised, model or (known.model if known else ""), source)
    variables = mapping.to_variables(
        file.tensors, spec, recognised.dialect, has_head=recognised.has_head, source=source
    )
    if in_channels:
        spec = adapt_input(variables, spec, in_channels)
    kept = contract_by_name(contract) if contract else (known.contract if known else implied_contract(recognised))
    if interpolation:
        kept = dataclasses.replace(kept, interpolation=interpolation)
    side = image_size or (known.image_size if known else 0) or (32 if spec.stem == "cifar" else 224)
    spec.check_image_size(side)
    progress: dict[str, Any] = {"source": source, "source_sha256": file.sha256, "source_format": file.format}
    if not recognised.has_head:
        progress["head"] = "none"
    # CIFAR's images have the network's size already.
    usual = 0.0 if spec.stem == "cifar" else kept.resize_shorter
    shorter = usual if resize_shorter == -1 else resize_shorter
    check_sides(side, shorter)
    meta = Meta(
        spec=spec,
        class_names=class_names(spec, recognised.has_head, class_file),
        contract=kept,
        image_size=side,
        resize_shorter=shorter,
        progress=progress,
    )
    return Converted(variables, meta, file, recognised)


def check_sides(side: int, resize_shorter: float) -> None:
    """Raise InputError for a crop that no checkpoint may say."""
    if side > MOST_PIXELS:
        raise InputError(f"--image_size={side} must be at most {MOST_PIXELS}")
    if side * resize_shorter > MOST_RESIZED_PIXELS:
        raise InputError(
            f"--image_size={side} with --resize_shorter={resize_shorter:g} makes the shorter side "
            f"{side * resize_shorter:,.0f} pixels, more than {MOST_RESIZED_PIXELS:,}; lower one of them"
        )


def adapt_input(variables: Variables, spec: ResNetSpec, in_channels: int) -> ResNetSpec:
    """Change the stem in `variables` for another number of input channels; the spec that goes with it."""
    if in_channels < 1:
        raise InputError(f"--in_channels={in_channels} must be at least 1")
    layer = variables["params"]["conv1_1" if spec.stem == "deep" else "conv1"]
    layer["kernel"] = mapping.with_input_channels(layer["kernel"], in_channels)
    return dataclasses.replace(spec, in_channels=in_channels)


def implied_contract(recognised: Recognised) -> Contract:
    """The preprocessing that weights in this dialect were trained with: Keras' V1 caffe's, its V2 tf's, torch's own."""
    return CONTRACTS[{names.KERAS.name: "caffe", names.KERAS_V2.name: "tf"}.get(recognised.dialect.name, "torch")]


def class_names(spec: ResNetSpec, has_head: bool, class_file: str) -> tuple[str, ...]:
    if not has_head:
        if class_file:
            raise InputError(f"--classes={printable(class_file)}: the weights have no head to name classes of; omit it")
        return classes.NO_HEAD
    return classes.read_names(Path(class_file), spec.num_classes) if class_file else classes.default_names(spec)


def summary(converted: Converted, out: str) -> str:
    """What was found, in lines for the screen."""
    meta, spec = converted.meta, converted.meta.spec
    count = sum(leaf.size for leaf in jax.tree.leaves(converted.variables["params"]))
    lines = [
        f"{name_of(spec) or describe(spec)} from a {converted.file.format} file, {count:,} parameters, "
        f"contract {meta.contract.name}, {meta.image_size} px -> {printable(out)}"
    ]
    if not converted.recognised.has_head:
        lines.append("The file has no head: the checkpoint is for transfer, its one output is zero.")
    elif meta.class_names[0] == "class 0":
        lines.append(
            f"The {spec.num_classes} classes have no names: give them with --classes=FILE to evaluate by name."
        )
    elif meta.class_names == classes.default_names(spec):
        whose = "ImageNet" if spec.num_classes == 1000 else "CIFAR-10"
        lines.append(
            f"The {spec.num_classes} outputs are assumed to be {whose}'s classes; if not, give --classes=FILE."
        )
    if spec.in_channels != 3:
        lines.append(
            f"The network takes {spec.in_channels} channel{'s' if spec.in_channels > 1 else ''}: for "
            "resnet.weights.export and your own programs. Training, predict, evaluate, demo and export read images as "
            "RGB and refuse it."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    command.run(main)
