"""How a test has its programs compiled where the way of all tests (conftest.py) does not do."""

import functools

import jax
import pytest

from resnet.model.network import ResNet

# With XLA's emitters of fused loops, as commands have them. Two programs that compute the same are rounded alike more
# often so: bit for bit where a step stands in a loop and where it does not; and networks with ReLU, whose gradients
# jump where a value next to 0 falls on its other side, by two ways.
FUSED = {"xla_cpu_use_fusion_emitters": True}


def convolve_by_lax(patch: pytest.MonkeyPatch) -> None:
    """Have runs of this process take lax' own convolution: programs that take a quarter of the time to compile."""
    from resnet.train import plan

    patch.setattr(plan, "ResNet", functools.partial(ResNet, backend=jax.lax.conv_general_dilated))
