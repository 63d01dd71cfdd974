"""The same run on 8 virtual devices as on one: loss, gradients, statistics, parameters; and what the devices send."""

import collections
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from resnet.model import convolution_forms, onednn_library
from resnet.train import loop
from tests.commands import run, with_eight_devices
from tests.train.test_resume import final_arrays, lines
from tests.train.virtual_devices import config_for, first_gradient, gradient_config, lamb_updates

# Sums in another order: float32 rounding, which 20 steps carry on.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


pytestmark = pytest.mark.usefixtures("bare")


@pytest.fixture(scope="module")
def eight(data, tmp_path_factory) -> tuple[Path, dict]:
    """(folder with a run per mesh and gradients, what their compiled steps send) of 8 virtual devices."""
    folder = tmp_path_factory.mktemp("eight")
    end = run("tests.train.virtual_devices", data, folder, environment=with_eight_devices())
    assert end.code == 0, end.err
    return folder, json.loads(end.out.splitlines()[-1])


@pytest.fixture(scope="module")
def one(data, tmp_path_factory) -> tuple[list[dict], list[np.ndarray]]:
    """(lines, arrays) of the same run on one device.

    With the convolutions of a process of several devices, without oneDNN and with weight gradients summed over the
    whole batch at once: others are rounded otherwise, and 20 steps make 1e-5 of it.
    """
    workdir = tmp_path_factory.mktemp("one") / "run"
    config = config_for(data, "data=-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution_forms, "_chunks", lambda images: 1)
        patch.setattr(onednn_library, "missing", lambda: "left out by this test")
        # What another test has traced would keep its own, and what is traced here would stay.
        jax.clear_caches()
        assert loop.train(config, workdir) == 0
    jax.clear_caches()
    return lines(workdir), final_arrays(config, workdir)


@pytest.mark.parametrize("mesh", ["data", "fsdp"])
def test_any_mesh_trains_as_one_device_does(mesh, data, eight, one):
    folder, _ = eight
    assert [line["step"] for line in one[0] if line["kind"] == "train"] == list(range(1, 21))
    for got, expected in zip(lines(folder / mesh), one[0], strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5), got["step"]
        # The last batches of 10 and 20 images, in 16, are uneven: each image is counted once all the same.
        assert got.get("count") == expected.get("count")
    # The checkpoint of 8 devices, divided or not, is read on one: parameters, statistics, optimizer state, averages.
    arrays = final_arrays(config_for(data, "data=-1"), folder / mesh)
    for got, expected in zip(arrays, one[1], strict=True):
        np.testing.assert_allclose(got, expected, **TOLERANCE)


def test_dividing_the_state_changes_nothing(data, eight):
    folder, _ = eight
    for got, expected in zip(lines(folder / "fsdp"), lines(folder / "data"), strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5), got["step"]
    arrays = [final_arrays(config_for(data, "data=-1"), folder / mesh) for mesh in ("fsdp", "data")]
    for got, expected in zip(*arrays, strict=True):
        np.testing.assert_allclose(got, expected, **TOLERANCE)


def test_a_probe_learns_the_same_head_on_a_divided_network(eight):
    folder, _ = eight
    assert [line["kind"] for line in lines(folder / "probe_data")][-1] == "test"
    for got, expected in zip(lines(folder / "probe_fsdp"), lines(folder / "probe_data"), strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5), got["step"]


def close(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Each array to 1e-5 of its own largest number: a sum that cancels is no more exact than its parts."""
    assert set(got) == set(expected)
    for name in got:
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-5 * scale + 1e-9, err_msg=name)


@pytest.mark.parametrize("name", ["data", "fsdp", "parts", "whole"])
def test_gradients_and_statistics_of_a_step_are_those_of_one_device(name, data, eight):
    config = gradient_config(data, name)
    config.run.mesh = "data=-1"
    expected = first_gradient(config)
    assert ("['statistics']['bn1']['mean']" in expected) == (name != "whole")
    close(dict(np.load(eight[0] / f"{name}.npz")), expected)


def test_lamb_takes_the_norms_of_whole_parameters_where_these_are_divided(eight):
    close(dict(np.load(eight[0] / "lamb.npz")), lamb_updates("data=-1"))


def test_accumulation_gives_the_gradient_of_the_larger_batch(eight):
    close(*(dict(np.load(eight[0] / f"{name}.npz")) for name in ("whole_in_parts", "whole")))


def layer(source: str) -> str:
    """'layer1_0/bn2' of an operation's path, '' for one that is of no BN layer's sums."""
    match = re.search(r"(?:(layer\d_\d+)/)?\w+\._(?:branch|stem)/(?:\w+\._norm/)?(bn\d)/reduce_sum", source)
    return "/".join(filter(None, match.groups())) if match else ""


def test_data_parallel_steps_send_each_gradient_once_and_sums_of_norms_and_no_activations(eight):
    """What the compiled step of 8 devices holds, by the operations' shapes and the layers they stem from.

    Forward: one all-reduce per BN layer, of its sums and sums of squares. Backward: the two sums that the gradient by a
    BN layer's input waits for are the gradients of its bias and scale, so that they are sent once, with whatever
    kernel's gradient is ready by then; the metric sums travel with others too. Nothing else is sent.
    """
    found = eight[1]["data"]
    sent, sizes = found["collectives"], {name: math.prod(shape) for name, shape in found["params"].items()}
    assert found["divided"] == []
    assert {each["kind"] for each in sent} == {"all-reduce"}
    channels = {name[2:-11].replace("']['", "/"): size for name, size in sizes.items() if name.endswith("['scale']")}
    assert len(channels) == 5

    forward = [each for each in sent if "/jvp(ResNet)/" in each["source"] and layer(each["source"])]
    assert {layer(each["source"]): each["shapes"] for each in forward} == {
        name: [[size], [size]] for name, size in channels.items()
    }
    assert len(forward) == len(channels)

    backward = [each["shapes"] for each in sent if each not in forward]
    assert len(backward) <= len(channels) + 1
    numbers = [math.prod(shape) for shapes in backward for shape in shapes]
    assert sorted(number for number in numbers if number > 1) == sorted(sizes.values())
    assert numbers.count(1) <= 8


def test_fsdp_gathers_each_divided_parameter_twice_and_no_activations(eight):
    """Forward and backward each gather a divided kernel where it is used (ZeRO, stage 3), and nothing else.

    Shapes are compared sorted: for the input's gradient a kernel has its channels exchanged before it is gathered.
    """
    found = eight[1]["fsdp"]
    divided = collections.Counter(tuple(sorted(found["params"][name])) for name in found["divided"])
    assert sum(divided.values()) == 4
    gathers = [each for each in found["collectives"] if each["kind"] == "all-gather"]
    assert collections.Counter(tuple(sorted(each["shapes"][0])) for each in gathers) == divided + divided
    assert {each["kind"] for each in found["collectives"]} <= {"all-gather", "all-reduce", "reduce-scatter"}
    sizes = {math.prod(shape) for shape in found["params"].values()}
    parts = {size // 4 for size in sizes}
    sums = [each for each in found["collectives"] if each["kind"] != "all-gather"]
    assert {math.prod(shape) for each in sums for shape in each["shapes"]} <= {1} | sizes | parts
