"""Trains on the 8 virtual devices that XLA_FLAGS asks for: `python -m tests.train.virtual_devices DATA FOLDER`.

Leaves in FOLDER a run's directory per mesh, NAME.npz with the first step's gradient of each of GRADIENTS and lamb.npz
with `lamb_updates`; prints one JSON object: what the compiled train steps send.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np

from benchmarks.scaling import collectives
from input_pipeline.stream import train_batches
from resnet.train import loop, parallel
from resnet.train.optimizer import OptimizerSettings, make_optimizer
from resnet.train.steps import accumulate, make_train_step
from tests.bare import leave_out
from tests.tiny import tiny_config

MESHES = {"data": "data=-1", "fsdp": "data=2,fsdp=4"}
# name -> (mesh, parts, norm): group norm has no statistics of the batch, so that its parts are independent.
GRADIENTS = {
    "data": ("data=-1", 1, "batch"),
    "fsdp": ("data=2,fsdp=4", 1, "batch"),
    "parts": ("data=-1", 2, "batch"),
    "whole": ("data=-1", 1, "group"),
    "whole_in_parts": ("data=-1", 2, "group"),
}


def config_for(data: Path, mesh: str, steps: int = 20):
    """The tiny run, wide enough for leaves that are worth dividing, with averages."""
    config = tiny_config(data)
    config.model.width = 32
    config.optim.ema = 0.9
    config.data.batch_size = 16
    # Without a kink: where a map has a value next to 0, on even grounds many at once, ReLU's gradient is there or not
    # by how a mean was rounded, which moved the first norm's bias by 1.2e-4 of its largest gradient.
    config.model.activation = "silu"
    config.run.steps = steps
    config.run.eval_every = config.run.checkpoint_every = 1e6
    config.run.mesh = mesh
    return config


def probe_config(data: Path, mesh: str, weights: Path):
    """A head on the features of the run in `weights`."""
    config = config_for(data, mesh, steps=6)
    config.transfer.mode, config.transfer.weights = "probe", str(weights)
    return config


def gradient_config(data: Path, name: str):
    mesh, parts, norm = GRADIENTS[name]
    config = config_for(data, mesh)
    config.optim.accumulation = parts
    if norm == "group":
        config.model.norm, config.model.norm_groups = "group", 8
        # Flips are drawn part by part.
        config.data.flip = "none"
    return config


def first_gradient(config) -> dict[str, np.ndarray]:
    """'gradient…', 'statistics…' and 'sums…' of the first step, by path; over all devices there are."""
    source = loop.open_data(config)
    plan = loop.make_plan(config, source)
    mesh = parallel.make_mesh(config.run.mesh)
    state = loop.initial_state(config, plan, mesh)
    host = train_batches(source.splits["train"], plan.order, plan.train_crop, num_steps=1, threads=1)
    batch = next(parallel.put_batches(host, mesh))
    run = jax.jit(functools.partial(accumulate, plan.stages[0].network, plan.recipe))
    total, weight, statistics, sums = jax.device_get(run(state, batch, jax.random.key(0)))
    found = {"gradient": jax.tree.map(lambda leaf: leaf / weight, total), "statistics": statistics, "sums": sums}
    flat = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def lamb_updates(mesh_text: str) -> dict[str, np.ndarray]:
    """The updates of two LAMB steps on kernels and biases that are divided as a state is, by path."""
    mesh = parallel.make_mesh(mesh_text)
    draw = np.random.default_rng(0)
    shapes = {"kernel": (3, 3, 64, 128), "bias": (128,), "dense": (512, 24)}
    params, *gradients = (
        {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(3)
    )
    optimizer = make_optimizer(OptimizerSettings("lamb", weight_decay=0.1, clip_norm=1.0), lambda step: 0.1)
    params = jax.device_put(params, parallel.state_shardings(mesh, params))
    assert mesh_text == "data=-1" or not params["kernel"].sharding.is_fully_replicated
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    for gradient in gradients:
        updates, state = update(jax.device_put(gradient, parallel.state_shardings(mesh, gradient)), state, params)
    return jax.device_get(updates)


def sent(config) -> dict:
    """What the compiled train step sends, and the shapes of the parameters: all of them, and those that are divided."""
    source = loop.open_data(config)
    plan = loop.make_plan(config, source)
    mesh = parallel.make_mesh(config.run.mesh)
    state = jax.eval_shape(lambda: loop.initial_state(config, plan, mesh))
    shardings = parallel.state_shardings(mesh, state)
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    state = jax.tree.map(place, state, shardings)
    rows, size = config.data.batch_size, config.data.image_size
    kinds = {
        "image": ((size, size, 3), "uint8"),
        "label": ((), "int32"),
        "mask": ((), "float32"),
        "index": ((), "int32"),
    }
    batch = {
        name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=parallel.split_rows(mesh))
        for name, (shape, dtype) in kinds.items()
    }
    stage = plan.stages[0]
    step = make_train_step(stage.network, stage.optimizer, plan.recipe)
    text = parallel.compile_train_step(step, mesh).lower(state, batch).compile().as_text()
    params = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}
    return {
        "collectives": [dataclasses.asdict(each) for each in collectives(text)],
        "params": {name: leaf.shape for name, leaf in params.items()},
        "divided": [name for name, leaf in params.items() if leaf.sharding.spec != jax.sharding.PartitionSpec()],
    }


def main() -> None:
    leave_out()
    data, folder = Path(sys.argv[1]), Path(sys.argv[2])
    assert jax.device_count() == 8
    found = {}
    for name, mesh in MESHES.items():
        config = config_for(data, mesh)
        found[name] = sent(config)
        assert loop.train(config, folder / name) == 0
    for name, mesh in MESHES.items():
        assert loop.train(probe_config(data, mesh, folder / "data"), folder / f"probe_{name}") == 0
    np.savez(folder / "lamb.npz", **lamb_updates("data=2,fsdp=4"))
    for name in GRADIENTS:
        np.savez(folder / f"{name}.npz", **first_gradient(gradient_config(data, name)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
