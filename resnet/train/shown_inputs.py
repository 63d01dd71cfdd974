"""The first batch of a run as its network sees it, for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import jax

from input_pipeline.stream import Batch

if TYPE_CHECKING:
    from resnet.train.stepping import Stepping

# Of the batch; all of them are augmented, for two that are mixed are neighbours in it.
IMAGES = 32


def first_shown(run: Stepping, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The host's batches from step 0 on as they come, the first shown as 'train/inputs' on its way."""
    # Here, not above: it imports matplotlib's fonts and compiles a program, for this one picture.
    from input_pipeline.seen import as_seen, sheet

    recipe, names = run.plan.recipe, run.source.class_names
    for number, batch in enumerate(batches):
        if number == 0:
            # A program of its own on one device, whose transfers are asked for here.
            with jax.transfer_guard("allow"):
                shown = jax.device_get(run.streamed(batch))
                pictures, targets = as_seen(
                    shown, recipe.augmentation, recipe.contract, seed=recipe.seed, step=0, num_classes=len(names),
                    parts=recipe.accumulation, group=run.plan.network.spec.ghost_batch_size or 1,
                    num_examples=recipe.num_examples,
                )  # fmt: skip
            run.writer.show(0, "train/inputs", sheet(pictures[:IMAGES], targets[:IMAGES], names))
        yield batch
