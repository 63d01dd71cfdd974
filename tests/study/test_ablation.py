"""The command, from recipe to table: what diverges or fails is a row, what is stopped goes on as if it had not been."""

import importlib
import os
import shutil
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from input_pipeline.errors import InputError
from resnet.study import ablation, ablation_runs
from tests.commands import run_fresh
from tests.compiling import convolve_by_lax
from tests.hparams_table import hparams_table
from tests.study.small_ablation import command, lines, records, write_recipe


@pytest.fixture(autouse=True)
def compiled_fast(monkeypatch):
    """lax' own convolution and the rbg generator: programs that take a quarter of the time to compile."""
    convolve_by_lax(monkeypatch)
    with jax.default_prng_impl("rbg"):
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("ablation"))


@pytest.fixture(scope="module")
def finished(file, tmp_path_factory) -> Path:
    """An ablation that ran through undisturbed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch, jax.default_prng_impl("rbg"):
        convolve_by_lax(patch)
        assert command(file, workdir) == 0
    return workdir


@pytest.mark.parametrize("flag", ["--config.data.val_fraction=0.3", "--config.data.test_fraction=0.5"])
def test_a_flag_about_splits_is_refused_where_a_file_brings_them(flag, file, tmp_path):
    with pytest.raises(InputError, match=r"^config\.data\..* has no effect: the.*; omit the flag"):
        command(file, tmp_path / "run", flag)
    assert not (tmp_path / "run").exists()


def test_what_is_written(finished):
    assert sorted(path.name for path in finished.iterdir()) == [
        ".lock", "ablation.json", "curves.png", "provenance.json", "report.html", "table.csv", "table.md", "table.tex",
        "tensorboard", "variants",
    ]  # fmt: skip
    assert sorted(path.name for path in (finished / "variants").iterdir()) == [
        "plain.json", "residual.json", "wild.json",
    ]  # fmt: skip
    found = records(finished)
    # Every second step and the last; every 2.5 steps of an epoch of five (rounded to two) and the last.
    assert found["residual"]["curves"]["train_step"] == [2, 4, 6, 8, 9]
    assert found["residual"]["curves"]["test_step"] == [2, 4, 6, 8, 9]
    assert found["residual"]["curves"]["images"] == 9 * 8 * 2
    assert found["residual"]["status"] == found["plain"]["status"] == "ok"
    assert set(found["residual"]["end"]["branch_to_shortcut"]) == {"layer1_0"}
    assert found["plain"]["end"]["branch_to_shortcut"] == {}
    assert list(found["plain"]["curves"]["start"]["gradient_norm"]) == ["head", "layer1_0", "stem"]
    assert found["plain"]["multiply_adds"] == found["residual"]["multiply_adds"] > 0
    losses = np.array(found["residual"]["curves"]["train_loss"])
    assert (losses[-1] < losses[0]).all()
    assert losses[0][0] != losses[0][1]


def test_variants_sort_in_tensorboards_table(finished):
    pytest.importorskip("tensorboard")
    experiment, groups = hparams_table(finished / "tensorboard", "optim.lr")
    infos = {info.name: info for info in experiment.hparam_infos}
    assert {name for name in ("variant", "model.shortcut", "optim.lr", "optim.momentum") if infos[name].differs} == {
        "variant", "model.shortcut", "optim.lr",
    }  # fmt: skip
    assert len(groups) == 3 * 2
    assert [group.hparams["variant"].string_value for group in groups[:2]] == ["wild"] * 2
    found = records(finished)
    for group in groups[2:]:
        name, seed = group.hparams["variant"].string_value, int(group.hparams["run.seed"].number_value)
        values = {value.name.tag: value.value for value in group.sessions[0].metric_values}
        assert values["test/top1"] == pytest.approx(found[name]["curves"]["test_top1"][-1][(0, 5).index(seed)])


def test_a_variant_that_diverges_is_a_row(finished):
    line = {line["variant"]: line for line in lines(finished)}["wild"]
    assert (line["status"], line["diverged"], line["last_mean"], line["pairs"]) == ("diverged", "2", "", "")
    assert "2 of 2 seeds" in line["reason"]
    assert "| wild | diverged |" in (finished / "table.md").read_text()


def test_done_is_done(file, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(ablation_runs.VariantRun, "go", lambda self: pytest.fail("trained again"))
    assert command(file, tmp_path / "run") == 0
    assert records(tmp_path / "run") == records(finished)


def test_without_bokeh_the_tables_are_written_all_the_same(file, finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished, tmp_path / "run")
    for name in ("report.html", "table.md"):
        (tmp_path / "run" / name).unlink()
    monkeypatch.setitem(sys.modules, "resnet.study.ablation_report", None)
    assert command(file, tmp_path / "run") == 0
    told = capsys.readouterr().err.splitlines()[0]
    assert told.startswith(f"No {tmp_path}/run/report.html: ")
    assert (tmp_path / "run" / "table.md").is_file()
    assert not (tmp_path / "run" / "report.html").exists()


def test_stopped_anywhere_and_gone_on_gives_the_same_table(file, finished, tmp_path, monkeypatch):
    """A signal in the second variant between two evaluations, then the time limit, then to the end."""
    heed, called = ablation_runs.VariantRun.heed, []

    def stop_at(number: int, act):
        def heed_and_act(self, dispatch, news, seconds):
            heed(self, dispatch, news, seconds)
            called.append(dispatch)
            if len(called) == number:
                act()

        monkeypatch.setattr(ablation_runs.VariantRun, "heed", heed_and_act)

    stop_at(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert command(file, tmp_path / "run") == 128 + signal.SIGTERM
    assert sorted(records(tmp_path / "run")) == ["residual"]
    assert lines(tmp_path / "run")[1]["status"] == "not run yet"
    clock = {"now": 0.0}
    monkeypatch.setattr(ablation.time, "monotonic", lambda: clock["now"])
    stop_at(len(called) + 1, lambda: clock.update(now=99.0))
    assert command(file, tmp_path / "run", "--max_seconds=50") == 0
    assert sorted(records(tmp_path / "run")) == ["residual"]
    assert command(file, tmp_path / "run") == 0
    # Every dispatch was done once.
    assert [(d.first, d.last) for d in called[5:]][:5] == [(d.first, d.last) for d in called[:5]]
    assert records(tmp_path / "run") == records(finished)
    assert lines(tmp_path / "run") == lines(finished)


def test_a_variant_that_fails_is_a_row_and_tried_again(file, finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "variants" / "plain.json").unlink()

    def fail(self):
        raise MemoryError("too large\nand more lines")

    with monkeypatch.context() as patch:
        patch.setattr(ablation_runs.VariantRun, "go", fail)
        assert command(file, tmp_path / "run") == 1
        assert command(file, tmp_path / "run", "--only=residual,wild") == 0
    assert "plain: failed: MemoryError: too large" in capsys.readouterr().out
    line = lines(tmp_path / "run")[1]
    assert (line["variant"], line["status"], line["reason"]) == ("plain", "failed", "MemoryError: too large")
    assert command(file, tmp_path / "run", "--only=plain") == 0
    assert records(tmp_path / "run") == records(finished)


def test_a_failed_variant_can_be_mended(file, finished, tmp_path, monkeypatch):
    """It starts afresh, not from the checkpoints of what failed; the others stay."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "variants" / "plain.json").unlink()
    heed, begun = ablation_runs.VariantRun.heed, []

    def fail_late(self, dispatch, news, seconds):
        heed(self, dispatch, news, seconds)
        begun.append(dispatch.first)
        if begun == [0, 2]:
            raise MemoryError("too large")

    monkeypatch.setattr(ablation_runs.VariantRun, "heed", fail_late)
    assert command(file, tmp_path / "run") == 1
    assert (tmp_path / "run" / "variants" / "plain" / "checkpoints" / "2").is_dir()
    mended = ("--config.variants.plain.model.shortcut=C",)
    assert command(file, tmp_path / "run", *mended, "--only=residual") == 0
    assert lines(tmp_path / "run")[1]["status"] == "not run yet"
    assert records(tmp_path / "run")["plain"]["status"] == "failed"
    assert command(file, tmp_path / "run", *mended) == 0
    assert begun == [0, 2, 0, 2, 4, 6, 8]
    found = records(tmp_path / "run")
    assert (found["plain"]["status"], found["plain"]["identity"]["model.shortcut"]) == ("ok", "C")
    assert not (tmp_path / "run" / "variants" / "plain").exists()
    assert {name: found[name] for name in ("residual", "wild")} == {
        name: record for name, record in records(finished).items() if name != "plain"
    }


def test_another_configuration_is_refused_with_the_difference(file, finished):
    before = records(finished)
    for flag, words in (
        ("--config.optim.momentum=0.5", "optim.momentum: 0.9 -> 0.5"),
        ("--config.seeds=(0,1)", r"seeds: \[0, 5\] -> \[0, 1\]"),
    ):
        with pytest.raises(InputError, match=f"variant residual has another configuration.*{words}") as error:
            command(file, finished, flag)
        assert f"or delete {finished}/variants/residual.json to train it again: " in str(error.value)
    assert records(finished) == before


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--only=plan", "--only=plan: no such variant; choose from residual, plain, wild"),
        ("--config.optim.lrr=1", "--config.optim.lrr: no such key"),
        ("--config.variants.plain.model.widht=4", "--config.variants.plain.model.widht: no such key"),
        (
            "--config.variants.plan.model.width=4",
            "--config.variants.plan.model.width: no such variant; choose from resi",
        ),
        ("--config.baseline=none", "config.baseline='none' is not a variant"),
        ("--config.data.dir=absent.npz", "absent.npz: no such file"),
        ("--config.data.image_size=9", "holds images of 8 px"),
        ("--config.data.batch_size=64", "variant residual: config.data.batch_size=64"),
        ("--max_seconds=-1", "max_seconds"),
        ("--together=magic", "together"),
    ],
)
def test_a_slip_in_a_flag_is_told_before_anything_is_written(file, tmp_path, flag, words):
    with pytest.raises(InputError) as error:
        command(file, tmp_path / "run", flag)
    assert words in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_left_alone(file, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"holds 'thesis\.tex'"):
        command(file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_slip_is_one_line_and_costs_no_import(file):
    """As a process of its own: exit code 2, one line, and jax not even loaded."""
    code = (
        "import runpy, sys; sys.argv = ['ablation', '--config=' + sys.argv[1], '--workdir=x', '--config.seeds=(1,1)']\n"
        "try: runpy.run_module('resnet.study.ablation', run_name='__main__')\n"
        "except SystemExit as end: print(end.code, 'jax' in sys.modules, 'tensorflow' in sys.modules)"
    )
    result = run_fresh(sys.executable, "-c", code, file)
    assert result.out == "2 False False\n", result
    assert result.err == "error: config.seeds names 1 twice; a seed gives the same run every time\n"


def test_without_tensorflow_and_tensorboard_arrays_suffice(file, tmp_path):
    """What a bare accelerator machine has: the command must not ask for more, up to the first compilation."""
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'tensorflow_datasets', 'tensorboardX'): sys.modules[name] = None\n"
        "import importlib\n"
        "from resnet.study import ablation, ablation_runs, ablation_table, ablation_curves\n"
        "sys.argv = ['ablation', '--config=' + sys.argv[1], '--workdir=' + sys.argv[2], '--max_seconds=1']\n"
        "from resnet.study.ablation_training import Training\n"
        "Training.run = lambda *arguments: print('would train') or True\n"
        "sys.exit(ablation.main())"
    )
    result = run_fresh(sys.executable, "-c", code, file, tmp_path / "run")
    assert result.code == 0, result.err
    assert "would train" in result.out


def test_the_flags_do_not_clash_with_those_of_training():
    importlib.import_module("train_main")
    assert set(ablation.make_flags([])) >= {"config", "workdir", "only", "max_seconds", "together"}
