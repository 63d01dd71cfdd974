"""The data that a checkpoint is evaluated on: split as its run split them, or not at all."""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from input_pipeline.errors import InputError
from input_pipeline.sources import open_source
from resnet.study import evaluate, evaluate_data
from resnet.study.evaluate_data import choose, open_like, places_of, with_labels_of
from resnet.study.inference import load_model
from resnet.train.loop import train
from resnet.train.meta import Meta
from resnet.train.writers import read_metrics
from resnet.weights import classes
from tests.tiny import tiny_arrays, tiny_config, tiny_data, tiny_run

CLASS = "daisy"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    return tiny_run(tmp_path_factory.mktemp("evaluate_data"), steps=1)


@pytest.fixture(scope="module")
def flat(tmp_path_factory) -> tuple[Path, Path]:
    """(data, workdir) of a run on class folders alone, which drew its own test and validation splits."""
    folder = tmp_path_factory.mktemp("flat")
    shutil.move(tiny_data(folder) / "train", folder / "flat")
    config = tiny_config(folder / "flat")
    config.data.test_fraction, config.data.split_seed = 0.3, 5
    config.run.steps = 1
    assert train(config, folder / "run") == 0
    return folder / "flat", folder / "run"


@pytest.fixture
def grown(flat, tmp_path) -> Path:
    """The flat folder with an image more."""
    shutil.copytree(flat[0], tmp_path / "grown")
    Image.effect_noise((24, 24), 50).save(tmp_path / "grown" / CLASS / "new.png")
    return tmp_path / "grown"


def meta_of(workdir: Path, **config: object) -> Meta:
    """What its checkpoint says, but for keys of its configuration ('data__dir' for 'data.dir')."""
    meta = load_model(workdir).meta
    keys = {name.replace("__", "."): value for name, value in config.items()}
    return dataclasses.replace(meta, config=meta.config | keys)


def test_a_flat_folder_is_split_as_the_run_split_it(flat, tmp_path):
    """Wherever it lies."""
    shutil.copytree(flat[0], tmp_path / "elsewhere")
    model = load_model(flat[1])
    source = open_like(model.meta, str(tmp_path / "elsewhere"), "fail")
    told = evaluate.evaluate(model, source, "test", 8).values()
    (expected,) = (line for line in read_metrics(flat[1]) if line["kind"] == "test")
    assert told["count"] == 12
    assert {key: expected[key] for key in told} == told
    # Leaving out more than the run did makes no other data of them.
    assert len(open_like(model.meta, str(flat[0]), "fail", drop_leaks=True).splits["test"]) == 12


@pytest.mark.parametrize("split", ["test", "val", "train"])
def test_a_split_drawn_of_other_images_than_the_runs_is_refused(flat, grown, split):
    """One image more or less and the draw takes others, most of which the run trained on."""
    meta, told = meta_of(flat[1]), f"{grown}: not the images that the run was given .*the {split} split drawn"
    with pytest.raises(InputError, match=told):
        open_like(meta, str(grown), "fail", split=split)
    whole = choose(open_like(meta, str(grown), "fail", split="all"), "all")
    assert len(whole) == 41
    (grown / CLASS / "new.png").unlink()
    assert len(open_like(meta, str(grown), "fail", split=split).splits["test"]) == 12
    min((grown / CLASS).iterdir()).write_bytes(b"")
    with pytest.raises(InputError, match=told):
        open_like(meta, str(grown), "skip", split=split)


def test_a_fold_is_tested_on_the_runs_own_images(flat):
    options = {"folds": 4, "val_fraction": 0.25, "split_seed": 5}
    for fold in range(2):
        source = open_source("folder", str(flat[0]), fold=fold, **options)
        meta = meta_of(flat[1], data__folds=4, data__fold=fold, data__val_fraction=0.25)
        found = open_like(dataclasses.replace(meta, fingerprint=source.fingerprint), str(flat[0]), "fail")
        assert found.splits["test"].ids == source.splits["test"].ids


def test_training_images_of_a_few_a_class_are_drawn_too(run):
    """Where the data bring a test split the rest of them is in none."""
    meta = meta_of(run[1], data__per_class=3, data__val_fraction=0.0)
    with pytest.raises(InputError, match="the train split drawn"):
        open_like(meta, str(run[0]), "fail", split="train")
    assert len(open_like(meta, str(run[0]), "fail").splits["test"]) == 20


def test_weights_of_no_run_are_scored_on_any_draw(flat, grown):
    converted = dataclasses.replace(meta_of(flat[1]), config={}, fingerprint="")
    assert len(open_like(converted, str(grown), "fail").splits["test"]) == 8


def test_a_run_over_arrays_is_shown_them_as_it_saw_them(run, tmp_path, monkeypatch):
    """Where its keys resize the file's images; whatever the file is called."""
    file = tiny_arrays(tmp_path).rename(tmp_path / "set.arrays")
    model = load_model(run[1])
    of_arrays = meta_of(run[1], data__source="arrays", data__image_size=16)
    larger = dataclasses.replace(of_arrays, image_size=20, fingerprint="")
    crop = dataclasses.replace(model.crop, image_size=20, resize_shorter=1.25)
    seen = []
    monkeypatch.setattr(evaluate, "evaluate", lambda *given: seen.append(given) or sys.exit())
    monkeypatch.setattr(sys, "argv", ["evaluate", f"--checkpoint={run[1]}", f"--data={file}"])

    def shown(meta: Meta) -> tuple[float, int]:
        """(resize_shorter, pixels a side of the file's images) as they go to the evaluation."""
        own = dataclasses.replace(model, meta=meta, crop=crop)
        monkeypatch.setattr("resnet.study.inference.load_model", lambda _: own)
        with pytest.raises(SystemExit):
            evaluate.main()
        shown, source, *_ = seen.pop()
        return shown.crop.resize_shorter, source.splits["test"].pixels.shape[1]

    assert shown(larger) == (1.25, 16)
    # What ran on a folder, or on images that an ablation had decoded, takes them as they are.
    assert shown(dataclasses.replace(larger, config={}, image_size=16)) == (1.0, 16)
    assert shown(dataclasses.replace(larger, progress={"variant": "plain"}, image_size=16)) == (1.0, 16)
    with pytest.raises(InputError, match=r"holds images of 16 px; the checkpoint is of another size, not of 16$"):
        open_like(dataclasses.replace(larger, config={}), str(file), "fail")
    with pytest.raises(
        InputError, match=r"give --data a folder of images, tfds:NAME or a file that write_arrays wrote$"
    ):
        open_like(larger, __file__, "fail")


def test_an_unknown_class_is_a_plainer_word_than_other_images(flat, grown):
    shutil.copytree(flat[0] / CLASS, grown / "orchid")
    with pytest.raises(InputError, match="class 'orchid'"):
        open_like(meta_of(flat[1]), str(grown), "fail")


def test_where_a_tfds_dataset_lies(run, monkeypatch):
    """As told, else as the run had the same dataset, else tfds' own place."""
    asked, source = [], open_source("folder", str(run[0]))
    monkeypatch.setattr(evaluate_data, "open_source", lambda name, place, **rest: asked.append((name, place)) or source)
    meta = dataclasses.replace(meta_of(run[1], data__source="tfds:birds", data__dir="/birds"), fingerprint="")
    open_like(meta, "tfds:birds", "fail")
    open_like(meta, "tfds:birds", "fail", data_dir="/mine")
    open_like(meta, "tfds:fish", "fail")
    assert asked == [("tfds:birds", "/birds"), ("tfds:birds", "/mine"), ("tfds:fish", "")]


def test_classes_that_the_run_left_out_are_left_out_again(run, tmp_path):
    meta = meta_of(run[1], data__exclude=[CLASS])
    assert CLASS not in open_like(meta, str(run[0]), "fail").class_names
    # Other data need not have them.
    shutil.copytree(run[0], tmp_path / "data")
    for split in ("train", "test"):
        shutil.rmtree(tmp_path / "data" / split / CLASS)
    assert len(open_like(meta, str(tmp_path / "data"), "fail").class_names) == 4


def test_folders_called_by_wordnet_ids_are_imagenets_classes(run):
    """For weights that answer with ImageNet's names, and for no others."""
    meta, source = meta_of(run[1]), open_source("folder", str(run[0]))
    names = tuple(name for _, name in classes.imagenet())
    ids = ("n01440764", "n01443537", "n03788365", "n15075141", "toilet tissue")
    called = dataclasses.replace(source, class_names=ids)
    with pytest.raises(InputError, match="class 'n01440764' of the data is not one of the checkpoint's"):
        with_labels_of(meta, called, source.splits["test"])
    imagenet = dataclasses.replace(meta, class_names=names)
    split = with_labels_of(imagenet, called, source.splits["test"])
    places = [0, 1, names.index("mosquito net"), 999, 999]
    assert split.labels.tolist() == [places[label] for label in source.splits["test"].labels]


def test_folders_called_by_numbers_are_imagenets_classes_where_all_thousand_are_there(run):
    """As ImageNet-V2's are, sorted as texts; for weights and for runs on ImageNet's folders."""
    meta, source = meta_of(run[1]), open_source("folder", str(run[0]))
    numbers = tuple(sorted(map(str, range(1000))))
    called = dataclasses.replace(source, class_names=numbers)
    for names in zip(*classes.imagenet(), strict=True):
        found = places_of(dataclasses.replace(meta, class_names=names), called)
        assert found.tolist() == [int(number) for number in numbers]
        digits = dataclasses.replace(source, class_names=numbers[:10])
        with pytest.raises(InputError, match="class '0' of the data is not one of the checkpoint's"):
            places_of(dataclasses.replace(meta, class_names=names), digits)
    with pytest.raises(InputError, match="class '0' of the data"):
        places_of(meta, called)
