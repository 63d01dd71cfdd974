"""Groups of batch norm in a step: the same in any number of parts and over any number of devices, and nothing sent."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet.model.network import ResNet
from resnet.train import parallel
from resnet.train.steps import accumulate, split_parts
from tests.commands import with_eight_devices
from tests.networks import by_name, random_variables
from tests.train.test_steps import LAX, ROOT, TINY, batch_of, recipe, state_for

ROWS, GROUP = 16, 2
GROUPED = dataclasses.replace(TINY, ghost_batch_size=GROUP)
CROSSING = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def accumulated(
    spec, parts: int, batch: dict, frozen: frozenset[str] = frozenset(), mesh=None
) -> dict[str, np.ndarray]:
    """Gradient, running statistics and sums of one batch, by name; no random augmentation."""
    network = ResNet(spec, backend=LAX, frozen=frozen)
    state = state_for(spec, optax.identity())
    variables = jax.tree.map(jnp.asarray, random_variables(TINY))
    state = state.replace(params=variables["params"], batch_stats=variables["batch_stats"])
    if mesh is not None:
        state = jax.device_put(state, parallel.replicated(mesh))
        batch = next(parallel.put_batches([batch], mesh))
    run = jax.jit(lambda s, b: accumulate(network, recipe(accumulation=parts), s, b, jax.random.key(0)))
    total, weight, statistics, sums = jax.device_get(run(state, batch))
    gradient = jax.tree.map(lambda leaf: leaf / weight, total)
    return by_name({"gradient": gradient, "statistics": statistics, "sums": sums})


def same(got: dict, expected: dict) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def whole() -> dict[str, np.ndarray]:
    return accumulated(GROUPED, 1, batch_of(ROWS))


# Parts of one group each, and of two.
@pytest.mark.parametrize("parts", [ROWS // GROUP, ROWS // GROUP // 2])
def test_parts_give_the_gradient_and_the_statistics_of_a_whole_batch_in_groups(parts, whole):
    same(accumulated(GROUPED, parts, batch_of(ROWS)), whole)


def test_parts_without_groups_are_groups_of_the_rows_that_each_part_gets(whole):
    """Accumulation under `sync` deals rows out in turn: a whole batch in groups whose rows are put in that order."""
    batch = batch_of(ROWS)
    parts = ROWS // GROUP
    sync = accumulated(TINY, parts, batch)
    dealt = {
        name: rows.reshape(GROUP, parts, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)
        for name, rows in batch.items()
    }
    same(accumulated(GROUPED, 1, dealt), sync)
    # Other rows in a group, other statistics.
    assert np.abs(sync["statistics/bn1/mean"] - whole["statistics/bn1/mean"]).max() < 1e-5
    assert np.abs(sync["statistics/bn1/var"] - whole["statistics/bn1/var"]).max() > 1e-5


def test_rows_are_dealt_out_in_whole_groups():
    rows = {"index": np.arange(12)}
    assert split_parts(rows, 3, TINY)["index"].tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert split_parts(rows, 3, GROUPED)["index"].tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


def test_what_is_frozen_keeps_its_statistics_bit_for_bit_in_parts_too():
    """Three parts: a third of three times a number is not always that number."""
    frozen = frozenset({"layer1_0", "bn1"})
    before = by_name({"statistics": random_variables(TINY)["batch_stats"]})
    after = accumulated(GROUPED, 3, batch_of(12), frozen)
    resting = [name for name in before if name.split("/")[1] in frozen]
    assert resting
    for name in before:
        assert np.array_equal(after[name], np.asarray(before[name])) == (name in resting), name


def crossings(spec) -> int:
    """Messages between devices in a forward and backward pass up to the images, of a batch divided over all."""
    mesh = parallel.make_mesh()
    network, variables = ResNet(spec, backend=LAX), random_variables(TINY)

    def by_image(images):
        score = lambda x: network.apply(variables, x, train=True, mutable=["batch_stats"])[0][:, 0].sum()  # noqa: E731
        return jax.grad(score)(images)

    images = jax.ShapeDtypeStruct((ROWS, 8, 8, 3), np.float32, sharding=parallel.split_rows(mesh))
    text = jax.jit(by_image, out_shardings=parallel.split_rows(mesh)).lower(images).compile().as_text()
    return len(CROSSING.findall(text))


def on_eight_devices(file: str) -> None:
    mesh = parallel.make_mesh()
    assert mesh.size == 8
    # Groups that lie on one device; on two each; in parts whose rows have to travel.
    wide = dataclasses.replace(TINY, ghost_batch_size=4)
    batch = batch_of(ROWS)
    results = {
        "1": accumulated(GROUPED, 1, batch, mesh=mesh),
        "2": accumulated(wide, 1, batch, mesh=mesh),
        "8": accumulated(GROUPED, 8, batch, mesh=mesh),
    }
    sent = {"groups": crossings(GROUPED), "sync": crossings(TINY)}
    np.savez(file, **{f"{key}:{name}": value for key, found in results.items() for name, value in found.items()})
    print(json.dumps(sent))


def test_eight_devices_compute_what_one_does_and_send_nothing_for_groups_of_their_own(whole, tmp_path):
    file = tmp_path / "eight.npz"
    code = "import sys; from tests.train.test_ghost_batches import on_eight_devices; on_eight_devices(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        cwd=ROOT,
        env=with_eight_devices(),
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    sent = json.loads(done.stdout.splitlines()[-1])
    assert sent["groups"] == 0
    assert sent["sync"] > 0
    found = dict(np.load(file))
    wide = accumulated(dataclasses.replace(TINY, ghost_batch_size=4), 1, batch_of(ROWS))
    for key, expected in (("1", whole), ("2", wide), ("8", whole)):
        same({name.partition(":")[2]: value for name, value in found.items() if name.startswith(f"{key}:")}, expected)
