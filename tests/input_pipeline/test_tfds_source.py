"""On a tiny dataset that tfds itself writes to disk: its mock of data sources knows neither splits nor files."""

import io
import re
import shlex
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from input_pipeline.errors import InputError
from input_pipeline.tfds_source import find_examples

tfds = pytest.importorskip("tensorflow_datasets")


def picture(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8 + i, 9, 3), 9 * i, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


class _Pictures(tfds.core.GeneratorBasedBuilder):
    """Classes in an unsorted order; one split of 12 examples, one of 4, and a third without labels."""

    VERSION = tfds.core.Version("1.0.0")
    SKIP_REGISTERING = True
    SPLITS = (("train", 12, True), ("validation", 4, True), ("test", 3, False))
    name = "tiny_pictures"

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["zebra", "ant", "background"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(count, labelled) for name, count, labelled in self.SPLITS}

    def _generate_examples(self, count, labelled):
        for i in range(count):
            yield i, {"image": io.BytesIO(picture(i)), "label": i % 3 if labelled else -1}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tfds")
    _Pictures(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


def test_images_stay_encoded_and_labels_are_those_of_sorted_names(prepared):
    listing = find_examples("tiny_pictures", prepared)
    assert listing.class_names == ("ant", "background", "zebra")
    assert listing.ids[:2] == ("tfds:tiny_pictures/train#0", "tfds:tiny_pictures/train#1")
    assert listing.paths is None
    label_of = dict(listing.examine(i) for i in range(12))
    assert label_of == {picture(i): (2, 0, 1)[i % 3] for i in range(12)}


def test_validation_stands_in_for_a_test_split_without_labels(prepared):
    listing = find_examples("tiny_pictures", prepared)
    assert listing.split_names == ("train",) * 12 + ("test",) * 4
    assert listing.ids[12] == "tfds:tiny_pictures/validation#0"


def test_examples_are_read_by_many_threads(prepared):
    listing = find_examples("tiny_pictures:1.0.0", prepared)
    alone = [listing.examine(i) for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(listing.examine, list(range(16)) * 20)) == alone * 20


def test_classes_are_excluded(prepared):
    listing = find_examples("tiny_pictures", prepared, ("background",))
    assert listing.class_names == ("ant", "zebra")
    assert sorted(listing.examine(i)[1] for i in range(len(listing.ids))) == [0] * 5 + [1] * 6
    with pytest.raises(InputError, match="no class 'cat' to exclude"):
        find_examples("tiny_pictures", prepared, ("cat",))


def test_the_stamp_follows_the_files(prepared):
    stamp = find_examples("tiny_pictures", prepared).stamp
    assert stamp == find_examples("tiny_pictures", prepared).stamp
    next(Path(prepared).rglob("*train*")).touch()
    assert stamp != find_examples("tiny_pictures", prepared).stamp


def test_what_tfds_does_not_know_is_named(tmp_path):
    with pytest.raises(InputError, match="tfds:no_such_thing': unknown to tfds"):
        find_examples("no_such_thing", str(tmp_path))
    with pytest.raises(InputError, match=r"cannot be loaded at version 99\.0\.0"):
        find_examples("caltech101:99.0.0", str(tmp_path))


def test_the_command_that_prepares_a_dataset_is_said(tmp_path):
    """One that runs here, as it is typed: tfds' own command wants a package that we do not have."""
    with pytest.raises(InputError, match=r"prepare it with: \./run\.sh python -c ") as refused:
        find_examples("tf_flowers", str(tmp_path))
    (program,) = shlex.split(str(refused.value).partition("python -c ")[2])
    asked = {}
    tfds_seen = types.SimpleNamespace(builder=lambda name, **how: asked.update(name=name, **how) or mock.Mock())
    with mock.patch.dict(sys.modules, tensorflow_datasets=tfds_seen):
        exec(program, {})
    assert asked == {"name": "tf_flowers", "data_dir": str(tmp_path), "file_format": "array_record"}


def test_a_format_without_random_access_says_what_to_remove(tmp_path):
    _Pictures(data_dir=tmp_path).download_and_prepare()
    folder = tmp_path / "tiny_pictures" / "1.0.0"
    with pytest.raises(
        InputError, match=rf"without random access; remove {re.escape(str(folder))}, and prepare it with: "
    ):
        find_examples("tiny_pictures", str(tmp_path))


def test_what_is_no_image_classification_is_refused(tmp_path):
    class _Sentences(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        SKIP_REGISTERING = True
        name = "tiny_sentences"

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()})
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"text": "hello"}

    _Sentences(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(InputError, match="is not an image classification dataset: it has text"):
        find_examples("tiny_sentences", str(tmp_path))
