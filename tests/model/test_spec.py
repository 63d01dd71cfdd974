"""A spec either says why it makes no sense or builds what it says."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet.model.errors import SpecError
from resnet.model.network import ResNet
from resnet.model.spec import CHOICES, ResNetSpec
from resnet.model.variants import variant
from tests.networks import by_name, parameter_count, variable_shapes

TINY = {"block": "basic", "stage_sizes": (1, 1), "width": 8, "stem": "cifar", "num_classes": 5}


def tiny(**changes) -> ResNetSpec:
    return ResNetSpec(**{**TINY, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"block": "basic", "groups": 2}, "shape the bottleneck's 3x3"),
        ({"block": "basic", "base_width": 128}, "shape the bottleneck's 3x3"),
        ({"block": "basic", "stride_place": "first_1x1"}, "shape the bottleneck's 3x3"),
        ({"shortcut": "none", "shortcut_transform": "scale"}, "nothing to act on"),
        ({"shortcut": "none", "order": "full_preactivation"}, "no addition for an order to refer to"),
        ({"shortcut": "none", "stochastic_depth": 0.1}, "nothing would be left"),
        ({"shortcut": "none", "zero_init_last_gamma": True}, "no signal would pass"),
        ({"shortcut": "none", "norm": "none"}, "no signal would pass"),
        ({"shortcut": "C", "shortcut_transform": "conv1x1"}, "on every shortcut already"),
        ({"zero_init_last_gamma": True, "norm": "none"}, "branches that end in a norm"),
        ({"zero_init_last_gamma": True, "order": "bn_after_addition"}, "branches that end in a norm"),
        ({"zero_init_last_gamma": True, "order": "full_preactivation"}, "branches that end in a norm"),
        ({"zero_init_last_gamma": True, "order": "relu_before_addition"}, "branches that end in a norm"),
        ({"norm": "none", "order": "bn_after_addition"}, "needs a norm"),
        ({"norm": "group", "norm_groups": 3}, "norm_groups=3 does not divide the network's 8 channels"),
        ({"norm": "group", "norm_groups": 8, "stem": "deep"}, "norm_groups=8 does not divide the network's 4 channels"),
        (
            {"norm": "group", "norm_groups": 64, "block": "bottleneck", "width": 64, "base_width": 96},
            "norm_groups=64 does not divide the network's 96 channels",
        ),
        ({"block": "bottleneck", "base_width": 4}, "base_width=4 leaves the 3x3 of width=8 without channels"),
        ({"stem": "deep", "width": 1}, "half of width's channels; width=1 has no half"),
        ({"stem": "deep", "stem_width": 1}, "half of stem_width's channels; stem_width=1 has no half"),
        ({"shortcut": "A", "stem_width": 9}, "stem_width=9 is more than the 8 channels of the first block"),
        (
            {"norm": "group", "norm_groups": 8, "stem_width": 12},
            "norm_groups=8 does not divide the network's 12 channels",
        ),
        ({"bias_without_norm": True}, "with another order all have one"),
        (
            {"bias_without_norm": True, "order": "full_preactivation", "norm": "none"},
            "with norm='none' all have biases",
        ),
        ({"bias_without_norm": True, "order": "full_preactivation", "conv_bias": True}, "use one of the two"),
        ({"stem_norm": False}, "stem_norm=False leaves norm and activation to the first block"),
        ({"stem_norm": False, "order": "relu_only_preactivation"}, "stem_norm=False leaves"),
        ({"stride_block": "last", "stage_sizes": (2,)}, "only one stage"),
    ],
)
def test_a_combination_that_makes_no_sense_is_refused_with_its_reason(changes, reason):
    with pytest.raises(SpecError, match=reason) as error:
        tiny(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        *(({field: "nonsense"}, field) for field in CHOICES),
        ({"stage_sizes": ()}, "stage_sizes"),
        ({"stage_sizes": [1, 1]}, "stage_sizes"),
        ({"stage_sizes": (1, 0)}, "stage_sizes"),
        ({"stage_sizes": (1.0, 1)}, "stage_sizes"),
        ({"width": 0}, "width"),
        ({"width": 8.0}, "width"),
        ({"stem_width": -1}, "stem_width"),
        ({"stem_width": 4.0}, "stem_width"),
        ({"num_classes": True}, "num_classes"),
        ({"in_channels": -3}, "in_channels"),
        ({"norm_groups": 0}, "norm_groups"),
        ({"ghost_batch_size": -1}, "ghost_batch_size"),
        ({"squeeze_excitation": -1}, "squeeze_excitation"),
        ({"head_hidden": -1}, "head_hidden"),
        ({"head_hidden": 8.0}, "head_hidden"),
        ({"stochastic_depth": 1.0}, "stochastic_depth"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"dropout": "0.1"}, "dropout"),
        ({"shortcut_dropout": 1.5}, "shortcut_dropout"),
        ({"norm_momentum": 1.0}, "norm_momentum"),
        ({"norm_epsilon": 0.0}, "norm_epsilon"),
        ({"shortcut_scale": float("inf")}, "shortcut_scale"),
        ({"gate_bias": None}, "gate_bias"),
        ({"conv_bias": "yes"}, "conv_bias"),
        ({"bias_without_norm": 1}, "bias_without_norm"),
        ({"stem_norm": None}, "stem_norm"),
        ({"zero_init_last_gamma": 1}, "zero_init_last_gamma"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(changes, named):
    with pytest.raises(SpecError, match=f"^{named}="):
        tiny(**changes)


def likely(choices: dict[str, object]) -> dict[str, object]:
    """The draw without what would be refused nearly every time; those refusals have their own tests."""
    changes: dict[str, object] = {}
    if choices["block"] == "basic":
        changes |= {"groups": 1, "base_width": 64, "stride_place": "3x3"}
    if choices["order"] != "full_preactivation" or choices["norm"] == "none":
        changes |= {"bias_without_norm": False, "stem_norm": True}
    if choices["bias_without_norm"]:
        changes |= {"conv_bias": False}
    if choices["stage_sizes"] == (1,):
        changes |= {"stride_block": "first"}
    return choices | changes


# Field -> what is drawn of it, and two that are no fields: bfloat16, and pixels above the total stride.
DRAWN = {
    **{field: st.sampled_from(choices) for field, choices in CHOICES.items()},
    "stage_sizes": st.sampled_from([(1,), (1, 2), (2, 1, 1)]),
    "width": st.sampled_from([2, 8, 12]),
    "stem_width": st.sampled_from([0, 0, 4]),
    "base_width": st.sampled_from([64, 64, 96, 16]),
    "groups": st.sampled_from([1, 1, 2]),
    "norm_groups": st.sampled_from([1, 2, 4]),
    "num_classes": st.sampled_from([1, 5]),
    "conv_bias": st.booleans(),
    "bias_without_norm": st.sampled_from([False, False, True]),
    "stem_norm": st.sampled_from([True, True, False]),
    "squeeze_excitation": st.sampled_from([0, 4]),
    "zero_init_last_gamma": st.sampled_from([False, False, True]),
    "stochastic_depth": st.sampled_from([0.0, 0.0, 0.5]),
    "dropout": st.sampled_from([0.0, 0.3]),
    "head_hidden": st.sampled_from([0, 0, 6]),
    "ghost_batch_size": st.sampled_from([0, 0, 1]),
    "norm_momentum": st.sampled_from([0.9, 0.5]),
    "norm_epsilon": st.sampled_from([1e-5, 1e-3]),
    "shortcut_scale": st.sampled_from([0.5, 1.0]),
    "gate_bias": st.sampled_from([-6.0, 0]),
    "shortcut_dropout": st.sampled_from([0.5, 0.2]),
    "half": st.booleans(),
    "odd": st.integers(0, 3),
}
SPECS = st.fixed_dictionaries(DRAWN).map(likely)


def test_every_field_is_drawn():
    """A field that is not drawn is seen by no test of any spec. The images here have three channels."""
    assert {field.name for field in dataclasses.fields(ResNetSpec)} - DRAWN.keys() == {"in_channels"}


@settings(max_examples=25, deadline=None)
@given(SPECS)
def test_a_spec_is_refused_or_builds(choices):
    dtype = jnp.bfloat16 if choices.pop("half") else jnp.float32
    odd = choices.pop("odd")
    try:
        spec = ResNetSpec(**choices)
    except SpecError as error:
        assert "\n" not in str(error)  # noqa: PT017 - a refusal is one of the two right outcomes
        return
    network = ResNet(spec, dtype=dtype)
    size = spec.total_stride + odd

    def build_and_run(key):
        images = jnp.zeros((3, size, size + 1, 3))
        evaluated, variables = network.init_with_output(key, images, train=False)
        rngs = {"dropout": key}
        trained, new = network.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return variables, new, evaluated, trained

    variables, new, *logits = jax.eval_shape(build_and_run, jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((variables, new)))
    assert [(value.shape, value.dtype) for value in logits] == [((3, spec.num_classes), jnp.float32)] * 2
    before = {name: leaf.shape for name, leaf in by_name(variables.get("batch_stats", {})).items()}
    assert {name: leaf.shape for name, leaf in by_name(new.get("batch_stats", {})).items()} == before
    assert bool(before) == (spec.norm == "batch")


@pytest.mark.parametrize("block", CHOICES["block"])
def test_options_a_and_none_add_no_parameters_and_the_projections_what_they_say(block):
    """He et al. 2015, Section 4.1: B projects where shapes change, C everywhere; D is B behind a parameterless pool."""
    counts = {option: parameter_count(tiny(block=block, stage_sizes=(2, 2), shortcut=option)) for option in "ABCD"}
    counts["none"] = parameter_count(tiny(block=block, stage_sizes=(2, 2), shortcut="none"))
    assert counts["A"] == counts["none"]
    assert counts["D"] == counts["B"]
    # A projection from i to o channels and its BN: i·o + 2·o. Channels after the stem and the four blocks:
    channels = (8, 8, 8, 16, 16) if block == "basic" else (8, 32, 32, 64, 64)
    pairs = list(itertools.pairwise(channels))
    changing = pairs[2:3] if block == "basic" else [pairs[0], pairs[2]]
    assert counts["B"] - counts["A"] == sum(i * o + 2 * o for i, o in changing)
    assert counts["C"] - counts["A"] == sum(i * o + 2 * o for i, o in pairs)


@pytest.mark.parametrize("block", CHOICES["block"])
def test_the_five_orders_have_equal_parameters(block):
    """He et al. 2016, Figure 4: the same layers in another order.

    A block that keeps its shape has the same number in all five. Full pre-activation has the first block's first norm
    behind the last block instead, so that the whole net with option A has the same number too; with projections the
    pre-activated ones save each projection's norm.
    """

    def counts(shortcut: str) -> dict[str, tuple[int, int]]:
        result = {}
        for order in CHOICES["order"]:
            spec = tiny(block=block, stage_sizes=(2, 2), shortcut=shortcut, order=order)
            params = variable_shapes(spec)["params"]
            own = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, params["layer2_1"])]
            result[order] = (own[0], own[1])
        return result

    without = counts("A")
    assert len(set(without.values())) == 1
    projected = counts("B")
    assert len({identity for _, identity in projected.values()}) == 1
    norms_of_projections = 2 * (16 if block == "basic" else 32 + 64)
    whole = {order: total for order, (total, _) in projected.items()}
    assert whole["bn_after_addition"] == whole["relu_before_addition"] == whole["original"]
    assert whole["relu_only_preactivation"] == whole["full_preactivation"]
    assert whole["original"] - whole["full_preactivation"] == norms_of_projections


def test_grouped_and_wide_bottlenecks_have_the_published_counts():
    """ResNeXt-50 32x4d 25,028,904 and Wide ResNet-50-2 68,883,240 parameters: torchvision's model cards."""
    assert parameter_count(ResNetSpec(groups=32, base_width=4)) == 25_028_904
    assert parameter_count(ResNetSpec(base_width=128)) == 68_883_240


def test_a_stem_of_its_own_width_changes_itself_and_the_first_block_alone():
    """WRN-28-10 beside the same network behind a stem of 160 channels, layer by layer."""
    narrow = variant("cifar_wide_resnet28_10").spec
    # In the stem, in the first convolution behind it, in the norm between, and a projection where the channels change.
    more = 9 * 3 * 144 + 9 * 144 * 160 + 2 * 144 - 16 * 160
    assert parameter_count(dataclasses.replace(narrow, stem_width=0)) - parameter_count(narrow) == more


def test_a_stem_as_wide_as_the_first_stage_is_one_network_however_it_is_said():
    said = tiny(stem_width=8)
    assert said == tiny()
    assert hash(said) == hash(tiny())
    assert tiny(stem_width=4).stem_channels == 4
    assert tiny().stem_channels == said.stem_channels == 8


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({"stem": "cifar", "stage_sizes": (1,)}, 1),
        ({"stem": "cifar", "stage_sizes": (1, 1, 1)}, 4),
        ({"stem": "imagenet", "stage_sizes": (1, 1, 1, 1)}, 32),
        ({"stem": "deep", "stage_sizes": (1, 1)}, 8),
    ],
)
def test_images_smaller_than_the_total_stride_are_refused(changes, least):
    spec = tiny(**changes)
    assert spec.total_stride == least
    spec.check_image_size(least)
    with pytest.raises(SpecError, match=rf"image_size {least - 1} is too small .* at least {least}") as caught:
        spec.check_image_size(least - 1)
    # Who has that stem already is not advised to take it.
    assert ("stem='cifar'" in str(caught.value)) == (spec.stem != "cifar")
    if least > 1:
        with pytest.raises(SpecError, match="too small"):
            jax.eval_shape(lambda key: ResNet(spec).init(key, jnp.zeros((1, 64, least - 1, 3))), jax.random.key(0))


def test_the_last_map_is_the_image_over_the_total_stride():
    for stem, stride_block in itertools.product(CHOICES["stem"], CHOICES["stride_block"]):
        spec = tiny(stem=stem, stage_sizes=(1, 2, 1), stride_block=stride_block)

        def last(key, spec=spec):
            images = jnp.zeros((1, 64, 33, 3))
            (_, features), _ = ResNet(spec).init_with_output(key, images, return_features=True)
            return features["layer3"]

        map_shape = jax.eval_shape(last, jax.random.key(0)).shape
        assert map_shape == (1, 64 // spec.total_stride, -(-33 // spec.total_stride), 32)


def test_a_spec_is_frozen_and_hashable():
    spec = tiny()
    assert hash(spec) == hash(tiny())
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.width = 9
