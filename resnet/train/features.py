"""Pooled features of a split, computed once per image and view and kept on disk: what a probe learns on.

A file is float32 rows in the split's order and nothing else, written by appending, so that its size says how many rows
are done: a pass that was cut short, by whatever, goes on at the next whole batch. Files are shared by all runs through
a key over everything that the rows depend on.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline import cuts
from input_pipeline.augment import augment, prepare
from input_pipeline.bars import Bar
from input_pipeline.disk import require_room
from input_pipeline.errors import InputError, printable
from input_pipeline.order import Order
from input_pipeline.sources import Split
from input_pipeline.stream import train_batches
from native.own_folders import cache_folder
from resnet.train import parallel
from resnet.train.evaluation import Interrupted
from resnet.train.plan import Plan
from resnet.train.state import Variables

# Images per batch of the pass; its own, so that another batch size of the head's training finds the same features.
BATCH = 64

FeatureStep = Callable[[Variables, dict[str, jax.Array]], Any]


@dataclasses.dataclass(frozen=True)
class ViewOrder(Order):
    """Every example once, as it stands in the split; crops are drawn as for epoch `view`. The last batch wraps."""

    view: int = 0

    def epochs(self, step: int) -> np.ndarray:
        return np.full(self.batch_size, self.view, np.int64)

    def indices(self, step: int) -> np.ndarray:
        return self._positions(step) % self.num_examples


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass of the backbone: over which images, in which view (0: as evaluation crops them), with what.

    digest: of the variables (pretrained.digest_of).
    """

    plan: Plan
    split: Split
    view: int
    digest: str

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Everything that a row depends on, as JSON values."""
        plan = self.plan
        about: dict[str, Any] = {
            "weights": self.digest,
            "network": dataclasses.asdict(plan.network.spec) | {"num_classes": 0, "head_hidden": 0, "dropout": 0},
            "contract": plan.contract.to_json(),
            "contents": self.split.digest(),
            "split": self.split.name,
            "images": len(self.split),
            "view": self.view,
            "crop": dataclasses.asdict(plan.train_crop if self.view else plan.eval_crop),
            # Rounding depends on these.
            "dtype": str(np.dtype(plan.network.dtype)),
            "batch": batch_size,
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
        }
        if self.view:
            augmentation = dataclasses.asdict(plan.recipe.augmentation)
            about |= {"seed": plan.recipe.seed, "augmentation": augmentation, "cuts": cuts.VERSION}
        return about


def features(
    wanted: Pass,
    step: FeatureStep,
    variables: Variables,
    mesh: Mesh,
    *,
    threads: int | None,
    stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """float32[N, C], read-only and mapped from disk, row i of image i; computed here as far as nobody did it before.

    step: `compile_step` of the same view. Raises Interrupted when `stop` says so, what is done is kept; InputError
    where the disk refuses.
    """
    batch_size = size_of_batch(wanted, mesh)
    about = wanted.describe(batch_size)
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    target = cache_folder("features") / f"{key}.f32"
    shape = (len(wanted.split), channels(wanted.plan))
    row_bytes = shape[1] * 4
    try:
        if not is_whole(target, shape[0] * row_bytes):
            target.parent.mkdir(parents=True, exist_ok=True)
            advice = "lower --config.transfer.views or set XDG_CACHE_HOME to another folder"
            require_room(target.parent, shape[0] * row_bytes, "features", advice)
            with open(target.with_suffix(".part"), "ab") as file:
                # Held while computing: a second run that wants the same features waits and then finds them.
                fcntl.flock(file, fcntl.LOCK_EX)
                if not is_whole(target, shape[0] * row_bytes):
                    target.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
                    with contextlib.closing(rows(wanted, step, variables, file, mesh, threads)) as passed:
                        for _ in passed:
                            if stop():
                                raise Interrupted
                    file.flush()
                    os.fsync(file.fileno())
                    os.rename(file.name, target)
        return np.memmap(target, np.float32, "r", shape=shape)
    except OSError as error:
        raise InputError(
            f"{printable(str(target.parent))}: features cannot be kept there ({error.strerror}); make room, or set "
            "XDG_CACHE_HOME to another folder; what is done so far is kept"
        ) from error


def is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def rows(
    wanted: Pass, step: FeatureStep, variables: Variables, file: Any, mesh: Mesh, threads: int | None
) -> Generator[int]:
    """Append the rows that are missing to the open file, batch by batch; the number of rows after each."""
    split, plan = wanted.split, wanted.plan
    batch_size, row_bytes = size_of_batch(wanted, mesh), channels(plan) * 4
    # Whole batches only: a row's last bit may depend on its place in the batch.
    start = file.seek(0, os.SEEK_END) // (row_bytes * batch_size)
    file.truncate(start * row_bytes * batch_size)
    total = -(-len(split) // batch_size)
    order = ViewOrder(len(split), batch_size, plan.recipe.seed, view=wanted.view)
    crop = plan.train_crop if wanted.view else plan.eval_crop
    batches = train_batches(split, order, crop, start_step=start, num_steps=total - start, threads=threads)
    name = f"features of {split.name}" + (f", view {wanted.view + 1}" if wanted.view else "")
    done = min(start * batch_size, len(split))
    with Bar(name, len(split), done=done) as bar:
        for batch in parallel.put_batches(batches, mesh):
            count = min(batch_size, len(split) - done)
            file.write(np.asarray(jax.device_get(step(variables, batch)))[:count].tobytes())
            # Out of this process, so that a kill loses nothing.
            file.flush()
            done += count
            bar.update(count)
            yield done


def compile_step(plan: Plan, view: int, mesh: Mesh) -> FeatureStep:
    """(variables, batch) -> pooled features float32[B, C] of that view, as evaluation computes them."""

    def step(variables: Variables, batch: dict[str, jax.Array]) -> jax.Array:
        if view:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(plan.recipe.seed), view), batch["index"][0])
            classes = plan.network.spec.num_classes
            images, _ = augment(key, batch["image"], batch["label"], plan.recipe.augmentation, plan.contract, classes)
        else:
            images = prepare(batch["image"], plan.contract)
        return plan.network.apply(variables, images, train=False, return_features=True)[1]["pooled"]

    return parallel.compile_eval_step(step, mesh)


def size_of_batch(wanted: Pass, mesh: Mesh) -> int:
    """Images a batch: BATCH, or all of a smaller split."""
    return parallel.round_up(min(BATCH, len(wanted.split)), mesh)


def channels(plan: Plan) -> int:
    """Of the last stage."""
    spec = plan.network.spec
    return spec.width * 2 ** (len(spec.stage_sizes) - 1) * spec.expansion
