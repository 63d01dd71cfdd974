"""Without TensorFlow: a run over a file of arrays is trained, evaluated and shown; what needs a decoder says so."""

import json
import sys

import pytest

from input_pipeline import stream
from input_pipeline.errors import InputError, MissingPackage
from input_pipeline.sources import open_source
from resnet.study import evaluate, predict, report_pictures
from resnet.study.run_record import read_run
from resnet.train.loop import train
from tests.tiny import tiny_arrays, tiny_config, tiny_data
from tests.train.test_resume import lines

pytestmark = pytest.mark.usefixtures("bare")


@pytest.fixture
def without_tensorflow(monkeypatch):
    """As on a machine where it is not installed."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    stream._started_tensorflow.cache_clear()
    yield
    stream._started_tensorflow.cache_clear()


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    return tiny_arrays(tmp_path_factory.mktemp("arrays"))


def recipe(arrays, **data):
    config = tiny_config(arrays)
    config.data.source, config.data.crop, config.data.crop_padding = "arrays", "pad", 2
    for key, value in data.items():
        config.data[key] = value
    return config


def test_it_trains_by_either_feed_and_is_evaluated_and_shown(arrays, without_tensorflow, tmp_path, monkeypatch, capsys):
    for feed in ("resident", "stream"):
        assert train(recipe(arrays, feed=feed), tmp_path / feed) == 0
    resident, streamed = (lines(tmp_path / feed) for feed in ("resident", "stream"))
    assert [line["loss"] for line in resident] == pytest.approx([line["loss"] for line in streamed], rel=1e-5)
    capsys.readouterr()
    words = [f"--checkpoint={tmp_path / 'resident'}", f"--data={arrays}", "--batch_size=8", "--json"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    assert evaluate.main() == 0
    assert json.loads(capsys.readouterr().out)["loss"] == resident[-1]["loss"]
    run = read_run(tmp_path / "resident")
    shown = report_pictures.open_test_images(run, "")
    assert (shown.name, len(shown)) == ("test", 9)
    assert run.predictions is not None
    mistakes = report_pictures.mistakes(run.predictions, 1)
    assert report_pictures.with_heat(mistakes, shown, run.predictions, tmp_path / "resident")[0].picture

    picture = tmp_path / "one.png"
    picture.write_bytes(shown.read(0))
    monkeypatch.setattr(sys, "argv", ["predict", words[0], str(picture), "--on_error=skip"])
    with pytest.raises(MissingPackage, match=r"^TensorFlow, which decodes and resizes images, cannot be imported"):
        predict.main()


@pytest.mark.parametrize(
    "data",
    [
        {"crop": "random_resized", "crop_padding": 4, "feed": "stream"},
        {"resize_shorter": 1.25},
        {"eval_image_size": 24},
    ],
    ids=lambda data: next(iter(data)),
)
def test_what_would_resize_is_told_before_anything_is_written(arrays, without_tensorflow, tmp_path, data):
    with pytest.raises(MissingPackage, match=r"resizes images on the host, is not installed; use "):
        train(recipe(arrays, **data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_is_no_worse_for_having_been_looked_at_without_it(without_tensorflow, tmp_path, monkeypatch):
    """No image is noted as unreadable, which later calls would believe."""
    folder, options = tiny_data(tmp_path), {"cache_dir": str(tmp_path / "cache"), "progress": False}
    with pytest.raises(MissingPackage, match="cannot be imported"):
        open_source("folder", str(folder), **options)
    monkeypatch.undo()
    stream._started_tensorflow.cache_clear()
    assert open_source("folder", str(folder), **options).skipped == ()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.npz: no such file; name a file of arrays"):
        train(recipe(tmp_path / "absent.npz"), tmp_path / "run")
