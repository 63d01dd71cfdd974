"""What a GPU's programs are compiled with, as far as a CPU can tell."""

import jax
import jax.numpy as jnp
import numpy as np

from resnet.model.network import ResNet, evaluate
from resnet.model.spec import ResNetSpec
from resnet.study.inference import LaidOut, ready
from resnet.train import parallel
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


def test_a_compiler_takes_the_options_for_a_gpu(monkeypatch):
    """Every backend reads them, and refuses a name that it does not know."""
    assert parallel.compiler_options() is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    options = parallel.compiler_options()
    monkeypatch.undo()
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1.0) == 2.0
