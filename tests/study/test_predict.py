"""Predictions: the network of the run, asked about pictures exactly as evaluation asks it."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.errors import InputError
from input_pipeline.folder import find_images
from input_pipeline.stream import eval_batches
from resnet.study import predict
from resnet.study.evaluate_data import open_like
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
    # The checkpoint's own crop, not the one that the contract's weights were trained with.
    assert answer["contract"]["resize_shorter"] > 1
    assert answer["image_size"] == 16
    assert (answer["crop"]["centre"], answer["crop"]["resize_shorter_side"]) == (16, 18)


def test_a_folder_is_searched_through_for_images_alone(run, ask, tmp_path):
    image = images_of(run[0])[0]
    (tmp_path / "a" / "b").mkdir(parents=True)
    shutil.copy(image, tmp_path / "a" / "b" / "UPPER.JPG")
    shutil.copy(image, tmp_path / "a" / "c.jfif")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    answer = json.loads(ask("--json", tmp_path))
    found = [str(tmp_path / "a" / "b" / "UPPER.JPG"), str(tmp_path / "a" / "c.jfif")]
    assert [item["image"] for item in answer["images"]] == found


def test_what_is_hidden_in_a_folder_is_passed_over_as_in_training_and_seen_when_named(run, ask, tmp_path):
    image = images_of(run[0])[0]
    junk = (".ipynb_checkpoints/0-checkpoint.jpg", ".hidden/1.jpg", "__MACOSX/a/2.jpg", ".git/3.jpg", "a/.4.jpg")
    for name in ("a/0.jpg", "b/0.jpg", *junk):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / name)
    # What macOS leaves beside a picture on a foreign disk.
    (tmp_path / "a" / "._0.jpg").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    seen = [item["image"] for item in json.loads(ask("--json", tmp_path))["images"]]
    assert seen == [str(tmp_path / name) for name in ("a/0.jpg", "b/0.jpg")]
    assert seen == [str(tmp_path / name) for name in find_images(tmp_path).ids]
    named = [tmp_path / "a" / ".4.jpg", tmp_path / ".hidden"]
    seen = [item["image"] for item in json.loads(ask("--json", *named))["images"]]
    assert seen == [str(named[0]), str(named[1] / "1.jpg")]


def test_a_link_in_a_folder_that_leads_nowhere_is_told(run, ask, tmp_path):
    shutil.copy(images_of(run[0])[0], tmp_path / "0.jpg")
    (tmp_path / "1.jpg").symlink_to(tmp_path / "nowhere.jpg")
    _, whole, dead = ask("--on_error=skip", tmp_path).splitlines()
    assert whole.startswith(f"{tmp_path / '0.jpg'}: ")
    assert dead == f"{tmp_path / '1.jpg'}: not read: cannot be read (No such file or directory)"


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


@pytest.fixture
def mixed(run, tmp_path) -> list[Path]:
    """An image, a file cut short, an empty one with a newline in its name, another image."""
    first, *_, last = images_of(run[0])
    cut, empty = tmp_path / "cut.jpg", tmp_path / "new\nline.jpg"
    cut.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    empty.write_bytes(b"")
    return [first, cut, empty, last]


def test_a_bad_file_can_be_skipped_and_is_told_in_its_place(ask, mixed):
    first, cut, _, last = mixed
    answers = json.loads(ask("--json", "--on_error=skip", *mixed))["images"]
    assert [answer["image"] for answer in answers] == [str(path) for path in mixed]
    good, bad = ["image", "top"], ["error", "image"]
    assert [sorted(answer) for answer in answers] == [good, bad, bad, good]
    alone = json.loads(ask("--json", first, last))["images"]
    assert [answers[0]["top"], answers[3]["top"]] == [answer["top"] for answer in alone]
    _, *lines = ask("--on_error=skip", *mixed).splitlines()
    assert lines[1].startswith(f"{cut}: not read: cannot be decoded")
    assert lines[2].endswith("new\\nline.jpg: not read: empty file")
    assert [line.split(": ")[0] for line in (lines[0], lines[3])] == [str(first), str(last)]


def test_overlays_of_a_group_with_bad_files_are_those_of_the_good_ones(ask, mixed, tmp_path):
    answers = json.loads(ask("--json", "--on_error=skip", f"--gradcam={tmp_path / 'maps'}", *mixed))["images"]
    written = [answer.get("gradcam") for answer in answers]
    assert written[1:3] == [None, None]
    assert sorted(map(str, (tmp_path / "maps").iterdir())) == sorted([written[0], written[3]])


def test_nothing_but_bad_files_is_an_error_all_the_same(ask, mixed, capsys, tmp_path):
    sheet = tmp_path / "sheet.png"
    with pytest.raises(InputError, match=r"cut\.jpg: cannot be decoded .*none of the 2 images can be read"):
        ask("--json", "--on_error=skip", f"--gradcam={sheet}", *mixed[1:3])
    assert ["error" in answer for answer in json.loads(capsys.readouterr().out)["images"]] == [True, True]
    assert not sheet.exists()


def test_a_bad_file_leaves_the_answers_before_it(ask, mixed, capsys, monkeypatch):
    """Those of the groups before its own; its own is refused before anything of it is computed."""
    told = r"cut\.jpg: cannot be decoded .*--on_error=skip"
    with pytest.raises(InputError, match=told):
        ask(*mixed)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(predict, "GROUP", 1)
    with pytest.raises(InputError, match=told):
        ask(*mixed)
    _, line = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{mixed[0]}: ")
    with pytest.raises(InputError, match=told):
        ask("--json", *mixed)
    answer = json.loads(capsys.readouterr().out)
    assert [one["image"] for one in answer["images"]] == [str(mixed[0])]
    assert "cut.jpg: cannot be decoded" in answer["error"]


def test_lines_come_as_the_answers_do(run, ask, capsys):
    model, seen = load_model(run[1]), []

    def answers():
        for name in ("a.jpg", "b.jpg"):
            yield {"image": name, "top": [{"class": "rose", "probability": 0.5}]}
            seen.append(capsys.readouterr().out.splitlines()[-1])

    predict.tell_lines(model, answers())
    assert seen == ["a.jpg: rose 50.0%", "b.jpg: rose 50.0%"]


@pytest.mark.parametrize(("name", "why"), [("", "is empty"), ("maps.jpg", "ends in .png"), ("maps.TIFF", "a PNG")])
def test_a_place_for_overlays_that_is_a_slip_is_told(run, ask, tmp_path, monkeypatch, name, why):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"^--gradcam={name}.*{why}"):
        ask(f"--gradcam={name}", images_of(run[0])[0].resolve())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder.jpg").mkdir()
    assert predict.overlay_place("folder.jpg", 1) == Path("folder.jpg")
