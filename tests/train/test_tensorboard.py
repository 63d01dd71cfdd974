"""TensorBoard's own reader finds what a run wrote: scalars, pictures, the trace, settings that sort in its table."""

import gzip
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.errors import InputError
from resnet.model.counts import count
from resnet.train.configuration import make_spec
from resnet.train.loop import train
from resnet.train.profiling import read_span
from resnet.train.writers import read_metrics
from tests.hparams_table import hparams_table
from tests.tiny import tiny_config

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> Path:
    """Two runs of other learning rates in one folder; the first is traced."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rate, profile in (("slow", 0.01, "2:4"), ("fast", 0.05, "")):
        config = tiny_config(data)
        config.optim.lr = rate
        config.run.profile = profile
        assert train(config, folder / name) == 0
    return folder


def test_every_scalar_and_picture_is_read_back(runs):
    events = accumulator.EventAccumulator(str(runs / "slow" / "tensorboard"))
    events.Reload()
    for line in read_metrics(runs / "slow"):
        for name, value in line.items():
            if name in ("step", "epoch", "kind") or not isinstance(value, float):
                continue
            points = {point.step: point.value for point in events.Scalars(f"{line['kind']}/{name}")}
            assert points[line["step"]] == pytest.approx(value, rel=1e-6)
    assert set(events.Tags()["images"]) == {"train/inputs", "val/confusion", "test/confusion"}
    for tag in events.Tags()["images"]:
        image = events.Images(tag)[-1]
        pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        assert pixels.shape == (image.height, image.width, 3)
        assert pixels.std() > 5
    (inputs,) = events.Images("train/inputs")
    assert inputs.step == 0
    best = [point.step for point in events.Images("val/confusion")]
    assert best[0] == read_metrics(runs / "slow")[[x["kind"] for x in read_metrics(runs / "slow")].index("val")]["step"]


def test_run_directory_holds_what_it_promises(runs):
    names = {entry.name for entry in (runs / "fast").iterdir()}
    promised = {"config.json", "provenance.json", "metrics.jsonl", "tensorboard", "checkpoints", "classes.json"}
    assert promised | {"curves.png", "confusion.png"} <= names
    provenance = json.loads((runs / "fast" / "provenance.json").read_text())
    assert {"revision", "versions", "device", "dataset", "command"} <= provenance.keys()
    assert len(json.loads((runs / "fast" / "classes.json").read_text())) == 5


def test_runs_sort_by_their_settings_in_the_hparams_table(runs):
    """Through the plugin's own handler, as its page asks."""
    experiment, groups = hparams_table(runs, "optim.lr")
    infos = {info.name: info for info in experiment.hparam_infos}
    assert infos["optim.lr"].differs
    assert not infos["optim.momentum"].differs
    assert [group.hparams["optim.lr"].number_value for group in groups] == [0.05, 0.01]
    for group in groups:
        (session,) = group.sessions
        metrics = {value.name.tag: value.value for value in session.metric_values}
        (test,) = (line for line in read_metrics(runs / session.name.split("/")[0]) if line["kind"] == "test")
        assert metrics["test/top1"] == pytest.approx(test["top1"])
        assert session.status == 1  # success


def test_the_trace_is_of_the_steps_asked_for_and_lies_where_the_plugin_looks(runs):
    (folder,) = (runs / "slow" / "tensorboard" / "plugins" / "profile").iterdir()
    assert [file.suffix for file in folder.iterdir() if file.name.endswith(".pb")] == [".pb"]
    (trace,) = folder.glob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {event["args"]["step_num"] for event in events if event.get("name") == "train" and "args" in event}
    assert steps == {"2", "3"}
    assert not (runs / "fast" / "tensorboard" / "plugins").exists()


def test_a_run_may_be_traced_when_it_goes_on_and_says_what_it_counts(runs, data, tmp_path, capsys):
    config = tiny_config(data)
    shutil.copytree(runs / "fast", tmp_path / "run")
    config.run.profile = "2:4"
    assert train(config, tmp_path / "run") == 0
    assert read_metrics(tmp_path / "run") == read_metrics(runs / "fast")
    spec = make_spec(config, 5)
    told = f"{count(spec, config.data.image_size).multiply_adds:,} multiply-adds an image"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("text", ["5", "5:", ":5", "5:5", "7:3", "a:b", "-1:4", "1:2:3", "1e2:2e2", " 1:2", "٣:٤"])
def test_a_malformed_span_is_refused(text):
    with pytest.raises(InputError, match="FIRST:LAST"):
        read_span(text)


def test_a_span_beyond_the_run_is_refused_and_nothing_written(data, tmp_path):
    config = tiny_config(data)
    config.run.profile = "2:7"
    with pytest.raises(InputError, match=r"run\.profile=2:7 goes beyond the run, which has 6 steps"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_probe_has_no_steps_to_trace(data, tmp_path):
    config = tiny_config(data)
    config.transfer.mode, config.transfer.weights, config.run.profile = "probe", "x", "2:4"
    with pytest.raises(InputError, match=r"run\.profile.*no effect"):
        train(config, tmp_path / "run")
