"""Streamed crops beside Pillow's."""

import pytest

from benchmarks import crop_agreement
from input_pipeline.errors import InputError
from tests.input_pipeline.test_cuts import encoded, landscape


def test_crops_are_compared_with_pillows_and_those_decoded_small_apart(tmp_path, capsys):
    (tmp_path / "hill").mkdir()
    for number in range(3):
        (tmp_path / "hill" / f"{number}.jpg").write_bytes(encoded(landscape(130, 170, number)))
    crop_agreement.main([str(tmp_path), "--sizes=64,16"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("  64 px  ours, decoded at 1/1 ")
    assert lines[0].endswith("max 1  more than 1: 0.0%")
    named = {line[7:].split("   ")[0].strip() for line in lines[1:]}
    assert named >= {"ours, decoded smaller", "Pillow's draft and resize"}


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no JPEG files"):
        crop_agreement.main([str(tmp_path)])
