"""A configuration is refused in one line that names the key, or means what it says."""

import dataclasses
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import default
from input_pipeline.errors import InputError
from resnet.model.errors import SpecError
from resnet.model.network import REMAT
from resnet.model.spec import ResNetSpec
from resnet.model.variants import variant
from resnet.train.configuration import (
    CHOICES,
    FREE,
    PLACES,
    POSITIVE,
    RANGES,
    differences,
    differences_line,
    flatten,
    make_spec,
    validate,
)
from resnet.train.losses import LOSSES
from resnet.train.optimizer import OPTIMIZERS
from resnet.train.schedules import SCHEDULES


def config_with(changes: dict[str, object]) -> ConfigDict:
    """The defaults with 'section.key' changed, whatever the type."""
    config = default.get_config()
    for key, value in changes.items():
        section, name = key.split(".")
        with config[section].ignore_type():
            config[section][name] = value
    return config


def refusal(changes: dict[str, object]) -> str:
    with pytest.raises(InputError) as error:
        validate(config_with(changes))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_defaults_are_valid():
    validate(default.get_config())


FINETUNE: dict[str, object] = {"transfer.mode": "finetune", "transfer.weights": "file"}
# What else it takes for a key, or for a word of a choice, to be allowed.
WITH: dict[object, dict[str, object]] = {
    **{
        f"data.randaugment_{name}": {"data.auto_augment": "randaugment"}
        for name in ("ops", "magnitude", "noise", "probability")
    },
    ("data.randaugment_set", "timm"): {"data.auto_augment": "randaugment"},
    "transfer.views": {**FINETUNE, "transfer.mode": "probe"},
    "optim.target_threshold": {"optim.loss": "sigmoid", "data.mixup": 0.2},
    ("transfer.mode", "finetune"): {"transfer.weights": "file"},
    ("transfer.mode", "probe"): {"transfer.weights": "file"},
    **{("transfer.bn", word): FINETUNE for word in ("train", "frozen", "recalibrate")},
}


def test_a_probe_has_no_epochs_to_alternate_by():
    assert "depends on the epoch" in refusal(
        {**WITH["transfer.views"], "transfer.views": 2, "data.flip": "alternating"}
    )


@pytest.mark.parametrize("key", RANGES)
def test_a_value_outside_its_range_is_refused(key):
    low, high = RANGES[key]
    below, above = (low - 1, high + 1) if type(low) is int else (low - 0.5, high + 0.5)
    for value in (below, above, *(() if type(low) is int else (float("nan"),))):
        assert refusal({key: value}).startswith(f"config.{key}={value}")


@pytest.mark.parametrize("key", RANGES)
@pytest.mark.parametrize("end", [0, 1])
def test_the_ends_of_a_range_are_allowed(key, end):
    changes: dict[str, object] = {**WITH.get(key, {}), key: RANGES[key][end]}
    if key == "optim.accumulation":
        changes["data.batch_size"] = RANGES[key][end]
    if key == "data.image_size":
        changes |= {"model.stem": "cifar", "model.stage_sizes": (1,)}
    validate(config_with(changes))


@pytest.mark.parametrize("key", POSITIVE)
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_epochs_are_above_zero_and_finite(key, value):
    assert refusal({key: value}).startswith(f"config.{key}={value} must be above 0")


@pytest.mark.parametrize("key", CHOICES)
def test_a_choice_is_one_of_its_words(key):
    message = refusal({key: "nonsense"})
    assert message.startswith(f"config.{key}='nonsense' is not one of")
    assert all(choice in message for choice in CHOICES[key])
    for choice in CHOICES[key]:
        validate(config_with({**WITH.get((key, choice), {}), key: choice}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # What absl gives for --config.data.crop_scale=0.5,1 and for --config.data.exclude=a,b.
        ({"data.crop_scale": ("0.5,1",)}, "must look like (0.08, 1.0)"),
        ({"data.exclude": ("a,b",)}, "must look like ('name',)"),
        ({"data.exclude": (1,)}, "must look like"),
        ({"data.exclude": "a"}, "must look like"),
        ({"data.crop_scale": (0.5,)}, "must look like"),
        ({"data.crop_ratio": 1.0}, "must look like"),
        ({"optim.step_epochs": ("a,b",), "optim.schedule": "step"}, "must look like"),
        ({"data.dir": "None"}, "omit the flag"),
        ({"data.contract": "None"}, "omit the flag"),
        ({"model.block": "None"}, "omit the flag"),
        ({"data.batch_size": 8.0}, "must be of type int, such as 64"),
        ({"data.batch_size": True}, "must be of type int"),
        ({"data.batch_size": "8"}, "must be of type int"),
        ({"data.batch_size": None}, "must be of type int"),
        ({"optim.lr": "0.1"}, "must be of type float, such as 0.1"),
        ({"optim.nesterov": 1}, "must be of type bool"),
        ({"data.dir": 3}, "must be of type str"),
        ({"model.name": 50}, "must be of type str"),
        ({"model.width": 8.0}, "must be of type int, such as 64"),
        ({"model.stage_sizes": ("1,1",)}, "must be of type tuple, such as (3, 4, 6, 3)"),
        ({"model.stage_sizes": "(1,1)"}, "must be of type tuple"),
        ({"model.stage_sizes": 3}, "must be of type tuple"),
        ({"model.dropout": "0.1"}, "must be of type float"),
        ({"model.conv_bias": 1}, "must be of type bool"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(changes, words):
    message = refusal(changes)
    assert message.startswith(f"config.{next(iter(changes))}=")
    assert words in message


@pytest.mark.parametrize(
    "changes",
    [
        {"optim.lr": 1},
        {"data.resize_shorter": 1},
        {"model.dropout": 0},
        {"data.crop_scale": [0.5, 1]},
        {"data.exclude": ("a", "b")},
        {"data.exclude": ["a"]},
        {"optim.step_epochs": (), "optim.schedule": "step"},
        {"optim.step_epochs": (1, 2.5, 3, 4), "optim.schedule": "step"},
        {"model.stage_sizes": (1, 1)},
    ],
    ids=str,
)
def test_a_whole_number_is_a_float_and_a_list_a_tuple(changes):
    validate(config_with(changes))


def test_unknown_and_missing_keys_are_refused():
    config = default.get_config()
    with config.unlocked():
        config.optim.learning_rate = 0.1
    with pytest.raises(InputError, match=r"^unknown key config\.optim\.learning_rate"):
        validate(config)
    config = default.get_config()
    with config.unlocked():
        del config.run["seed"]
    with pytest.raises(InputError, match=r"^config\.run\.seed is missing"):
        validate(config)


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(SpecError, match=r"unknown model 'resnet51'; known are resnet18, .*"):
        validate(config_with({"model.name": "resnet51"}))


def test_accumulation_must_divide_the_batch():
    assert "does not divide config.data.batch_size=64" in refusal({"optim.accumulation": 3})


def test_groups_of_a_norm_must_divide_what_is_normalised_at_a_time():
    validate(config_with({"model.ghost_batch_size": 16, "optim.accumulation": 4}))
    message = refusal({"model.ghost_batch_size": 32, "optim.accumulation": 4})
    assert message.startswith("config.model.ghost_batch_size=32 does not divide the 16 images")


@pytest.mark.parametrize("key", ["data.mixup", "data.cutmix"])
def test_images_are_mixed_only_where_a_part_holds_two(key):
    changes = {key: 0.4, "data.batch_size": 12}
    # A group is of the norms alone: parts of two are mixed whatever its size.
    validate(config_with({**changes, "optim.accumulation": 6, "model.ghost_batch_size": 1}))
    for alone in ({"optim.accumulation": 12}, {"data.batch_size": 1}):
        message = refusal({**changes, **alone})
        assert message.startswith(f"config.{key}=0.4 would mix each image with itself: config.data.batch_size=")
        assert "config.optim.accumulation=" in message
        validate(config_with({**changes, **alone, key: 0.0}))


# Field -> a value other than resnet18's, with what else it takes to make sense.
FIELDS: dict[str, tuple[object, dict[str, object]]] = {
    "block": ("bottleneck", {}),
    "stage_sizes": ((1, 2), {}),
    "width": (32, {}),
    "base_width": (128, {"block": "bottleneck"}),
    "groups": (2, {"block": "bottleneck"}),
    "stem": ("cifar", {}),
    "stem_width": (16, {}),
    "stem_norm": (False, {"order": "full_preactivation"}),
    "stride_place": ("first_1x1", {"block": "bottleneck"}),
    "stride_block": ("last", {}),
    "shortcut": ("A", {}),
    "shortcut_transform": ("scale", {}),
    "shortcut_scale": (0.25, {"shortcut_transform": "scale"}),
    "gate_bias": (-2.0, {"shortcut_transform": "shortcut_gate"}),
    "shortcut_dropout": (0.25, {"shortcut_transform": "dropout"}),
    "order": ("full_preactivation", {}),
    "norm": ("group", {}),
    "norm_groups": (8, {"norm": "group"}),
    "norm_momentum": (0.99, {}),
    "norm_epsilon": (1e-3, {}),
    "ghost_batch_size": (16, {}),
    "activation": ("gelu", {}),
    "conv_bias": (True, {}),
    "bias_without_norm": (True, {"order": "full_preactivation"}),
    "squeeze_excitation": (16, {}),
    "zero_init_last_gamma": (True, {}),
    "stochastic_depth": (0.1, {}),
    "dropout": (0.2, {}),
    "head_hidden": (32, {}),
}
# Follow the data; see below.
OF_THE_DATA = {"num_classes", "in_channels"}


def test_the_model_section_is_the_spec():
    fields = {field.name for field in dataclasses.fields(ResNetSpec)}
    assert set(default.get_config().model.keys()) == fields | {"name"}
    assert FIELDS.keys() | OF_THE_DATA == fields


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_the_model_section_is_read(field):
    value, others = FIELDS[field]
    config = config_with({f"model.{name}": v for name, v in {"name": "resnet18", **others, field: value}.items()})
    validate(config)
    spec = make_spec(config, 7)
    plain = variant("resnet18").spec
    assert getattr(spec, field) == value != getattr(plain, field)
    assert spec == dataclasses.replace(plain, num_classes=7, **others, **{field: value})


def test_the_data_say_how_many_classes_there_are():
    assert make_spec(config_with({}), 7).num_classes == 7
    assert make_spec(config_with({"model.num_classes": 7}), 7).num_classes == 7
    with pytest.raises(InputError, match=r"^config\.model\.num_classes=10, but the data has 7 classes"):
        make_spec(config_with({"model.num_classes": 10}), 7)


def test_the_feed_gives_three_channels():
    assert make_spec(config_with({"model.in_channels": 3}), 7).in_channels == 3
    with pytest.raises(InputError, match=r"^config\.model\.in_channels=1, but the feed gives RGB"):
        make_spec(config_with({"model.in_channels": 1}), 7)


def test_images_too_small_for_the_network_are_refused():
    with pytest.raises(SpecError, match="image_size 31 is too small"):
        make_spec(config_with({"data.image_size": 31}), 7)


def test_differences_are_of_values_not_of_containers():
    before = flatten(config_with({}))
    assert differences(before, {**before, "data.crop_scale": [0.08, 1.0]}) == {}
    after = {**before, "optim.lr": 0.2, "data.crop_scale": [0.5, 1.0]}
    del after["run.seed"]
    changes = differences(before, after)
    assert changes == {
        "data.crop_scale": "[0.08, 1.0] -> [0.5, 1.0]",
        "optim.lr": "0.1 -> 0.2",
        "run.seed": "0 -> '(absent)'",
    }
    assert differences_line(changes).startswith("data.crop_scale: [0.08, 1.0] -> [0.5, 1.0]; optim.lr: ")


def test_the_page_names_what_may_differ_when_a_run_goes_on():
    page = (Path(default.__file__).parent.parent / "docs" / "many-hosts.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"A run may go on with.*?every other key", page, re.S)
    assert set(re.findall(r"`([a-z]+\.\w+)`", sentence)) == {*FREE, *PLACES}
    before = flatten(config_with({}))
    assert differences(before, before | dict.fromkeys(FREE, "another")) == {}


def test_a_run_of_an_earlier_version_goes_on_where_its_new_keys_are_at_their_defaults():
    after = flatten(config_with({}))
    before = {key: value for key, value in after.items() if key not in ("data.doctor", "run.mesh")}
    assert differences(before, after) == {}
    assert differences(before, {**after, "data.doctor": False}) == {"data.doctor": "True -> False"}


def test_the_choices_written_out_are_those_of_their_files():
    assert CHOICES["optim.name"] == OPTIMIZERS
    assert CHOICES["optim.loss"] == LOSSES
    assert CHOICES["optim.schedule"] == SCHEDULES
    assert CHOICES["run.remat"] == REMAT


def test_an_impossible_network_is_refused_before_the_data_are_known():
    with pytest.raises(SpecError, match="image_size 16 is too small"):
        validate(config_with({"data.image_size": 16}))
