"""Plain blocks and the five orders against their formulas, written out: the same layers, in another order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.model.network import ResNet
from resnet.model.spec import CHOICES, ResNetSpec
from tests.networks import random_variables

LAX = jax.lax.conv_general_dilated
SPEC = ResNetSpec(block="basic", stage_sizes=(2,), width=4, stem="cifar", shortcut="A", num_classes=3)


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC"))


def block(variables, order: str):
    """layer1_1 as a function of its input: two convolutions f1, f2, norms b1, b2, ReLU r (He et al. 2016, Figure 4)."""
    params, statistics = (variables[name]["layer1_1"] for name in ("params", "batch_stats"))

    def norm(number):
        scale, moments = params[f"bn{number}"], statistics[f"bn{number}"]
        return lambda x: (x - moments["mean"]) / jnp.sqrt(moments["var"] + 1e-5) * scale["scale"] + scale["bias"]

    f1, f2 = (lambda x, n=n: convolve(x, params[f"conv{n}"]["kernel"]) for n in (1, 2))
    b1, b2, r = norm(1), norm(2), jax.nn.relu
    return {
        "plain": lambda x: r(b2(f2(r(b1(f1(x)))))),
        "original": lambda x: r(x + b2(f2(r(b1(f1(x)))))),
        "bn_after_addition": lambda x: r(b2(x + f2(r(b1(f1(x)))))),
        "relu_before_addition": lambda x: x + r(b2(f2(r(b1(f1(x)))))),
        "relu_only_preactivation": lambda x: x + b2(f2(r(b1(f1(r(x)))))),
        "full_preactivation": lambda x: x + f2(r(b2(f1(r(b1(x)))))),
    }[order]


@pytest.mark.parametrize("order", ["plain", *CHOICES["order"]])
def test_a_block_is_its_formula(order):
    changes = {"shortcut": "none"} if order == "plain" else {"order": order}
    spec = dataclasses.replace(SPEC, **changes)
    variables = random_variables(spec)
    images = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)

    @jax.jit
    def both(variables, images):
        _, features = ResNet(spec, backend=LAX).apply(variables, images, return_features=True)
        return features["layer1_1"], block(variables, order)(features["layer1_0"])

    computed, written = both(variables, images)
    np.testing.assert_allclose(computed, written, rtol=1e-4, atol=1e-5)
