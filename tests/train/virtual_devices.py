"""Trains on the 8 virtual devices that XLA_FLAGS asks for: `python -m tests.train.virtual_devices DATA FOLDER`.

Leaves a run's directory per mesh in FOLDER and prints one JSON object: what the compiled train steps send.
"""

import collections
import json
import math
import re
import sys
from pathlib import Path

import jax

from resnet.train import loop, parallel
from resnet.train.steps import make_train_step
from tests.tiny import tiny_config

MESHES = {"data": "data=-1", "fsdp": "data=2,fsdp=4"}
COLLECTIVES = re.compile(
    r"= (\(?)(\S+?)\[([0-9,]*)\].*? (all-reduce|all-gather|reduce-scatter|all-to-all)(?:-start)?\("
)


def config_for(data: Path, mesh: str, steps: int = 20):
    """The tiny run, wide enough for leaves that are worth dividing, with averages and accumulation."""
    config = tiny_config(data)
    config.model.width = 32
    config.optim.ema = 0.9
    config.data.batch_size = 16
    config.optim.accumulation = 1
    config.run.steps = steps
    config.run.eval_every = config.run.checkpoint_every = 1e6
    config.run.mesh = mesh
    return config


def collectives(config) -> dict:
    """Operations of the compiled train step that cross devices, counted, and the largest all-gather in numbers."""
    source = loop.open_data(config)
    plan = loop.make_plan(config, source)
    mesh = parallel.make_mesh(config.run.mesh)
    state = jax.eval_shape(lambda: loop.initial_state(config, plan, mesh))
    shardings = parallel.state_shardings(mesh, state)
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    state = jax.tree.map(place, state, shardings)
    rows_of = parallel.split_rows(mesh)
    size = config.data.image_size
    rows = config.data.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((rows, size, size, 3), "uint8", sharding=rows_of),
        "label": jax.ShapeDtypeStruct((rows,), "int32", sharding=rows_of),
        "mask": jax.ShapeDtypeStruct((rows,), "float32", sharding=rows_of),
        "index": jax.ShapeDtypeStruct((rows,), "int32", sharding=rows_of),
    }
    stage = plan.stages[0]
    step = make_train_step(stage.network, stage.optimizer, plan.recipe)
    text = parallel.compile_train_step(step, mesh).lower(state, batch).compile().as_text()
    found: collections.Counter[str] = collections.Counter()
    gathered = 0
    for line in text.splitlines():
        match = COLLECTIVES.search(line)
        if match:
            found[match[4]] += 1
            if match[4] == "all-gather":
                sizes = [int(word) for word in match[3].split(",") if word]
                gathered = max(gathered, math.prod(sizes))
    divided = sum(s.spec != jax.sharding.PartitionSpec() for s in jax.tree.leaves(shardings))
    return {"counts": dict(found), "largest_gather": gathered, "divided": divided}


def main() -> None:
    data, folder = Path(sys.argv[1]), Path(sys.argv[2])
    assert jax.device_count() == 8
    found = {}
    for name, mesh in MESHES.items():
        config = config_for(data, mesh)
        found[name] = collectives(config)
        assert loop.train(config, folder / name) == 0
    print(json.dumps(found))


if __name__ == "__main__":
    main()
