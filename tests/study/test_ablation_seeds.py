"""More seeds for what is done: they alone are trained, and the tables are those of all seeds trained at once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from input_pipeline.errors import InputError
from resnet.study import ablation_runs, ablation_training
from resnet.study.ablation_records import Curves, Record, read_record
from resnet.study.ablation_seeds import codes, merged
from tests.compiling import convolve_by_lax
from tests.study.small_ablation import command, lines, records, write_recipe

MORE = "--config.seeds=(0,5,7,9)"


@pytest.fixture(scope="module", autouse=True)
def compiled_fast() -> Iterator[None]:
    """lax' own convolution and the rbg generator: programs that take a quarter of the time to compile."""
    with pytest.MonkeyPatch.context() as patch, jax.default_prng_impl("rbg"):
        convolve_by_lax(patch)
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("ablation"))


@pytest.fixture(scope="module")
def at_once(file, tmp_path_factory) -> Path:
    """All four seeds, trained together."""
    workdir = tmp_path_factory.mktemp("at_once") / "run"
    assert command(file, workdir, MORE, "--keep_weights") == 0
    return workdir


@pytest.fixture(scope="module")
def two(file, tmp_path_factory) -> Path:
    """The recipe's own two."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    assert command(file, workdir, "--keep_weights") == 0
    return workdir


@pytest.fixture
def copy(two, tmp_path) -> Path:
    shutil.copytree(two, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def trained(monkeypatch) -> list[tuple[int, ...]]:
    """The seeds of every training that is begun from now on."""
    go, seen = ablation_runs.VariantRun.go, []

    def note(self) -> Record | None:
        seen.append(self.study.seeds)
        return go(self)

    monkeypatch.setattr(ablation_runs.VariantRun, "go", note)
    return seen


def stop_within_plain(monkeypatch) -> None:
    """The first time that the variant plain is trained, after two steps."""
    heed, stopped = ablation_runs.VariantRun.heed, []

    def stop_once(self, dispatch, news, seconds):
        heed(self, dispatch, news, seconds)
        if self.variant.name == "plain" and not stopped:
            stopped.append(dispatch.last)
            self.stop = lambda: True

    monkeypatch.setattr(ablation_runs.VariantRun, "heed", stop_once)


def weights(workdir: Path) -> list[str]:
    return sorted(str(path.relative_to(workdir / "weights")) for path in (workdir / "weights").glob("*/*"))


def same(workdir: Path, other: Path) -> None:
    """Whether two ablations have the same records, to the last bit, and the same tables."""
    assert records(workdir) == records(other)
    assert lines(workdir) == lines(other)
    assert weights(workdir) == weights(other)
    assert sorted(path.name for path in workdir.iterdir()) == sorted(path.name for path in other.iterdir())
    events = [sorted(path.parent.name for path in at.glob("tensorboard/*/*/*")) for at in (workdir, other)]
    assert events[0] == events[1]


def test_only_they_are_trained_and_all_is_as_if_trained_at_once(file, at_once, copy, trained):
    assert command(file, copy, MORE, "--keep_weights") == 0
    assert trained == [(7, 9)] * 3
    same(copy, at_once)
    assert command(file, copy, MORE, "--keep_weights") == 0
    assert len(trained) == 3


def test_the_order_of_the_seeds_is_no_matter(file, copy, trained):
    before = records(copy)
    assert command(file, copy, "--config.seeds=(5,0)") == 0
    assert trained == []
    assert records(copy) == before


def test_stopped_within_them_it_goes_on(file, at_once, copy, trained, monkeypatch):
    """Until they are there, the tables have the seeds that are."""
    stop_within_plain(monkeypatch)
    assert command(file, copy, MORE, "--keep_weights") == 0
    table = {line["variant"]: line for line in lines(copy)}
    assert (table["plain"]["pairs"], table["plain"]["last_seed_7"]) == ("2", "")
    assert table["residual"]["last_seed_7"] != ""
    assert "plain: not trained yet with seeds 7, 9" in (copy / "table.md").read_text()
    assert "| 2 of 4 |" in (copy / "table.md").read_text()
    assert (copy / "more_seeds" / "plain" / "checkpoints" / "2").is_dir()
    (copy / "variants" / "residual.json").rename(copy / "residual.json")
    with pytest.raises(InputError, match=r"unfinished variant plain .* seeds: \[7, 9\] -> \[7\]"):
        command(file, copy, "--config.seeds=(0,5,7)", "--only=plain")
    (copy / "residual.json").rename(copy / "variants" / "residual.json")
    with pytest.raises(InputError, match=r"seeds: \[0, 5, 7, 9\] -> \[0, 5\]"):
        command(file, copy)
    assert command(file, copy, MORE, "--keep_weights") == 0
    assert trained == [(7, 9)] * 4
    same(copy, at_once)


def test_seeds_that_are_under_way_are_trained_to_their_end_first(file, at_once, tmp_path, trained, monkeypatch):
    """Whether they are the variant's first or are being added, in as many groups as they were asked for in."""
    stop_within_plain(monkeypatch)
    workdir = tmp_path / "run"
    assert command(file, workdir, "--config.seeds=(0,)", "--only=plain", "--keep_weights") == 0
    assert command(file, workdir, "--config.seeds=(0,5,7)", "--only=plain", "--keep_weights") == 0
    assert trained == [(0,), (0,), (5, 7)]
    assert command(file, workdir, MORE, "--keep_weights") == 0
    assert trained[3:] == [(0, 5, 7, 9), (9,), (0, 5, 7, 9)]
    same(workdir, at_once)


def test_a_failure_in_the_midst_of_its_first_seeds_is_a_row_and_keeps_what_they_did(
    file, at_once, tmp_path, trained, monkeypatch
):
    """More seeds are asked for than are under way; it is tried again with those, from where they were."""
    stop_within_plain(monkeypatch)
    workdir = tmp_path / "run"
    assert command(file, workdir, "--config.seeds=(0,5)", "--only=plain") == 0
    heed, begun = ablation_runs.VariantRun.heed, []

    def fail_late(self, dispatch, news, seconds):
        heed(self, dispatch, news, seconds)
        begun.append(dispatch.first)
        if len(begun) == 2:
            raise MemoryError("too large")

    with monkeypatch.context() as patch:
        patch.setattr(ablation_runs.VariantRun, "heed", fail_late)
        assert command(file, workdir, "--config.seeds=(0,5,7)", "--only=plain") == 1
    assert lines(workdir)[1]["reason"] == "MemoryError: too large"
    assert command(file, workdir, MORE, "--only=residual") == 0
    assert lines(workdir)[1]["status"] == "failed"
    assert command(file, workdir, MORE, "--keep_weights") == 0
    assert begun == [2, 4]
    assert trained == [(0, 5), (0, 5), (0, 5, 7, 9), (0, 5), (7, 9), (0, 5, 7, 9)]
    assert records(workdir) == records(at_once)


def test_a_checkpoint_whose_words_are_damaged_is_set_aside(file, copy, at_once, trained, monkeypatch, capsys):
    stop_within_plain(monkeypatch)
    assert command(file, copy, MORE, "--keep_weights") == 0
    folder = copy / "more_seeds" / "plain" / "checkpoints"
    meta = folder / "2" / "meta" / "metadata"
    meta.write_bytes(b"\0" * meta.stat().st_size)
    assert command(file, copy, MORE, "--keep_weights") == 0
    assert trained == [(7, 9)] * 4
    same(copy, at_once)


def test_where_they_fail_the_others_keep_their_results(file, at_once, copy, monkeypatch, capsys):
    before = records(copy)

    def fail(self):
        raise MemoryError("too large")

    with monkeypatch.context() as patch:
        patch.setattr(ablation_runs.VariantRun, "go", fail)
        assert command(file, copy, MORE, "--only=plain") == 1
    told = "plain: seeds 7, 9 failed: MemoryError: too large; the results of the other seeds are kept"
    assert told in capsys.readouterr().out
    assert records(copy) == before
    assert command(file, copy, MORE, "--keep_weights") == 0
    same(copy, at_once)


def test_a_kill_after_the_record_costs_no_weights(file, at_once, copy, trained, monkeypatch):
    """Neither those of the seeds before, whose checkpoint is there still, nor those of the added ones."""

    class Killed(BaseException):
        pass

    def kill(*arguments):
        raise Killed

    for name in ("residual", "plain"):
        (copy / "variants" / f"{name}.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(ablation_training, "write_weights", kill)
        for flags in ((), ("--only=plain",)):
            with pytest.raises(Killed):
                command(file, copy, "--keep_weights", *flags)
    assert weights(copy) == []
    # Without the flag the checkpoints of the first two seeds stay where they are.
    assert command(file, copy, MORE, "--only=residual") == 0
    with monkeypatch.context() as patch:
        patch.setattr(ablation_training, "write_weights", kill)
        with pytest.raises(Killed):
            command(file, copy, MORE, "--only=plain", "--keep_weights")
    assert weights(copy) == ["plain/seed_0", "plain/seed_5"]
    assert command(file, copy, MORE, "--keep_weights") == 0
    assert weights(copy) == [f"plain/seed_{seed}" for seed in (0, 5, 7, 9)] + ["residual/seed_0", "residual/seed_5"]
    assert trained == [(0, 5), (0, 5), (7, 9), (7, 9), (7, 9)]
    assert records(copy) == records(at_once)


def test_a_variant_trained_anew_takes_nothing_of_seeds_that_were_being_added(file, at_once, copy, trained, monkeypatch):
    stop_within_plain(monkeypatch)
    assert command(file, copy, MORE, "--only=plain") == 0
    assert (copy / "more_seeds" / "plain").is_dir()
    (copy / "variants" / "plain.json").unlink()
    assert command(file, copy, MORE, "--keep_weights") == 0
    assert trained == [(7, 9), (7, 9), (0, 5, 7, 9), (7, 9)]
    same(copy, at_once)


def test_seeds_that_ended_at_different_steps_stand_side_by_side(two):
    """All seeds of one training diverged, and it ended there: what it lacks is None."""
    whole = read_record(two, "residual")
    assert whole is not None
    early = Curves(
        train_step=[2], train_loss=[[None]], train_top1=[[None]], test_step=[], test_loss=[], test_top1=[],
        diverged=[3], seconds=1.0, images=24, start=one_seed(whole.curves.start), code=["other"],
    )  # fmt: skip
    identity = {**whole.identity, "seeds": [8]}
    other = Record("residual", "diverged", "", identity, 1, 1, "vmap", "a GPU", "abc", early, one_seed(whole.end))
    found = merged(whole, other)
    assert found.seeds == (0, 5, 8)
    assert (found.status, found.reason) == ("diverged", "1 of 3 seeds had 2 non-finite steps in a row by step 3")
    assert found.curves.train_step == whole.curves.train_step
    assert found.curves.test_top1 == [[*row, None] for row in whole.curves.test_top1]
    assert found.curves.diverged == [None, None, 3]
    assert found.curves.images == whole.curves.images + 24
    assert found.curves.code == [*whole.curves.code, "other"]
    assert (found.device, found.together) == (f"{whole.device}, a GPU", "turns, vmap")
    assert all(len(values) == 3 for parts in found.end.values() for values in parts.values())


def test_the_code_of_an_early_record_is_not_taken_for_that_of_added_seeds():
    assert codes([], []) == []
    assert codes(["a"], ["a"]) == ["a"]
    assert codes(["a", "b"], ["b", "c"]) == ["a", "b", "c"]
    assert codes([], ["b"]) == ["not noted", "b"]


def one_seed(found):
    return {quantity: {name: values[:1] for name, values in parts.items()} for quantity, parts in found.items()}
