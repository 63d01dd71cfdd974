"""Weights files made to do harm, that need nothing but the file: each is refused before it does, in words."""

import json
import zipfile

import h5py
import pytest

from input_pipeline.errors import InputError
from resnet.weights import formats
from resnet.weights.torch_files import check_zip


def test_an_hdf5_file_of_chunks_that_swell_is_refused(tmp_path):
    """One number of a chunk that unpacks to 1 GB: the file has 9 kB."""
    with h5py.File(tmp_path / "w.h5", "w") as file:
        group = file.create_group("conv1_conv")
        group.create_dataset("kernel", (4,), "f4", maxshape=(None,), chunks=(1 << 28,), compression="gzip")
    with pytest.raises(InputError, match="claims more data"):
        formats.read(tmp_path / "w.h5")


def test_an_hdf5_file_of_texts_is_refused(tmp_path):
    """Of variable length: a thousand of them may lie in one place."""
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_group("conv1_conv")["kernel"] = ["a" * 1000] * 3
    with pytest.raises(InputError, match="holds no numbers"):
        formats.read(tmp_path / "w.h5")


def test_an_archive_that_lies_of_its_compressed_size_may_not_swell(tmp_path):
    path = tmp_path / "w.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(10_000_000))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02") + 20
    data[at : at + 4] = (5_000_000).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match="would expand"):
        formats.read(path)


def test_a_torch_file_whose_members_lie_upon_each_other_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("archive/data/0", "archive/data/1"):
            archive.writestr(name, bytes(5000))
    data = bytearray(path.read_bytes())
    first, second = (at for at in range(len(data)) if data[at : at + 4] == b"PK\x01\x02")
    # The second is the first once more, and the local header that nobody leads to any more goes.
    data[second + 42 : second + 46], data[second + 46 : second + 60] = data[first + 42 : first + 46], b"archive/data/0"
    start = data.index(b"PK\x03\x04", 4)
    end = data.rindex(b"PK\x05\x06")
    data[end + 16 : end + 20] = start.to_bytes(4, "little")
    path.write_bytes(data[:start] + data[first:])
    with pytest.raises(InputError, match="claim more data than the file has"):
        check_zip(path)


@pytest.mark.parametrize("shape", [[1] * 100, [10**4000, 0]])
def test_a_safetensors_shape_that_no_array_has_is_refused(tmp_path, shape):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(InputError, match="header cannot be read"):
        formats.read(tmp_path / "w")
