"""What a run begins with: its data, its directory, its state, fresh or with the weights that config.transfer names."""

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline.sources import Source
from resnet.model.network import initialise
from resnet.train import parallel
from resnet.train.code_digests import sources
from resnet.train.plan import Plan
from resnet.train.pretrained import Pretrained, adopt
from resnet.train.provenance import provenance
from resnet.train.state import TrainState, Variables, create_state
from resnet.train.steps import sum_names
from resnet.train.workdir import CLASSES, CONFIG, PROVENANCE, write_json


def start_directory(workdir: Path, flat: dict[str, Any], source: Source, pretrained: Pretrained | None) -> None:
    """Write what the directory of a new run says of it."""
    weights = {"weights": {"source": pretrained.source, "sha256": pretrained.digest}} if pretrained else {}
    write_json(workdir / PROVENANCE, provenance(source) | weights | {"sources": list(sources())})
    write_json(workdir / CLASSES, list(source.class_names))
    # Last: a folder with a configuration in it is a run, one without may be a beginning that was cut short.
    write_json(workdir / CONFIG, flat)


def initial_state(config: ConfigDict, plan: Plan, mesh: Mesh) -> TrainState:
    """The state before step 0, where the mesh wants it: a function of configuration, seed and weights alone."""
    network, stage = plan.network, plan.stages[0]

    def create(key: jax.Array, weights: Variables) -> TrainState:
        variables = adopt(initialise(network, key, config.data.image_size), weights)
        names = sum_names(network.spec.num_classes)
        return create_state(
            variables, stage.optimizer, ema=plan.recipe.ema > 0, sum_names=names, learning=stage.learning
        )

    weights = plan.pretrained.variables if plan.pretrained else {}
    key = jax.random.key(config.run.seed)
    shardings = parallel.state_shardings(mesh, jax.eval_shape(create, key, weights))
    return jax.jit(create, out_shardings=shardings)(key, weights)
