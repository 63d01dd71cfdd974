"""The published weights of ../shared, on real images: recognised, described and computed as torch does."""

import numpy as np
import pytest
from PIL import Image

from resnet.weights.classes import CIFAR10
from resnet.weights.compare import compare, first_difference
from resnet.weights.convert import convert
from tests.shared_data import shared

pytest.importorskip("torch", reason="torch is not installed; it reads these files")


@pytest.mark.parametrize(("name", "model"), [("resnet20-12fca82f.th", "cifar_resnet20")])
def test_cifar_resnet_agrees_with_torch_on_test_images(name: str, model: str) -> None:
    source = str(shared("weights") / name)
    meta = convert(source, model=model).meta
    assert meta.class_names == CIFAR10
    assert (meta.contract.name, meta.image_size, meta.resize_shorter) == ("torch", 32, 0.0)
    assert len(meta.progress["source_sha256"]) == 64
    files = sorted((shared("cifar10") / "test").rglob("*.png"))[::50][:200]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB"), np.float32) for file in files])
    images = ((pixels / 255 - meta.contract.mean) / meta.contract.std).astype(np.float32)
    errors = compare(source, model, images=images)
    assert first_difference(errors, 1e-4) is None, errors
