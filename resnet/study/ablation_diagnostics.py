"""What a residual network does inside: how much each block adds to what passes it, and how gradients fare by depth."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.augment import prepare
from resnet.model.network import ResNet
from resnet.study.ablation_records import Diagnosis, by_depth, part
from resnet.train.losses import ROW_LOSSES
from resnet.train.plan import Plan
from resnet.train.state import Variables


def make_diagnosis(plan: Plan) -> Callable[[Variables, dict[str, jax.Array]], dict[str, dict[str, jax.Array]]]:
    """(variables of one seed, {'image': uint8[B, S, S, 3], 'label': int32[B]}) -> {'branch_to_shortcut',
    'gradient_norm'}. To be jitted.

    branch_to_shortcut: block -> root mean square of its branch over that of its shortcut, as they are added
    (resnet.model.blocks.norm_ratio); empty for a plain net. gradient_norm: stem, block or head -> L2 norm of the
    gradient of the mean loss, of the kind that is trained with, by all its parameters. Batch statistics are the whole
    batch's, whatever groups it is trained in; no augmentation, no smoothing.
    """
    network: ResNet = plan.network.clone(spec=dataclasses.replace(plan.network.spec, ghost_batch_size=0), remat="none")

    def diagnosis(variables: Variables, batch: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        images = prepare(batch["image"], plan.contract)
        targets = jax.nn.one_hot(batch["label"], network.spec.num_classes)

        def loss(params: Variables) -> tuple[jax.Array, Any]:
            logits, new = network.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats", "diagnostics"],
                rngs={"dropout": jax.random.key(0)},
            )
            return jnp.mean(ROW_LOSSES[plan.recipe.loss.kind](logits, targets)), new.get("diagnostics", {})

        gradient, sown = jax.grad(loss, has_aux=True)(variables["params"])
        squares: dict[str, jax.Array] = {}
        for name, tree in gradient.items():
            own = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))
            squares[part(name)] = squares.get(part(name), jnp.zeros(())) + own
        return {
            "branch_to_shortcut": {block: values["branch_to_shortcut"][0] for block, values in sown.items()},
            "gradient_norm": {name: jnp.sqrt(square) for name, square in squares.items()},
        }

    return diagnosis


def collect(found: list[dict[str, dict[str, np.ndarray]]]) -> Diagnosis:
    """The diagnoses of all seeds as one: {quantity: {part: one number a seed}}."""
    return by_depth(
        {
            quantity: {name: [float(one[quantity][name]) for one in found] for name in values}
            for quantity, values in found[0].items()
        }
    )
