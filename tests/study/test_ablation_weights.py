"""--keep_weights: what is left is what was evaluated, whatever happens while it is written."""

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from input_pipeline.errors import InputError
from input_pipeline.resident import decode_source, write_arrays
from resnet.study import ablation, ablation_runs, ablation_weights, evaluate
from resnet.study.ablation_records import read_record
from resnet.study.evaluate_data import open_like
from resnet.study.inference import load_model
from resnet.train import pretrained
from resnet.weights.export import export
from tests.compiling import convolve_by_lax
from tests.tiny import tiny_data

RECIPE = """
from configs.ablations.study import study
from tests.tiny import tiny_config

def get_config():
    base = tiny_config("{data}")
    base.model.stage_sizes = (1,)
    base.data.image_size = 8
    base.data.crop, base.data.crop_padding = "pad", 1
    base.data.val_fraction, base.data.test_fraction = 0.0, 0.4
    base.data.eval_batch_size = 6
    base.optim.ema = 0.5
    base.run.steps, base.run.max_bad_steps, base.run.eval_flip = 5, 2, True
    variants = {{"residual": {{}}, "wild": {{"optim": {{"lr": 1e30, "clip_norm": 1.0}}}}}}
    return study(base, variants, baseline="residual", seeds=(0, 5))
"""
SEEDS = (0, 5)


@pytest.fixture(scope="module", autouse=True)
def compiled_fast(tmp_path_factory) -> Iterator[None]:
    """lax' own convolution and the rbg generator: programs that take a quarter of the time to compile."""
    with pytest.MonkeyPatch.context() as patch, jax.default_prng_impl("rbg"):
        convolve_by_lax(patch)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder without splits: the test images are drawn."""
    return tiny_data(tmp_path_factory.mktemp("data")) / "train"


@pytest.fixture(scope="module")
def recipe(data, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "small.py"
    file.write_text(RECIPE.format(data=data))
    return file


def command(file: Path, workdir: Path, *flags: str) -> int:
    """The command in this process, all seeds in one vmapped program."""
    arguments = ["ablation", f"--config={file}", f"--workdir={workdir}", "--together=vmap", *flags]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        return ablation.main()


@pytest.fixture(scope="module")
def refused(recipe, tmp_path_factory) -> tuple[Path, str]:
    """An ablation whose disk took the weights of the first seed and not those of the second; what it was told."""
    save, calls = ablation_weights.save_converted, []

    def refuse(folder, variables, meta):
        calls.append(folder)
        if len(calls) == 2:
            raise InputError(f"{folder}: cannot be written (No space left on device)")
        save(folder, variables, meta)

    workdir = tmp_path_factory.mktemp("refused") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation_weights, "save_converted", refuse)
        with pytest.raises(InputError) as error:
            command(recipe, workdir, "--keep_weights")
    return workdir, str(error.value)


@pytest.fixture(scope="module")
def finished(recipe, refused, tmp_path_factory) -> Path:
    """The same ablation, gone on with to its end."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(refused[0], workdir)
    assert command(recipe, workdir, "--keep_weights") == 0
    return workdir


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def record(workdir: Path, name: str = "residual") -> dict:
    return json.loads((workdir / "variants" / f"{name}.json").read_text())


def weights(workdir: Path) -> list[str]:
    return sorted(str(path.relative_to(workdir / "weights")) for path in (workdir / "weights").glob("*/*"))


@pytest.mark.parametrize("seed", SEEDS)
def test_they_give_the_ablations_own_figures(finished, data, seed, tmp_path):
    """By evaluate, on the folder as it is: the averages, both mirrors, the split that the ablation drew."""
    folder = finished / "weights" / "residual" / f"seed_{seed}"
    model = load_model(folder)
    source = open_like(model.meta, str(data), "fail")
    found = evaluate.evaluate(model, source, "test", 6).values()
    curves, place = record(finished)["curves"], SEEDS.index(seed)
    assert curves["test_step"][-1] == model.meta.step == 5
    assert found["count"] == 16
    assert found["top1"] == curves["test_top1"][-1][place]
    assert found["loss"] == pytest.approx(curves["test_loss"][-1][place], rel=1e-5)
    assert (model.meta.config["run.seed"], model.meta.progress) == (seed, {"variant": "residual"})
    # And what else takes weights.
    taken, meta, _ = pretrained.read(str(folder))
    assert meta == model.meta
    assert export(folder, "torchvision", tmp_path / "w.safetensors") > 0
    other = load_model(finished / "weights" / "residual" / f"seed_{SEEDS[1 - place]}").variables
    assert not np.array_equal(taken["params"]["fc"]["kernel"], other["params"]["fc"]["kernel"])


def test_they_are_scored_on_a_file_of_the_decoded_images_as_well(finished, data, tmp_path, monkeypatch, capsys):
    """Which is all that there is of an ablation over arrays: the same figures, though the crop of a folder resizes."""
    folder = finished / "weights" / "residual" / "seed_0"
    model = load_model(folder)
    assert model.crop.resize_shorter != 1
    file = tmp_path / "set.npz"
    write_arrays(decode_source(open_like(model.meta, str(data), "fail"), model.crop), file)
    flags = ["evaluate", f"--checkpoint={folder}", f"--data={file}", "--batch_size=6", "--json"]
    monkeypatch.setattr(sys, "argv", flags)
    assert evaluate.main() == 0
    found, curves = json.loads(capsys.readouterr().out), record(finished)["curves"]
    assert found["top1"] == curves["test_top1"][-1][0]
    assert found["loss"] == pytest.approx(curves["test_loss"][-1][0], rel=1e-5)
    monkeypatch.setattr(sys, "argv", [*flags, "--image_size=4"])
    with pytest.raises(InputError, match="images are of one size"):
        evaluate.main()


def test_they_stand_in_the_tables_and_the_checkpoints_are_gone(finished):
    assert weights(finished) == ["residual/seed_0", "residual/seed_5"]
    assert sorted(path.name for path in (finished / "variants").iterdir()) == ["residual.json", "wild.json"]
    assert "weights/NAME/seed_S, of residual (0, 5); each a --checkpoint" in (finished / "table.md").read_text()
    with (finished / "table.csv").open() as table:
        assert [line["weights"] for line in csv.DictReader(table)] == ["0 5", ""]


def test_a_variant_that_was_trained_without_them_is_told_in_one_line(recipe, copy, monkeypatch, capsys):
    monkeypatch.setattr(ablation_runs.VariantRun, "go", lambda self: pytest.fail("trained again"))
    assert command(recipe, copy, "--keep_weights") == 0
    assert "not of" not in capsys.readouterr().out
    shutil.rmtree(copy / "weights")
    assert command(recipe, copy, "--keep_weights") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Weights   0 folders still to be written, 0 kB, to " in "\n".join(lines)
    (line,) = [line for line in lines if "not of" in line]
    assert line.startswith("Weights   not of residual: already done without --keep_weights")
    assert line.endswith("delete variants/residual.json to train again")
    assert not (copy / "weights").exists()
    assert "weights/NAME" not in (copy / "table.md").read_text()


def test_a_disk_that_fills_up_costs_neither_record_nor_weights(recipe, refused, tmp_path, monkeypatch):
    """The same command writes what is missing, without training, and leaves what is there."""
    workdir, told = tmp_path / "run", refused[1]
    assert "seed_5: cannot be written (No space left on device); the record of residual is written" in told
    shutil.copytree(refused[0], workdir)
    assert record(workdir)["status"] == "ok"
    assert weights(workdir) == ["residual/seed_0"]
    (workdir / "weights" / "residual" / ".seed_5-killed").mkdir()
    first = (workdir / "weights" / "residual" / "seed_0").stat().st_ino
    monkeypatch.setattr(ablation_runs.VariantRun, "go", lambda self: pytest.fail("trained again"))
    assert command(recipe, workdir, "--keep_weights", "--only=residual") == 0
    assert weights(workdir) == ["residual/seed_0", "residual/seed_5"]
    assert (workdir / "weights" / "residual" / "seed_0").stat().st_ino == first
    assert not (workdir / "variants" / "residual").exists()
    assert "residual (0, 5)" in (workdir / "table.md").read_text()


def test_weights_of_an_earlier_training_do_not_pass_for_those_of_a_later(recipe, copy, monkeypatch):
    again = read_record(copy, "residual")
    (copy / "variants" / "residual.json").unlink()
    monkeypatch.setattr(ablation_runs.VariantRun, "go", lambda self: again)
    assert command(recipe, copy, "--only=residual") == 0
    assert record(copy)["status"] == "ok"
    assert weights(copy) == []


def test_a_disk_without_room_is_told_before_anything_is_written(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 7))
    with pytest.raises(InputError, match=r"run/weights: the weights of --keep_weights need \d+ kB, the disk has 0 kB"):
        command(recipe, tmp_path / "run", "--keep_weights")
    assert not (tmp_path / "run").exists()
