"""A probe: one pass of the backbone, kept through kills and shared by runs; its head is the whole network's."""

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from input_pipeline.contract import CONTRACTS
from input_pipeline.errors import InputError
from native.own_folders import cache_folder
from resnet.model.network import ResNet
from resnet.study.inference import load_model
from resnet.train import features, loop, parallel, plan, probe
from resnet.train.checkpoints import Meta, load, save_converted
from resnet.train.configuration import make_spec, validate
from resnet.train.diagnosis import FILE, Diverged
from resnet.train.evaluation import evaluate_split
from resnet.train.pretrained import read
from resnet.train.steps import make_eval_step
from resnet.train.writers import MetricsWriter
from tests.commands import start, wait_until
from tests.compiling import convolve_by_lax
from tests.networks import by_name, random_variables
from tests.run_lines import lines
from tests.tiny import tiny_config

RECIPE = """
from pathlib import Path
from tests.train.test_probe import probing

def get_config():
    return probing(Path({data!r}), Path({weights!r}))
"""


@pytest.fixture(scope="module", autouse=True)
def small_and_fast(tmp_path_factory) -> Iterator[None]:
    """Eight images a batch of features, kept in a folder of this test; lax' own convolution compiles fastest."""
    with pytest.MonkeyPatch.context() as patch:
        convolve_by_lax(patch)
        patch.setattr(features, "BATCH", 8)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def weights(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "converted"
    spec = make_spec(tiny_config(data), 3)
    save_converted(folder, random_variables(spec), Meta(spec, ("x", "y", "z"), CONTRACTS["caffe"], 16, 1.0))
    return folder


def probing(data: Path, weights: Path, **changes) -> ConfigDict:
    """Forty steps at 3.75 an epoch; evaluated after each tenth, a line after each seventh."""
    config = tiny_config(data)
    config.transfer.mode = "probe"
    config.transfer.weights = str(weights)
    config.transfer.update(changes)
    config.optim.lr = 0.5
    config.run.steps = 40
    config.run.eval_every = config.run.checkpoint_every = 10 / 3.75
    config.run.log_every = 7
    config.run.keep = 9
    return config


@pytest.fixture(scope="module")
def straight(data, weights, tmp_path_factory) -> Path:
    """A probe with everything on: two views, a hidden layer, dropout, averages, smoothing, recalibrated statistics."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    assert loop.train(rich(data, weights), workdir) == 0
    return workdir


def test_memory_that_does_not_do_is_told_with_what_helps_a_probe(data, weights, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr(probe, "features", refuse)
    with pytest.raises(InputError) as error:
        loop.train(probing(data, weights), tmp_path / "run")
    assert str(error.value) == (
        "out of memory (Unable to allocate 9 TiB); use smaller images, a smaller --config.data.eval_batch_size or "
        "--config.run.dtype=bfloat16"
    )


def rich(data: Path, weights: Path) -> ConfigDict:
    config = probing(data, weights, views=2, head="mlp:8", bn="recalibrate")
    config.model.dropout = 0.2
    config.optim.ema = 0.9
    config.optim.label_smoothing = 0.1
    config.data.brightness = 0.2
    return config


def kept() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache_folder("features").iterdir()}


def stored() -> list[tuple[dict, np.ndarray]]:
    """(what it is, float32[N, 16]) of every finished file of features."""
    found = [
        (json.loads(path.with_suffix(".json").read_text()), path) for path in cache_folder("features").glob("*.f32")
    ]
    return [(about, np.fromfile(path, np.float32).reshape(-1, 16)) for about, path in found]


def forbidden(*args, **kwargs):
    raise AssertionError("the backbone ran again")


def test_it_is_an_ordinary_run_with_a_checkpoint_of_the_whole_network(straight, data, weights):
    found = lines(straight)
    assert [line["step"] for line in found if line["kind"] == "train"] == [7, 14, 21, 28, 35, 40]
    assert [line["step"] for line in found if line["kind"] == "val"] == [10, 20, 30, 40]
    assert found[-1]["kind"] == "test"
    assert found[-1]["count"] == 20
    variables, meta = load(straight)
    assert meta.spec.head_hidden == 8
    assert meta.contract == CONTRACTS["caffe"]
    assert meta.spec.num_classes == 5
    stored = by_name(read(str(weights))[0]["params"])
    for name, value in by_name(jax.device_get(variables["params"])).items():
        if not name.startswith("fc"):
            np.testing.assert_array_equal(value, stored[name], err_msg=name)


def test_logits_of_the_features_are_those_of_the_whole_network(straight, data):
    """The figures of the last validation, which saw features, against an evaluation of the checkpoint on images."""
    model = load_model(straight / "checkpoints" / "40")
    split = loop.open_data(rich(data, Path("any"))).splits["val"]
    mesh = parallel.make_mesh()
    step = parallel.compile_eval_step(make_eval_step(model.network, model.meta.contract), mesh)
    whole = evaluate_split(step, model.variables, split, model.crop, batch_size=4, mesh=mesh, threads=1)
    line = next(line for line in lines(straight) if line["kind"] == "val" and line["step"] == 40)
    assert line["top1"] == whole.summary["top1"]
    assert line["loss"] == pytest.approx(whole.summary["loss"], abs=1e-5)
    # And row by row: the head on the kept features.
    (rows,) = (values for about, values in stored() if about["split"] == "val")
    host = probe.feature_batches(rows, split.labels, 8)
    step = parallel.compile_eval_step(probe.make_head_eval_step(model.network), mesh)
    found = probe.predict_batches(step, model.variables, parallel.put_batches(host, mesh), len(split))
    np.testing.assert_allclose(found.probabilities, whole.probabilities, atol=1e-5)


@pytest.mark.parametrize("k", [7, 21])
def test_stopped_anywhere_and_gone_on_is_bit_identical(k, straight, data, weights, tmp_path):
    write = MetricsWriter.write

    def write_then_stop(self, at, epoch, kind, values):
        write(self, at, epoch, kind, values)
        if at == k and kind == "train":
            os.kill(os.getpid(), signal.SIGTERM)

    config = rich(data, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsWriter, "write", write_then_stop)
        assert loop.train(config, tmp_path / "run") == 128 + signal.SIGTERM
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "rows", forbidden)
        assert loop.train(config, tmp_path / "run") == 0
    assert lines(tmp_path / "run") == lines(straight)
    for name, value in by_name(jax.device_get(load(straight)[0])).items():
        np.testing.assert_array_equal(by_name(load(tmp_path / "run")[0])[name], value, err_msg=name)


def test_another_head_finds_the_features_and_another_dataset_or_crop_does_not(straight, data, weights, tmp_path):
    before = kept()
    config = rich(data, weights)
    config.optim.lr, config.optim.name, config.data.batch_size = 0.01, "adam", 6
    config.transfer.head = "linear"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "rows", forbidden)
        assert loop.train(config, tmp_path / "run") == 0
        assert kept() == before
        config.data.resize_shorter = 1.5
        with pytest.raises(AssertionError, match="ran again"):
            loop.train(config, tmp_path / "other")


def test_a_pass_that_was_killed_goes_on_where_it_was(data, weights, tmp_path, monkeypatch):
    recipe, pause = tmp_path / "recipe.py", tmp_path / "paused"
    recipe.write_text(RECIPE.format(data=str(data), weights=str(weights)))
    environment = {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PAUSE_AT": "features:16",
        "PAUSE_FILE": str(pause),
        "FEATURE_BATCH": "8",
    }
    arguments = (f"--config={recipe}", f"--workdir={tmp_path / 'run'}")
    running = start("tests/train/pausing_train.py", *arguments, environment=environment)
    wait_until(pause.exists, "two batches of features")
    running.send(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (part,) = cache_folder("features").glob("*.part")
    first = part.read_bytes()
    assert len(first) == 16 * 16 * 4
    # What a torn write leaves: less than a batch.
    with part.open("ab") as file:
        file.write(b"torn")
    # The convolution of the run that was killed, for its bits.
    monkeypatch.setattr(plan, "ResNet", ResNet)
    source = loop.open_data(probing(data, weights))
    made = plan.make_plan(probing(data, weights), source)
    variables = jax.device_put({**made.pretrained.variables})
    digest = json.loads(part.with_suffix(".json").read_text())["weights"]
    wanted = features.Pass(made, source.splits["train"], 0, digest)
    variables["params"]["fc"] = random_variables(made.network.spec)["params"]["fc"]
    mesh, batches = parallel.make_mesh(), []
    step = features.compile_step(made, 0, mesh)
    with monkeypatch.context() as patch:
        make = features.train_batches
        patch.setattr(features, "train_batches", lambda *a, **k: batches.append(k["start_step"]) or make(*a, **k))
        resumed = np.array(features.features(wanted, step, variables, mesh, threads=1))
    assert batches == [2]
    assert resumed.shape == (30, 16)
    assert resumed[:16].tobytes() == first
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    undisturbed = features.features(wanted, step, variables, mesh, threads=1)
    np.testing.assert_array_equal(resumed, undisturbed)


def test_weights_that_were_trained_with_blocks_dropped_are_probed_without_the_key(data, tmp_path):
    spec = dataclasses.replace(make_spec(tiny_config(data), 3), stochastic_depth=0.3)
    save_converted(
        tmp_path / "weights", random_variables(spec), Meta(spec, ("x", "y", "z"), CONTRACTS["caffe"], 16, 1.0)
    )
    config = probing(data, tmp_path / "weights")
    validate(config)
    made = plan.make_plan(config, loop.open_data(config))
    assert made.pretrained is not None
    assert made.pretrained.spec.stochastic_depth == 0.3
    config.model.stochastic_depth = 0.3
    with pytest.raises(InputError, match=r"^config\.model\.stochastic_depth=0\.3 has no effect"):
        validate(config)


def test_views_differ_and_the_first_is_evaluations(straight):
    rows = {about["view"]: values for about, values in stored() if about["split"] == "train"}
    assert rows.keys() == {0, 1}
    assert rows[0].shape == rows[1].shape == (30, 16)
    assert np.abs(rows[0] - rows[1]).mean() > 0.01


def test_features_are_of_what_the_images_hold_wherever_they_lie(data, weights):
    config = probing(data, weights)
    made, train = plan.make_plan(config, source := loop.open_data(config)), source.splits["train"]
    copy = dataclasses.replace(train, ids=tuple(f"elsewhere/{name}" for name in train.ids))
    changed = dataclasses.replace(train, contents=train.contents[::-1])
    own, same, other = (features.Pass(made, split, 0, "digest").describe(8) for split in (train, copy, changed))
    assert own == same
    assert own != other


def test_a_disk_that_refuses_is_one_line(data, weights, tmp_path, monkeypatch):
    config = probing(data, weights)
    source = loop.open_data(config)
    made = plan.make_plan(config, source)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    wanted = features.Pass(made, source.splits["val"], 0, "digest")
    with pytest.raises(InputError, match=r"features cannot be kept there .*XDG_CACHE_HOME"):
        features.features(wanted, lambda *_: None, {}, parallel.make_mesh(), threads=1)


def test_a_probe_that_diverges_says_so_and_advises_nothing_that_it_refuses(data, weights, tmp_path):
    config = probing(data, weights)
    config.optim.lr, config.optim.schedule, config.run.max_bad_steps = 1e38, "constant", 3
    with pytest.raises(Diverged, match=r"^steps \d+ to \d+ had .*; lower --config.optim.lr.* checkpoint is intact$"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / FILE).exists()
    config.run.debug = True
    with pytest.raises(InputError, match="not a probe"):
        loop.train(config, tmp_path / "run")
