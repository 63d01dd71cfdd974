"""Which network a file's tensors are of: depth and variant read off their shapes, held against the model asked for."""

import dataclasses
import itertools
from collections.abc import Mapping

from input_pipeline.errors import printable
from resnet.model.errors import SpecError
from resnet.model.spec import ResNetSpec
from resnet.model.variants import VARIANTS, variant
from resnet.weights import names
from resnet.weights.faults import fault
from resnet.weights.names import Dialect

# What names and shapes decide; a named variant must agree in all of it.
SHAPED = (
    "block",
    "stage_sizes",
    "width",
    "base_width",
    "groups",
    "stem",
    "stem_width",
    "stem_norm",
    "stride_block",
    "shortcut",
    "squeeze_excitation",
    "conv_bias",
    "bias_without_norm",
    "order",
    "norm",
)
KERAS_EPSILON = 1.001e-5
# What acts in training alone.
TRAINING_FIELDS = (
    "dropout",
    "stochastic_depth",
    "shortcut_dropout",
    "zero_init_last_gamma",
    "gate_bias",
    "norm_momentum",
    "ghost_batch_size",
)
# What nothing reads in a network of a file: it has batch norms and a shortcut without a transform. And the biases:
# those of Keras are zeros where a network of ours had none.
NOT_COMPARED = (*TRAINING_FIELDS, "norm_groups", "shortcut_scale", "conv_bias", "bias_without_norm")


@dataclasses.dataclass(frozen=True)
class Recognised:
    """The network of a file, whose names it uses, and whether the file has a classifying layer (Keras: include_top)."""

    spec: ResNetSpec
    dialect: Dialect
    has_head: bool


class Shapes:
    """Shapes of a file's tensors, asked for by our names and given in our layout."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dialect: Dialect) -> None:
        self._shapes, self.dialect = shapes, dialect

    def of(self, *path: str) -> tuple[int, ...] | None:
        """The shape of a layer's leaf, such as of('layer1_0', 'conv1', 'kernel'), or None where the file has none."""
        try:
            name = names.tensor_name(("params", *path), self.dialect)
        except KeyError:
            return None
        shape = self._shapes.get(name)
        if shape is None or not self.dialect.torch_layout or len(shape) not in (2, 4):
            return shape
        return (shape[2], shape[3], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]


def recognise(shapes: Mapping[str, tuple[int, ...]], source: str, *, keras: bool) -> Recognised:
    """The network that tensors of these names and shapes make. Raises InputError where they make none."""
    dialect = find_dialect(shapes, keras)
    ours = Shapes(shapes, dialect)
    stages = count_blocks(ours)
    stem, second = ("conv1", "kernel"), ("layer1_0", "conv2", "kernel")
    if ours.of("conv1_1", "kernel"):
        stem = ("conv1_1", "kernel")
    for needed in (stem, second):
        if stages and len(ours.of(*needed) or ()) != 4:
            name = names.tensor_name(("params", *needed), dialect)
            raise fault(source, f"tensor {name} is missing or not a convolution's; is the file complete?")
    if not stages:
        known = "conv1_conv, conv2_block1_1_conv, …" if keras else "conv1, layer1.0.conv1, …"
        raise fault(
            source,
            f"is not of a ResNet: its first tensor is {printable(next(iter(shapes)))}, and the names "
            f"that are known ({known}) are not there",
        )
    head = ours.of("fc", "kernel")
    try:
        spec = describe_network(ours, stages, ours.of(*stem) or (), ours.of(*second) or ())
        if head:
            spec = dataclasses.replace(spec, num_classes=head[-1])
    except (SpecError, ZeroDivisionError) as error:
        raise fault(source, f"its shapes do not form a ResNet ({error})") from error
    return Recognised(spec, dialect, head is not None)


def differing_field(spec: ResNetSpec, of_file: ResNetSpec, *, has_head: bool) -> str | None:
    """The first field in which a trained network of `spec` computes otherwise than a file's network, or None."""
    free = NOT_COMPARED if has_head else (*NOT_COMPARED, "num_classes")
    fields = (field.name for field in dataclasses.fields(ResNetSpec) if field.name not in free)
    return next((name for name in fields if getattr(spec, name) != getattr(of_file, name)), None)


def count_blocks(ours: Shapes) -> tuple[int, ...]:
    """Blocks per stage. A block counts when any of its convolutions is there, so that the one missing can be named."""

    def exists(stage: int, index: int) -> bool:
        return any(ours.of(f"layer{stage}_{index}", f"conv{number}", "kernel") for number in (1, 2, 3))

    stages: list[int] = []
    while exists(stage := len(stages) + 1, 0):
        stages.append(next(index for index in itertools.count(1) if not exists(stage, index)))
    return tuple(stages)


def find_dialect(shapes: Mapping[str, tuple[int, ...]], keras: bool) -> Dialect:
    if keras:
        v2 = any(name.startswith("post_bn/") or "_preact_bn/" in name for name in shapes)
        return names.KERAS_V2 if v2 else names.KERAS
    if "linear.weight" in shapes or any(".shortcut.0." in name for name in shapes):
        return names.CIFAR
    return names.TORCH_D if any(name.endswith("downsample.2.weight") for name in shapes) else names.TORCH


def describe_network(
    ours: Shapes, stages: tuple[int, ...], stem: tuple[int, ...], second: tuple[int, ...]
) -> ResNetSpec:
    """The spec but for the head.

    Strides leave no trace in shapes: torch strides in the first block's 3×3, Keras in its first 1×1 (V1) or in the 3×3
    of the last block of a stage (V2).
    """
    blocks = [f"layer{stage}_{index}" for stage, number in enumerate(stages, start=1) for index in range(number)]
    bottleneck = any(ours.of(block, "conv3", "kernel") for block in blocks)
    deep = ours.of("conv1_1", "kernel") is not None
    stem_width = find_stem_width(ours, stem, deep)
    width = find_width(ours, stem_width, 4 if bottleneck else 1)
    groups = second[-1] // second[-2] if bottleneck else 1
    squeeze = ours.of("layer1_0", "se", "fc1", "bias")
    channels = width * (4 if bottleneck else 1)
    kernel = stem[0]
    v1, v2 = ours.dialect is names.KERAS, ours.dialect is names.KERAS_V2
    return ResNetSpec(
        block="bottleneck" if bottleneck else "basic",
        stage_sizes=stages,
        width=width,
        # Channels of the first stage's 3×3 are width · base_width/64 · groups.
        base_width=second[-1] * 64 // (width * groups) if bottleneck else 64,
        groups=groups,
        in_channels=stem[-2],
        stem="deep" if deep else ("imagenet" if kernel == 7 else "cifar"),
        stem_width=stem_width,
        shortcut=find_shortcut(ours, stages),
        squeeze_excitation=channels // squeeze[-1] if squeeze else 0,
        stem_norm=not v2,
        stride_place="first_1x1" if v1 else "3x3",
        stride_block="last" if v2 else "first",
        order="full_preactivation" if v2 else "original",
        conv_bias=not v2 and ours.of("conv1", "bias") is not None,
        bias_without_norm=v2,
        norm_epsilon=KERAS_EPSILON if v1 or v2 else 1e-5,
        num_classes=1,
    )


def find_stem_width(ours: Shapes, stem: tuple[int, ...], deep: bool) -> int:
    """Channels that the stem gives: its last convolution's, of which a deep one's first has half."""
    last = (ours.of("conv1_3", "kernel") or ()) if deep else stem
    return last[-1] if len(last) == 4 else 2 * stem[-1]


def find_width(ours: Shapes, stem_width: int, expansion: int) -> int:
    """Channels of the first stage over a block's expansion: the stem's, unless two tensors agree on others.

    One tensor alone of another shape is a fault of the file, which is told by its name later.
    """
    number = 3 if expansion > 1 else 2
    kernel = ours.of("layer1_0", f"conv{number}", "kernel") or ()
    # Keras' V2 has no norm behind a block's last convolution, but a bias in it.
    behind = (ours.of("layer1_0", f"bn{number}", "scale"), ours.of("layer1_0", f"conv{number}", "bias"))
    agreed = len(kernel) == 4 and kernel[-1:] in behind and kernel[-1] % expansion == 0
    return kernel[-1] // expansion if agreed else stem_width


def find_shortcut(ours: Shapes, stages: tuple[int, ...]) -> str:
    """Projections nowhere: A (a plain net looks the same and is not in circulation); timm's layout of D: D; else B."""
    projections = [ours.of(f"layer{stage}_0", "downsample_conv", "kernel") for stage in range(1, len(stages) + 1)]
    if not any(projections):
        return "A"
    return "D" if ours.dialect is names.TORCH_D else "B"


def hold_against(recognised: Recognised, model: str, source: str) -> ResNetSpec:
    """The spec to build when the user asks for `model` ('' for whatever the file holds).

    Raises InputError when the file holds another network, SpecError for a model that is not known.
    """
    spec = recognised.spec
    if not model:
        return spec
    asked = variant(model).spec
    found = name_of(spec) or describe(spec)
    agrees = all(getattr(spec, field) == getattr(asked, field) for field in SHAPED)
    # torch's shapes fit both places of the stride; who asks for v1 by name knows what the file is.
    if agrees and recognised.dialect.torch_layout:
        return dataclasses.replace(spec, stride_place=asked.stride_place)
    if not agrees or spec.stride_place != asked.stride_place:
        advice = f"give --model={name_of(spec)}" if name_of(spec) else "omit --model"
        raise fault(source, f"holds {found}, not --model={model}; {advice}")
    return spec


def name_of(spec: ResNetSpec) -> str:
    """The named variant that a network is, in all but classes, input channels and epsilon; '' for none."""
    for name, known in VARIANTS.items():
        if all(getattr(spec, field) == getattr(known.spec, field) for field in (*SHAPED, "stride_place")):
            return name
    return ""


def describe(spec: ResNetSpec) -> str:
    """A network without a name in words, such as 'a bottleneck ResNet (3, 4, 6, 3), width 64'."""
    extras = [
        f"{field} {getattr(spec, field)}"
        for field in (
            "width",
            "base_width",
            "groups",
            "stem",
            "stem_width",
            "shortcut",
            "squeeze_excitation",
            "order",
            "stride_block",
        )
        if getattr(spec, field) != getattr(ResNetSpec(), field)
    ]
    return ", ".join([f"a {spec.block} ResNet {spec.stage_sizes}", *extras])
