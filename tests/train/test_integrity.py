"""Damage to a checkpoint is seen, named and stepped around, whatever it is; nothing of it is deleted."""

import dataclasses
import errno
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from input_pipeline.errors import InputError
from resnet.train import integrity, loop
from resnet.train.checkpoints import FOLDER, Checkpoints, Damaged, load, room_needed
from resnet.train.integrity import MANIFEST, TIMES, fault, tidy
from resnet.train.predictions import PREDICTIONS_FILE, KeptPredictions, room_of_predictions, write_predictions
from resnet.train.state import create_state
from resnet.train.workdir import check_workdir
from resnet.train.writers import read_metrics
from tests.tiny import tiny_config, tiny_run

NEWEST, BEFORE, BEST = 6, 4, 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The workdir of a finished run whose first evaluation was its best: it keeps steps 2, 4 and 6."""
    note = loop.Run.note

    def first_is_best(run: loop.Run, step: int, value: float) -> bool:
        return note(run, step, -step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, "note", first_is_best)
        return tiny_run(tmp_path_factory.mktemp("integrity"))[1]


@pytest.fixture
def root(finished, tmp_path) -> Path:
    """A copy of its checkpoints, to be damaged."""
    shutil.copytree(finished / FOLDER, tmp_path / FOLDER)
    return tmp_path / FOLDER


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def stray(folder: Path) -> None:
    empty(folder)
    (folder / "notes.txt").write_text("mine")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "array_cut": (lambda step: cut(largest(step / "variables")), "bytes"),
    "array_flipped": (lambda step: flip(largest(step / "training"), 12345), "not what was written"),
    "array_missing": (lambda step: largest(step / "variables").unlink(), "is missing"),
    "array_is_a_link": (lambda step: [(f := largest(step)).unlink(), f.symlink_to("/dev/zero")], "is not a file"),
    "meta_missing": (lambda step: shutil.rmtree(step / "meta"), "is missing"),
    "meta_cut": (lambda step: cut(step / "meta" / "metadata"), "bytes"),
    "times_cut": (lambda step: cut(step / TIMES), TIMES),
    "manifest_cut": (lambda step: cut(step / MANIFEST), MANIFEST),
    "manifest_of_another_shape": (lambda step: (step / MANIFEST).write_text('{"files": [1]}'), MANIFEST),
    "empty": (empty, "empty"),
    "stray": (stray, MANIFEST),
    "no_folder": (lambda step: [shutil.rmtree(step), step.write_text("")], "not a folder"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_checkpoint_damaged_is_set_aside_and_the_one_before_is_used(damage, root):
    injure, words = DAMAGES[damage]
    injure(root / str(NEWEST))
    left = sorted(str(path.relative_to(root / str(NEWEST))) for path in (root / str(NEWEST)).rglob("*"))
    with Checkpoints(root.parent, keep=2) as checkpoints:
        (line,) = checkpoints.set_aside
        assert checkpoints.latest_step() == BEFORE
    assert str(root / str(NEWEST)) in line
    assert words in line
    aside = root / f"damaged-{NEWEST}"
    assert sorted(str(path.relative_to(aside)) for path in aside.rglob("*")) == left
    assert tidy(root) == []


def test_any_flipped_bit_of_any_file_is_seen(root):
    """Orbax alone restores such arrays without a word."""
    generator = random.Random(0)
    step = root / str(NEWEST)
    files = sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size)
    sealed = [path for path in files if path.name not in (MANIFEST, TIMES, integrity.COMMITTED)]
    assert len(sealed) > 10
    for path in sealed:
        bit = generator.randrange(8 * path.stat().st_size)
        flip(path, bit)
        assert fault(step), f"bit {bit} of {path}"
        flip(path, bit)
    assert fault(step) is None


def test_several_damaged_ones_are_passed_over_and_none_may_be_left(root):
    (root / "9").mkdir()
    (root / "damaged-9").mkdir()
    for step in integrity.step_numbers(root):
        empty(root / str(step))
    count = len(integrity.step_numbers(root))
    with Checkpoints(root.parent, keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        assert len(checkpoints.set_aside) == count
        assert ["starts again" in line for line in checkpoints.set_aside] == [False] * (count - 1) + [True]
    assert (root / "damaged-9-2").is_dir()


@pytest.mark.parametrize("damage", ["empty", "array_cut", "array_missing", "times_cut", "stray"])
def test_an_older_one_half_deleted_by_a_kill_is_in_nobodys_way(damage, root):
    DAMAGES[damage][0](root / str(BEFORE))
    with Checkpoints(root.parent, keep=2) as checkpoints:
        assert checkpoints.set_aside == []
        assert checkpoints.latest_step() == NEWEST


def test_a_checkpoint_from_before_there_were_manifests_is_taken(root):
    for step in integrity.step_numbers(root):
        (root / str(step) / MANIFEST).unlink()
    assert tidy(root) == []
    variables, meta = load(root.parent)
    assert variables["params"]
    assert meta.step == BEST


def test_what_an_interrupted_replacement_left_is_put_right(root):
    kept = sorted(path.name for path in root.iterdir())
    integrity.begin_replacing(root, NEWEST)
    assert integrity.step_numbers(root)[0] == BEFORE
    assert tidy(root) == []
    assert sorted(path.name for path in root.iterdir()) == kept
    shutil.copytree(root / str(NEWEST), root / f"{integrity.REPLACED}{NEWEST}")
    assert tidy(root) == []
    assert sorted(path.name for path in root.iterdir()) == kept


def test_temporary_folders_of_killed_saves_are_removed(root):
    (root / "3.orbax-checkpoint-tmp" / "variables").mkdir(parents=True)
    with Checkpoints(root.parent, keep=2):
        pass
    assert not list(root.glob("*tmp*"))


def test_load_finds_the_best_through_a_damaged_newest_and_refuses_a_damaged_one(root):
    assert load(root.parent)[1].step == BEST
    (root / "9").mkdir()
    assert load(root.parent)[1].step == BEST
    flip(largest(root / str(BEST) / "variables"), 4321)
    with pytest.raises(InputError, match=f"{FOLDER}/{BEST}: the checkpoint cannot be read .* not what was written"):
        load(root.parent)
    assert (root / "9").is_dir(), "reading moves nothing: another process may be training there"


def test_where_the_best_is_damaged_the_newest_is_tested(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    tested = [line for line in read_metrics(run) if line["kind"] == "test"]
    assert [line["checkpoint_step"] for line in tested] == [BEST]
    metrics = run / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.read_text().splitlines(True) if '"kind": "test"' not in line))
    flip(largest(run / FOLDER / str(BEST) / "variables"), 4321)
    assert loop.train(tiny_config(finished.parent / "data"), run) == 0
    shown = capsys.readouterr().out
    assert f"{FOLDER}/{BEST}: the checkpoint is damaged" in shown
    assert f"the newest, of step {NEWEST}, is tested instead" in shown
    assert f"(checkpoint of step {NEWEST}, the newest" in shown
    assert read_metrics(run)[-1]["checkpoint_step"] == NEWEST


def small_state(value: float):
    variables = {"params": {"w": jnp.full(4, value)}, "batch_stats": {"mean": jnp.zeros(4)}}
    return create_state(variables, optax.sgd(0.1), ema=False, sum_names=("loss",))


def saved(workdir: Path, meta, steps: range, best: int) -> None:
    """A process of its own, as far as the checkpoints know."""
    with Checkpoints(workdir, keep=1) as checkpoints:
        for step in steps:
            checkpoints.save(small_state(step), dataclasses.replace(meta, step=step, progress={"best_step": best}))


def test_the_best_checkpoint_outlives_a_resume(finished, tmp_path):
    """Orbax' BestN forgot the figures of the process before, and deleted it."""
    meta = load(finished)[1]
    saved(tmp_path, meta, range(1, 4), best=1)
    assert integrity.step_numbers(tmp_path / FOLDER) == [3, 1]
    saved(tmp_path, meta, range(4, 7), best=1)
    assert integrity.step_numbers(tmp_path / FOLDER) == [6, 1]


def test_a_step_saved_again_holds_the_new_state_and_one_that_is_gone_is_named(finished, tmp_path):
    meta = load(finished)[1]
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for value in (1.0, 2.0):
            checkpoints.save(small_state(value), dataclasses.replace(meta, step=5, progress={}))
        checkpoints.wait()
        state, _ = checkpoints.restore(5, small_state(0.0), jnp.zeros(1).sharding)
        assert np.asarray(state.params["w"]).tolist() == [2.0] * 4
        assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["5"]
        with pytest.raises(Damaged, match="does not exist"):
            checkpoints.restore(7, small_state(0.0), jnp.zeros(1).sharding)


def test_room_is_asked_for_what_is_still_to_be_written(tmp_path):
    need = lambda: room_needed(tmp_path, keep=2, total_steps=30, state_bytes=100)  # noqa: E731
    assert need() == 400
    for step, rest in ((10, 300), (11, 200), (12, 100), (13, 100), (30, 0)):
        (tmp_path / FOLDER / str(step)).mkdir(parents=True)
        assert need() == rest


def test_notes_of_a_later_version_are_refused_by_name(finished, tmp_path):
    meta = dataclasses.replace(load(finished)[1], step=5, progress={"best_step": 5, "best_hour": 3})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(small_state(1.0), meta)
        checkpoints.wait()
        with pytest.raises(InputError, match=r"/5: the checkpoint cannot be read .*progress\.best_hour is unknown"):
            checkpoints.restore(5, small_state(0.0), jnp.zeros(1).sharding)


def test_a_workdir_that_tensorstore_could_not_write_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"w\\udcf6rk is not UTF-8; give --workdir"):
        check_workdir(tmp_path / "w\udcf6rk", {})


def test_the_predictions_need_room_which_is_asked_for_before_the_hours_that_make_them(finished, tmp_path, monkeypatch):
    """At the start, and once more when training is done: others may have filled the disk meanwhile."""
    run, config = tmp_path / "run", tiny_config(finished.parent / "data")
    shutil.copytree(finished, run)
    (run / PREDICTIONS_FILE).unlink()
    monkeypatch.setattr(loop.Run, "predict", None)  # Whoever evaluates now, fails.
    free = [10**9]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 0, free.pop()))
    free[:] = [7, 10**9]
    with pytest.raises(InputError, match=r"checkpoints and predictions\.npz need .* kB, the disk has 0 kB free"):
        loop.train(config, run)
    free[:] = [7, 10**9, 10**9]
    with pytest.raises(
        InputError, match=r"predictions of the test images need .* make room, then run the same command"
    ):
        loop.train(config, run)
    ids = ("a" * 30,) * 1000
    kept = KeptPredictions(np.zeros((1000, 5), np.float32), np.zeros(1000, np.int32), ids, np.zeros(1000, bool), 1)
    needed = room_of_predictions(tmp_path, ids, 5)
    write_predictions(tmp_path, kept)
    assert needed <= (tmp_path / PREDICTIONS_FILE).stat().st_size < needed + 5_000
    assert room_of_predictions(tmp_path, ids, 5) == 0


def test_predictions_that_the_disk_does_not_take_leave_nothing(tmp_path, monkeypatch):
    def full(*arguments, **arrays):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        write_predictions(tmp_path, KeptPredictions(np.zeros((1, 2)), np.zeros(1), ("a",), np.zeros(1, bool), 1))
    assert not list(tmp_path.iterdir())
