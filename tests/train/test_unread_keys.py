"""A key that another keeps from acting is refused, and allowed where it acts."""

import dataclasses

import pytest

from input_pipeline.errors import InputError
from resnet.model.variants import variant
from resnet.train import unread_keys
from resnet.train.configuration import flatten, validate
from resnet.train.loop import train
from resnet.train.unread_keys import READ_ONLY_IF, READ_WITH_MAKING, READ_WITH_VIEWS, check_splits
from tests.tiny import tiny_config, tiny_data
from tests.train.test_configuration import FINETUNE, config_with, refusal
from tests.train.test_plan import source_with

# Key -> a value other than the default, changes under which it is read, changes under which nothing reads it.
READ: dict[str, tuple[object, dict[str, object], dict[str, object]]] = {
    "data.eval_image_size": (32, {}, {**FINETUNE, "transfer.mode": "probe"}),
    "data.feed": ("stream", {}, {**FINETUNE, "transfer.mode": "probe"}),
    "data.keep_copies_together": (True, {}, {"data.doctor": False}),
    "data.exclude": (("odd",), {}, {"data.source": "arrays"}),
    "data.per_class": (3, {}, {"data.source": "arrays"}),
    "data.on_error": ("skip", {}, {"data.source": "arrays"}),
    "data.drop_leaks": (True, {}, {"data.source": "arrays"}),
    "data.test_fraction": (0.5, {}, {"data.per_class": 3}),
    "data.folds": (5, {}, {"data.per_class": 3}),
    "data.fold": (2, {"data.folds": 5}, {}),
    "data.crop_scale": ((0.5, 1.0), {}, {"data.crop": "pad"}),
    "data.crop_ratio": ((0.9, 1.1), {}, {"data.crop": "none"}),
    "data.crop_padding": (2, {"data.crop": "pad"}, {}),
    "data.randaugment_set": ("timm", {"data.auto_augment": "randaugment"}, {}),
    "data.randaugment_ops": (3, {"data.auto_augment": "randaugment"}, {"data.auto_augment": "trivialaugment"}),
    "data.randaugment_magnitude": (6.0, {"data.auto_augment": "randaugment"}, {}),
    "data.randaugment_noise": (0.5, {"data.auto_augment": "randaugment"}, {"data.auto_augment": "trivialaugment"}),
    "data.randaugment_probability": (0.5, {"data.auto_augment": "randaugment"}, {}),
    "optim.momentum": (0.5, {"optim.name": "lars"}, {"optim.name": "adam"}),
    "optim.nesterov": (True, {"optim.name": "rmsprop"}, {"optim.name": "adamw"}),
    "optim.beta1": (0.8, {"optim.name": "lamb"}, {"optim.name": "rmsprop"}),
    "optim.beta2": (0.9, {"optim.name": "rmsprop"}, {}),
    "optim.epsilon": (1e-3, {"optim.name": "adamw"}, {"optim.name": "lars"}),
    "optim.trust_coefficient": (0.01, {"optim.name": "lars"}, {"optim.name": "lamb"}),
    "optim.target_threshold": (0.0, {"optim.loss": "sigmoid", "data.cutmix": 1.0}, {"data.cutmix": 1.0}),
    "optim.step_epochs": ((1.0,), {"optim.schedule": "step"}, {}),
    "optim.step_factor": (0.5, {"optim.schedule": "step"}, {"optim.schedule": "constant"}),
    "optim.power": (2.0, {"optim.schedule": "polynomial"}, {}),
    "optim.final_lr": (0.01, {}, {"optim.schedule": "step"}),
    "run.epochs": (3.0, {}, {"run.steps": 5}),
    "run.profile": ("0:1", {}, {**FINETUNE, "transfer.mode": "probe"}),
    "model.shortcut_scale": (0.7, {"model.shortcut_transform": "scale"}, {}),
    "model.gate_bias": (-3.0, {"model.shortcut_transform": "shortcut_gate"}, {"model.shortcut_transform": "scale"}),
    "model.shortcut_dropout": (0.3, {"model.shortcut_transform": "dropout"}, {}),
    "model.norm_groups": (8, {"model.norm": "group"}, {}),
    "model.norm_momentum": (0.99, {}, {**FINETUNE, "transfer.bn": "frozen"}),
    "model.ghost_batch_size": (8, {}, {**FINETUNE, "transfer.bn": "frozen"}),
    "model.norm_epsilon": (1e-3, {"model.norm": "group"}, {"model.norm": "none"}),
    "model.conv_bias": (True, {}, {"model.norm": "none"}),
    "model.zero_init_last_gamma": (True, {}, FINETUNE),
    "model.stochastic_depth": (0.2, FINETUNE, {**FINETUNE, "transfer.mode": "probe"}),
    "transfer.weights": ("file", {"transfer.mode": "probe"}, {}),
    "transfer.head": ("mlp:8", FINETUNE, {}),
    "transfer.bn": ("frozen", FINETUNE, {**FINETUNE, "model.norm": "group"}),
    "transfer.unfreeze": (("layer4@1",), FINETUNE, {**FINETUNE, "transfer.mode": "probe"}),
    "transfer.views": (2, {**FINETUNE, "transfer.mode": "probe"}, FINETUNE),
    "run.steps_per_call": (4, {}, {**FINETUNE, "transfer.mode": "probe"}),
    "run.remat": ("block", FINETUNE, {**FINETUNE, "transfer.mode": "probe"}),
    "run.eval_flip": (True, {}, {**FINETUNE, "transfer.mode": "probe"}),
    "data.mixup": (0.2, FINETUNE, {**FINETUNE, "transfer.mode": "probe"}),
    "data.cutmix": (0.2, FINETUNE, {**FINETUNE, "transfer.mode": "probe"}),
}


def test_every_rule_about_reading_has_its_case_here():
    assert READ.keys() == READ_ONLY_IF.keys()


@pytest.mark.parametrize("key", READ)
def test_a_key_set_for_nothing_is_refused(key):
    value, read, unread = READ[key]
    validate(config_with({**read, key: value}))
    message = refusal({**unread, key: value})
    assert message.startswith(f"config.{key}=")
    assert "has no effect" in message


@pytest.mark.parametrize("key", READ_WITH_VIEWS)
def test_what_varies_images_is_refused_where_a_probe_varies_none(key):
    values = {
        "data.crop": "pad",
        "data.flip": "both",
        "data.crop_padding": 2,
        "data.crop_scale": (0.5, 1.0),
        "data.auto_augment": "trivialaugment",
        "data.randaugment_set": "timm",
        "data.randaugment_ops": 3,
    }
    value = values.get(key, (0.9, 1.1) if key == "data.crop_ratio" else 0.25)
    changes = {**FINETUNE, "transfer.mode": "probe", key: value}
    if key == "data.crop_padding":
        changes["data.crop"] = "pad"
    if "randaugment" in key:
        changes["data.auto_augment"] = "randaugment"
    assert "a probe of one view" in refusal(changes)
    validate(config_with({**changes, "transfer.views": 2}))


def test_what_a_named_variant_says_counts_as_said():
    """The variant is basic with batch norm: group's key is for nothing until the norm is set."""
    changes = {"model.name": "cifar_resnet20", "model.norm_groups": 4}
    assert "config.model.norm_groups=4" in refusal(changes)
    validate(config_with({**changes, "model.norm": "group"}))


def test_a_probe_drops_no_shortcut():
    changes = {**FINETUNE, "model.shortcut_transform": "dropout", "model.shortcut_dropout": 0.3}
    validate(config_with(changes))
    assert "config.model.shortcut_dropout=0.3" in refusal({**changes, "transfer.mode": "probe"})


def test_a_probe_takes_a_variant_that_drops_blocks_of_itself(monkeypatch):
    named = variant("cifar_resnet20")
    dropping = dataclasses.replace(named, spec=dataclasses.replace(named.spec, stochastic_depth=0.2))
    monkeypatch.setattr(unread_keys, "variant", lambda name: dropping)
    validate(config_with({**FINETUNE, "transfer.mode": "probe"}))


# Key -> a value other than the default and 0.
MAKING = {
    "data.val_fraction": 0.3,
    "data.test_fraction": 0.5,
    "data.split_seed": 7,
    "data.keep_copies_together": True,
}


@pytest.mark.parametrize("key", READ_WITH_MAKING)
def test_a_flag_about_splits_is_refused_where_the_data_bring_them(key):
    config = config_with({key: MAKING[key]})
    brought = source_with("train", "val", "test")
    with pytest.raises(InputError, match=rf"^config\.{key}=.* has no effect: the data have .* their own"):
        check_splits(config, brought, [key])
    # Said by the recipe, which may be for other data as well; by a flag that repeats the default, or asks for none.
    check_splits(config, brought, ["data.dir"])
    check_splits(config_with({}), brought, MAKING)
    check_splits(config_with({key: 0.0 if "fraction" in key else 0}), brought, [key])
    for name in READ_WITH_MAKING[key]:
        check_splits(config, dataclasses.replace(brought, made=(name,)), [key])


def test_a_split_that_is_made_is_none_of_the_others_keys_business():
    half = dataclasses.replace(source_with("train", "val", "test"), made=("val",))
    config = config_with(MAKING)
    with pytest.raises(
        InputError, match=r"config\.data\.test_fraction=0\.5 .*: the data have a test split of their own"
    ):
        check_splits(config, half, MAKING)
    check_splits(config, half, MAKING.keys() - {"data.test_fraction"})


def test_folds_need_data_without_a_test_split_whoever_asks_for_them():
    config = config_with({"data.folds": 5, "data.fold": 4})
    validate(config)
    with pytest.raises(InputError, match=r"config\.data\.folds=5: the data have a test split of their own"):
        check_splits(config, source_with("train", "test"), [])
    check_splits(config, dataclasses.replace(source_with("train", "test"), made=("test",)), ["data.folds"])
    assert "data.folds=0" in refusal({"data.folds": 5, "data.test_fraction": 0.5})
    assert refusal({"data.folds": 5, "data.fold": 5}).startswith("config.data.fold=5 must be from 0 to 4")


def test_per_class_draws_by_the_seed_and_by_nothing_else():
    config = config_with({"data.per_class": 3, "data.split_seed": 7, "data.keep_copies_together": True})
    for source in (source_with("train", "test"), dataclasses.replace(source_with("train", "test"), made=("test",))):
        check_splits(config, source, ["data.split_seed"])
        with pytest.raises(InputError, match=r"config\.data\.keep_copies_together=True has no effect"):
            check_splits(config, source, ["data.keep_copies_together"])


def test_a_run_refuses_such_a_flag_before_anything_is_written(tmp_path):
    config = tiny_config(tiny_data(tmp_path))
    config.data.test_fraction = 0.5
    with pytest.raises(
        InputError, match=r"^config\.data\.test_fraction=0\.5 .* the data have a test split of their own"
    ):
        train(config, tmp_path / "run", flagged=["data.test_fraction", "data.val_fraction"])
    assert not (tmp_path / "run").exists()


def test_what_flags_of_other_keys_left_unread_in_a_recipe_goes_with_a_word():
    config = config_with({"optim.nesterov": True, "optim.final_lr": 0.01, "run.epochs": 3.0})
    of_recipe = flatten(config)
    config.optim.name, config.optim.schedule, config.run.steps = "adam", "step", 5
    lines = unread_keys.let_go(config, of_recipe, {"optim.name", "optim.schedule", "run.steps"})
    assert [line.partition("=")[0] for line in lines] == [
        "Note      the recipe's config.optim.nesterov",
        "Note      the recipe's config.optim.final_lr",
        "Note      the recipe's config.run.epochs",
    ]
    assert lines[0].endswith(
        "it has no effect with these flags; it applies only where optim.name is sgd, lars or rmsprop"
    )
    assert (config.optim.nesterov, config.optim.final_lr, config.run.epochs) == (False, 0.0, 90.0)
    validate(config)


@pytest.mark.parametrize("flags", [{"data.per_class": 30}, {"data.source": "arrays"}, {"data.folds": 0}])
def test_a_fold_goes_with_its_folds(flags):
    config = config_with({"data.folds": 5, "data.fold": 2})
    of_recipe = flatten(config)
    config.update_from_flattened_dict(flags)
    lines = unread_keys.let_go(config, of_recipe, flags.keys())
    assert "Note      the recipe's config.data.fold=2" in " ".join(lines)
    assert (config.data.folds, config.data.fold) == (0, 0)
    validate(config)


def test_augmentation_goes_from_a_recipe_where_a_flag_makes_it_a_probe():
    config = config_with({**FINETUNE, "data.crop_scale": (0.5, 1.0), "data.erasing": 0.2, "data.mixup": 0.2})
    of_recipe = flatten(config)
    config.transfer.mode = "probe"
    assert len(unread_keys.let_go(config, of_recipe, {"transfer.mode"})) == 3
    validate(config)


def test_what_a_flag_set_itself_or_nothing_read_before_is_refused():
    config = config_with({"optim.power": 2.0})
    of_recipe = flatten(config)
    config.optim.name, config.optim.nesterov = "adam", True
    assert unread_keys.let_go(config, of_recipe, {"optim.name", "optim.nesterov"}) == []
    for key in ("optim.nesterov", "optim.power"):
        with pytest.raises(InputError, match=rf"^config\.{key}="):
            validate(config_with({key: config.optim[key.partition(".")[2]], "optim.name": "adam"}))
