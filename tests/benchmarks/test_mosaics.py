"""Photographs of full size out of small ones."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import mosaics
from input_pipeline.errors import InputError


def test_four_images_lie_two_by_two_all_of_one_size(tmp_path):
    folder = tmp_path / "flowers" / "rose"
    folder.mkdir(parents=True)
    for number, size in enumerate([(40, 30), (30, 40), (44, 32), (40, 30), (40, 30)]):
        Image.new("RGB", size, (50 * number, 0, 0)).save(folder / f"{number}.jpg")
    mosaics.main([str(tmp_path / "flowers"), str(tmp_path / "out")])
    # The fifth makes no four.
    (made,) = (tmp_path / "out" / "rose").iterdir()
    with Image.open(made) as image:
        assert image.size == (80, 60)
        reds = np.asarray(image)[15::30, 20::40, 0].ravel()
    assert len(set(np.round(reds / 50))) == 4


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a folder of classes"):
        mosaics.main([str(tmp_path), str(tmp_path / "out")])
