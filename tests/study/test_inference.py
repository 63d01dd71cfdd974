"""What a model is made of, and what a GPU's programs are compiled with, as far as a CPU can tell."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.contract import CONTRACTS
from input_pipeline.errors import InputError
from resnet.model.network import ResNet, evaluate
from resnet.model.spec import ResNetSpec
from resnet.study.inference import LaidOut, load_model, ready
from resnet.train import parallel, pretrained
from resnet.train.checkpoints import Meta, save_converted
from tests.networks import random_variables

SPEC = ResNetSpec(stage_sizes=(1,), width=8, num_classes=3)


def logits(variables, images):
    return evaluate(ResNet(SPEC), variables, images.astype(jnp.float32) / 255)


def test_variables_laid_out_for_the_program_give_the_same_answers():
    variables, images = random_variables(SPEC), np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    asked, plain = LaidOut(logits, variables), ready(logits, variables)
    for batch in (images, images[:2], images[:2]):
        np.testing.assert_allclose(asked(batch), plain(batch), rtol=1e-5)
    assert len(asked.programs) == 2


def test_weights_without_a_head_are_for_transfer_alone(tmp_path):
    variables = random_variables(dataclasses.replace(SPEC, num_classes=1))
    spec, contract = dataclasses.replace(SPEC, num_classes=1), CONTRACTS["torch"]
    meta = Meta(spec, ("(no head)",), contract, image_size=32, resize_shorter=1.0, progress={"head": "none"})
    save_converted(tmp_path / "headless", variables, meta)
    told = f"{tmp_path / 'headless'}: a network without a head .*--config.transfer.weights={tmp_path / 'headless'}"
    with pytest.raises(InputError, match=told):
        load_model(tmp_path / "headless")
    taken, found, _ = pretrained.read(str(tmp_path / "headless"))
    assert found == meta
    assert taken["params"].keys() == variables["params"].keys()


def test_convolutions_stay_out_of_cuda_graphs(monkeypatch):
    """In them, commands whose programs came from the compilation cache failed (H200, 2026-11-28)."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not parallel.compiler_options()
