"""The state that a run begins with: fresh, or with the weights that config.transfer names in it."""

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet.model.network import initialise
from resnet.train import parallel
from resnet.train.plan import Plan
from resnet.train.pretrained import adopt
from resnet.train.state import TrainState, Variables, create_state
from resnet.train.steps import sum_names


def initial_state(config: ConfigDict, plan: Plan, mesh: Mesh) -> TrainState:
    """The state before step 0, on every device: a function of the configuration, the seed and the weights alone."""
    network, stage = plan.network, plan.stages[0]

    def create(key: jax.Array, weights: Variables) -> TrainState:
        variables = adopt(initialise(network, key, config.data.image_size), weights)
        names = sum_names(network.spec.num_classes)
        return create_state(
            variables, stage.optimizer, ema=plan.recipe.ema > 0, sum_names=names, learning=stage.learning
        )

    weights = plan.pretrained.variables if plan.pretrained else {}
    return jax.jit(create, out_shardings=parallel.replicated(mesh))(jax.random.key(config.run.seed), weights)
