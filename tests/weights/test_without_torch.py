"""Weights go out and come in where torch is not installed: as safetensors."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from input_pipeline.contract import CONTRACTS
from input_pipeline.errors import InputError
from resnet.model.spec import ResNetSpec
from resnet.train.checkpoints import Meta, save_converted
from resnet.weights.convert import convert
from resnet.weights.export import export
from tests.networks import random_variables

SPEC = ResNetSpec(block="basic", stage_sizes=(1, 1), width=8, num_classes=3)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights, in a process that has no torch."""
    monkeypatch.setitem(sys.modules, "torch", None)
    meta = Meta(SPEC, ("a", "b", "c"), CONTRACTS["torch"], image_size=32, resize_shorter=1.0)
    save_converted(tmp_path / "in", random_variables(SPEC), meta)
    return tmp_path / "in"


def test_safetensors_go_out_and_come_in_again(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, "torchvision", tmp_path / "w.safetensors")
    back = convert(str(tmp_path / "w.safetensors"))
    assert back.meta.spec == SPEC
    jax.tree.map(np.testing.assert_array_equal, back.variables, random_variables(SPEC))
    tensors = load_file(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(tensors["fc.weight"].T, random_variables(SPEC)["params"]["fc"]["kernel"])
    counters = {name for name, tensor in tensors.items() if tensor.dtype == np.int64}
    variances = [name for name in tensors if name.endswith("running_var")]
    assert counters == {name.replace("running_var", "num_batches_tracked") for name in variances}
    assert all(tensor.dtype == np.float32 for name, tensor in tensors.items() if name not in counters)


def test_torchs_own_form_is_refused_and_the_other_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--out=.*w\.pth: .*torch, which is not installed; name it \.safetensors"):
        export(checkpoint, "torchvision", tmp_path / "w.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
