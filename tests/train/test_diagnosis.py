"""A run that diverges says in which step, on which examples, in which layer; debug shows it again, and only shows."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from input_pipeline.augment import Augmentation
from input_pipeline.contract import CONTRACTS
from input_pipeline.errors import InputError
from resnet.model import onednn_library
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from resnet.train import loop
from resnet.train.diagnosis import FILE, Diverged, examine, first_bad
from resnet.train.state import create_state
from resnet.train.steps import Recipe, accumulate, sum_names
from tests.networks import fresh_variables
from tests.tiny import tiny_config, tiny_data

TINY = ResNetSpec(block="basic", stage_sizes=(1, 1), width=8, stem="cifar", num_classes=4, dropout=0.2)
NETWORK = ResNet(TINY, backend=jax.lax.conv_general_dilated)
STEP = 7


pytestmark = pytest.mark.usefixtures("bare")


def recipe(parts: int = 1) -> Recipe:
    return Recipe(seed=3, contract=CONTRACTS["torch"], augmentation=Augmentation(mixup=0.4), accumulation=parts)


def batch(size: int = 8) -> dict[str, jax.Array]:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (8, size, size, 3)).astype(np.uint8)
    rows = {"image": image, "label": np.arange(8) % 4, "mask": np.ones(8, np.float32), "index": np.arange(8)}
    return jax.tree.map(jnp.asarray, rows)


def state(layer: str = "", factor: float = 1.0):
    """A fresh state; the kernel of `layer` (a path) is multiplied by `factor`."""
    variables = jax.tree.map(jnp.asarray, fresh_variables(TINY))
    place = variables["params"]
    for name in layer.split("/") if layer else []:
        place = place[name]
    if layer:
        place["kernel"] = place["kernel"] * factor
    return create_state(variables, optax.sgd(0.1), ema=False, sum_names=sum_names(4))


@pytest.mark.parametrize("parts", [1, 2])
def test_it_is_the_very_step_that_is_done_again(parts):
    """The norm is that of the step's own gradient: the same augmentation, dropout and parts."""
    readings = examine(NETWORK, recipe(parts), state(), batch(), STEP)
    assert first_bad(readings) is None
    key = jax.random.fold_in(jax.random.key(3), STEP)
    total, weight, *_ = jax.jit(lambda s, b: accumulate(NETWORK, recipe(parts), s, b, key))(state(), batch())
    assert readings[-1].kind == "norm"
    assert readings[-1].mean == pytest.approx(float(optax.tree.norm(total) / weight), rel=1e-5)
    outputs = [reading.name for reading in readings if reading.kind == "output"]
    assert (outputs[:3], outputs[-2:]) == (["images", "conv1", "bn1"], ["fc", "logits"])
    assert outputs.index("layer1_0/conv1") < outputs.index("layer1_0") < outputs.index("layer2_0/conv1")
    gradients = [reading.name for reading in readings if reading.kind == "gradient"]
    assert {gradients[0], gradients[1]} == {"fc/bias", "fc/kernel"}
    assert gradients[-1] == "conv1/kernel"


@pytest.mark.skipif(bool(onednn_library.missing()), reason=f"no oneDNN: {onednn_library.missing()}")
def test_each_layer_is_looked_at_where_oneDNN_computes_them_together():
    network = ResNet(TINY)
    given = jnp.zeros((8, 32, 32, 3))
    rngs = {"dropout": jax.random.key(0)}
    step = jax.make_jaxpr(lambda v: network.apply(v, given, train=True, mutable=["batch_stats"], rngs=rngs))
    assert "convolution_trained" in str(step(fresh_variables(TINY)))
    found = first_bad(examine(network, recipe(), state("layer2_0/conv1", 3e38), batch(32), STEP))
    assert (found.kind, found.name) == ("output", "layer2_0/conv1")


@pytest.mark.parametrize(
    ("layer", "factor", "kind", "name"),
    [
        ("conv1", 3e38, "output", "conv1"),
        ("layer1_0/conv2", 3e38, "output", "layer1_0/conv2"),
        ("fc", np.inf, "output", "fc"),
        # Every gradient is finite, the sum of their squares is not.
        ("fc", 3e38, "norm", "gradient"),
    ],
)
def test_the_layer_where_it_overflows_is_named(layer, factor, kind, name):
    found = first_bad(examine(NETWORK, recipe(), state(layer, factor), batch(), STEP))
    assert (found.kind, found.name) == (kind, name)
    assert 0 < found.bad <= found.size


def test_statistics_that_overflow_behind_finite_outputs_are_named():
    """The variance is infinite and normalises to zeros: every output is finite (see test_steps)."""
    found = first_bad(examine(NETWORK, recipe(), state("conv1", 1e19), batch(), STEP))
    assert found.kind in ("gradient", "statistics")
    assert found.name in ("conv1/kernel", "bn1/var")


def snapshot(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_diverges_says_where_and_debug_shows_it(tmp_path, capsys):
    config = tiny_config(tiny_data(tmp_path))
    config.optim.lr, config.optim.schedule, config.run.max_bad_steps, config.run.steps = 1e30, "constant", 3, 12
    config.run.eval_every = 100.0
    run = tmp_path / "run"
    config.run.debug = True
    with pytest.raises(InputError, match="holds none"):
        loop.train(config, run)
    config.run.debug = False
    with pytest.raises(Diverged) as raised:
        loop.train(config, run)
    message = str(raised.value)
    assert "\n" not in message
    told = json.loads((run / FILE).read_text())
    assert f"steps {told['first_step']} to {told['first_step'] + 2} had" in message
    assert told["last_step"] == told["first_step"] + 2
    assert len(told["examples"]) == config.data.batch_size
    assert told["examples"][0] in message
    cause = next(reading for reading in told["readings"] if reading["bad"])
    assert cause["name"] in message
    source = loop.open_data(config)
    order = loop.make_plan(config, source).order
    fed = [source.splits["train"].paths[i] for i in order.indices(told["first_step"] - 1)]
    assert told["examples"] == fed
    before = snapshot(run)
    capsys.readouterr()
    config.run.debug = True
    assert loop.train(config, run) == 0
    shown = capsys.readouterr().out
    assert snapshot(run) == before
    # The last checkpoint lies in the midst of the row of bad steps: its parameters are those that the first began with.
    assert int(re.search(r"^Step (\d+) of", shown, re.MULTILINE)[1]) == told["first_step"]
    assert all(name in shown for name in fed)
    (marked,) = [line for line in shown.splitlines() if line.endswith("<- first")]
    assert marked.split()[:2] == [cause["kind"], cause["name"]]
    # From before the row, the run's own steps lead to it.
    for step in sorted((run / "checkpoints").iterdir()):
        if told["first_step"] <= int(step.name):
            shutil.rmtree(step)
    assert loop.train(config, run) == 0
    assert capsys.readouterr().out.endswith(shown[shown.index("Step ") :])
