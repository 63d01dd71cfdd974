"""Named networks, each with its published counts and where they were published."""

import dataclasses

from resnet.model.errors import SpecError
from resnet.model.spec import ResNetSpec


@dataclasses.dataclass(frozen=True)
class Variant:
    """A spec under a name; `parameters` (trainable) and `multiply_adds` (one image of side `image_size`) as published."""

    spec: ResNetSpec
    parameters: int
    multiply_adds: int
    image_size: int
    source: str


def imagenet(
    block: str, stage_sizes: tuple[int, ...], parameters: int, multiply_adds: int, source: str, stride_place: str = "3x3"
) -> Variant:
    spec = ResNetSpec(block=block, stage_sizes=stage_sizes, stride_place=stride_place)
    return Variant(spec, parameters, multiply_adds, 224, source)


def cifar(depth: int, parameters: int, multiply_adds: int, shortcut: str = "A") -> Variant:
    """He et al. 2015, Section 4.2: 6n+2 layers, three stages of n basic blocks with 16, 32, 64 channels."""
    blocks = (depth - 2) // 6
    spec = ResNetSpec(
        block="basic", stage_sizes=(blocks,) * 3, width=16, stem="cifar", shortcut=shortcut, num_classes=10
    )
    return Variant(spec, parameters, multiply_adds, 32, "He et al. 2015, Table 6 (0.27 M … 1.7 M); exact by closed form")


PAPER = "He et al. 2015, Table 1"
TORCHVISION = "torchvision"

VARIANTS: dict[str, Variant] = {
    "resnet18": imagenet("basic", (2, 2, 2, 2), 11_689_512, 1_814_073_344, f"{TORCHVISION}; {PAPER}: 1.8"),
    "resnet34": imagenet("basic", (3, 4, 6, 3), 21_797_672, 3_663_761_408, f"{TORCHVISION}; {PAPER}: 3.6"),
    "resnet50": imagenet("bottleneck", (3, 4, 6, 3), 25_557_032, 4_089_184_256, TORCHVISION),
    "resnet101": imagenet("bottleneck", (3, 4, 23, 3), 44_549_160, 7_801_405_440, TORCHVISION),
    "resnet152": imagenet("bottleneck", (3, 8, 36, 3), 60_192_808, 11_513_626_624, TORCHVISION),
    "resnet50_v1": imagenet("bottleneck", (3, 4, 6, 3), 25_557_032, 3_857_973_248, f"{PAPER}: 3.8", "first_1x1"),
    "resnet101_v1": imagenet("bottleneck", (3, 4, 23, 3), 44_549_160, 7_570_194_432, f"{PAPER}: 7.6", "first_1x1"),
    "resnet152_v1": imagenet("bottleneck", (3, 8, 36, 3), 60_192_808, 11_282_415_616, f"{PAPER}: 11.3", "first_1x1"),
    "cifar_resnet20": cifar(20, 269_722, 40_551_040),
    "cifar_resnet32": cifar(32, 464_154, 68_862_592),
    "cifar_resnet44": cifar(44, 658_586, 97_174_144),
    "cifar_resnet56": cifar(56, 853_018, 125_485_696),
    "cifar_resnet110": cifar(110, 1_727_962, 252_887_680),
    "cifar_resnet20_b": cifar(20, 272_474, 40_813_184, shortcut="B"),
}


def variant(name: str) -> Variant:
    """The named variant. Raises SpecError that lists the known names."""
    if name not in VARIANTS:
        raise SpecError(f"unknown model {name!r}; known are {', '.join(VARIANTS)}")
    return VARIANTS[name]
