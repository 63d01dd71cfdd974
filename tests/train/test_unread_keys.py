"""A key that another keeps from acting is refused, and allowed where it acts."""

import pytest

from resnet.train.configuration import validate
from resnet.train.unread_keys import READ_ONLY_IF, READ_WITH_VIEWS
from tests.train.test_configuration import FINETUNE, config_with, refusal

# Key -> a value other than the default, changes under which it is read, changes under which nothing reads it.
READ: dict[str, tuple[object, dict[str, object], dict[str, object]]] = {
    "data.feed": ("stream", {}, {**FINETUNE, "transfer.mode": "probe"}),
    "data.keep_copies_together": (True, {}, {"data.doctor": False}),
    "data.test_fraction": (0.5, {}, {"data.per_class": 3}),
    "data.crop_scale": ((0.5, 1.0), {}, {"data.crop": "pad"}),
    "data.crop_ratio": ((0.9, 1.1), {}, {"data.crop": "none"}),
    "data.crop_padding": (2, {"data.crop": "pad"}, {}),
    "optim.momentum": (0.5, {"optim.name": "lars"}, {"optim.name": "adam"}),
    "optim.nesterov": (True, {"optim.name": "rmsprop"}, {"optim.name": "adamw"}),
    "optim.beta1": (0.8, {"optim.name": "adam"}, {"optim.name": "rmsprop"}),
    "optim.beta2": (0.9, {"optim.name": "rmsprop"}, {}),
    "optim.epsilon": (1e-3, {"optim.name": "adamw"}, {"optim.name": "lars"}),
    "optim.trust_coefficient": (0.01, {"optim.name": "lars"}, {}),
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
    "model.norm_momentum": (0.99, {}, {"model.norm": "group"}),
    "model.ghost_batch_size": (8, {}, {**FINETUNE, "transfer.bn": "frozen"}),
    "model.norm_epsilon": (1e-3, {"model.norm": "group"}, {"model.norm": "none"}),
    "model.conv_bias": (True, {}, {"model.norm": "none"}),
    "model.zero_init_last_gamma": (True, {}, FINETUNE),
    "transfer.weights": ("file", {"transfer.mode": "probe"}, {}),
    "transfer.head": ("mlp:8", FINETUNE, {}),
    "transfer.bn": ("frozen", FINETUNE, {**FINETUNE, "model.norm": "group"}),
    "transfer.unfreeze": (("layer4@1",), FINETUNE, {**FINETUNE, "transfer.mode": "probe"}),
    "transfer.views": (2, {**FINETUNE, "transfer.mode": "probe"}, FINETUNE),
    "run.steps_per_call": (4, {}, {**FINETUNE, "transfer.mode": "probe"}),
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
    assert "would be read by nothing" in message


@pytest.mark.parametrize("key", READ_WITH_VIEWS)
def test_what_varies_images_is_refused_where_a_probe_varies_none(key):
    values = {"data.crop": "pad", "data.flip": "both", "data.crop_padding": 2, "data.crop_scale": (0.5, 1.0)}
    value = values.get(key, (0.9, 1.1) if key == "data.crop_ratio" else 0.25)
    changes = {**FINETUNE, "transfer.mode": "probe", key: value}
    if key == "data.crop_padding":
        changes["data.crop"] = "pad"
    assert "a probe of one view" in refusal(changes)
    validate(config_with({**changes, "transfer.views": 2}))


def test_what_a_named_variant_says_counts_as_said():
    """The variant is basic with batch norm: group's key is for nothing until the norm is set."""
    changes = {"model.name": "cifar_resnet20", "model.norm_groups": 4}
    assert "config.model.norm_groups=4" in refusal(changes)
    validate(config_with({**changes, "model.norm": "group"}))
