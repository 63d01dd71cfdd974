"""A run by LAMB and the sigmoid loss: it learns, goes on bit for bit, and all commands mean the same by its figures."""

import json
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from input_pipeline.augment import prepare
from resnet.model.network import evaluate as logits_of
from resnet.study import evaluate, predict
from resnet.study.export_program import make_program
from resnet.study.inference import load_model
from resnet.train import loop
from resnet.train.losses import losses_of_probabilities
from resnet.train.predictions import read_predictions
from resnet.train.writers import read_metrics
from tests.tiny import tiny_config, tiny_data
from tests.train.test_resume import final_arrays, lines, stop_after

pytestmark = pytest.mark.usefixtures("bare")


def config_of(data: Path) -> ConfigDict:
    config = tiny_config(data)
    config.optim.name, config.optim.lr, config.optim.weight_decay = "lamb", 0.1, 0.02
    config.optim.epsilon, config.optim.clip_norm, config.optim.accumulation = 1e-6, 1.0, 2
    config.optim.loss, config.optim.label_smoothing, config.data.class_weights = "sigmoid", 0.01, "balanced"
    config.run.steps, config.run.eval_every, config.run.checkpoint_every = 60, 100.0, 100.0
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    """(data, workdir) of the finished run."""
    folder = tmp_path_factory.mktemp("sigmoid")
    data = tiny_data(folder)
    assert loop.train(config_of(data), folder / "run") == 0
    return data, folder / "run"


@pytest.fixture
def ask(run, monkeypatch, capsys):
    """A command in this process, about the run: what it prints."""

    def printed(command, *flags: str) -> str:
        monkeypatch.setattr(sys, "argv", [command.__name__, f"--checkpoint={run[1]}", *flags])
        capsys.readouterr()
        assert command.main() == 0
        return capsys.readouterr().out

    return printed


def test_it_learns(run):
    losses = [line["loss"] for line in read_metrics(run[1]) if line["kind"] == "train"]
    # A network that says 1/2 of every class has log 2, one that says 1/5 of each 0.5.
    assert losses[0] == pytest.approx(np.log(2), abs=0.2)
    assert np.mean(losses[-5:]) < 0.45, losses
    (test,) = (line for line in read_metrics(run[1]) if line["kind"] == "test")
    assert test["top1"] >= 0.5
    assert test["loss"] < 0.42


def test_stopped_and_gone_on_is_bit_identical(run, tmp_path, monkeypatch):
    config = config_of(run[0])
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        assert loop.train(config, tmp_path / "run") == 128 + signal.SIGTERM
    assert loop.train(config, tmp_path / "run") == 0
    assert lines(tmp_path / "run") == lines(run[1])
    for got, expected in zip(final_arrays(config, tmp_path / "run"), final_arrays(config, run[1]), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_evaluation_and_the_kept_predictions_say_what_training_said(run, ask):
    told = json.loads(ask(evaluate, f"--data={run[0]}", "--json", "--batch_size=8"))
    (line,) = (line for line in read_metrics(run[1]) if line["kind"] == "test")
    expected = {key: value for key, value in line.items() if key not in ("step", "epoch", "kind")}
    assert {key: told[key] for key in expected} == expected
    assert told["loss_kind"] == "sigmoid"
    kept = read_predictions(run[1])
    own = losses_of_probabilities(kept.probabilities, kept.labels, "sigmoid")
    assert own.mean() == pytest.approx(line["loss"], rel=1e-4)
    assert np.mean(kept.probabilities.argmax(axis=1) == kept.labels) == line["top1"]


def test_probabilities_are_each_class_own_in_predictions_and_exports(run, ask):
    files = sorted(str(path) for path in (run[0] / "train").rglob("*.jpg"))[:3]
    told = json.loads(ask(predict, "--json", "--top=5", *files))
    assert told["probabilities"] == "sigmoid"
    model = load_model(run[1])
    images = np.stack([predict.read_image(model, Path(file)) for file in files])
    logits = np.asarray(logits_of(model.network, model.variables, prepare(images, model.meta.contract)))
    expected = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert np.abs(expected.sum(axis=1) - 1).max() > 0.01
    for row, image in zip(expected, told["images"], strict=True):
        by_class = {item["class"]: item["probability"] for item in image["top"]}
        np.testing.assert_allclose([by_class[name] for name in model.meta.class_names], row, atol=1e-5)
    assert "each class by itself" in ask(predict, files[0])
    program = make_program(model, {})
    np.testing.assert_allclose(jax.jit(program.function)(program.variables, images), expected, atol=1e-5)
    assert program.describe()["output"]["meaning"].startswith("sigmoid: ")
