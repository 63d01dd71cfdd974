"""ResNetSpec: every knob of residual design as one frozen dataclass, and which combinations make sense."""

import dataclasses
import math

from resnet.model.errors import SpecError

# Field -> what it may be. Fields not listed here are numbers and are checked by range.
CHOICES: dict[str, tuple[str, ...]] = {
    "block": ("basic", "bottleneck"),
    "stem": ("imagenet", "cifar", "deep"),
    "stride_place": ("3x3", "first_1x1"),
    "stride_block": ("first", "last"),
    "shortcut": ("none", "A", "B", "C", "D"),
    "shortcut_transform": ("identity", "scale", "exclusive_gate", "shortcut_gate", "conv1x1", "dropout"),
    "order": (
        "original",
        "bn_after_addition",
        "relu_before_addition",
        "relu_only_preactivation",
        "full_preactivation",
    ),
    "norm": ("batch", "group", "none"),
    "activation": ("relu", "leaky_relu", "elu", "gelu", "silu"),
}

# Orders whose residual branch ends in a norm, so that its scale decides whether the branch contributes at the start.
# (relu_before_addition ends in the ReLU, whose gradient at zero is zero: a branch that starts there stays there.)
BRANCH_ENDS_IN_NORM = ("original", "relu_only_preactivation")

# The layers behind the pooling, by their names among the network's parameters; all else is the backbone.
HEAD = ("fc_hidden", "fc")
# The layers behind the last block.
BEHIND_BLOCKS = ("bn_last", *HEAD)

# Whether a combination is refused, and why.
Refusal = tuple[bool, str]


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """A residual network of He et al. 2015 (arXiv 1512.03385) and its relatives.

    Raises SpecError, with the reason, for a value out of range or a combination that makes no sense.
    """

    # Basic: 3×3, 3×3 (Figure 5 left). Bottleneck: 1×1, 3×3, 1×1 to four times the channels (Figure 5 right).
    block: str = "bottleneck"
    # Blocks per stage; each stage after the first halves the map and doubles the channels.
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    # Channels of the first stage's 3×3 convolutions, and of the stem unless stem_width says otherwise.
    width: int = 64
    # Bottleneck 3×3 channels = planes · base_width/64 · groups: 128 gives wide nets, (groups 32, base_width 4) ResNeXt.
    base_width: int = 64
    # Groups (cardinality) of the bottleneck's 3×3 convolution (Xie et al. 2017).
    groups: int = 1
    # Channels of the input images.
    in_channels: int = 3
    # Outputs of the head.
    num_classes: int = 1000
    # imagenet: 7×7 stride 2, 3×3 max-pool stride 2. cifar: 3×3 stride 1, no pool. deep: three 3×3 (He, T. et al. 2019).
    stem: str = "imagenet"
    # Channels that the stem gives; 0: as `width`, which is kept as 0 too. Wide ResNets for CIFAR have 16 whatever their
    # width (Zagoruyko and Komodakis 2016, arXiv 1605.07146, Table 1).
    stem_width: int = 0
    # Norm and activation behind the stem's last convolution. Without them (Keras' V2) the first block starts with its
    # own, as every other does, and the stem's max-pool counts what lies outside as zero.
    stem_norm: bool = True
    # Where a bottleneck strides: in the first 1×1 (v1, as published) or in the 3×3 (v1.5, as torchvision).
    stride_place: str = "3x3"
    # Which block halves the map between two stages: the first of the later one (as published), or the last of the
    # earlier one (TF-slim, Keras' V2). There the channels stay, and no option needs a projection: A and B leave pixels
    # out, D averages them; C projects everywhere.
    stride_block: str = "first"
    # Section 3.3 and 4.1: none (plain net), A (zero-padded identity), B (projection where shapes change),
    # C (projection everywhere), D (average-pool, then projection; He, T. et al. 2019).
    shortcut: str = "B"
    # What a shape-keeping shortcut does to its input (He et al. 2016, arXiv 1603.05027, Table 1).
    shortcut_transform: str = "identity"
    # Factor on branch and shortcut when shortcut_transform is 'scale' (Table 1: 0.5).
    shortcut_scale: float = 0.5
    # Initial bias of the gate for the two gated transforms (Section 3.1: 0 to -10 were searched, -6 was the best).
    gate_bias: float = -6.0
    # Share of the shortcut dropped when shortcut_transform is 'dropout' (Table 1: 0.5). What is kept is scaled up by
    # 1 / (1 - share), as in today's frameworks: its expectation is the identity, where the paper speaks of one of 0.5.
    shortcut_dropout: float = 0.5
    # Order of norm, activation and addition (He et al. 2016, Table 2 and Figure 4).
    order: str = "original"
    # Normalisation: batch (Ioffe and Szegedy 2015), group (Wu and He 2018), or none: a learned scalar, zero at the
    # start, on each branch (SkipInit, De and Smith 2020) and biases in the convolutions.
    norm: str = "batch"
    # Groups of channels when norm is 'group'.
    norm_groups: int = 32
    # Share of the old running statistics kept at each step; 0.9 is torch's momentum 0.1.
    norm_momentum: float = 0.9
    # Added to the variance; Keras' applications use 1.001e-5.
    norm_epsilon: float = 1e-5
    # Images over which batch norm takes its statistics in training: groups of so many consecutive rows of the batch,
    # whatever the hardware ("ghost batches", Hoffer et al. 2017, arXiv 1705.08741, Algorithm 1). 0: the whole batch.
    ghost_batch_size: int = 0
    # leaky_relu has torch's slope of 0.01; gelu is the approximation by tanh (torch: approximate='tanh'), at most 5e-4
    # from the exact one, which is what torch and timm take by that name.
    activation: str = "relu"
    # Biases in the convolutions, as Keras' applications have (a BN behind them makes them redundant).
    conv_bias: bool = False
    # Biases in those convolutions alone that no norm follows (Keras' V2): a branch's last, projections, a bare stem's.
    bias_without_norm: bool = False
    # Channel reduction of squeeze-and-excitation at the end of each branch (Hu et al. 2018: 16); 0 for none.
    squeeze_excitation: int = 0
    # Start with the last norm's scale of each branch at zero: each block begins as its shortcut (Goyal et al. 2017).
    zero_init_last_gamma: bool = False
    # Share of examples for which the last block's branch is dropped, growing linearly from 0 at the first block, as in
    # timm; Huang et al. 2016, eq. 4, have it grow from 0 at the stem, so that of L blocks the first drops 1/L of it.
    stochastic_depth: float = 0.0
    # Share of the pooled features dropped before the head.
    dropout: float = 0.0
    # Units of a hidden dense layer with ReLU between pooling and the last dense layer; 0 for none (as published).
    head_hidden: int = 0

    def __post_init__(self) -> None:
        check_values(self)
        if self.stem_width == self.width:
            # One network has one spec: specs are compared, field by field, where networks are.
            object.__setattr__(self, "stem_width", 0)
        check_combinations(self)

    @property
    def expansion(self) -> int:
        """Output channels of a block over its planes: 4 for bottlenecks, 1 for basic blocks."""
        return 4 if self.block == "bottleneck" else 1

    @property
    def stem_channels(self) -> int:
        """Channels that the stem gives to the first block."""
        return self.stem_width or self.width

    @property
    def preactivated(self) -> bool:
        """Whether blocks start with their activation, so that the network needs one more at its end."""
        return self.order in ("relu_only_preactivation", "full_preactivation")

    @property
    def total_stride(self) -> int:
        """Input pixels per pixel of the last stage's map, along one side."""
        return (1 if self.stem == "cifar" else 4) * 2 ** (len(self.stage_sizes) - 1)

    def check_image_size(self, image_size: int) -> None:
        """Raise SpecError unless the last map of an image of this side is at least one pixel that saw the image."""
        if image_size < self.total_stride:
            # That stem reduces each side four times less, which must be enough.
            helps = self.stem != "cifar" and image_size >= self.total_stride // 4
            advice = ", or stem='cifar' for small images" if helps else ""
            raise SpecError(
                f"image_size {image_size} is too small for this network, which reduces each side {self.total_stride} "
                f"times; take at least {self.total_stride}{advice}"
            )


def check_values(spec: ResNetSpec) -> None:
    for field, choices in CHOICES.items():
        if getattr(spec, field) not in choices:
            raise SpecError(f"{field}={getattr(spec, field)!r} is not one of {', '.join(choices)}")
    sizes = spec.stage_sizes
    if not isinstance(sizes, tuple) or not sizes or not all(type(n) is int and n > 0 for n in sizes):
        raise SpecError(f"stage_sizes={sizes!r} must be a tuple of positive whole numbers, such as (3,4,6,3)")
    for field in ("width", "base_width", "groups", "in_channels", "num_classes", "norm_groups"):
        if type(getattr(spec, field)) is not int or getattr(spec, field) < 1:
            raise SpecError(f"{field}={getattr(spec, field)!r} must be a whole number of at least 1")
    if type(spec.stem_width) is not int or spec.stem_width < 0:
        raise SpecError(f"stem_width={spec.stem_width!r} must be a whole number, 0 for as many channels as width")
    for field in ("squeeze_excitation", "head_hidden", "ghost_batch_size"):
        if type(getattr(spec, field)) is not int or getattr(spec, field) < 0:
            raise SpecError(f"{field}={getattr(spec, field)!r} must be a whole number, 0 for none")
    for field in ("conv_bias", "bias_without_norm", "stem_norm", "zero_init_last_gamma"):
        if type(getattr(spec, field)) is not bool:
            raise SpecError(f"{field}={getattr(spec, field)!r} must be True or False")
    shares = ("stochastic_depth", "dropout", "shortcut_dropout", "norm_momentum")
    for field in (*shares, "norm_epsilon", "shortcut_scale", "gate_bias"):
        value = getattr(spec, field)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise SpecError(f"{field}={value!r} must be a finite number")
    for field in shares:
        if not 0.0 <= getattr(spec, field) < 1.0:
            raise SpecError(f"{field}={getattr(spec, field)!r} must lie in [0, 1)")
    if not spec.norm_epsilon > 0:
        raise SpecError(f"norm_epsilon={spec.norm_epsilon!r} must be positive")


def check_combinations(spec: ResNetSpec) -> None:
    """Raise SpecError for a combination that would build something other than what its words say."""
    refusals = (
        (
            spec.block == "basic" and (spec.groups, spec.base_width, spec.stride_place) != (1, 64, "3x3"),
            "groups, base_width and stride_place shape the bottleneck's 3x3; block='basic' has no such 3x3",
        ),
        *_shortcut_refusals(spec),
        *_norm_refusals(spec),
        (
            spec.stride_block == "last" and len(spec.stage_sizes) == 1,
            "stride_block='last' says where a stage hands over to the next; stage_sizes has only one stage",
        ),
        (
            spec.norm == "none" and spec.order == "bn_after_addition",
            "order='bn_after_addition' needs a norm; norm='none' has none",
        ),
    )
    for refused, reason in refusals:
        if refused:
            raise SpecError(reason)
    if block_width(spec, 0) == 0:
        raise SpecError(f"base_width={spec.base_width} leaves the 3x3 of width={spec.width} without channels")
    if spec.stem == "deep" and spec.stem_channels < 2:
        field = "stem_width" if spec.stem_width else "width"
        raise SpecError(f"stem='deep' starts with half of {field}'s channels; {field}=1 has no half")
    if spec.norm == "group":
        for channels in normed_channels(spec):
            if channels % spec.norm_groups:
                raise SpecError(f"norm_groups={spec.norm_groups} does not divide the network's {channels} channels")


def _shortcut_refusals(spec: ResNetSpec) -> tuple[Refusal, ...]:
    return (
        (
            spec.shortcut == "none" and spec.shortcut_transform != "identity",
            f"shortcut='none' leaves shortcut_transform={spec.shortcut_transform!r} nothing to act on",
        ),
        (
            spec.shortcut == "none" and spec.order != "original",
            "shortcut='none' has no addition for an order to refer to; only order='original' is defined",
        ),
        (
            spec.shortcut == "none" and spec.stochastic_depth > 0,
            "stochastic_depth drops the branch and keeps the shortcut; with shortcut='none' nothing would be left",
        ),
        (
            spec.shortcut == "none" and (spec.zero_init_last_gamma or spec.norm == "none"),
            "zero_init_last_gamma and norm='none' start each branch at zero; with shortcut='none' no signal would pass",
        ),
        (
            spec.shortcut == "C" and spec.shortcut_transform == "conv1x1",
            "shortcut='C' is a 1x1 convolution on every shortcut already; use shortcut_transform='identity'",
        ),
        (
            spec.shortcut == "A" and spec.stem_channels > spec.width * spec.expansion,
            f"shortcut='A' adds channels of zeros and takes none away; stem_width={spec.stem_width} is more than the "
            f"{spec.width * spec.expansion} channels of the first block",
        ),
    )


def _norm_refusals(spec: ResNetSpec) -> tuple[Refusal, ...]:
    return (
        (
            spec.zero_init_last_gamma and (spec.norm == "none" or spec.order not in BRANCH_ENDS_IN_NORM),
            f"zero_init_last_gamma needs branches that end in a norm: order one of {', '.join(BRANCH_ENDS_IN_NORM)}, "
            "norm 'batch' or 'group'",
        ),
        (
            spec.bias_without_norm and (spec.order != "full_preactivation" or spec.norm == "none"),
            "bias_without_norm is for the convolutions that order='full_preactivation' leaves without a norm; with "
            "another order all have one, with norm='none' all have biases",
        ),
        (
            spec.bias_without_norm and spec.conv_bias,
            "conv_bias=True gives biases to all convolutions, those of bias_without_norm too; use one of the two",
        ),
        (
            not spec.stem_norm and (spec.order != "full_preactivation" or spec.norm == "none"),
            "stem_norm=False leaves norm and activation to the first block, which has them at its start only with "
            "order='full_preactivation' and norm 'batch' or 'group'",
        ),
    )


def normed_channels(spec: ResNetSpec) -> list[int]:
    """Every number of channels that a norm of the network sees, ascending."""
    channels = {spec.stem_channels // 2 if spec.stem == "deep" else spec.stem_channels, spec.stem_channels}
    for stage in range(len(spec.stage_sizes)):
        channels |= {block_width(spec, stage), spec.width * 2**stage * spec.expansion}
    return sorted(channels)


def block_width(spec: ResNetSpec, stage: int) -> int:
    """Channels inside a block of stage `stage` (counted from 0): those of its 3×3 convolutions."""
    planes = spec.width * 2**stage
    if spec.block == "basic":
        return planes
    return planes * spec.base_width // 64 * spec.groups


def block_stride(spec: ResNetSpec, stage: int, index: int) -> int:
    """Stride of block `index` of stage `stage` (both from 0): 2 where one stage's map becomes the next one's."""
    if spec.stride_block == "first":
        return 2 if stage > 0 and index == 0 else 1
    return 2 if stage < len(spec.stage_sizes) - 1 and index == spec.stage_sizes[stage] - 1 else 1
