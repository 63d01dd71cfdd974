"""Every named network has the published number of parameters; none can be added without."""

import jax
import pytest

from resnet.model.errors import SpecError
from resnet.model.variants import VARIANTS, variant
from tests.networks import parameter_count, variable_shapes

# torchvision's model cards; for CIFAR the closed form of He et al. 2015, Section 4.2 (the paper: 0.27, 0.46, 0.66, 0.85
# and 1.7 M): 3·3·3·16 + 32 + Σ over blocks + 64·10 + 10. Written out here, so that a slip in variants.py is found.
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet50_v1": 25_557_032,
    "resnet101_v1": 44_549_160,
    "resnet152_v1": 60_192_808,
    "cifar_resnet20": 269_722,
    "cifar_resnet32": 464_154,
    "cifar_resnet44": 658_586,
    "cifar_resnet56": 853_018,
    "cifar_resnet110": 1_727_962,
    "cifar_resnet20_b": 272_474,
}


def test_every_variant_has_a_published_count_here():
    assert set(VARIANTS) == set(PUBLISHED), "add the published number of parameters of a new variant to this test"


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_exactly_as_published(name):
    assert variant(name).parameters == PUBLISHED[name]
    assert parameter_count(variant(name).spec) == PUBLISHED[name]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_says_where_its_counts_come_from(name):
    entry = variant(name)
    assert entry.source
    assert entry.multiply_adds > 0
    assert entry.image_size == (32 if name.startswith("cifar") else 224)
    entry.spec.check_image_size(entry.image_size)


def test_depth_in_the_name_is_the_number_of_weighted_layers():
    for name, entry in VARIANTS.items():
        depth = int(name.removeprefix("cifar_").removeprefix("resnet").split("_")[0])
        layers_per_block = 3 if entry.spec.block == "bottleneck" else 2
        assert layers_per_block * sum(entry.spec.stage_sizes) + 2 == depth, name


def test_running_statistics_of_resnet50_are_no_parameters():
    statistics = variable_shapes(variant("resnet50").spec)["batch_stats"]
    assert sum(leaf.size for leaf in jax.tree.leaves(statistics)) == 53_120


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(SpecError) as error:
        variant("resnet51")
    assert "'resnet51'" in str(error.value)
    assert all(name in str(error.value) for name in VARIANTS)
