"""A run that diverges says in which step, on which examples, in which layer; debug shows it again, and only shows."""

import json
import re
import shutil
import types

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
from resnet.train import diagnosis, loop
from resnet.train.advancing import norm_of
from resnet.train.checkpoints import Meta, save_converted
from resnet.train.configuration import make_spec
from resnet.train.diagnosis import FILE, Diverged, examine, first_bad
from resnet.train.state import create_state
from resnet.train.steps import Recipe, accumulate, sum_names
from tests.networks import by_name, fresh_variables, random_variables
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
    with pytest.raises(InputError, match="there is none in"):
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


def test_a_stage_is_looked_at_as_it_trains():
    """What rests runs as in evaluation, and of it neither a gradient nor a statistic is told."""
    network = NETWORK.clone(frozen=frozenset({"layer1_0", "bn1"}))
    learning = frozenset(name for name in by_name(fresh_variables(TINY)["params"]) if name.startswith(("layer2", "fc")))
    readings = examine(network, recipe(2), state(), batch(), STEP, learning=learning)
    assert {reading.name for reading in readings if reading.kind == "gradient"} == learning
    told = {reading.name for reading in readings if reading.kind == "statistics"}
    assert told
    assert all(name.startswith("layer2_0/") for name in told)
    key = jax.random.fold_in(jax.random.key(3), STEP)
    total, weight, *_ = jax.jit(lambda s, b: accumulate(network, recipe(2), s, b, key, learning=learning))(
        state(), batch()
    )
    assert readings[-1].mean == pytest.approx(float(optax.tree.norm(total) / weight), rel=1e-5)


def test_the_norm_is_that_of_the_summed_gradient_as_the_step_takes_it():
    """The sum's squares overflow, those of its mean over 8 images would not."""
    norm = examine(NETWORK, recipe(), state("fc", 1e10), batch(), STEP)[-1].mean
    # The gradient grows with the last kernel; half the least sum that overflows is a quarter of the mean that does.
    factor = 1e10 * 2 * np.sqrt(np.finfo(np.float32).max) / (8 * norm)
    readings = examine(NETWORK, recipe(), state("fc", factor), batch(), STEP)
    assert first_bad(readings) is readings[-1]
    key = jax.random.fold_in(jax.random.key(3), STEP)
    total, *_ = jax.jit(lambda s, b: accumulate(NETWORK, recipe(), s, b, key))(state("fc", factor), batch())
    assert np.isinf(norm_of(total))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "converted"
    spec = make_spec(tiny_config(folder), 3)
    save_converted(folder, random_variables(spec), Meta(spec, ("x", "y", "z"), CONTRACTS["caffe"], 16, 1.0))
    return folder


def staged_config(data, weights, bn: str, steps_per_call: int):
    """Its last stage joins before step 5 (of 3.75 an epoch) and leaps so far that step 6 is the first that is bad."""
    config = tiny_config(data)
    config.transfer.mode, config.transfer.weights, config.transfer.bn = "finetune", str(weights), bn
    config.transfer.unfreeze, config.transfer.lr_multipliers = ("layer2@1",), ("^layer2.*conv=1e35",)
    config.run.max_bad_steps, config.run.steps, config.run.steps_per_call = 2, 12, steps_per_call
    config.run.eval_every, config.run.log_every = 100.0, 100
    # Before its third step the one, never the other.
    config.run.checkpoint_every = 3 / 3.75 if bn == "frozen" else 100.0
    return config


@pytest.mark.parametrize(("bn", "steps_per_call"), [("frozen", 1), ("recalibrate", 4)])
def test_a_replay_takes_the_runs_own_steps(bn, steps_per_call, weights, tmp_path, monkeypatch, capsys):
    """Over a stage's beginning, from recalibrated statistics, in calls of several steps: to the same bits."""
    config, run = staged_config(tiny_data(tmp_path), weights, bn, steps_per_call), tmp_path / "run"
    looked_at = []
    look = diagnosis.examine

    def noted(network, recipe, state, batch, step, *, learning):
        arrays = jax.device_get({"params": state.params, "statistics": state.batch_stats, "batch": batch})
        looked_at.append((step, network.frozen, learning, arrays))
        return look(network, recipe, state, batch, step, learning=learning)

    monkeypatch.setattr(diagnosis, "examine", noted)
    with pytest.raises(Diverged, match="steps 6 to 7 had"):
        loop.train(config, run)
    for step in (run / "checkpoints").iterdir():
        if int(step.name) > 3:
            shutil.rmtree(step)
    before = snapshot(run)
    capsys.readouterr()
    config.run.debug = True
    assert loop.train(config, run) == 0
    told = capsys.readouterr()
    assert f"Step 6 of {run}" in told.out
    assert ("Resuming from step 3" in told.out) == (bn == "frozen")
    assert "layer2" in told.err
    assert snapshot(run) == before
    (step, frozen, learning, arrays), (*again, arrays_again) = looked_at
    assert [step, frozen, learning] == again
    assert step == 5
    assert any(name.startswith("layer2") for name in learning)
    assert "layer1_0" in frozen
    jax.tree.map(np.testing.assert_array_equal, arrays, arrays_again)


@pytest.mark.parametrize("since_best", [1, 2])
def test_a_replay_ends_where_the_run_stopped_early(since_best):
    """Patience 2: the step behind the end of a run that stopped early is none of its."""
    done = types.SimpleNamespace(last=9)
    run = types.SimpleNamespace(
        plan=types.SimpleNamespace(total_steps=9, steps_per_epoch=3.0, batch_size=4),
        config=types.SimpleNamespace(run=types.SimpleNamespace(early_stopping=2)),
        progress=types.SimpleNamespace(since_best=since_best),
        interruption=types.SimpleNamespace(requested=False),
        dispatch_at=lambda step: done,
        staged=lambda step, state: state,
        call=lambda dispatch, state: (state, {"bad_steps": np.ones(1, np.int32), "loss": np.full(1, np.nan)}),
    )
    run.stopped_early = lambda: loop.Run.stopped_early(run)
    state = types.SimpleNamespace(bad_steps=jnp.zeros((), jnp.int32))
    found, _ = diagnosis.first_bad_step(run, 8, state)
    assert found == (9 if since_best == 1 else None)
