"""N steps = k steps + stop + N-k steps, bit for bit, for every k; whatever was logged, logged once."""

import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from input_pipeline.errors import InputError
from resnet.train import loop, plan
from resnet.train.checkpoints import FOLDER, Checkpoints
from resnet.train.configuration import steps_of
from resnet.train.writers import read_metrics
from tests.run_lines import lines, stop_after
from tests.tiny import tiny_config, tiny_data

pytestmark = pytest.mark.usefixtures("bare")


def final_arrays(config, workdir: Path) -> list[np.ndarray]:
    """Every array of the newest checkpoint: parameters, statistics, optimizer, averages, counters, sums."""
    source = loop.open_data(config)
    mesh = loop.parallel.make_mesh()
    like = loop.initial_state(config, loop.make_plan(config, source), mesh)
    with Checkpoints(workdir, keep=2) as checkpoints:
        state, meta = checkpoints.restore(checkpoints.latest_step(), like, loop.parallel.replicated(mesh))
    assert meta.step == config.run.steps
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """An undisturbed run with everything on that has a state: averages, dropout, mixup, accumulation, momentum."""
    config = resumable(data)
    workdir = tmp_path_factory.mktemp("straight") / "run"
    assert loop.train(config, workdir) == 0
    return lines(workdir), final_arrays(config, workdir)


def resumable(data: Path):
    config = tiny_config(data)
    config.optim.ema = 0.9
    config.optim.accumulation = 2
    config.model.dropout = 0.2
    config.data.mixup = 0.4
    # Training lines over three steps: their sums must survive a stop in between.
    config.run.log_every = 1
    return config


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_stopped_at_any_step_and_gone_on_is_bit_identical(k, data, straight, tmp_path, monkeypatch):
    config = resumable(data)
    with monkeypatch.context() as patch:
        stop_after(patch, k)
        assert loop.train(config, tmp_path / "run") == 128 + signal.SIGTERM
    assert loop.train(config, tmp_path / "run") == 0
    expected_lines, expected_arrays = straight
    assert lines(tmp_path / "run") == expected_lines
    for got, expected in zip(final_arrays(config, tmp_path / "run"), expected_arrays, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_validation_written_before_its_checkpoint_is_not_written_twice(data, straight, tmp_path, monkeypatch):
    """Stopped in an evaluation, so saved without figures; then killed between the figures' line and their save."""
    config = resumable(data)
    first = next(line["step"] for line in straight[0] if line["kind"] == "val")
    with monkeypatch.context() as patch:
        stop_after(patch, first)
        assert loop.train(config, tmp_path / "run") == 128 + signal.SIGTERM
    assert not [line for line in lines(tmp_path / "run") if line["kind"] == "val"]
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "save", killed)
        with pytest.raises(RuntimeError, match="killed"):
            loop.train(config, tmp_path / "run")
    assert (lines(tmp_path / "run")[-1]["step"], lines(tmp_path / "run")[-1]["kind"]) == (first, "val")
    assert loop.train(config, tmp_path / "run") == 0
    assert lines(tmp_path / "run") == straight[0]


def killed(self, step: int, state) -> None:
    raise RuntimeError("killed")


def test_sums_of_a_training_line_survive_a_stop(data, tmp_path, monkeypatch):
    config = tiny_config(data)
    config.run.log_every = 4
    config.run.eval_every = 100.0
    config.run.checkpoint_every = 0.1
    assert loop.train(config, tmp_path / "straight") == 0
    with monkeypatch.context() as patch:
        # An error that no signal announced, two steps into the first line's four.
        due = loop.Run.due
        patch.setattr(loop.Run, "due", lambda self, step, every: crash(step) or due(self, step, every))
        with pytest.raises(RuntimeError, match="crash"):
            loop.train(config, tmp_path / "run")
    assert loop.train(config, tmp_path / "run") == 0
    assert lines(tmp_path / "run") == lines(tmp_path / "straight")


def crash(step: int) -> bool:
    if step == 3:
        raise RuntimeError("crash")
    return False


def test_a_finished_run_started_again_changes_nothing(data, tmp_path, capsys):
    config = tiny_config(data)
    assert loop.train(config, tmp_path / "run") == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert loop.train(config, tmp_path / "run") == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert "test top-1" in capsys.readouterr().out


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_did_a_step_more_by_an_older_count_is_done(stopped, data, tmp_path, monkeypatch):
    """With its test line, or stopped behind its last step and before all that comes at the end."""
    config = tiny_config(data)
    config.run.steps, config.run.epochs, config.data.val_fraction = 0, 0.25, 0.0
    with monkeypatch.context() as patch:
        patch.setattr(plan, "steps_of", lambda *arguments: steps_of(*arguments) + 1)
        if stopped:
            stop_after(patch, 3)
        assert loop.train(config, tmp_path / "run") == (128 + signal.SIGTERM if stopped else 0)
    before = lines(tmp_path / "run")
    assert before[2]["step"] == 3
    assert loop.train(config, tmp_path / "run") == 0
    after = lines(tmp_path / "run")
    assert after[:3] == before[:3]
    assert [(line["step"], line["kind"]) for line in after[3:]] == [(3, "test")]


def test_another_configuration_is_refused_with_the_difference(data, tmp_path):
    config = tiny_config(data)
    assert loop.train(config, tmp_path / "run") == 0
    config.optim.lr = 0.07
    with pytest.raises(InputError, match=r"optim\.lr: 0\.05 -> 0\.07"):
        loop.train(config, tmp_path / "run")


def test_changed_data_are_refused(tmp_path):
    data = tiny_data(tmp_path)
    config = tiny_config(data)
    assert loop.train(config, tmp_path / "run") == 0
    victim = next((data / "train").rglob("*.jpg"))
    victim.unlink()
    with pytest.raises(InputError, match="the data changed"):
        loop.train(config, tmp_path / "run")


def test_best_and_latest_checkpoints_are_kept(data, tmp_path):
    config = tiny_config(data)
    config.run.keep = 1
    assert loop.train(config, tmp_path / "run") == 0
    kept = {int(entry.name) for entry in (tmp_path / "run" / FOLDER).iterdir() if entry.name.isdigit()}
    evaluations = [(line["top1"], line["step"]) for line in read_metrics(tmp_path / "run") if line["kind"] == "val"]
    best = max(evaluations)[1]
    assert kept == {best, config.run.steps}
    test_line = next(line for line in read_metrics(tmp_path / "run") if line["kind"] == "test")
    assert test_line["checkpoint_step"] == best


def test_the_same_seed_gives_the_same_run_and_another_seed_another(data, tmp_path):
    config = tiny_config(data)
    config.run.steps = 3
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config.run.seed = seed
        assert loop.train(config, tmp_path / name) == 0
        results.append([line["loss"] for line in read_metrics(tmp_path / name)])
    assert results[0] == results[1]
    assert results[0] != results[2]
