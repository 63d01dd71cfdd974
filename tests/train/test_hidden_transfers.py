"""Under the loop's transfer guard a run copies nothing from the device unasked: a GPU refuses it, a CPU does not look.

JAX' guard passes over arrays whose memory NumPy can share, as all of a CPU are. Here it looks at these as well.
"""

from functools import partial

import jax
import numpy as np
import pytest
from jax._src.array import ArrayImpl
from jax._src.lib import guard_lib

from resnet.train.loop import train
from tests.tiny import tiny_arrays, tiny_config

pytestmark = pytest.mark.usefixtures("bare")
DISALLOWED = (guard_lib.TransferGuardLevel.DISALLOW, guard_lib.TransferGuardLevel.DISALLOW_EXPLICIT)


def guarded_numpy(look, function, given, *arguments, **options):
    if isinstance(given, jax.Array):
        look()
    return function(given, *arguments, **options)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Copies to the host go through JAX' guard, as they do on a GPU."""

    def look() -> None:
        state = guard_lib.thread_local_state()
        if state.device_to_host in DISALLOWED and not state.explicit_device_get:
            raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Disallowed device-to-host transfer")

    value, copy = ArrayImpl._value.fget, ArrayImpl.copy_to_host_async

    def guarded_value(self):
        look()
        return value(self)

    def guarded_copy(self):
        look()
        return copy(self)

    monkeypatch.setattr(ArrayImpl, "_value", property(guarded_value))
    monkeypatch.setattr(ArrayImpl, "copy_to_host_async", guarded_copy)
    # Of a CPU's arrays NumPy reads the memory itself, without asking them.
    for name in ("asarray", "array"):
        monkeypatch.setattr(np, name, partial(guarded_numpy, look, getattr(np, name)))


def test_the_fixture_refuses_what_a_gpu_refuses(as_on_a_gpu):
    array = jax.device_put(np.ones(3))
    with jax.transfer_guard("disallow"):
        jax.device_get(array)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed"):
            np.asarray(array)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed"):
            array.copy_to_host_async()
        with jax.transfer_guard_device_to_host("allow"):
            float(jax.device_put(np.float32(1)))


def test_a_run_with_all_its_parts(as_on_a_gpu, tmp_path):
    config = tiny_config(tiny_arrays(tmp_path))
    config.data.source, config.data.crop = "arrays", "none"
    assert train(config, tmp_path / "run") == 0
