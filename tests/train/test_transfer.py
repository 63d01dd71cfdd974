"""Runs that start from weights: network and preprocessing are the weights', or the run is refused; stages resume."""

import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from input_pipeline.contract import CONTRACTS
from input_pipeline.errors import InputError
from resnet.model.network import ResNet
from resnet.train import loop, parallel, plan, recalibration
from resnet.train.checkpoints import Checkpoints, Meta, load, save_converted
from resnet.train.configuration import make_spec, validate
from resnet.train.freezing import partition
from resnet.train.pretrained import FREE
from tests.compiling import convolve_by_lax
from tests.networks import by_name, random_variables
from tests.run_lines import lines, stop_after
from tests.tiny import tiny_config


@pytest.fixture(scope="module", autouse=True)
def compiled_fast() -> Iterator[None]:
    """lax' own convolution: a program that takes a quarter of the time to compile."""
    with pytest.MonkeyPatch.context() as patch:
        convolve_by_lax(patch)
        yield


@pytest.fixture(scope="module")
def weights(data, tmp_path_factory) -> Path:
    """Weights of the tiny network on seven other classes, through the contract 'tf' with bicubic resizing."""
    return save_weights(tmp_path_factory.mktemp("weights") / "converted", data)


def save_weights(folder: Path, data: Path, class_names: tuple[str, ...] = tuple("abcdefg")) -> Path:
    spec = make_spec(tiny_config(data), len(class_names))
    contract = CONTRACTS["tf"].__class__(**{**vars(CONTRACTS["tf"]), "interpolation": "bicubic"})
    save_converted(folder, random_variables(spec), Meta(spec, class_names, contract, 32, 1.25))
    return folder


def finetune(data: Path, folder: Path, /, **changes) -> ConfigDict:
    config = tiny_config(data)
    config.transfer.mode = "finetune"
    config.transfer.weights = str(folder)
    config.transfer.update(changes)
    return config


def planned(config: ConfigDict) -> plan.Plan:
    validate(config)
    return plan.make_plan(config, loop.open_data(config))


def start_of(config: ConfigDict) -> dict[str, np.ndarray]:
    """Name -> array of the variables before step 0."""
    state = loop.initial_state(config, planned(config), parallel.make_mesh())
    return by_name(jax.device_get({"params": state.params, "batch_stats": state.batch_stats}))


def test_contract_crop_and_interpolation_are_the_weights_own(data, weights):
    made = planned(finetune(data, weights))
    stored = load(weights)[1]
    assert made.contract == made.recipe.contract == stored.contract
    assert made.eval_crop.interpolation == made.train_crop.interpolation == "bicubic"
    assert made.eval_crop.resize_shorter == 1.25
    config = finetune(data, weights)
    config.data.contract = "tf"
    assert planned(config).contract == stored.contract
    # The crop is the run's to choose, and goes into its checkpoints.
    config.data.resize_shorter = 1.0
    assert planned(config).eval_crop.resize_shorter == 1.0


@pytest.mark.parametrize("name", ["torch", "caffe", "raw"])
def test_another_contract_is_refused_naming_both(name, data, weights):
    config = finetune(data, weights)
    config.data.contract = name
    with pytest.raises(InputError, match=rf"^config\.data\.contract='{name}', but the weights .*converted .*'tf'"):
        planned(config)


def test_the_backbone_is_taken_and_the_head_replaced(data, weights):
    told = planned(finetune(data, weights)).pretrained
    assert told.head == "its head (7 outputs) replaced by one of 5"
    assert told.head in told.describe()
    start, stored = start_of(finetune(data, weights)), by_name(jax.device_get(load(weights)[0]))
    for name, value in start.items():
        if "/fc/" in name:
            assert value.shape[-1] == 5
            assert name.endswith("bias") or 0.001 < value.std() < 0.1
        else:
            np.testing.assert_array_equal(value, stored[name], err_msg=name)
    assert start.keys() == stored.keys()


def test_the_head_of_the_same_classes_is_kept(data, tmp_path):
    classes = loop.open_data(tiny_config(data)).class_names
    weights = save_weights(tmp_path / "same", data, classes)
    stored = by_name(jax.device_get(load(weights)[0]))
    for name, value in start_of(finetune(data, weights)).items():
        np.testing.assert_array_equal(value, stored[name], err_msg=name)
    assert planned(finetune(data, weights)).pretrained.head == "its head kept (the same classes)"
    start = start_of(finetune(data, weights, head="mlp:6"))
    assert start["params/fc_hidden/kernel"].shape == (16, 6)
    assert start["params/fc/kernel"].shape == (6, 5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 16), ("norm_epsilon", 1.001e-5), ("activation", "gelu"), ("shortcut", "B"), ("stage_sizes", (1, 2))],
)
def test_another_network_is_refused_naming_both(field, value, data, weights):
    config = finetune(data, weights)
    config.model[field] = value
    with pytest.raises(InputError, match=rf"holds .* config\.model describes .*: {field} .* against .*;") as error:
        planned(config)
    assert "\n" not in str(error.value)


def test_what_acts_in_training_alone_may_differ(data, weights):
    config = finetune(data, weights)
    config.model.stochastic_depth = 0.2
    config.model.dropout = 0.5
    config.model.norm_momentum = 0.99
    assert {"stochastic_depth", "dropout", "norm_momentum", "ghost_batch_size"} < set(FREE)
    assert planned(config).network.spec.dropout == 0.5


@pytest.mark.parametrize(("key", "value"), [("stochastic_depth", 0.2), ("shortcut_dropout", 0.3)])
def test_what_drops_in_blocks_is_refused_where_none_ever_learns(key, value, tmp_path, data):
    spec = dataclasses.replace(make_spec(tiny_config(data), 5), shortcut_transform="dropout")
    save_converted(tmp_path, random_variables(spec), Meta(spec, tuple("abcde"), CONTRACTS["tf"], 32, 1.0))
    config = finetune(data, tmp_path, unfreeze=("fc@0",), bn="frozen")
    config.model.shortcut_transform = "dropout"
    config.model[key] = value
    with pytest.raises(InputError, match=rf"^config\.model\.{key}={value} has no effect: no block ever"):
        planned(config)
    config.transfer.unfreeze = ("layer2_0/bn2@1",)
    assert getattr(planned(config).network.spec, key) == value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"weights": "absent"},
            r"^config\.transfer\.weights=absent: no such folder, file or known name; .*torchvision:",
        ),
        ({"weights": "torchvision:resnet51"}, r"^config\.transfer\.weights=torchvision:resnet51 is not known"),
        ({"weights": ""}, r"^config\.transfer\.mode='finetune' needs config\.transfer\.weights"),
        ({"unfreeze": ("layer2@2",)}, r"extends past the run's 1\.6 epochs"),
        ({"unfreeze": ("layer2@0.5", "layer1@50")}, r"extends past the run's 1\.6 epochs"),
        (
            {"unfreeze": ("layer2@0.5", "layer2_0@50")},
            r"unfreeze: 'layer2_0@50' adds nothing: .*because of earlier lines",
        ),
        ({"unfreeze": ("layer2@0.5", "fc@50")}, r"unfreeze: 'fc@50' adds nothing: .*the head always is"),
        ({"unfreeze": ("layer2@x",)}, r"unfreeze: 'layer2@x': it must end in @ and a number"),
        ({"unfreeze": ("layer2@-1",)}, r"must not be negative"),
        ({"unfreeze": ("(",)}, r"not a regular expression"),
        ({"lr_multipliers": ("fc",)}, r"lr_multipliers: 'fc': it must end in = and a number"),
        ({"lr_multipliers": ("fc=0",)}, r"must be above 0"),
        ({"lr_multipliers": ("fc=inf",)}, r"must end in = and a number"),
        ({"head": "mlp"}, r"^config\.transfer\.head='mlp' must be linear or mlp:UNITS"),
        ({"head": "mlp:0"}, r"must be linear or mlp:UNITS"),
        ({"mode": "probe", "bn": "train"}, r"bn='train' .*frozen backbone; use frozen or recalibrate"),
    ],
    ids=str,
)
def test_a_slip_is_one_line_that_names_the_key(changes, words, data, weights, tmp_path):
    config = finetune(data, weights, **changes)
    with pytest.raises(InputError, match=words):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_of_another_kind_is_refused(data, tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"no weights at all")
    with pytest.raises(InputError, match=r"weights\.bin: is not a known kind of weights file"):
        planned(finetune(data, tmp_path / "weights.bin"))


def test_statistics_are_recalibrated_with_nothing_dropped(data):
    plain = dataclasses.replace(make_spec(tiny_config(data), 5), shortcut_transform="dropout", shortcut_dropout=0.0)
    dropping = dataclasses.replace(plain, shortcut_dropout=0.5, stochastic_depth=0.5, dropout=0.5)
    variables = random_variables(plain)
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    contract = CONTRACTS["torch"]
    one, other = (
        recalibration.make_statistics_step(ResNet(spec, backend=jax.lax.conv_general_dilated), contract)(
            variables, images
        )
        for spec in (plain, dropping)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_recalibrated_statistics_are_those_of_all_images(data, weights, monkeypatch):
    """The first norm's against numpy's mean and variance of what the stem's convolution gives, in float64."""
    monkeypatch.setattr(recalibration, "BATCH", 8)
    config = finetune(data, weights, bn="recalibrate")
    made, source = planned(config), loop.open_data(config)
    assert made.stages[0].network.frozen >= {"bn1", "layer1_0/bn1", "layer2_0/bn2"}
    variables, train = made.pretrained.variables, source.splits["train"]
    assert len(train) == 30
    variables = {
        **variables,
        "params": {**variables["params"], "fc": random_variables(made.network.spec)["params"]["fc"]},
    }
    found = recalibration.recalibrate(made, variables, train, threads=1)
    images = np.concatenate(list(recalibration.whole_batches(train, np.arange(len(train)), made.eval_crop, 1)))
    pixels = (images.astype(np.float64) / 127.5 - 1).astype(np.float32)
    stem = jax.lax.conv_general_dilated(
        pixels, variables["params"]["conv1"]["kernel"], (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    values = np.asarray(stem, np.float64)
    np.testing.assert_allclose(found["bn1"]["mean"], values.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["bn1"]["var"], values.var((0, 1, 2)), rtol=1e-5)
    assert by_name(found).keys() == by_name(variables["batch_stats"]).keys()


def state_at(config: ConfigDict, workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of the checkpoint of `step` steps by its name."""
    made, mesh = planned(config), parallel.make_mesh()
    state = loop.initial_state(config, made, mesh)
    stage = made.stage(step - 1)
    learning = partition(state.params, stage.learning)[0]
    state = state.replace(opt_state=jax.eval_shape(stage.optimizer.init, learning))
    with Checkpoints(workdir, keep=9) as checkpoints:
        restored, _ = checkpoints.restore(step, state, parallel.replicated(mesh))
    trees = {"params": restored.params, "batch_stats": restored.batch_stats, "ema": restored.ema}
    others = jax.tree.leaves(restored.replace(params={}, batch_stats={}, ema={}))
    return by_name(jax.device_get(trees)) | {f"other {i}": np.asarray(leaf) for i, leaf in enumerate(others)}


def gradual(data: Path, weights: Path) -> ConfigDict:
    """Six steps at 3.75 an epoch: the head alone for two, with layer2 for two, with all."""
    config = finetune(data, weights, unfreeze=("layer2@0.5", ".@1.0"), lr_multipliers=("^fc=2",))
    config.optim.name = "adam"
    config.optim.lr = 0.001
    config.optim.ema = 0.9
    config.run.keep = 9
    config.run.checkpoint_every = 0.2
    return config


@pytest.fixture(scope="module")
def straight(data, weights, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("gradual") / "run"
    assert loop.train(gradual(data, weights), workdir) == 0
    return workdir


def test_parts_learn_from_their_epoch_on_and_not_before(straight, data, weights):
    config = gradual(data, weights)
    assert [stage.start for stage in planned(config).stages] == [0, 2, 4]
    states, before = {step: state_at(config, straight, step) for step in (2, 4, 6)}, start_of(config)
    changed = {
        step: {name for name in before if not np.array_equal(before[name], state[name])}
        for step, state in states.items()
    }
    head = {name for name in before if "/fc/" in name}
    assert changed[2] == head
    assert changed[4] == head | {name for name in before if "layer2_0" in name}
    assert changed[6] == before.keys()


@pytest.mark.parametrize("k", [2, 5])
def test_stopped_at_or_after_a_switch_and_gone_on_is_bit_identical(k, straight, data, weights, tmp_path):
    config = gradual(data, weights)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, k)
        assert loop.train(config, tmp_path / "run") == 128 + signal.SIGTERM
    assert loop.train(config, tmp_path / "run") == 0
    assert lines(tmp_path / "run") == lines(straight)
    got, expected = (state_at(config, workdir, 6) for workdir in (tmp_path / "run", straight))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
