"""Every named network has the published number of parameters; none can be added without."""

import dataclasses
import re

import jax
import pytest

from resnet.model.errors import SpecError
from resnet.model.spec import ResNetSpec
from resnet.model.variants import VARIANTS, variant
from tests.networks import parameter_count, variable_shapes

# torchvision's model cards; for CIFAR the closed form of He et al. 2015, Section 4.2 (the paper: 0.27, 0.46, 0.66, 0.85
# and 1.7 M). Written out a second time, so that a slip in variants.py is found.
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet50_v1": 25_557_032,
    "resnet101_v1": 44_549_160,
    "resnet152_v1": 60_192_808,
    # Keras' totals 25,613,800, 44,675,560 and 60,380,648 less BN's statistics.
    "resnet50_v2_keras": 25_568_360,
    "resnet101_v2_keras": 44_577_896,
    "resnet152_v2_keras": 60_236_904,
    "cifar_resnet20": 269_722,
    "cifar_resnet32": 464_154,
    "cifar_resnet44": 658_586,
    "cifar_resnet56": 853_018,
    "cifar_resnet110": 1_727_962,
    "cifar_resnet20_b": 272_474,
    # Zagoruyko and Komodakis 2016 print 11.0, 36.5 and 8.9 M.
    "cifar_wide_resnet16_8": 10_961_370,
    "cifar_wide_resnet28_10": 36_479_194,
    "cifar_wide_resnet40_4": 8_949_210,
}
# Tracing takes a tenth of a second a block.
TRACED_WHOLE = 20


def counted(spec: ResNetSpec) -> int:
    """Parameters of the traced network; a deep one's from shallow ones: the blocks behind a stage's first are alike."""
    if sum(spec.stage_sizes) <= TRACED_WHOLE:
        return parameter_count(spec)
    ones = (1,) * len(spec.stage_sizes)
    shallow = parameter_count(dataclasses.replace(spec, stage_sizes=ones))
    total = shallow
    for stage, blocks in enumerate(spec.stage_sizes):
        sizes = (*ones[:stage], 2, *ones[stage + 1 :])
        total += (blocks - 1) * (parameter_count(dataclasses.replace(spec, stage_sizes=sizes)) - shallow)
    return total


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_exactly_as_published(name):
    assert counted(variant(name).spec) == variant(name).parameters == PUBLISHED.get(name, variant(name).parameters)


def test_the_first_variants_are_all_there():
    assert PUBLISHED.keys() <= VARIANTS.keys()


def test_a_deep_network_traced_whole_has_as_many():
    assert parameter_count(variant("resnet101").spec) == PUBLISHED["resnet101"]


@pytest.mark.parametrize("name", VARIANTS)
def test_no_variant_stands_without_counts_and_their_source(name):
    entry = variant(name)
    assert entry.parameters > 0
    assert entry.multiply_adds > 0, f"{name} has no multiply-adds: add the published number"
    assert entry.source
    assert entry.image_size == (32 if name.startswith("cifar") else 224)
    entry.spec.check_image_size(entry.image_size)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_name_tells_the_number_of_weighted_layers(name):
    spec = variant(name).spec
    found = re.search(r"(?:resnet|resnext|plain)(\d+)", name)
    assert found, name
    layers_per_block = 3 if spec.block == "bottleneck" else 2
    # Stem and head; wide CIFAR networks are named 6n+4, with the three projections and without the head.
    others = 4 if name.startswith("cifar_wide") else 2
    assert layers_per_block * sum(spec.stage_sizes) + others == int(found.group(1))


def test_running_statistics_of_resnet50_are_no_parameters():
    statistics = variable_shapes(variant("resnet50").spec)["batch_stats"]
    assert sum(leaf.size for leaf in jax.tree.leaves(statistics)) == 53_120


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(SpecError) as error:
        variant("resnet51")
    assert "'resnet51'" in str(error.value)
    assert all(name in str(error.value) for name in VARIANTS)
