"""What a configuration means for a dataset: steps, weights of classes, and what the data cannot give."""

import dataclasses
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from input_pipeline.errors import InputError
from input_pipeline.sources import Source, Split
from resnet.study.run_record import RunRecord
from resnet.train import screen
from resnet.train.configuration import MOST_STEPS, steps_of, validate
from resnet.train.plan import make_plan
from resnet.train.unread_keys import READ_WITH_VALIDATION
from tests.train.test_configuration import config_with


def source_with(*splits: str, examples: int = 100) -> Source:
    """A dataset of which only sizes and labels are looked at; two classes."""
    labels = (np.arange(examples) % 2).astype(np.int32)
    ids = tuple(str(i) for i in range(examples))
    sizes, upright = np.full((examples, 2), 9, np.int32), np.ones(examples, np.int8)
    contents = np.array(ids, "S32")
    made = {name: Split(name, labels, ids, sizes, upright, None, contents, lambda i: b"") for name in splits}
    return Source("folder", ("a", "b"), MappingProxyType(made), "f" * 64, ())


def test_a_test_split_drawn_beside_a_validation_split_of_the_datas_own_is_told():
    source = source_with("train", "val", "test")
    drawn = dataclasses.replace(source, made=("test",))
    assert "100 of their training images" in "".join(screen.held_out(drawn))
    for other in (source, dataclasses.replace(source, made=("test", "val")), source_with("train", "val")):
        assert screen.held_out(other) == []


@pytest.mark.parametrize(("key", "value"), [("run.best_metric", "loss"), ("run.early_stopping", 3)])
def test_what_validation_reads_is_refused_only_where_there_is_none(key, value):
    assert key in READ_WITH_VALIDATION
    # The data bring a validation split: no fraction is needed.
    config = config_with({key: value, "data.val_fraction": 0.0})
    validate(config)
    make_plan(config, source_with("train", "val"))
    with pytest.raises(InputError, match=rf"^config\.{key}=.* there is no validation split"):
        make_plan(config, source_with("train"))
    make_plan(config_with({"data.val_fraction": 0.0}), source_with("train"))


def test_a_plan_counts_in_steps_of_whole_batches_over_fractional_epochs():
    changes = {"data.batch_size": 64, "run.epochs": 3.0, "run.eval_every": 0.5, "run.checkpoint_every": 0.001}
    plan = make_plan(config_with(changes), source_with("train", "val"))
    assert plan.steps_per_epoch == 100 / 64
    assert plan.total_steps == 5  # 4.6875, rounded up: no epoch is cut short
    assert (plan.eval_every, plan.checkpoint_every) == (1, 1)
    assert plan.epoch(5) == 3.2
    assert (
        make_plan(config_with({**changes, "run.steps": 2, "run.epochs": 90.0}), source_with("train")).total_steps == 2
    )


@pytest.mark.parametrize(
    ("images", "batch_size", "epochs", "steps"),
    [
        # 30 · (100 / 24) is 125.00000000000001 in floating point.
        (100, 24, 30.0, 125),
        (100, 24, 30.1, 126),
        (100, 10, 0.1 + 0.2, 3),
        (100, 64, 1e-12, 1),
        # One image more than whole batches, in a run of a million steps.
        (1_000_001, 100, 100.0, 1_000_001),
        (1_281_167, 256, 90.0, 450_411),
    ],
)
def test_a_rounding_error_is_no_step_of_its_own(images, batch_size, epochs, steps):
    assert steps_of(epochs, images, batch_size) == steps
    config = {"run.epochs": epochs, "run.steps": 0, "data.batch_size": batch_size}
    record = RunRecord(Path(), config, {"dataset": {"images": {"train": images}}}, (), [], None)
    assert record.total_steps == steps
    if images == 100:
        assert make_plan(config_with(config), source_with("train", "val")).total_steps == steps


def test_a_plan_refuses_what_the_data_cannot_give():
    with pytest.raises(InputError, match=r"^config\.data\.batch_size=64 is larger than the training set of 10 images"):
        make_plan(config_with({}), source_with("train", examples=10))
    with pytest.raises(InputError, match=rf"^config\.run\.epochs=.* at most {MOST_STEPS} can be counted"):
        make_plan(config_with({"run.epochs": 1e9, "data.batch_size": 1}), source_with("train"))
    with pytest.raises(InputError, match=r"^config\.optim\.warmup_epochs"):
        make_plan(config_with({"optim.warmup_epochs": 5.0, "run.epochs": 5.0}), source_with("train"))


def test_balanced_weights_come_from_the_training_labels():
    source = source_with("train")
    train = dataclasses.replace(source.splits["train"], labels=np.repeat([0, 1], [75, 25]).astype(np.int32))
    uneven = dataclasses.replace(source, splits={"train": train})
    plan = make_plan(config_with({"data.class_weights": "balanced"}), uneven)
    assert plan.recipe.class_weights == pytest.approx((100 / 150, 100 / 50))
    assert make_plan(config_with({}), uneven).recipe.class_weights == ()
