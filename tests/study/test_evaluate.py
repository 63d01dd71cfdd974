"""Evaluation of a checkpoint says what training said of it, on the same splits."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from input_pipeline.errors import InputError
from resnet.study import evaluate
from resnet.study.evaluate_data import choose, open_like
from resnet.study.inference import load_model
from resnet.train.loop import train
from resnet.train.writers import read_metrics
from tests.tiny import tiny_config, tiny_run

# Of a line in metrics.jsonl, not of the figures.
OF_THE_LINE = ("step", "epoch", "kind")
CLASS = "daisy"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    return tiny_run(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture
def ask(run, monkeypatch, capsys):
    """The command in this process, on the run's data unless told otherwise: what it prints."""

    def printed(*flags: str, data: Path = run[0], checkpoint: Path = run[1]) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluate", f"--checkpoint={checkpoint}", f"--data={data}", *flags])
        capsys.readouterr()
        assert evaluate.main() == 0
        return capsys.readouterr().out

    return printed


def logged(workdir: Path, kind: str, step: int | None = None) -> dict:
    """The last line of this kind, or that of a step, without what belongs to the line."""
    found = [line for line in read_metrics(workdir) if line["kind"] == kind and step in (None, line["step"])]
    return {key: value for key, value in found[-1].items() if key not in OF_THE_LINE}


def test_the_figures_of_the_test_split_are_those_that_training_logged(run, ask):
    told = json.loads(ask("--json", "--batch_size=8"))
    expected = logged(run[1], "test")
    assert {key: told[key] for key in expected} == expected
    assert told["split"] == "test"
    assert told["classes"] == json.loads((run[1] / "classes.json").read_text())


def test_a_run_that_evaluates_both_sides_is_evaluated_so(tmp_path, run, ask):
    config = tiny_config(run[0])
    config.run.eval_flip, config.data.flip, config.run.steps = True, "alternating", 2
    assert train(config, tmp_path / "run") == 0
    told = json.loads(ask("--json", "--batch_size=8", checkpoint=tmp_path / "run"))
    expected = logged(tmp_path / "run", "test")
    assert {key: told[key] for key in expected} == expected


def test_evaluation_has_a_size_of_its_own(tmp_path, run, ask):
    """Trained at 16 px and evaluated at 24: the checkpoint carries 24, other sizes are for the asking."""
    config = tiny_config(run[0])
    config.data.eval_image_size, config.run.steps = 24, 2
    assert train(config, tmp_path / "run") == 0
    told = json.loads(ask("--json", "--batch_size=8", checkpoint=tmp_path / "run"))
    expected = logged(tmp_path / "run", "test")
    assert {key: told[key] for key in expected} == expected
    smaller = json.loads(ask("--json", "--batch_size=8", "--image_size=16", checkpoint=tmp_path / "run"))
    assert (told["image_size"], smaller["image_size"]) == (24, 16)
    assert smaller["loss"] != told["loss"]
    config.data.eval_image_size = 0
    assert train(config, tmp_path / "plain") == 0
    # The same two steps were taken.
    assert logged(tmp_path / "plain", "train")["loss"] == logged(tmp_path / "run", "train")["loss"]
    plain = json.loads(ask("--json", "--batch_size=8", checkpoint=tmp_path / "plain"))
    assert (plain["image_size"], plain["loss"]) == (16, smaller["loss"])


def test_the_figures_of_the_validation_split_are_those_that_training_logged(run, ask):
    told = json.loads(ask("--json", "--batch_size=8", "--split=val"))
    expected = logged(run[1], "val", told["checkpoint_step"])
    assert {key: told[key] for key in expected} == expected


def test_the_batch_size_changes_nothing(run, ask):
    one, other = (json.loads(ask("--json", f"--batch_size={size}")) for size in (7, 64))
    assert one["confusion"] == other["confusion"]
    assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)


def test_all_is_the_sum_of_the_splits(run, ask):
    names = ("train", "val", "test")
    parts = {name: json.loads(ask("--json", f"--split={name}")) for name in names}
    whole = json.loads(ask("--json", "--split=all"))
    assert whole["leaked"] is None, "nobody looked"
    assert [parts[name]["count"] for name in names] == [30, 10, 20]
    assert whole["count"] == 60
    correct = sum(part["top1"] * part["count"] for part in parts.values())
    assert whole["top1"] * 60 == pytest.approx(correct)


@pytest.fixture
def scarce(run, tmp_path) -> Path:
    """Class folders alone, of which one holds a single image: 25 images that no split can be made of."""
    shutil.copytree(run[0] / "train", tmp_path / "scarce")
    for image in sorted((tmp_path / "scarce" / CLASS).iterdir())[1:]:
        image.unlink()
    return tmp_path / "scarce"


def test_all_is_every_image_of_data_that_cannot_be_split(ask, scarce):
    images = sum(path.is_file() for path in scarce.rglob("*"))
    told = json.loads(ask("--json", "--split=all", data=scarce))
    assert told["count"] == images
    assert [sum(row) for row in told["confusion"]].count(1) == 1
    told = f"class '{CLASS}' has a single image in train, .*--split=all makes no splits"
    with pytest.raises(InputError, match=told) as error:
        ask("--split=test", data=scarce)
    assert "config.data" not in str(error.value)


@pytest.mark.parametrize(
    "key", [{"data.per_class": 3}, {"data.drop_leaks": True}, {"data.keep_copies_together": True}, {}]
)
def test_all_leaves_out_nothing_that_the_run_left_out_but_its_classes(run, leaky, key):
    """per_class of data that bring a test split leaves the rest out, and drop_leaks what leaks."""
    meta = load_model(run[1]).meta
    meta = dataclasses.replace(meta, config={**meta.config, **key, "data.exclude": [CLASS]})
    whole = choose(open_like(meta, str(leaky), "fail", split="all"), "all")
    files = sorted(str(path.relative_to(leaky)) for path in leaky.rglob("*.jpg") if path.parent.name != CLASS)
    assert sorted(whole.ids) == files


def test_the_screen_shows_the_figures(run, ask):
    told = json.loads(ask("--json"))
    header, line = ask().splitlines()
    assert header.startswith(f"Checkpoint of step {told['checkpoint_step']}, contract torch")
    assert line.startswith(f"test top-1 {told['top1']:.2%} of 20 (95 % interval ")


def test_other_images_in_the_datas_own_test_split_are_scored(run, ask, tmp_path):
    """No draw decides about them. The validation split is drawn, and refused."""
    data = tmp_path / "data"
    shutil.copytree(run[0], data)
    for folder in ("train", "test"):
        Image.effect_noise((24, 24), 50).save(data / folder / CLASS / f"{folder}.png")
    assert json.loads(ask("--json", data=data))["count"] == 21
    with pytest.raises(InputError, match="the val split drawn from them is not the run's"):
        ask("--split=val", data=data)


def test_what_was_skipped_is_told(run, ask, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(run[0], data)
    names = [f"test/{CLASS}/torn_{number}.jpg" for number in (1, 2)]
    for name in names:
        (data / name).write_bytes(b"")
    told = json.loads(ask("--json", "--on_error=skip", data=data))
    assert [(one["name"], "empty file" in one["reason"]) for one in told["skipped"]] == [(n, True) for n in names]
    assert told["count"] == 20
    lines = ask("--on_error=skip", data=data).splitlines()
    assert re.fullmatch(rf"Skipped   {names[0]} \(.*empty file\) and 1 more; --json lists all", lines[1])
    assert json.loads(ask("--json"))["skipped"] == []


def test_a_run_in_bfloat16_is_evaluated_so(run, ask, tmp_path):
    config = tiny_config(run[0])
    config.run.dtype, config.run.steps = "bfloat16", 2
    assert train(config, tmp_path / "run") == 0
    told = json.loads(ask("--json", "--batch_size=8", checkpoint=tmp_path / "run"))
    expected = logged(tmp_path / "run", "test")
    assert {key: told[key] for key in expected} == expected
    assert ask(checkpoint=tmp_path / "run").splitlines()[0].endswith(", bfloat16")
    # And it makes a difference.
    model = load_model(tmp_path / "run")
    meta = dataclasses.replace(model.meta, config=model.meta.config | {"run.dtype": "float32"})
    source = open_like(meta, str(run[0]), "fail")
    plain = evaluate.evaluate(dataclasses.replace(model, meta=meta), source, "test", 8)
    assert plain.summary["loss"] != told["loss"]


def test_tfds_is_spoken_of_in_these_flags(ask, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(InputError, match=f"^--data='tfds:no_such_thing': .* not found in {tmp_path}"):
        ask(f"--data_dir={tmp_path}", data="tfds:no_such_thing")
    with pytest.raises(InputError, match=f"--data_dir={tmp_path} is for --data=tfds:NAME"):
        ask(f"--data_dir={tmp_path}")


def test_images_that_leak_from_training_are_told_apart(run, ask, tmp_path):
    shutil.copytree(run[0], tmp_path / "data")
    learned = min((tmp_path / "data" / "train" / CLASS).iterdir())
    tested = min((tmp_path / "data" / "test" / CLASS).iterdir())
    shutil.copy(learned, tested)
    told = json.loads(ask("--json", data=tmp_path / "data"))
    assert told["leaked"] == 1
    assert (told["count"], told["clean"]["count"]) == (20, 19)
    lines = ask(data=tmp_path / "data").splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("test top-1 without the 1 images that are also in another split ")
    assert f"{told['clean']['top1']:.2%} of 19" in lines[2]


def test_without_leaks_there_is_one_figure(run, ask):
    told = json.loads(ask("--json"))
    assert (told["leaked"], told["near_leaked"]) == (0, 0)
    assert not {"clean", "cleanest", "dropped"} & told.keys()


@pytest.fixture(scope="module")
def leaky(run, tmp_path_factory) -> Path:
    """The run's data with one test image that is a training image, and one that is another of them, encoded anew."""
    data = tmp_path_factory.mktemp("leaky") / "data"
    shutil.copytree(run[0], data)
    same, other = sorted((data / "train" / CLASS).iterdir())[:2]
    first, second = sorted((data / "test" / CLASS).iterdir())[:2]
    shutil.copy(same, first)
    with Image.open(other) as picture:
        picture.save(second, "JPEG", quality=50)
    return data


def test_near_copies_are_a_third_figure(ask, leaky):
    told = json.loads(ask("--json", data=leaky))
    assert (told["leaked"], told["near_leaked"]) == (1, 1)
    assert [told["count"], told["clean"]["count"], told["cleanest"]["count"]] == [20, 19, 18]
    lines = ask(data=leaky).splitlines()
    assert len(lines) == 4
    assert lines[3].startswith("test top-1 without these and the 1 that have a copy there")
    assert f"{told['cleanest']['top1']:.2%} of 18" in lines[3]


def test_leaks_can_be_left_out(ask, leaky):
    told, clean = json.loads(ask("--json", data=leaky)), json.loads(ask("--json", "--drop_leaks", data=leaky))
    assert clean["count"] == 18
    assert clean["confusion"] == told["cleanest"]["confusion"]
    assert clean["dropped"] == {"exact": 1, "near": 1}
    assert (clean["leaked"], clean["near_leaked"]) == (0, 0)
    assert ask("--drop_leaks", data=leaky).splitlines()[-1].startswith("(left out beforehand")


def test_a_run_leaves_out_leaks_and_says_which(leaky, tmp_path, capsys):
    config = tiny_config(leaky)
    config.data.drop_leaks = True
    config.run.steps = 1
    assert train(config, tmp_path / "run") == 0
    assert "Leaks     left out of test, also in train or val: 1 byte for byte, 1 as copies" in capsys.readouterr().out
    assert logged(tmp_path / "run", "test")["dropped"] == {"exact": 1, "near": 1}
    dropped = json.loads((tmp_path / "run" / "provenance.json").read_text())["dataset"]["dropped"]
    assert [len(dropped["test"][kind]) for kind in ("exact", "near")] == [1, 1]
    assert all(name.startswith(f"test/{CLASS}/") for kind in ("exact", "near") for name in dropped["test"][kind])
    # Evaluation of its checkpoint leaves out the same, and a run that goes on reads its line again.
    assert open_like(load_model(tmp_path / "run").meta, str(leaky), "fail").dropped["test"] == {
        kind: tuple(names) for kind, names in dropped["test"].items()
    }
    assert train(config, tmp_path / "run") == 0
    assert "also in another split: 1 byte for byte, 1 as copies)" in capsys.readouterr().out


def test_drop_leaks_of_a_split_that_has_none_to_drop_is_refused(run, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["evaluate", f"--checkpoint={run[1]}", f"--data={run[0]}", "--drop_leaks", "--split=all"]
    )
    with pytest.raises(InputError, match="--drop_leaks does nothing with --split=all"):
        evaluate.main()


def test_fewer_classes_keep_their_outputs(run, ask, tmp_path):
    shutil.copytree(run[0], tmp_path / "data")
    for split in ("train", "test"):
        shutil.rmtree(tmp_path / "data" / split / CLASS)
    whole, told = json.loads(ask("--json")), json.loads(ask("--json", data=tmp_path / "data"))
    place = whole["classes"].index(CLASS)
    assert told["count"] == 16
    assert told["per_class_accuracy"][place] is None
    rows = [row for number, row in enumerate(whole["confusion"]) if number != place]
    assert [row for number, row in enumerate(told["confusion"]) if number != place] == rows
