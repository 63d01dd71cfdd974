"""The first batch of a run as its network sees it, for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

from input_pipeline.errors import printable
from input_pipeline.stream import train_batches

if TYPE_CHECKING:
    from resnet.train.stepping import Stepping

NAME = "train/inputs"
# Of the batch, whatever its size and however many processes feed it.
IMAGES = 32


def show_inputs(run: Stepping) -> None:
    """Show the first images of the global batch of step 0; a line where they cannot be drawn, which ends no run."""
    try:
        # A program of its own on one device, whose transfers are asked for here.
        with jax.transfer_guard("allow"):
            sheet = drawn(run)
    except Exception as error:
        reason = printable((str(error).splitlines() or [""])[0][:200])
        run.bar.write(f"TensorBoard lacks {NAME}, which could not be drawn ({type(error).__name__}: {reason}).")
        return
    run.writer.show(0, NAME, sheet)


def drawn(run: Stepping) -> np.ndarray:
    """The sheet: uint8[H, W, 3]. Of several processes the one that asks reads the rows that others train on too."""
    # Here, not above: it imports matplotlib's fonts and compiles a program, for this one picture.
    from input_pipeline.batch_pictures import as_seen, rows_behind, sheet

    plan, names = run.plan, run.source.class_names
    parts, group = plan.recipe.accumulation, plan.network.spec.ghost_batch_size or 1
    rows = rows_behind(IMAGES, plan.batch_size, parts, group)
    batch = {**first_rows(run, rows), "index": plan.order.indices(0).astype(np.int32)}
    pictures, targets = as_seen(
        batch, plan.recipe.augmentation, plan.contract, seed=plan.recipe.seed, step=0, num_classes=len(names),
        parts=parts, group=group, num_examples=plan.recipe.num_examples, rows=rows,
    )  # fmt: skip
    return sheet(pictures[:IMAGES], targets[:IMAGES], names)


def first_rows(run: Stepping, rows: np.ndarray) -> dict[str, np.ndarray]:
    """These rows of the global batch of step 0, from the run's own kind of feed."""
    plan = run.plan
    if plan.resident is not None:
        run.load()
        chosen = {name: values[rows] for name, values in plan.resident.rows(0).items()}
        return dict(jax.device_get(run.streamed(chosen)))
    train = run.source.splits["train"]
    return next(train_batches(train, plan.order, plan.train_crop, num_steps=1, rows=rows, threads=run.threads))
