"""The step's benchmark: its peers are the same network, its rounds and its file on a tiny one."""

import contextlib
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import processes, record, step, step_peers
from benchmarks.linen_twin import LinenResNet
from benchmarks.step_peers import Peer, Setting
from input_pipeline.errors import InputError
from resnet.model.spec import ResNetSpec
from resnet.model.traced_program import operations
from resnet.model.variants import variant

TINY = ResNetSpec(block="basic", stage_sizes=(1, 1), width=8, num_classes=4, stem="cifar", shortcut="A")


@pytest.mark.parametrize("model", ["resnet50", "cifar_resnet20"])
def test_the_flax_peer_is_the_published_network(model):
    published = variant(model)
    network = LinenResNet(**Setting(model, published.image_size, 1).layers)
    image = jax.ShapeDtypeStruct((1, published.image_size, published.image_size, 3), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: network.init(key, x, False), jax.random.key(0), image)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])) == published.parameters
    program = jax.make_jaxpr(lambda variables, x: network.apply(variables, x, False))(shapes, image)
    assert sum(each.multiply_adds for each in operations(program)) == published.multiply_adds


@pytest.mark.parametrize("model", ["resnet50", "cifar_resnet20", "cifar_resnet110"])
def test_the_torch_peer_is_the_published_network(model):
    pytest.importorskip("torch", reason="torch is not installed: ./run.sh setup bench")
    from benchmarks.torch_twin import TorchResNet

    layers = Setting(model, 32, 1).layers
    network = TorchResNet(layers.pop("block"), layers.pop("stage_sizes"), **layers)
    assert sum(each.numel() for each in network.parameters()) == variant(model).parameters


def test_torchs_option_a_is_ours():
    torch = pytest.importorskip("torch", reason="torch is not installed: ./run.sh setup bench")
    from benchmarks.torch_twin import PaddedIdentity

    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    y = PaddedIdentity(2, 2)(x)
    assert torch.equal(y[:, :2], x[:, :, ::2, ::2])
    assert y.shape == (1, 4, 2, 2)
    assert not y[:, 2:].any()


def test_a_tiny_network_goes_all_the_way(tmp_path, monkeypatch, capsys):
    """Peers warm, timed and written; one that is not installed is named."""
    monkeypatch.setattr(Setting, "spec", TINY)
    monkeypatch.setattr(step, "separate", lambda name, setting: step_peers.MAKERS[name](setting))
    # What it does has a test of its own; this one need not compile anew.
    monkeypatch.setattr(step_peers, "nothing_cached", contextlib.nullcontext)
    monkeypatch.setattr(step, "MODELS", {"resnet50": (8, 2, "ours,linen,keras")})
    monkeypatch.setitem(sys.modules, "keras", None)
    monkeypatch.setattr("sys.argv", ["step", "--rounds=2", f"--out={tmp_path / 'step.json'}"])
    step.main()
    figures = record.read(tmp_path / "step.json").figures
    assert (figures["model"], figures["image_size"], figures["batch_size"], figures["rounds"]) == ("resnet50", 8, 2, 2)
    assert figures["left_out"] == {"keras": "keras is not installed"}
    for name in ("ours", "linen"):
        seconds, rates = figures["seconds"][name], figures["images_per_second"][name]
        assert {kind: len(taken) for kind, taken in seconds.items()} == {"train": 2, "eval": 2}
        assert rates["train"] == pytest.approx(2 / (sum(seconds["train"]) / 2))
        assert all(taken["wall"] > 0 and taken["cpu"] > 0 for taken in figures["compile_seconds"][name].values())
    assert "keras: left out, keras is not installed" in capsys.readouterr().out


def test_what_is_timed_is_compiled_anew():
    """Nothing asks the cache on the disk meanwhile, which serves again afterwards."""
    events: list[str] = []

    def asked(compile_it) -> int:
        events.clear()
        compile_it(lambda x: jnp.sin(x) @ x)
        return events.count("/jax/compilation_cache/compile_requests_use_cache")

    def listen(event, **_):
        events.append(event)

    x = jnp.ones((4, 4))
    jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
    jax.monitoring.register_event_listener(listen)
    try:
        plainly = asked(lambda function: jax.jit(function).lower(x).compile())
        with step_peers.nothing_cached():
            assert asked(lambda function: jax.jit(function).lower(x).compile()) == 0
        assert asked(lambda function: jax.jit(function).lower(x).compile()) == plainly == 1
    finally:
        jax.monitoring.unregister_event_listener(listen)


def test_compiling_alone_takes_no_step(tmp_path, monkeypatch):
    """Of three processes the medians count."""
    taken = iter((1.5, 4.0, 1.0))

    def make(name, setting):
        return Peer({"train": pytest.fail, "eval": pytest.fail}, {"train": {"wall": next(taken), "cpu": 2.5}})

    monkeypatch.setattr(step, "separate", make)
    monkeypatch.setattr(
        "sys.argv", ["step", "--rounds=0", "--compiles=3", "--peers=ours", f"--out={tmp_path / 'step.json'}"]
    )
    step.main()
    figures = record.read(tmp_path / "step.json").figures
    assert figures["compile_seconds"] == {"ours": {"train": {"wall": 1.5, "cpu": 2.5}}}
    assert figures["images_per_second"] == {}


class Clock:
    """Time that passes when a peer takes a step, and what was done."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.done = 0.0, []
        monkeypatch.setattr(step.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(step.time, "sleep", lambda seconds: self.done.append("rest"))

    def peer(self, name, seconds):
        def take(kind):
            self.now += seconds
            self.done.append(f"{name} {kind}")

        return Peer({kind: lambda kind=kind: take(kind) for kind in step.KINDS})


def test_rounds_and_warm_steps(monkeypatch):
    """Two untimed steps of each kind, one more before each timed one; long steps rest, and stop when time is up."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(step, "separate", lambda name, setting: clock.peer(name, {"ours": 1.0, "linen": 20.0}[name]))
    entries = step.enter(
        Setting("resnet50", 64, 32), ["ours", "linen"], {"compile_seconds": {}, "left_out": {}}, steps=True, compiles=1
    )
    assert clock.done == ["ours train", "ours train", "ours eval", "ours eval", "linen train", "linen eval"]
    assert (entries["ours"].first_step, entries["linen"].first_step) == (1.0, 20.0)
    clock.done.clear()
    step.measure(entries, rounds=3, most_seconds=60)
    of_ours = ["ours train", "ours train"], ["ours eval", "ours eval"]
    assert clock.done[:8] == [*of_ours[0], "rest", "linen train", *of_ours[1], "rest", "linen eval"]
    assert clock.done[8:] == [*of_ours[0], *of_ours[1]] * 2
    assert entries["linen"].seconds == {"train": [20.0], "eval": [20.0]}
    assert entries["ours"].seconds == {"train": [1.0] * 3, "eval": [1.0] * 3}


# Stands in for the library of a peer, which takes a second or two to import.
STAND_IN = """
import sys
from benchmarks import processes, step_peers
from benchmarks.step_peers import Peer, Setting

def make(setting):
    print("a library talks")
    return Peer({"train": lambda: None, "eval": lambda: sys.exit(3)}, {"train": {"wall": setting.batch_size, "cpu": 1}})

step_peers.MAKERS["works"] = make
step_peers.MAKERS["missing"] = lambda setting: __import__("no_such_module")
processes.serve(lambda: step_peers.made(sys.argv[1], Setting("resnet50", 64, 7)), keep_memory=False)
"""


def stand_in(monkeypatch, name):
    start = subprocess.Popen
    monkeypatch.setattr(
        processes.subprocess, "Popen", lambda words, **how: start([sys.executable, "-c", STAND_IN, name], **how)
    )
    return step_peers.separate(name, Setting("resnet50", 64, 7))


def test_a_peer_lives_in_a_process_of_its_own(monkeypatch):
    peer = stand_in(monkeypatch, "works")
    assert peer.compile_seconds == {"train": {"wall": 7, "cpu": 1}}
    peer.steps["train"]()
    peer.steps["train"]()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="works: its process ended with exit code 3"):
            peer.steps["eval"]()


def test_a_missing_library_is_told_across_processes(monkeypatch):
    with pytest.raises(ImportError, match="no_such_module is not installed") as found:
        stand_in(monkeypatch, "missing")
    assert found.value.name == "no_such_module"


def test_a_peer_that_cannot_take_part_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["step", "--model=cifar_resnet20", "--peers=ours,keras"])
    with pytest.raises(InputError, match="--peers=keras: no peer of cifar_resnet20; those are ours,linen,torch"):
        step.main()
