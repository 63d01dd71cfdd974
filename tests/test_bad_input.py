"""Whatever a user gets wrong is told in one line that names it, with exit code 2, and nothing is left behind."""

import dataclasses
import fcntl
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from resnet.train.checkpoints import load, save_converted
from tests import bad_input_table
from tests.bad_input_table import refused
from tests.bombs import huge_png
from tests.commands import Result, run_fresh
from tests.place import Place, make_place, names
from tests.wrong_flags import FLAGS

STEPS = 6
CLASS = "daisy"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return make_place(tmp_path_factory.mktemp("bad_input"))


@pytest.mark.parametrize("case", FLAGS)
def test_a_wrong_flag(case, place, tmp_path):
    flags, words = FLAGS[case]
    refused(place.train(tmp_path / "run", *flags, fresh=case == "unknown_key"), *words)
    assert names(tmp_path) == []


@pytest.mark.parametrize("missing", ["config", "workdir"])
def test_a_missing_flag(missing, place, tmp_path):
    flags = {"config": f"--config={place.recipe}", "workdir": f"--workdir={tmp_path / 'run'}"}
    del flags[missing]
    refused(place.command("train_main.py", *flags.values()), f"--{missing} is missing")
    assert names(tmp_path) == []


RECIPES = {
    "absent": (None, ["no such file"]),
    "syntax": ("def get_config(:\n", ["SyntaxError", "invalid syntax"]),
    "import": ("import no_such_module\n", ["no_such_module"]),
    "no_function": ("x = 1\n", ["get_config"]),
    "unknown_key": (
        "from configs import default\ndef get_config():\n  c = default.get_config()\n  c.optim.rate = 1\n  return c\n",
        ["rate"],
    ),
    "nothing": ("def get_config():\n  return None\n", ["get_config"]),
    "plain_dict": ("def get_config():\n  return {'optim': {'lr': 0.1}}\n", ["get_config"]),
    "value_error": ("def get_config():\n  raise ValueError('no\\nsuch thing')\n", ["ValueError (no)", "fix"]),
    "type_error": ("def get_config():\n  return len(3)\n", ["TypeError (object of type 'int' has no len())"]),
    "json_error": ("import json\ndef get_config():\n  return json.loads('{')\n", ["JSONDecodeError (Expecting"]),
    "file_absent": ("def get_config():\n  return open('/absent/file')\n", ["FileNotFoundError", "/absent/file"]),
    "half": ("from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict()\n", ["missing"]),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_broken_recipe(case, place, tmp_path):
    text, words = RECIPES[case]
    recipe = tmp_path / "mine.py"
    if text is not None:
        recipe.write_text(text)
    before = names(tmp_path)
    named = [] if case == "half" else ["mine.py"]
    refused(place.command("train_main.py", f"--config={recipe}", f"--workdir={tmp_path / 'run'}"), *words, *named)
    assert [name for name in names(tmp_path) if "__pycache__" not in name] == before


def empty(data: Path) -> None:
    data.mkdir()


def without_images(data: Path) -> None:
    for name in ("a", "b"):
        (data / name).mkdir(parents=True)
        (data / name / "notes.txt").write_text("no image")


def class_only_in_test(data: Path) -> None:
    shutil.copytree(data / "test" / CLASS, data / "test" / "daisies")


def class_without_images(data: Path) -> None:
    shutil.rmtree(data / "test" / CLASS)
    for path in (data / "train" / CLASS).iterdir():
        path.unlink()


def class_unreadable(data: Path) -> None:
    shutil.rmtree(data / "test" / CLASS)
    for path in (data / "train" / CLASS).iterdir():
        path.write_text("not an image")


def one_unreadable(data: Path) -> None:
    path = min((data / "train" / CLASS).iterdir())
    path.rename(path.with_name("torn.jpg"))
    torn = path.with_name("torn.jpg")
    torn.write_bytes(torn.read_bytes()[:300])


DATA = {
    "missing": (lambda data: None, [], ["no such folder", "config.data.dir"]),
    "empty": (empty, [], ["no images"]),
    "without_images": (without_images, [], ["no images"]),
    "class_only_in_test": (class_only_in_test, [], ["'daisies'", "test"]),
    "class_without_images": (class_without_images, [], [CLASS, "image"]),
    "class_unreadable": (class_unreadable, ["--config.data.on_error=skip"], [CLASS, "no readable image"]),
    "one_unreadable": (one_unreadable, [], [f"train/{CLASS}/torn.jpg", "on_error=skip"]),
}


@pytest.mark.parametrize("case", DATA)
def test_wrong_data(case, place, tmp_path):
    change, flags, words = DATA[case]
    data = tmp_path / "data"
    if case.startswith(("class", "one")):
        shutil.copytree(place.data, data)
    change(data)
    before = names(tmp_path)
    result = place.train(tmp_path / "run", f"--config.data.dir={data}", *flags, fresh=case == "one_unreadable")
    refused(result, *words, *([] if case.startswith("one") else [str(data)]))
    assert names(tmp_path) == before


def test_an_unreadable_image_can_be_skipped_and_is_listed(place, tmp_path):
    shutil.copytree(place.data, tmp_path / "data")
    one_unreadable(tmp_path / "data")
    flags = (f"--config.data.dir={tmp_path / 'data'}", "--config.data.on_error=skip")
    result = place.train(tmp_path / "run", *flags)
    assert result.code == 0, result.err
    assert f"Skipped   train/{CLASS}/torn.jpg" in result.out
    skipped = json.loads((tmp_path / "run" / "provenance.json").read_text())["dataset"]["skipped"]
    assert [name for name, _ in skipped] == [f"train/{CLASS}/torn.jpg"]


def test_a_workdir_with_another_configuration(place):
    before = names(place.trained)
    result = place.train(place.trained, "--config.optim.lr=0.07", "--config.run.keep=3")
    refused(result, str(place.trained), "optim.lr: 0.05 -> 0.07", "run.keep: 2 -> 3")
    assert names(place.trained) == before


def test_a_workdir_with_another_length(place):
    before = names(place.trained)
    refused(place.train(place.trained, "--config.run.steps=9"), "run.steps: ", " -> 9", "--new_length")
    result = place.train(place.trained, "--config.run.steps=1", "--new_length")
    refused(result, "config.run.steps=1", "cannot end before the step it has reached")
    assert names(place.trained) == before


def test_a_workdir_with_other_files(place, tmp_path):
    (tmp_path / "thesis.tex").touch()
    refused(place.train(tmp_path), str(tmp_path), "thesis.tex")
    assert names(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("below", ["", "run", "a/b"])
def test_a_workdir_that_is_or_lies_below_a_file(below, place, tmp_path):
    (tmp_path / "file").touch()
    refused(place.train(tmp_path / "file" / below), str(tmp_path / "file"), "is a file")
    assert names(tmp_path) == ["file"]


def test_a_workdir_that_cannot_be_written(place):
    # Not even root may make folders in /proc, whatever its permissions say.
    refused(place.train(Path("/proc/run")), "/proc/run", "cannot be written")


def test_a_workdir_with_too_long_a_name(place, tmp_path):
    refused(place.train(tmp_path / ("n" * 300)), "nnn", "too long")


def test_a_workdir_with_a_damaged_configuration(place, tmp_path):
    (tmp_path / "config.json").write_text('{"data.batch_size": 8')
    refused(place.train(tmp_path), str(tmp_path / "config.json"))


def test_a_workdir_in_use(place, tmp_path):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(place.train(tmp_path), str(tmp_path), "in use")
    assert names(tmp_path) == [".lock"]


def train_on_a_small_disk(script: str, place: Place, folder: Path) -> Result:
    """`script`, for sh, in which $0 is `folder`, a place to mount at, and "$@" a run of the recipe in $0/run."""
    allowed = ["unshare", "--map-root-user", "--mount"]
    try:
        subprocess.run([*allowed, "mount", "-t", "tmpfs", "none", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets us mount no small disk (unshare --map-root-user --mount)")
    command = (sys.executable, "train_main.py", f"--config={place.recipe}", f"--workdir={folder / 'run'}")
    return run_fresh(*allowed, "sh", "-c", script, folder, *command, environment=place.environment)


def test_a_workdir_on_a_disk_that_is_read_only(place, tmp_path):
    # For root, too: permissions would not stop it.
    script = (
        'mount -t tmpfs none "$0" && mkdir "$0/run" && mount -o remount,ro "$0" && "$@"; code=$?; find "$0"; exit $code'
    )
    result = train_on_a_small_disk(script, place, tmp_path)
    refused(result, str(tmp_path / "run"), "is not writable", "another folder")
    assert result.out.split() == [str(tmp_path), str(tmp_path / "run")]


def test_a_disk_without_room(place, tmp_path):
    script = 'mount -t tmpfs -o size=16k none "$0" && "$@"; code=$?; ls -A "$0"; exit $code'
    result = train_on_a_small_disk(script, place, tmp_path)
    refused(result, str(tmp_path / "run"), "checkpoints need ", " kB free", "make room")
    assert result.out == ""


def test_a_disk_that_fills_up_in_the_middle_of_a_run(place, tmp_path):
    script = """mount -t tmpfs -o size=200k none "$0"; "$@"; echo "left with $?"
        mount -o remount,size=50m "$0" && "$@" && cat "$0/run/metrics.jsonl" """
    result = train_on_a_small_disk(script, place, tmp_path)
    assert "left with 2\n" in result.out
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert re.search(r"No space left on device: a checkpoint takes [\d.]+ kB, the disk has [\d.]+ kB free", line)
    # Room was made, and the same command brought the run to its end, with every step once.
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in result.out.splitlines() if line.startswith("{")]
    expected = [json.loads(line) for line in (place.trained / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["kind"], line["loss"]) for line in lines] == [
        (line["step"], line["kind"], line["loss"]) for line in expected
    ]


IMAGES = {
    "missing": (None, "no such file"),
    "text": (lambda jpeg: b"Dear diary", "not an image"),
    "empty": (lambda jpeg: b"", "empty file"),
    "truncated": (lambda jpeg: jpeg[: len(jpeg) // 2], "cannot be decoded"),
    "header_only": (lambda jpeg: jpeg[:20], "JPEG header"),
    "bomb": (lambda jpeg: huge_png(), "50,000 x 50,000"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_predict_of_no_image(case, place, tmp_path):
    make, reason = IMAGES[case]
    good = min((place.data / "test" / CLASS).iterdir())
    bad = tmp_path / "new\nline.jpg"
    if make:
        bad.write_bytes(make(good.read_bytes()))
    result = place.predict(good, bad, fresh=case == "truncated")
    refused(result, "new\\nline.jpg", reason)
    assert result.out == ""


def test_predict_of_a_folder_without_images(place, tmp_path):
    refused(place.predict(tmp_path), str(tmp_path), "no images")


def test_predict_with_wrong_flags(place):
    refused(place.predict(place.data, "--top=0"), "--top=0")
    refused(place.predict(place.data, "--top=many"), "--top", "many")
    refused(place.predict(), "IMAGE")
    refused(place.predict(place.data, "--topp=3"), "--topp=3")


def test_predict_with_weights_that_have_no_head(place, tmp_path):
    variables, meta = load(place.trained)
    headless = dataclasses.replace(meta, progress={"head": "none"})
    save_converted(tmp_path / "headless", variables, headless)
    for flags in ([], [f"--gradcam={tmp_path / 'maps'}"]):
        result = place.predict(place.data, *flags, checkpoint=tmp_path / "headless")
        refused(result, f"{tmp_path / 'headless'}: a network without a head", "config.transfer.weights")
    assert not (tmp_path / "maps").exists()


def test_predict_with_no_place_for_overlays(place, tmp_path):
    for name in (tmp_path / "maps.jpg", tmp_path / "absent" / "sheet.png"):
        refused(place.predict(place.data, f"--gradcam={name}"), f"--gradcam={name}")
    assert names(tmp_path) == []


def test_no_checkpoint(place, tmp_path):
    absent = tmp_path / "runs" / "absent"
    for checkpoint in (tmp_path, absent):
        refused(place.predict(place.data, checkpoint=checkpoint), str(checkpoint))
        refused(place.evaluate(checkpoint), str(checkpoint))
    assert names(tmp_path) == []


def test_evaluate_with_wrong_flags(place, tmp_path):
    refused(place.evaluate(place.trained, "--split=training"), "--split", "training")
    refused(place.evaluate(place.trained, "--batch_size=0"), "--batch_size=0")
    refused(place.evaluate(place.trained, data=tmp_path / "absent"), f"--data={tmp_path / 'absent'}")


def test_evaluate_of_a_split_that_is_not_there(place, tmp_path):
    shutil.copytree(place.data, tmp_path / "data")
    flags = ("--config.data.val_fraction=0.0", "--config.run.steps=1")
    assert place.train(tmp_path / "run", *flags).code == 0
    refused(place.evaluate(tmp_path / "run", "--split=val"), "--split=val", "train, test")


def test_evaluate_of_a_class_that_the_checkpoint_does_not_know(place, tmp_path):
    shutil.copytree(place.data, tmp_path / "data")
    for split in ("train", "test"):
        shutil.copytree(place.data / split / CLASS, tmp_path / "data" / split / "orchid")
    refused(place.evaluate(place.trained, data=tmp_path / "data"), "'orchid'", CLASS)


def test_evaluate_of_a_split_drawn_of_other_images_than_the_runs(place, tmp_path):
    shutil.copytree(place.data, tmp_path / "data")
    min((tmp_path / "data" / "train" / CLASS).iterdir()).unlink()
    refused(place.evaluate(place.trained, "--split=val", data=tmp_path / "data"), "the val split drawn", "--split=all")


def test_evaluate_names_its_own_flags(place, tmp_path):
    shutil.copytree(place.data, tmp_path / "data")
    one_unreadable(tmp_path / "data")
    refused(place.evaluate(place.trained, data=tmp_path / "data"), "torn.jpg", "with --on_error=skip")


def tear_arrays(step: Path, part: str) -> None:
    largest = max((path for path in (step / part).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


DAMAGES = {
    "arrays": lambda step: tear_arrays(step, "variables"),
    "meta_missing": lambda step: shutil.rmtree(step / "meta"),
    "meta_torn": lambda step: tear_arrays(step, "meta"),
    "variables_empty": lambda step: [shutil.rmtree(step / "variables"), (step / "variables").mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_evaluate_of_a_damaged_checkpoint(damage, place, tmp_path):
    step = tmp_path / str(STEPS)
    shutil.copytree(place.trained / "checkpoints" / str(STEPS), step)
    DAMAGES[damage](step)
    refused(place.evaluate(step, fresh=damage == "arrays"), str(step), "cannot be read")


def test_docs_say_what_was_printed():
    bad_input_table.check("tests/test_bad_input.py")
