"""What a run's screen says: of settings that so short a run does not come to, and of what to do next."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from resnet.train import loop, provenance, screen
from resnet.train.loop import Run
from resnet.train.meta import Progress
from resnet.train.plan import make_plan
from tests.tiny import tiny_config, tiny_data
from tests.train.test_configuration import config_with
from tests.train.test_plan import source_with


def notes(changes: dict[str, object]) -> list[str]:
    """On 100 training images in batches of 10, so ten steps an epoch."""
    config = config_with({"data.batch_size": 10, **changes})
    return screen.without_effect(config, make_plan(config, source_with("train", "val")))


STEP = {"optim.schedule": "step", "optim.step_epochs": (1.0, 30.0), "optim.lr": 0.2}


def test_a_rate_that_stays_is_told_and_one_that_drops_once_is_not():
    words = (
        "none of config.optim.step_epochs=(1.0, 30.0) lies within the run's {} epochs: the learning rate stays at 0.2"
    )
    assert notes({**STEP, "run.steps": 10}) == [words.format("1")]
    assert notes({**STEP, "run.steps": 6, "optim.warmup_epochs": 0.2}) == [words.format("0.6") + " after the warm-up"]
    assert notes({**STEP, "run.steps": 11}) == []
    assert notes({"run.steps": 6}) == []


def test_the_figure_that_chooses_the_best_is_shown():
    summary = {"top1": 0.5, "loss": 1.0, "balanced_accuracy": 0.25}
    line = "step 3  epoch 1.0  val top-1 50.00%  loss 1.0000"
    assert screen.evaluation(3, 1.0, "val", summary, False) == line
    assert screen.evaluation(3, 1.0, "val", summary, True, "loss") == f"{line}  (best so far)"
    balanced = screen.evaluation(3, 1.0, "val", summary, True, "balanced_accuracy")
    assert balanced == f"{line}  balanced_accuracy 0.2500  (best so far)"


def can_stop_early(patience: int, every: int, total: int) -> bool:
    """Whether evaluations that grow ever worse end a run before its last step."""
    config = SimpleNamespace(run=SimpleNamespace(early_stopping=patience))
    run = SimpleNamespace(progress=Progress(), sign=-1, config=config)
    for step in range(every, total, every):
        Run.note(run, step, float(step))
        if Run.stopped_early(run):
            return True
    return False


@pytest.mark.parametrize("total", [1, 9, 10, 11, 20, 21, 30, 31, 40, 41])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_a_patience_that_outlasts_the_run_is_told(patience, total):
    told = notes({"run.early_stopping": patience, "run.steps": total, "run.eval_every": 1.0})
    assert bool(told) == (not can_stop_early(patience, 10, total))
    assert all(line.startswith(f"config.run.early_stopping={patience} cannot end this run") for line in told)


def test_the_notes_stand_on_the_screen_of_a_run(tmp_path, capsys):
    config = tiny_config(tiny_data(tmp_path))
    config.optim.schedule, config.run.steps, config.run.early_stopping = "step", 1, 3
    assert loop.train(config, tmp_path / "run") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Note      ")]
    assert "none of config.optim.step_epochs=(30.0, 60.0, 90.0) lies within" in lines[0]
    assert "config.run.early_stopping=3 cannot end this run: it takes 4 evaluations" in lines[1]
    assert len(lines) == 2


def words(line: str) -> list[str]:
    """What a shell makes of a line."""
    shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    return [os.fsdecode(word) for word in shown.split(b"\0")[:-1]]


@pytest.mark.parametrize(
    ("platform", "capability", "precision", "coarse"),
    [
        ("gpu", "9.0", None, True),
        ("gpu", "8.0", "default", True),
        ("gpu", "9.0", "highest", False),
        ("gpu", "7.0", None, False),
        ("gpu", "gfx942", None, False),
        ("cpu", "", None, False),
    ],
)
def test_float32_that_a_gpu_multiplies_in_tf32_is_told(monkeypatch, platform, capability, precision, coarse):
    device = SimpleNamespace(platform=platform, compute_capability=capability)
    monkeypatch.setattr(provenance.jax, "local_devices", lambda: [device])
    with jax.default_matmul_precision(precision):
        assert ("products in TF32" in screen.products(config_with({}))) == coarse
        assert screen.products(config_with({"run.dtype": "bfloat16"})) == ""


@pytest.mark.parametrize(
    ("source", "folder", "place"),
    [
        ("folder", "my data", "my data"),
        ("folder", "/data/it's $HOME", "/data/it's $HOME"),
        ("folder", "new\nline", "new\nline"),
        ("folder", "\x1b[31m\udcff", "\x1b[31m\udcff"),
        ("demo", "", ".data/demo"),
        ("demo", "elsewhere", "elsewhere"),
        ("tfds:mnist", "", "tfds:mnist"),
        ("tfds:mnist:3.*.*", "/data/prepared", "tfds:mnist:3.*.*"),
    ],
)
def test_the_next_commands_name_the_run_and_its_data_as_a_shell_takes_them(source, folder, place):
    data = config_with({"data.source": source, "data.dir": folder}).data
    printed = screen.end(Path("runs/a b"), None, data, validated=False)
    assert printed.replace("\n", "").isprintable()
    predict, evaluate, report = (words(line) for line in printed.splitlines() if line.startswith("  ./run.sh"))
    assert predict[3:] == ["resnet.study.predict", "--checkpoint=runs/a b", "IMAGE..."]
    assert evaluate[3:] == ["resnet.study.evaluate", "--checkpoint=runs/a b", f"--data={place}"]
    assert report[3:] == ["resnet.study.report", "runs/a b"]
