"""A run that goes on: of another length where that is asked for, with data and weights that moved."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import optax
import pytest

from input_pipeline.errors import InputError
from resnet.study.run_record import read_run
from resnet.train import code_digests, integrity, loop, optimizer
from resnet.train.continuing import check_same, last_whole_step
from resnet.train.meta import Meta, OtherCode
from resnet.train.writers import read_metrics
from tests.tiny import tiny_config, tiny_data
from tests.train.test_resume import final_arrays, lines

pytestmark = pytest.mark.usefixtures("bare")


def of_length(data: Path, steps: int, schedule: str = "constant"):
    config = tiny_config(data)
    config.optim.schedule = schedule
    config.run.steps = steps
    return config


@pytest.fixture(scope="module")
def four_steps(data, tmp_path_factory) -> Path:
    """A run that ended after 4 steps of a constant rate."""
    workdir = tmp_path_factory.mktemp("four") / "run"
    assert loop.train(of_length(data, 4), workdir) == 0
    return workdir


@pytest.fixture
def ended(four_steps, tmp_path) -> Path:
    return Path(shutil.copytree(four_steps, tmp_path / "run"))


def files(workdir: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_a_lengthened_run_is_one_begun_so_where_the_schedule_does_not_know_the_end(data, ended, tmp_path, capsys):
    config = of_length(data, 7)
    assert loop.train(config, tmp_path / "straight") == 0
    capsys.readouterr()
    assert loop.train(config, ended, new_length=True) == 0
    assert (
        "Note      the run's length changes from 4 steps to 7, each the same as in a run begun with that length"
        in capsys.readouterr().out
    )
    for got, expected in zip(final_arrays(config, ended), final_arrays(config, tmp_path / "straight"), strict=True):
        np.testing.assert_array_equal(got, expected)
    trained = [[line for line in lines(run) if line["kind"] == "train"] for run in (ended, tmp_path / "straight")]
    assert trained[0] == trained[1]
    # Its end is told again; what was told of the earlier one stays on record, and is no figure of the run's.
    assert [line["step"] for line in read_metrics(ended) if line["kind"] == "test"] == [4, 7]
    record = read_run(ended)
    assert record.test
    assert record.test["step"] == 7
    assert record.predictions
    assert record.predictions.step == record.test["checkpoint_step"]
    assert (record.total_steps, record.provenance["new_lengths"]) == (
        7,
        [{"after_step": 4, "changes": {"run.steps": "4 -> 7"}}],
    )


def test_after_that_the_same_command_goes_on_without_the_flag(data, ended):
    config = of_length(data, 5)
    assert loop.train(config, ended, new_length=True) == 0
    before = (ended / "metrics.jsonl").read_bytes()
    assert loop.train(config, ended) == 0
    assert (ended / "metrics.jsonl").read_bytes() == before


def test_a_run_that_is_to_go_on_has_no_test_figure(data, ended, monkeypatch):
    """Between the two ends: the figure of the first would be taken for that of a run that is done."""
    monkeypatch.setattr(loop, "test_run", lambda *_: None)
    assert loop.train(of_length(data, 5), ended, new_length=True) == 0
    assert read_run(ended).test is None


def test_the_jump_of_the_rate_is_told_where_the_schedule_knows_the_end(data, ended, tmp_path, capsys):
    config = of_length(data, 4, "cosine")
    assert loop.train(config, tmp_path / "cosine") == 0
    config.run.steps = 8
    capsys.readouterr()
    assert loop.train(config, tmp_path / "cosine", new_length=True) == 0
    out = capsys.readouterr().out
    # (1 + cos(pi 3/4)) / 2 and (1 + cos(pi 4/8)) / 2 of 0.05.
    assert "the learning rate of step 4 was 0.00732, that of step 5 is 0.025." in out


def test_a_new_length_is_refused_unasked_with_the_flag_to_add(data, ended):
    before = files(ended)
    with pytest.raises(InputError, match=r"another length; add --new_length .*: run\.steps: 4 -> 7$"):
        loop.train(of_length(data, 7), ended)
    assert files(ended) == before


def test_nothing_else_may_differ_with_the_flag(data, ended):
    config = of_length(data, 7)
    config.optim.lr = 0.07
    with pytest.raises(InputError, match=r"another configuration; .*: optim\.lr: 0\.05 -> 0\.07$"):
        loop.train(config, ended, new_length=True)


def test_a_run_cannot_end_before_where_it_is(data, ended):
    before = files(ended)
    with pytest.raises(InputError, match=r"has done 4 steps, more than the 3 of config\.run\.steps=3: "):
        loop.train(of_length(data, 3), ended, new_length=True)
    assert files(ended) == before


def test_a_run_that_stopped_early_says_so_and_can_be_let_on(data, tmp_path, capsys):
    config = of_length(data, 12)
    config.run.early_stopping = 1
    # No evaluation is strictly better than the first: the run ends with the second.
    config.optim.lr = 0.0
    assert loop.train(config, tmp_path / "run") == 0
    stopped = read_run(tmp_path / "run").last_step
    assert stopped < 12
    capsys.readouterr()
    assert loop.train(config, tmp_path / "run") == 0
    assert "It had stopped early, after 1 evaluations without a new best" in capsys.readouterr().out
    config.run.early_stopping = 0
    assert loop.train(config, tmp_path / "run", new_length=True) == 0
    assert read_run(tmp_path / "run").last_step == 12


def test_a_run_that_goes_on_with_other_code_says_so(data, ended, monkeypatch, capsys):
    """Also where nothing was committed: the revision is the same then."""
    name, before = "resnet/train/losses.py", (ended / "provenance.json").read_bytes()
    others = tuple(line if not line.startswith(name) else f"{name} 0123456789abcdef" for line in code_digests.sources())
    monkeypatch.setattr(code_digests, "sources", lambda: others)
    assert loop.train(of_length(data, 4), ended) == 0
    assert (ended / "provenance.json").read_bytes() == before
    capsys.readouterr()
    assert loop.train(of_length(data, 5), ended, new_length=True) == 0
    assert f"the code has changed since step 4, the last one done: {name}. Finished steps" in capsys.readouterr().out
    (entry,) = read_run(ended).provenance["new_code"]
    assert (entry["after_step"], entry["files"], entry["moved"]) == (4, [name], [])


def test_an_optimizer_of_another_state_is_told_and_no_checkpoint_is_to_be_moved_away(data, ended, monkeypatch):
    """As it was told of damage, each of them would have been moved in turn."""
    made = optimizer._rule
    monkeypatch.setattr(optimizer, "_rule", lambda *given: [optax.scale_by_adam(), *made(*given)[1:]])
    words = (
        r"checkpoints/4: .* another network or optimizer .*\(opt_state\.1\.count is absent in it and of shape \(\) here"
    )
    with pytest.raises(InputError, match=words) as refused:
        loop.train(of_length(data, 5), ended, new_length=True)
    assert "move" not in str(refused.value)


def test_what_is_noted_of_code_and_packages(monkeypatch):
    mine = code_digests.sources()
    assert "resnet/train/code_digests.py" in {line.split()[0] for line in mine}
    begun = {"sources": list(mine), "versions": code_digests.versions(), "revision": "begun"}
    assert code_digests.gone_on_with(begun, 7) == (begun, [])
    # Of a version that noted none.
    assert code_digests.gone_on_with({"revision": "old"}, 7) == ({"revision": "old"}, [])
    monkeypatch.setattr(code_digests, "sources", lambda: ("a 1", "b 1"))
    monkeypatch.setattr(code_digests, "versions", lambda: {**begun["versions"], "jax": "0.0.1"})
    fresh, lines = code_digests.gone_on_with(begun, 0)
    assert (fresh["sources"], fresh["revision"] != "begun", lines) == (["a 1", "b 1"], True, [])
    later, (line,) = code_digests.gone_on_with(begun, 7)
    assert {key: later[key] for key in begun} == begun
    assert f", {len(mine) + 2 - 4} more, jax {begun['versions']['jax']} -> 0.0.1. Finished steps" in line
    for entry in ({"after_step": 1}, {"sources": [], "versions": {}}, "x"):
        damaged = begun | {"new_code": [entry]}
        assert code_digests.gone_on_with(damaged, 7) == (damaged, [])
    assert code_digests.gone_on_with(later, 9) == (later, [])
    # Back to the first code: before a step of the other was done there is nothing to tell, behind one there is.
    monkeypatch.setattr(code_digests, "sources", lambda: mine)
    monkeypatch.setattr(code_digests, "versions", lambda: begun["versions"])
    assert code_digests.gone_on_with(later, 7) == (begun, [])
    again, (line,) = code_digests.gone_on_with(later, 9)
    assert "changed since step 9" in line
    assert [entry["after_step"] for entry in again["new_code"]] == [7, 9]


def test_what_editors_leave_is_no_code(monkeypatch, tmp_path):
    """A lock is a link to nowhere, and other systems keep copies under names with a dot."""
    folder = tmp_path / ".hidden" / "resnet" / "train"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("losses.py", "._losses.py", ".ipynb_checkpoints/losses.py"):
        (folder / name).write_text("")
    for name in (".#losses.py", "gone.py"):
        (folder / name).symlink_to("nowhere")
    (folder / "folder.py").mkdir()
    monkeypatch.setattr(code_digests, "ROOT", tmp_path / ".hidden")
    assert [line.split()[0] for line in code_digests.sources.__wrapped__()] == ["resnet/train/losses.py"]


def test_code_is_noted_as_it_was_imported():
    """Not as it is when data of an hour are open."""
    spec = importlib.util.spec_from_file_location("code_anew", code_digests.__file__)
    assert spec
    assert spec.loader
    spec.loader.exec_module(anew := importlib.util.module_from_spec(spec))
    assert (anew.sources.cache_info().currsize, anew.code_digest.cache_info().currsize) == (1, 1)


def test_an_ablations_code_is_its_own_program_and_packages_too(monkeypatch):
    before = code_digests.code_digest.__wrapped__()
    assert before == code_digests.code_digest()
    assert len(code_digests.digests(map(Path, code_digests.OF_ABLATIONS))) == 3
    monkeypatch.setattr(code_digests, "versions", lambda: {"jax": "0.0.1"})
    other = code_digests.code_digest.__wrapped__()
    monkeypatch.setattr(code_digests, "OF_ABLATIONS", ())
    assert len({before, other, code_digests.code_digest.__wrapped__()}) == 3


def test_a_network_of_other_code_is_told_and_no_checkpoint_is_to_be_moved_away(data, ended, monkeypatch):
    monkeypatch.setattr(Meta, "from_json", Mock(side_effect=OtherCode("use the code that wrote it")))
    with pytest.raises(InputError, match=r"checkpoints/4: use the code that wrote it$"):
        loop.train(of_length(data, 5), ended, new_length=True)


def test_steps_of_a_damaged_checkpoint_are_not_done(ended):
    root = ended / "checkpoints"
    assert last_whole_step(root) == 4
    (root / "4" / "meta" / "metadata").unlink()
    earlier = [step for step in integrity.step_numbers(root) if step < 4]
    assert last_whole_step(root) == max(earlier, default=0)
    assert last_whole_step(ended / "absent") == 0


def test_data_may_move_but_not_change(tmp_path):
    config = of_length(tiny_data(tmp_path), 4)
    assert loop.train(config, tmp_path / "run") == 0
    moved = (tmp_path / "data").rename(tmp_path / "elsewhere")
    config.data.dir = str(moved)
    assert loop.train(config, tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data.dir"] == str(moved)
    # Also before there is a checkpoint that knows them.
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    next((moved / "train").rglob("*.jpg")).unlink()
    before = files(tmp_path / "run")
    with pytest.raises(InputError, match="the data changed since this run began"):
        loop.train(config, tmp_path / "run")
    assert files(tmp_path / "run") == before


def test_weights_are_known_by_their_digest(tmp_path):
    provenance = {"weights": {"source": "here.pth", "sha256": "a" * 64}}
    pretrained = SimpleNamespace(source="there.pth", digest="a" * 64)
    check_same(tmp_path, provenance, SimpleNamespace(), pretrained)
    pretrained.digest = "b" * 64
    with pytest.raises(InputError, match=r"config\.transfer\.weights=there\.pth holds other weights than this run"):
        check_same(tmp_path, provenance, SimpleNamespace(), pretrained)
