"""Named networks, each with its published counts and who published them; docs/counts.md shows them side by side."""

import dataclasses

from resnet.model.errors import SpecError
from resnet.model.spec import ResNetSpec

UNITS = {"": 1, "M": 10**6, "G": 10**9}
QUANTITIES = ("parameters", "parameters and statistics", "multiply-adds")


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure in print, as it stands there: '3.8' with unit 'G'. `quantity` is one of QUANTITIES."""

    quantity: str
    text: str
    unit: str
    source: str
    # By how many units of its last digit the exact count may differ: 0.5 where it was rounded, 1 where it was cut off.
    slack: float = 0.5

    def agrees(self, exact: int) -> bool:
        _, _, decimals = self.text.partition(".")
        return abs(exact / UNITS[self.unit] - float(self.text)) <= self.slack / 10 ** len(decimals)

    def __str__(self) -> str:
        value = f"{int(self.text):,}" if self.text.isdecimal() else self.text
        what = "" if self.quantity == "multiply-adds" else f" {self.quantity}"
        return f"{self.source}: {value}{f' {self.unit}' if self.unit else ''}{what}"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A spec under a name, with exact counts and figures in print that they must meet.

    `parameters` are the trainable ones, `multiply_adds` those of one image of `image_size` pixels a side; the sources
    say who publishes each, or CLOSED_FORM: the sum over the layers in the papers' tables, as the tests have it.
    """

    spec: ResNetSpec
    parameters: int
    source: str
    multiply_adds: int
    multiply_adds_source: str
    image_size: int = 224
    figures: tuple[Figure, ...] = ()

    def differences(self, parameters: int, statistics: int, multiply_adds: int) -> list[str]:
        """In what these counts miss the published ones, one line each; empty if they meet all of them."""
        counted = dict(zip(QUANTITIES, (parameters, parameters + statistics, multiply_adds), strict=True))
        exact = (
            ("parameters", self.parameters, self.source),
            ("multiply-adds", self.multiply_adds, self.multiply_adds_source),
        )
        found = [
            f"{counted[quantity]:,} {quantity}, {published:,} published ({source}), difference "
            f"{counted[quantity] - published:+,}"
            for quantity, published, source in exact
            if counted[quantity] != published
        ]
        return found + [
            f"{counted[figure.quantity]:,} {figure.quantity} do not meet {figure}"
            for figure in self.figures
            if not figure.agrees(counted[figure.quantity])
        ]


CLOSED_FORM = "closed form"
TORCHVISION = "torchvision 0.29"
TIMM = "timm 1.0.31"
KERAS = "Keras 3.15"
SLIM = "TF-slim"
HE2015, HE2016, WRN2016 = "He et al. 2015", "He et al. 2016", "Zagoruyko & Komodakis 2016"


def he(text: str, unit: str = "G") -> Figure:
    """He et al. 2015: Table 1 (multiply-adds) or Table 6 (parameters). It prints 3.86 as 3.8 but 7.57 as 7.6."""
    return Figure(
        "multiply-adds" if unit == "G" else "parameters", text, unit, HE2015, slack=1.0 if unit == "G" else 0.5
    )


def printed(text: str, source: str = "torchvision") -> tuple[Figure, ...]:
    """Giga-multiply-adds as documentation or a paper prints them."""
    return (Figure("multiply-adds", text, "G", source),)


def bottleneck(*stage_sizes: int, **fields: object) -> ResNetSpec:
    return ResNetSpec(block="bottleneck", stage_sizes=stage_sizes, **fields)  # type: ignore[arg-type]


def basic(*stage_sizes: int, **fields: object) -> ResNetSpec:
    return ResNetSpec(block="basic", stage_sizes=stage_sizes, **fields)  # type: ignore[arg-type]


# Order of norm, activation and addition that He et al. 2016 end with; stride and projections as in v1.5, which is what
# timm builds.
V2 = {"order": "full_preactivation"}
# v1 as Keras has it: the first 1×1 strides, convolutions have biases, BN adds 1.001e-5.
KERAS_V1 = {"stride_place": "first_1x1", "conv_bias": True, "norm_epsilon": 1.001e-5}
# V2 as Keras has it, after TF-slim: a stage's last block strides, the stem is a convolution and no more.
KERAS_V2 = {**V2, "stride_block": "last", "stem_norm": False, "bias_without_norm": True, "norm_epsilon": 1.001e-5}
V1 = {"stride_place": "first_1x1"}


def torchvision(spec: ResNetSpec, parameters: int, multiply_adds: int, *figures: Figure) -> Variant:
    """torchvision lists parameters to the unit; multiply-adds are of its modules, its documentation rounds them."""
    return Variant(spec, parameters, TORCHVISION, multiply_adds, TORCHVISION, figures=figures)


def timm(spec: ResNetSpec, parameters: int, multiply_adds: int, *figures: Figure) -> Variant:
    return Variant(spec, parameters, TIMM, multiply_adds, TIMM, figures=figures)


def closed(
    spec: ResNetSpec, parameters: int, multiply_adds: int, *figures: Figure, source: str = CLOSED_FORM
) -> Variant:
    return Variant(spec, parameters, source, multiply_adds, CLOSED_FORM, figures=figures)


def keras(spec: ResNetSpec, parameters: int, total: int, multiply_adds: int, source: str = CLOSED_FORM) -> Variant:
    """Keras prints trainable parameters and, as 'total', these with BN's statistics."""
    figure = Figure("parameters and statistics", str(total), "", KERAS, slack=0)
    return Variant(spec, parameters, KERAS, multiply_adds, source, figures=(figure,))


def cifar(depth: int, parameters: int, multiply_adds: int, table6: str, shortcut: str = "A") -> Variant:
    """He et al. 2015, Section 4.2: 6n+2 layers, three stages of n basic blocks with 16, 32 and 64 channels.

    Table 6 gives parameters in millions. Option A has none, so plain nets have exactly as many (Section 3.3).
    """
    spec = basic(*((depth - 2) // 6,) * 3, width=16, stem="cifar", shortcut=shortcut, num_classes=10)
    figures = (he(table6, "M"),)
    return Variant(spec, parameters, CLOSED_FORM, multiply_adds, CLOSED_FORM, 32, figures)


def wide(depth: int, factor: int, parameters: int, multiply_adds: int, printed: str) -> Variant:
    """Zagoruyko and Komodakis 2016, Table 1: WRN-depth-factor, three stages of (depth - 4) / 6 pre-activated blocks.

    They have 16, 32 and 64 channels times the factor behind a stem of 16, and projections where channels change, which
    the depth counts. Parameters in millions are the paper's.
    """
    sizes = ((depth - 4) // 6,) * 3
    spec = basic(*sizes, width=16 * factor, stem="cifar", stem_width=16, num_classes=10, **V2)
    figures = (Figure("parameters", printed, "M", WRN2016),)
    return Variant(spec, parameters, CLOSED_FORM, multiply_adds, CLOSED_FORM, 32, figures)


# He et al. 2016: 9n+2 layers, bottlenecks, projections; the authors' code strides in the first 1×1.
CIFAR_164_V2 = bottleneck(18, 18, 18, width=16, stem="cifar", num_classes=10, **V1, **V2)

VARIANTS: dict[str, Variant] = {
    # Stride in the 3×3 (v1.5); 18 and 34 layers have no 1×1 to stride in, so that v1 and v1.5 are one.
    "resnet18": torchvision(basic(2, 2, 2, 2), 11_689_512, 1_814_073_344, he("1.8"), *printed("1.81")),
    "resnet34": torchvision(basic(3, 4, 6, 3), 21_797_672, 3_663_761_408, he("3.6"), *printed("3.66")),
    "resnet50": torchvision(bottleneck(3, 4, 6, 3), 25_557_032, 4_089_184_256, *printed("4.09")),
    "resnet101": torchvision(bottleneck(3, 4, 23, 3), 44_549_160, 7_801_405_440, *printed("7.80")),
    "resnet152": torchvision(bottleneck(3, 8, 36, 3), 60_192_808, 11_513_626_624, *printed("11.51")),
    "resnet200": timm(bottleneck(3, 24, 36, 3), 64_673_832, 15_007_481_856),
    # As published: stride in the first 1×1 (v1). Parameters do not depend on it.
    "resnet50_v1": closed(bottleneck(3, 4, 6, 3, **V1), 25_557_032, 3_857_973_248, he("3.8"), source=TORCHVISION),
    "resnet101_v1": closed(bottleneck(3, 4, 23, 3, **V1), 44_549_160, 7_570_194_432, he("7.6"), source=TORCHVISION),
    "resnet152_v1": closed(bottleneck(3, 8, 36, 3, **V1), 60_192_808, 11_282_415_616, he("11.3"), source=TORCHVISION),
    "resnet200_v1": closed(bottleneck(3, 24, 36, 3, **V1), 64_673_832, 14_776_270_848, source=SLIM),
    # Pre-activated (v2). timm's first block has the norm that our stem has; others have both, and 128 parameters more.
    "resnet18_v2": timm(basic(2, 2, 2, 2, **V2), 11_687_720, 1_814_073_344),
    "resnet34_v2": timm(basic(3, 4, 6, 3, **V2), 21_795_880, 3_663_761_408),
    "resnet50_v2": timm(bottleneck(3, 4, 6, 3, **V2), 25_549_352, 4_089_184_256),
    "resnet101_v2": timm(bottleneck(3, 4, 23, 3, **V2), 44_541_480, 7_801_405_440),
    "resnet152_v2": timm(bottleneck(3, 8, 36, 3, **V2), 60_185_128, 11_513_626_624),
    "resnet200_v2": closed(bottleneck(3, 24, 36, 3, **V2), 64_666_152, 15_007_481_856),
    "resnet50_keras": keras(bottleneck(3, 4, 6, 3, **KERAS_V1), 25_583_592, 25_636_712, 3_857_973_248),
    "resnet101_keras": keras(bottleneck(3, 4, 23, 3, **KERAS_V1), 44_601_832, 44_707_176, 7_570_194_432),
    "resnet152_keras": keras(bottleneck(3, 8, 36, 3, **KERAS_V1), 60_268_520, 60_419_944, 11_282_415_616),
    "resnet50_v2_keras": keras(bottleneck(3, 4, 6, 3, **KERAS_V2), 25_568_360, 25_613_800, 3_482_255_360, KERAS),
    "resnet101_v2_keras": keras(
        bottleneck(3, 4, 23, 3, **KERAS_V2), 44_577_896, 44_675_560, 7_194_476_544, source=KERAS
    ),
    "resnet152_v2_keras": keras(
        bottleneck(3, 8, 36, 3, **KERAS_V2), 60_236_904, 60_380_648, 10_906_697_728, source=KERAS
    ),
    "wide_resnet50_2": torchvision(
        bottleneck(3, 4, 6, 3, base_width=128), 68_883_240, 11_398_021_120, *printed("11.40")
    ),
    "wide_resnet101_2": torchvision(
        bottleneck(3, 4, 23, 3, base_width=128), 126_886_696, 22_753_050_624, *printed("22.75")
    ),
    "resnext50_32x4d": torchvision(
        bottleneck(3, 4, 6, 3, groups=32, base_width=4), 25_028_904, 4_230_479_872, *printed("4.23")
    ),
    "resnext101_32x8d": torchvision(
        bottleneck(3, 4, 23, 3, groups=32, base_width=8), 88_791_336, 16_414_015_488, *printed("16.41")
    ),
    "se_resnet50": timm(bottleneck(3, 4, 6, 3, squeeze_excitation=16), 28_088_024, 4_091_699_200),
    "resnet50_d": timm(bottleneck(3, 4, 6, 3, stem="deep", shortcut="D"), 25_576_264, 4_328_824_832),
    "plain18": closed(basic(2, 2, 2, 2, shortcut="none"), 11_515_688, 1_794_805_760, he("1.8")),
    "plain34": closed(basic(3, 4, 6, 3, shortcut="none"), 21_623_848, 3_644_493_824, he("3.6")),
    "cifar_resnet20": cifar(20, 269_722, 40_551_040, "0.27"),
    "cifar_resnet32": cifar(32, 464_154, 68_862_592, "0.46"),
    "cifar_resnet44": cifar(44, 658_586, 97_174_144, "0.66"),
    "cifar_resnet56": cifar(56, 853_018, 125_485_696, "0.85"),
    "cifar_resnet110": cifar(110, 1_727_962, 252_887_680, "1.7"),
    "cifar_resnet1202": cifar(1202, 19_421_274, 2_829_238_912, "19.4"),
    "cifar_resnet20_b": cifar(20, 272_474, 40_813_184, "0.27", shortcut="B"),
    "cifar_resnet164_v2": Variant(
        CIFAR_164_V2, 1_703_258, CLOSED_FORM, 244_500_992, CLOSED_FORM, 32, (Figure("parameters", "1.7", "M", HE2016),)
    ),
    "cifar_wide_resnet16_8": wide(16, 8, 10_961_370, 1_548_145_664, "11.0"),
    "cifar_wide_resnet28_10": wide(28, 10, 36_479_194, 5_243_328_768, "36.5"),
    "cifar_wide_resnet40_4": wide(40, 4, 8_949_210, 1_298_582_016, "8.9"),
    "cifar_plain20": cifar(20, 269_722, 40_551_040, "0.27", shortcut="none"),
    "cifar_plain32": cifar(32, 464_154, 68_862_592, "0.46", shortcut="none"),
    "cifar_plain44": cifar(44, 658_586, 97_174_144, "0.66", shortcut="none"),
    "cifar_plain56": cifar(56, 853_018, 125_485_696, "0.85", shortcut="none"),
    "cifar_plain110": cifar(110, 1_727_962, 252_887_680, "1.7", shortcut="none"),
}


def variant(name: str) -> Variant:
    """The named variant. Raises SpecError that lists the known names."""
    if name not in VARIANTS:
        raise SpecError(f"unknown model {name!r}; known are {', '.join(VARIANTS)}")
    return VARIANTS[name]
