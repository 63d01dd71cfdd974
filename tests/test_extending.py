"""docs/extending.md: what it shows, put where it says, acts; a name without its line is taken for no other."""

import csv
import json
import os
import types
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from docs.builder.commands import blocks
from input_pipeline import augment
from input_pipeline.contract import CONTRACTS
from input_pipeline.errors import InputError
from input_pipeline.folder import find_images
from resnet.study import evaluate
from resnet.study.inference import load_model
from resnet.study.run_record import read_run
from resnet.train import configuration, evaluation, loop, losses, metrics, optimizer, schedules, unread_keys
from resnet.train.meta import Meta, OtherCode
from resnet.train.predictions import read_predictions
from resnet.train.writers import read_metrics
from tests.commands import ROOT
from tests.tiny import tiny_config, tiny_data

pytestmark = pytest.mark.usefixtures("bare")

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SHOWN = {block.info.removeprefix("title="): block.text for block in blocks(PAGE) if block.info.startswith("title=")}


def edited(module: types.ModuleType, *edits: tuple[str, str]) -> types.ModuleType:
    """The module with these edits of its text, (what stands there once, what stands there then), run anew."""
    text = Path(module.__file__).read_text(encoding="utf-8")
    for before, after in edits:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    made = types.ModuleType(module.__name__)
    made.__dict__["__file__"] = module.__file__
    # Dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, module.__name__, made)
        exec(compile(text, module.__file__, "exec"), made.__dict__)
    return made


def before_the_last(text: str, end: str) -> tuple[str, str]:
    """The edit that puts what the page shows in front of `end`."""
    return end, f"{text}{end}"


@pytest.fixture(scope="module")
def own() -> Iterator[None]:
    """Everything that the page adds for a run, added in this process as the page says."""
    name = lambda module: f"resnet/train/{module.__name__.rpartition('.')[2]}.py"  # noqa: E731
    loss = edited(losses, before_the_last(SHOWN[name(losses)], "# By kind: the loss of each row")).focal
    rule = edited(optimizer, before_the_last(SHOWN[name(optimizer)], '    raise _fault("name", settings.name, "_rule'))
    end = '    if settings.schedule != "step":\n        raise'
    shape = edited(schedules, before_the_last(SHOWN[name(schedules)], end))
    figure = edited(
        metrics,
        before_the_last(SHOWN[name(metrics)] + "\n\n", "def wilson_interval"),
        before_the_last('        "macro_f1": macro_f1(probabilities, labels),\n', '        "auroc": auroc('),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(losses.ROW_LOSSES, "focal", loss)
        patch.setitem(losses.OUTPUTS, "focal", "softmax")
        patch.setattr(optimizer, "OPTIMIZERS", (*optimizer.OPTIMIZERS, "lion"))
        patch.setattr(optimizer, "_rule", rule._rule)
        patch.setattr(schedules, "SCHEDULES", (*schedules.SCHEDULES, "trapezoid"))
        patch.setattr(schedules, "ENDS", (*schedules.ENDS, "trapezoid"))
        patch.setattr(schedules, "_after_warmup", shape._after_warmup)
        patch.setattr(evaluation, "summarise", figure.summarise)
        patch.setitem(configuration.BEST_METRICS, "macro_f1", False)
        for key, word in (("optim.loss", "focal"), ("optim.name", "lion"), ("optim.schedule", "trapezoid")):
            patch.setitem(configuration.CHOICES, key, (*configuration.CHOICES[key], word))
        patch.setitem(configuration.CHOICES, "run.best_metric", tuple(configuration.BEST_METRICS))
        for key in ("beta1", "beta2"):
            names = (*unread_keys.READ_BY_OPTIMIZERS[key], "lion")
            patch.setitem(unread_keys.READ_ONLY_IF, f"optim.{key}", unread_keys._one_of("optim.name", names))
        ends = unread_keys._one_of("optim.schedule", ("cosine", "polynomial", "trapezoid"))
        patch.setitem(unread_keys.READ_ONLY_IF, "optim.final_lr", ends)
        yield


def own_config(data: Path) -> ConfigDict:
    config = tiny_config(data)
    config.optim.name, config.optim.lr, config.optim.beta2 = "lion", 0.002, 0.99
    config.optim.schedule, config.optim.final_lr = "trapezoid", 0.001
    config.optim.loss, config.optim.label_smoothing = "focal", 0.1
    config.run.best_metric = "macro_f1"
    config.run.steps = 10
    return config


@pytest.fixture(scope="module")
def run(own, tmp_path_factory) -> tuple[Path, Path]:
    """(data, workdir) of a run of all of them."""
    folder = tmp_path_factory.mktemp("own")
    data = tiny_data(folder)
    assert loop.train(own_config(data), folder / "mine") == 0
    return data, folder / "mine"


def test_a_run_is_of_ones_own_parts(run):
    lines = read_metrics(run[1])
    rates = [line["learning_rate"] for line in lines if line["kind"] == "train"]
    np.testing.assert_allclose(rates, [*[0.002] * 9, 0.0015], rtol=1e-5)
    rated = {line["step"]: line["macro_f1"] for line in lines if line["kind"] == "val"}
    test = next(line for line in lines if line["kind"] == "test")
    # Of equal ones the latest.
    assert test["checkpoint_step"] == max(rated, key=lambda step: (rated[step], step))
    confusion = np.asarray(test["confusion"])
    both = confusion.sum(0) + confusion.sum(1)
    assert test["macro_f1"] == pytest.approx(np.mean([2 * confusion[i, i] / both[i] for i in np.flatnonzero(both)]))
    assert read_run(run[1]).best_validation["step"] == test["checkpoint_step"]
    stored = json.loads((run[1] / "config.json").read_text())
    assert [stored[f"optim.{key}"] for key in ("name", "loss", "schedule")] == ["lion", "focal", "trapezoid"]


def test_evaluation_and_leaks_know_the_loss(run, monkeypatch):
    data, workdir = run
    told = next(line for line in read_metrics(workdir) if line["kind"] == "test")
    kept = read_predictions(workdir)
    own = kept.probabilities[np.arange(len(kept.labels)), kept.labels].astype(np.float64)
    assert told["loss"] == pytest.approx(np.mean(-np.square(1 - own) * np.log(own)), rel=1e-4)
    again = losses.losses_of_probabilities(kept.probabilities, kept.labels, "focal")
    np.testing.assert_allclose(again, -np.square(1 - own) * np.log(own), rtol=1e-4, atol=1e-7)
    model = load_model(workdir)
    assert (model.meta.loss, model.meta.outputs) == ("focal", "softmax")
    outcome = evaluate.evaluate(model, loop.open_data(own_config(data)), "test", 8)
    assert outcome.summary["loss"] == pytest.approx(told["loss"], rel=1e-4)


def test_what_a_loop_of_ones_own_shows_runs(run, monkeypatch, capsys, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(run[1])
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile(SHOWN["look.py"], "look.py", "exec"), found)
    assert list(found["features"])[-2:] == ["layer2", "pooled"]
    assert found["saliency"].shape == found["images"].shape
    assert any(np.any(leaf) for leaf in jax.tree.leaves(found["by_weights"]))
    np.testing.assert_allclose(found["evaluate"](found["folded"], found["constants"], found["images"]), found["logits"],
                               rtol=1e-4, atol=1e-5)  # fmt: skip
    capsys.readouterr()
    exec(compile(SHOWN["sharp.py"], "sharp.py", "exec"), found)
    shown = [float(line) for line in capsys.readouterr().out.split()]
    assert len(shown) == 3
    assert int(found["state"].bad_steps_total) == 0


def test_a_checkpoint_of_a_loss_that_is_not_known_is_refused(run, monkeypatch):
    monkeypatch.delitem(losses.OUTPUTS, "focal")
    with pytest.raises(InputError, match=r"trained with config\.optim\.loss='focal', which .* does not know"):
        load_model(run[1])


def test_a_checkpoint_of_a_field_that_is_not_known_is_no_damaged_one(run, monkeypatch):
    """And no other step of its run is any better."""
    stored = json.loads(json.dumps(load_model(run[1]).meta.to_json()))
    stored["spec"]["attention"] = 4
    with pytest.raises(OtherCode, match="its network has attention, which this code's ResNetSpec does not have"):
        Meta.from_json(stored)
    monkeypatch.setattr(Meta, "from_json", Mock(side_effect=OtherCode("own words")))
    with pytest.raises(InputError, match=r"checkpoints/\d+: own words$"):
        load_model(run[1])


def test_a_name_without_its_line_is_refused(monkeypatch):
    monkeypatch.setattr(optimizer, "OPTIMIZERS", (*optimizer.OPTIMIZERS, "mine"))
    monkeypatch.setattr(schedules, "SCHEDULES", (*schedules.SCHEDULES, "mine"))
    with pytest.raises(InputError, match=r"config\.optim\.name is 'mine': _rule of .* has no line for it"):
        optimizer.make_optimizer(optimizer.OptimizerSettings("mine"), lambda step: 0.1)
    with pytest.raises(InputError, match=r"config\.optim\.schedule is 'mine': _after_warmup of .* has no line for it"):
        schedules.make_schedule(schedules.ScheduleSettings("mine"), 5.0, 10)
    with pytest.raises(
        InputError, match=r"config\.optim\.loss is 'mine': OUTPUTS and ROW_LOSSES of .* must have a line"
    ):
        losses.Loss("mine")


def test_a_list_of_files_becomes_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [("a/1.png", "oak", "train"), ("a/2.png", "elm", "train"), ("b/1.png", "oak", "test")]
    for number, (file, _, _) in enumerate(rows):
        path = tmp_path / "photos" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    with (tmp_path / "photos" / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "split"), *rows])
    exec(compile(SHOWN["links.py"], "links.py", "exec"), {})
    listing = find_images(tmp_path / "leaves")
    assert listing.class_names == ("elm", "oak")
    assert len(listing.ids) == 3
    found = dict(zip(listing.ids, listing.split_names, strict=True))
    assert found == {f"{split}/{label}/{file}": split for file, label, split in rows}
    assert listing.examine(0)[0] == Path("photos/a/2.png").read_bytes()


def test_arrays_become_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), np.uint8)
    np.savez("arrays.npz", images=images, labels=np.array([7, 1, 7]))
    exec(compile(SHOWN["pictures.py"], "pictures.py", "exec"), {})
    assert sorted(os.listdir("leaves")) == ["1", "7"]
    np.testing.assert_array_equal(np.asarray(Image.open("leaves/7/000002.png")), images[2])


def test_an_augmentation_of_ones_own_leaves_the_others_draws():
    text = next(block.text for block in blocks(PAGE) if "_make_grey" in block.text)
    field, _, rest = text.partition("\n\n\n")
    function, _, line = rest.partition("    # in augment(), before normalise")
    greys = edited(
        augment,
        before_the_last(f"{field}\n", "    label_smoothing: float = 0.0\n\n    def __post_init__"),
        before_the_last(f"{function.strip()}\n\n\n", "def _blend("),
        before_the_last(line.partition("\n")[2], "    images = normalise(images, contract)\n    if aug"),
    )
    images = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), np.uint8)
    shown = [
        np.asarray(greys.augment(jax.random.key(3), images, jnp.zeros(64, jnp.int32), kinds, CONTRACTS["raw"], 2)[0])
        for kinds in (greys.Augmentation(flip="both"), greys.Augmentation(flip="both", grey=0.5))
    ]
    grey = np.ptp(shown[1], axis=-1).max(axis=(1, 2)) < 1e-3
    assert 16 < grey.sum() < 48
    np.testing.assert_array_equal(shown[0][~grey], shown[1][~grey])
