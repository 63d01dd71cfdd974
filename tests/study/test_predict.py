"""Predictions: the network of the run, asked about pictures exactly as evaluation asks it."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.stream import eval_batches
from resnet.study import predict
from resnet.study.evaluate import open_like
from resnet.study.inference import load_model
from resnet.train import parallel
from resnet.train.evaluation import evaluate_split
from resnet.train.steps import make_eval_step
from tests.tiny import tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    return tiny_run(tmp_path_factory.mktemp("predict"))


@pytest.fixture
def ask(run, monkeypatch, capsys):
    """The command in this process: what it prints for these arguments."""

    def printed(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["predict", f"--checkpoint={run[1]}", *map(str, arguments)])
        capsys.readouterr()
        assert predict.main() == 0
        return capsys.readouterr().out

    return printed


def images_of(data: Path) -> list[Path]:
    return sorted((data / "test").rglob("*.jpg"))


def test_files_and_folders_in_the_order_given(run, ask):
    files = images_of(run[0])
    last, folder = files[-1], files[0].parent
    answer = json.loads(ask("--json", last, folder))
    inside = sorted(folder.iterdir())
    assert [item["image"] for item in answer["images"]] == [str(last), *map(str, inside)]
    assert answer["contract"]["name"] == "torch"


def test_a_folder_is_searched_through_for_images_alone(run, ask, tmp_path):
    image = images_of(run[0])[0]
    (tmp_path / "a" / "b").mkdir(parents=True)
    shutil.copy(image, tmp_path / "a" / "b" / "UPPER.JPG")
    shutil.copy(image, tmp_path / "a" / "c.jfif")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    answer = json.loads(ask("--json", tmp_path))
    found = [str(tmp_path / "a" / "b" / "UPPER.JPG"), str(tmp_path / "a" / "c.jfif")]
    assert [item["image"] for item in answer["images"]] == found


def test_the_most_probable_classes_first(run, ask):
    image = images_of(run[0])[0]
    classes = json.loads((run[1] / "classes.json").read_text())
    (everything,) = json.loads(ask("--json", "--top=99", image))["images"]
    probabilities = [item["probability"] for item in everything["top"]]
    assert sorted(item["class"] for item in everything["top"]) == sorted(classes)
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-6)
    (two,) = json.loads(ask("--json", "--top=2", image))["images"]
    assert two["top"] == everything["top"][:2]


def test_text_says_the_same(run, ask):
    image = images_of(run[0])[0]
    (answer,) = json.loads(ask("--json", "--top=2", image))["images"]
    header, line = ask("--top=2", image).splitlines()
    assert "torch" in header
    assert "16 x 16" in header
    expected = ", ".join(f"{item['class']} {item['probability']:.1%}" for item in answer["top"])
    assert line == f"{image}: {expected}"


def test_hostile_names_are_escaped_on_the_screen(run, ask, tmp_path):
    name = tmp_path / "red\x1b[31m\n.jpg"
    shutil.copy(images_of(run[0])[0], name)
    assert re.search(r"red\\x1b\[31m\\n\.jpg: ", ask(name))
    assert json.loads(ask("--json", name))["images"][0]["image"] == str(name)


def test_alone_or_in_company_an_image_gets_the_same_answer(run):
    model = load_model(run[1])
    images = np.stack([predict.read_image(model, path) for path in images_of(run[0])])
    together = model.probabilities(images, batch_size=7)
    alone = np.concatenate([model.probabilities(image[None]) for image in images[:3]])
    np.testing.assert_allclose(together[:3], alone, atol=1e-6)
    assert together.shape == (20, 5)


def test_prediction_sees_the_pixels_and_gives_the_probabilities_of_evaluation(run):
    model = load_model(run[1])
    split = open_like(model.meta, str(run[0]), "fail").splits["test"]
    images = np.stack([predict.read_image(model, Path(path)) for path in split.paths])
    (batch,) = eval_batches(split, len(split), model.crop)
    np.testing.assert_array_equal(images, batch["image"])
    mesh = parallel.make_mesh()
    step = parallel.compile_eval_step(make_eval_step(model.network, model.meta.contract), mesh)
    evaluated = evaluate_split(step, model.variables, split, model.crop, batch_size=len(split), mesh=mesh)
    # Prediction folds the norms, which changes the last digits.
    np.testing.assert_allclose(model.probabilities(images), evaluated.probabilities, rtol=0, atol=1e-5)
    norms = [name for name in model.folded[1]["params"] if name.startswith("bn")]
    assert norms == [], "the norms of a network in the original order are all folded"


def test_a_step_of_a_run_can_be_named(run, ask):
    image = images_of(run[0])[0]
    steps = sorted(int(entry.name) for entry in (run[1] / "checkpoints").iterdir() if entry.name.isdigit())
    answers = [ask("--json", f"--checkpoint={run[1] / 'checkpoints' / str(step)}", image) for step in steps]
    assert len({json.loads(answer)["images"][0]["top"][0]["probability"] for answer in answers}) == len(steps)
