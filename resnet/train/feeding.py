"""How a run's training images reach the devices: streamed (decoded on the host every time) or resident (decoded once).

Both show the same examples in the same order, cut at the same places. A resident batch is a few numbers an image: which
one and where to cut; the pixels are on the devices already, and the compiled step cuts them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from input_pipeline.array_batches import need_no_decoder, taken_as_they_are
from input_pipeline.canvas import Layout, canvas_of, lay_out
from input_pipeline.crops import Crop, boxes
from input_pipeline.decoded import kept_rows
from input_pipeline.device_crops import cut_boxes
from input_pipeline.errors import InputError, MissingPackage
from input_pipeline.order import Order
from input_pipeline.resident import MOST_BYTES, cut
from input_pipeline.sources import Source, Split
from input_pipeline.stream import eval_image, missing_tensorflow
from resnet.train import parallel
from resnet.train.evaluation import Interrupted
from resnet.train.steps import Batch

# Decoded bytes up to which 'auto' keeps a set on the devices: a number of its own, not what a device has free, so that
# the same configuration feeds the same pixels on every device of a kind.
AUTO_BYTES = 2 * 1024**3
# Images whose places and boxes are drawn together. For a step's 128 most of the time goes into NumPy's calls, which are
# as many for 2,048; more at once would keep the loop waiting longer at a time.
DRAWN_AT_A_TIME = 2048
Kept = dict[str, jax.Array]


def choose_feed(
    asked: str, split: Split, order: Order, crop: Crop, *, processes: int, epochs: float, platform: str
) -> Resident | None:
    """What config.data.feed comes to: a resident feed, or None for the stream.

    auto: resident where one process trains for more than one epoch on images that take at most AUTO_BYTES decoded, all
    at their own size; random_resized crops on a CPU are streamed. platform: 'cpu', 'gpu', ….
    Raises InputError where 'resident' is asked for and cannot be.
    """
    # Two cores cut some 300 random-resized crops of 224 px a second by matrix products and stream some 2,000 out of
    # small JPEGs (benchmarks/feed.py, one short run): where the device is the host, there is nothing to relieve.
    slow = platform == "cpu" and crop.kind == "random_resized"
    if asked == "stream" or (asked == "auto" and (processes > 1 or epochs <= 1 or slow)):
        return None
    if processes > 1:
        raise InputError("config.data.feed='resident' works with one process only; use stream for several")
    most_bytes = MOST_BYTES if asked == "resident" else AUTO_BYTES
    layout = lay_out(split.sizes, crop.image_size, most_bytes) if crop.kind == "random_resized" else None
    if crop.kind == "random_resized":
        fits = layout is not None and (asked == "resident" or layout.reduced == 0)
    else:
        fits = len(split) * crop.image_size**2 * 3 <= most_bytes
    if fits:
        return Resident(split, order, crop, layout)
    if asked == "auto":
        return None
    raise InputError(
        f"config.data.feed='resident': {len(split):,} images for {crop.image_size} px take more than "
        f"{MOST_BYTES / 1e9:.1f} GB decoded; use stream"
    )


def require_decoder(source: Source, resident: Resident | None, train_crop: Crop, eval_crop: Crop) -> None:
    """Raise MissingPackage where images are to be decoded or resized on the host and TensorFlow is not installed.

    Asked before a run begins, whose first step or evaluation would else be where it ends.
    """
    if importlib.util.find_spec("tensorflow") is not None:
        return
    train = source.splits["train"]
    if resident is None:
        ready = need_no_decoder(train, train_crop)
    elif resident.layout is None:
        ready = taken_as_they_are(train, train_crop)
    else:
        ready = train.pixels is not None and not resident.layout.reduced
    if ready and all(taken_as_they_are(split, eval_crop) for split in source.splits.values()):
        return
    if train.pixels is not None:
        raise MissingPackage(
            "TensorFlow, which resizes images on the host, is not installed; use --config.data.crop=pad or none, or "
            "--config.data.feed=resident, and keep the defaults of config.data.eval_image_size and resize_shorter"
        )
    raise missing_tensorflow("it is not installed")


@dataclasses.dataclass(frozen=True)
class Resident:
    """The training split as the devices keep it: what lies there, what a step sends, and how it becomes a batch.

    Crops of kind 'random_resized' are cut out of the original images, which lie as `layout` says. Crops of kind 'pad'
    and 'none' are cut out of evaluation's images, and `layout` is None.
    """

    split: Split
    order: Order
    crop: Crop
    layout: Layout | None

    def load(self, mesh: Mesh, stop: Callable[[], bool] = lambda: False) -> Kept:
        """Decode the split, or recall it from disk, and put it on every device: 'images' uint8[N, H, W, 3], 'labels'
        int32[N] and, with a layout, 'turned' bool[N].

        Raises InputError as `decoded.kept_rows` does, and Interrupted when `stop` says so.
        """
        watched = dataclasses.replace(self.split, read=reading_until(stop, self.split.read))
        kept: dict[str, np.ndarray] = {"labels": self.split.labels.astype(np.int32)}
        if self.layout is None:
            kept["images"] = evaluation_images(watched, self.crop)
        else:
            kept["images"] = canvas_of(watched, self.layout, self.crop.interpolation)
            kept["turned"] = self.layout.turned
        return jax.device_put(kept, parallel.replicated(mesh))

    def rows(self, step: int) -> dict[str, np.ndarray]:
        """What step number `step` shows: 'index' int32[B], 'mask' float32[B] and 'box' float32[B, 4]."""
        return {name: values[0] for name, values in self.rows_of(step, 1).items()}

    def rows_of(self, first: int, count: int) -> dict[str, np.ndarray]:
        """`rows` of the steps first .. first + count - 1, stacked along a first axis."""
        steps = range(first, first + count)
        index = np.concatenate([self.order.indices(step) for step in steps])
        epochs = np.concatenate([self.order.epochs(step) for step in steps])
        sizes = self.split.sizes[index]
        # Each of an example's own, whatever is drawn beside it.
        box = boxes(self.crop, self.order.seed, epochs, index, sizes)
        placed = box.astype(np.float32) if self.layout is None else self.layout.boxes(box, index, sizes)
        rows = {"index": index.astype(np.int32), "mask": np.ones(len(index), np.float32), "box": placed}
        return {name: values.reshape(count, -1, *values.shape[1:]) for name, values in rows.items()}

    def blocks(self, step: int) -> Iterator[dict[str, np.ndarray]]:
        """`rows_of` step after step from `step` on, `together` at a time, without end."""
        for first in itertools.count(step, self.together):
            yield self.rows_of(first, self.together)

    @property
    def together(self) -> int:
        """How many steps `blocks` draws at once: those of DRAWN_AT_A_TIME images, at least one."""
        return max(1, DRAWN_AT_A_TIME // self.order.batch_size)

    def whole(self, kept: Kept, rows: Batch) -> Batch:
        """Inside jit: the batch that the stream would send, with 'image' uint8[B, S, S, 3] and 'label' int32[B]."""
        index, box = rows["index"], rows["box"]
        if self.layout is None:
            padding = self.crop.padding if self.crop.kind == "pad" else 0
            image = cut(kept["images"], index, box[:, :2].astype(jnp.int32), padding)
        else:
            turned = kept["turned"][index]
            image = cut_boxes(kept["images"], index, turned, box, self.crop.image_size, self.crop.interpolation)
        rest = {name: values for name, values in rows.items() if name != "box"}
        return {**rest, "image": image, "label": kept["labels"][index]}

    def step_on_rows(self, step: Callable[[Any, Batch], Any]) -> Callable[[Any, Batch, Kept], Any]:
        """`step`, a function of (state, batch), as a function of (state, rows, kept)."""
        return lambda state, rows, kept: step(state, self.whole(kept, rows))


def put_blocks(blocks: Iterable[dict[str, np.ndarray]], mesh: Mesh) -> Iterator[Batch]:
    """What each step shows, on the devices and split over the mesh, from `Resident.blocks`; nothing here blocks.

    For one process, as the resident feed is. A block crosses as a whole, and a step's rows are taken out of it there:
    a transfer for each step takes the host several times as long (`benchmarks.host_work` times all of a step).
    """
    take = jax.jit(_taken, out_shardings=(parallel.split_rows(mesh), parallel.replicated(mesh)))
    first = parallel.put_count(0, mesh)
    for block in blocks:
        there, number = jax.device_put(block, parallel.split_rows(mesh, 1)), first
        for _ in range(len(block["index"])):
            rows, number = take(there, number)
            yield rows


def _taken(block: Batch, number: jax.Array) -> tuple[Batch, jax.Array]:
    """(the rows of step `number` of the block, int32 scalar; the number of the next)."""
    rows = {name: jax.lax.dynamic_index_in_dim(values, number, keepdims=False) for name, values in block.items()}
    return rows, number + 1


def reading_until(stop: Callable[[], bool], read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """`read`, which raises Interrupted once `stop` says so."""

    def watched(i: int) -> bytes:
        if stop():
            raise Interrupted
        return read(i)

    return watched


def evaluation_images(split: Split, crop: Crop) -> np.ndarray:
    """uint8[N, S, S, 3]: each image cut as in evaluation, kept on disk; of arrays at that size these themselves."""
    if split.pixels is not None and taken_as_they_are(split, crop):
        return split.pixels

    def decode(i: int, row: np.ndarray) -> None:
        row[:] = eval_image(split, i, crop)

    about = [crop.image_size, crop.resize_shorter, crop.interpolation]
    return kept_rows(split, (crop.image_size, crop.image_size, 3), decode, about)
