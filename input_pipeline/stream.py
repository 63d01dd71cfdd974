"""The tf.data feed: read, decode, turn upright, cut and resize on the host; batches of uint8 come out.

Every step is planned from its number alone (`order`, `crops`), so a run resumes at any step at no cost, and an error in
the graph, which names no file, is traced to the example by reading that step's examples again one at a time.
TensorFlow is imported when the first batch or image is asked for, and never sees a GPU. Images that are arrays already
go without it (`array_batches`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from input_pipeline import array_batches
from input_pipeline import decode as graph
from input_pipeline.crops import Crop, boxes, stored_boxes
from input_pipeline.cuts import Cut, cuts
from input_pipeline.errors import InputError, MissingPackage, printable
from input_pipeline.muting import muted_errors
from input_pipeline.order import Order, evaluation_batches
from input_pipeline.retries import is_transient

if TYPE_CHECKING:
    from input_pipeline.sources import Split

Batch = dict[str, np.ndarray]
# The audit decodes in threads: one of them starts TensorFlow, the others wait.
_LOCK = threading.Lock()
_ATTEMPTS = 3
_BACKOFF_SECONDS = 0.2
_PREFETCHED = 2
# Images under way for each thread: with one, a slow image, the next in order, leaves threads idle. Flowers of 217×167
# px, 2 cores: 7,600 images/s with 1, 8,300 with 2, 8,800 with 8.
_IN_FLIGHT = 8


@dataclasses.dataclass(frozen=True)
class _Plan:
    """This process' rows of a step. index: int64[b]; mask: float32[b]; cut: of b rows, for `training_image`."""

    index: np.ndarray
    mask: np.ndarray
    cut: Cut


def train_batches(
    split: Split,
    order: Order,
    crop: Crop,
    *,
    start_step: int = 0,
    num_steps: int | None = None,
    shard: tuple[int, int] = (0, 1),
    rows: np.ndarray | None = None,
    threads: int | None = None,
) -> Iterator[Batch]:
    """The training batches of steps start_step, start_step + 1 ...; without end where num_steps is None.

    shard: (process, number of processes); process i gets rows [i * b, (i + 1) * b) of each global batch, b =
    order.batch_size / processes. rows: of each global batch these, whatever the shard. threads: of decoding, default
    one a core.
    A batch: 'image' uint8[b, S, S, 3] RGB, upright, cut; 'label' int32[b]; 'mask' float32[b], all 1; 'index' int32[b],
    row in the split.

    Raises InputError for sizes that do not fit together (at once), and for an image that cannot be read or decoded (at
    its step), naming it, after three tries, or ten seconds of tries where the disk says what may pass (`retries`).
    """
    own = _rows(order.batch_size, shard, "batch_size") if rows is None else rows
    if order.num_examples != len(split):
        raise InputError(f"the order is of {order.num_examples} examples, the split {split.name} holds {len(split)}")

    def plan(step: int) -> _Plan:
        index, epochs = order.indices(step)[own], order.epochs(step)[own]
        sizes, orientations = split.sizes[index], split.orientations[index]
        box = boxes(crop, order.seed, epochs, index, sizes)
        if crop.kind == "random_resized":
            box = stored_boxes(box, sizes, orientations)
        stored = np.where(orientations[:, None] >= 5, sizes[:, ::-1], sizes)
        return _Plan(index, np.ones(len(index), np.float32), cuts(crop, box, stored))

    if start_step < 0:
        raise ValueError(f"start_step must not be negative: {start_step}")
    stop = None if num_steps is None else start_step + num_steps
    return _batches(split, crop, plan, start_step, stop, _threads(threads))


def eval_batches(
    split: Split,
    batch_size: int,
    crop: Crop,
    *,
    shard: tuple[int, int] = (0, 1),
    threads: int | None = None,
    order: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Every example of `split` once, cut as `crop` says for evaluation, whatever its kind.

    Batches, shard and threads are those of `train_batches`; batch_size is the global one. The last batch is filled up
    with black images of index 0 under mask 0, so that every process sees the same number of batches. order: int64[N],
    the examples as they shall come; by default as they stand.
    Raises InputError as `train_batches` does.
    """
    rows = _rows(batch_size, shard, "eval_batch_size")
    steps = list(evaluation_batches(len(split), batch_size))
    crop = dataclasses.replace(crop, kind="none")
    share = rows.stop - rows.start
    whole = cuts(crop, np.zeros((share, 4), np.int32), np.zeros((share, 2), np.int32))

    def plan(step: int) -> _Plan:
        index, mask = steps[step]
        shown = index if order is None else np.where(mask > 0, order[index], 0)
        return _Plan(shown[rows], mask[rows], whole)

    return _batches(split, crop, plan, 0, len(steps), _threads(threads))


def eval_image(split: Split, i: int, crop: Crop) -> np.ndarray:
    """Example i of `split`, upright and cut as in evaluation: uint8[S, S, 3].

    Raises InputError naming it where it cannot be decoded, OSError where it cannot be read.
    """
    if split.pixels is not None and array_batches.taken_as_they_are(split, crop):
        return split.pixels[i]
    return decode_eval(split.read(i), crop, int(split.orientations[i]), split.ids[i])


def decode(data: bytes, name: str = "the image") -> np.ndarray:
    """The pixels of an encoded image as stored (not turned upright): uint8[H, W, 3], RGB.

    JPEG (also grey, CMYK), PNG (8 and 16 bits, grey, palette), GIF and WebP (first frame), BMP. Alpha is dropped, not
    composited: the colours under it count. Raises InputError naming `name` where the bytes are no whole image.
    """
    tf = _tensorflow()
    try:
        return graph.stored_pixels(tf, tf.constant(data)).numpy()
    except (tf.errors.OpError, ValueError) as error:  # ValueError: BMP and WebP, see `decode.stored_pixels`
        raise InputError(f"{printable(name)}: cannot be decoded ({_reason(error)})") from error


def decode_eval(data: bytes, crop: Crop, orientation: int = 1, name: str = "the image") -> np.ndarray:
    """One encoded image, turned upright by its EXIF `orientation` (1..8) and cut as in evaluation: uint8[S, S, 3].

    Matches torchvision's Resize and CenterCrop on Pillow images. Raises InputError naming `name` as `decode` does.
    """
    tf = _tensorflow()
    try:
        stored = graph.stored_pixels(tf, tf.constant(data))
        return graph.evaluation_image(tf, stored, tf.constant(orientation), crop).numpy()
    except (tf.errors.OpError, ValueError) as error:  # ValueError: BMP and WebP, see `decode.stored_pixels`
        raise InputError(f"{printable(name)}: cannot be decoded ({_reason(error)})") from error


def decode_resized(
    data: bytes, orientation: int, height: int, width: int, interpolation: str, name: str = "the image"
) -> np.ndarray:
    """One encoded image, turned upright by its EXIF `orientation` (1..8), resized: uint8[height, width, 3].

    At its own size the decoder's pixels themselves. Raises InputError naming `name` as `decode` does.
    """
    stored = decode(data, name)
    rows, columns = (width, height) if orientation >= 5 else (height, width)
    tf = _tensorflow()
    if stored.shape[:2] != (rows, columns):
        stored = graph.resize(tf, tf.constant(stored), rows, columns, interpolation)
    return graph.upright(tf, tf.constant(stored), tf.constant(orientation)).numpy()


def _tensorflow() -> Any:
    """The module, imported and started by the first call. Raises MissingPackage where it cannot be imported."""
    with _LOCK:
        return _started_tensorflow()


@functools.cache
def _started_tensorflow() -> Any:
    # Hides start-up notes, one of them marked as an error though it only names a slower path.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with muted_errors():
        try:
            import tensorflow as tf
        except ImportError as error:
            raise missing_tensorflow(_reason(error)) from error

        if tf.config.get_visible_devices("GPU"):
            # Its first operation would take nearly all of the accelerator's memory, which JAX needs.
            tf.config.set_visible_devices([], "GPU")
        # The first operation says once more what the import said.
        tf.constant(0)
    return tf


def missing_tensorflow(why: str) -> MissingPackage:
    return MissingPackage(
        f"TensorFlow, which decodes and resizes images, cannot be imported ({why}); install tensorflow-cpu, or give "
        "images of the network's size as a file of arrays, which does not need it (docs/feeding.md)"
    )


def _rows(batch_size: int, shard: tuple[int, int], key: str) -> slice:
    process, processes = shard
    if not 0 <= process < processes:
        raise ValueError(f"shard must be (process, number of processes), not {shard}")
    if batch_size < 1 or batch_size % processes:
        raise InputError(f"{key} {batch_size} must be a positive multiple of the number of processes, {processes}")
    share = batch_size // processes
    return slice(process * share, (process + 1) * share)


def _threads(threads: int | None) -> int:
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, not {threads}")
    # The cores that this process may use, which in a container are fewer than the machine's; macOS does not tell.
    return threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _batches(
    split: Split, crop: Crop, plan: Callable[[int], _Plan], start: int, stop: int | None, threads: int
) -> Iterator[Batch]:
    """The batches of steps [start, stop), out of arrays or decoded."""
    if array_batches.need_no_decoder(split, crop):
        return array_batches.batches(split, crop, plan, start, stop)
    return _decoded(split, crop, plan, start, stop, threads)


def _decoded(
    split: Split, crop: Crop, plan: Callable[[int], _Plan], start: int, stop: int | None, threads: int
) -> Iterator[Batch]:
    """Walk the steps; after an error find its example or, where all of them read well by now, go on from that step."""
    tf = _tensorflow()
    failure = tf.errors.OpError  # Looked up now: when a walk is given up at the interpreter's end, `tf` is in pieces.
    step, failures = start, 0
    while stop is None or step < stop:
        stream = iter(_dataset(tf, split, crop, plan, step, stop, threads).as_numpy_iterator())
        try:
            for batch in stream:
                yield batch
                step, failures = step + 1, 0
        except failure as error:
            _name_culprit(tf, split, crop, plan(step))
            failures += 1
            if failures == _ATTEMPTS:
                raise InputError(f"step {step} of split {split.name} cannot be read ({_reason(error)})") from error
            time.sleep(_BACKOFF_SECONDS * 2**failures)


def _name_culprit(tf: Any, split: Split, crop: Crop, plan: _Plan) -> None:
    """Read the examples of one step again, one at a time; raise InputError for the first that goes on failing."""
    for row in np.flatnonzero(plan.mask):
        i = int(plan.index[row])
        for attempt in range(_ATTEMPTS):
            try:
                # Not tf.io.read_file: `split.read` sits out a hiccup of the disk, and its errors say which it was.
                data = tf.constant(split.read(i))
                cut = Cut(*(tf.constant(part[row]) for part in plan.cut))
                graph.training_image(tf, data, tf.constant(int(split.orientations[i])), cut, crop)
                break
            # OSError comes from `split.read`, ValueError from there or from a BMP or WebP, the rest from TensorFlow.
            except (tf.errors.OpError, OSError, ValueError) as error:
                if attempt == _ATTEMPTS - 1 or is_transient(error):
                    raise InputError(
                        f"{printable(split.ids[i])}: cannot be read ({_reason(error)}); "
                        "it was readable when the dataset was opened: restore it, or start again"
                    ) from error
                time.sleep(_BACKOFF_SECONDS * 2**attempt)


def _reason(error: Exception) -> str:
    """What the system says or the first line of what TensorFlow says, without the name of its graph's node."""
    if isinstance(error, OSError) and error.strerror:
        return printable(error.strerror)
    text = str(error).split("[Op:")[0].split("[[{{")[0].split("}} ")[-1].strip()
    return printable((text.splitlines() or [type(error).__name__])[0][:200])


@functools.lru_cache(maxsize=16)
def _training_image(crop: Crop) -> Any:
    """`decode.training_image` as a graph, traced once and not for each pipeline: a third of an evaluation's start."""
    tf = _tensorflow()
    box, number = tf.TensorSpec([4], tf.int32), tf.TensorSpec([], tf.int32)
    takes = [tf.TensorSpec([], tf.string), number, Cut(box, number, box, tf.TensorSpec([4], tf.float32))]
    make = lambda data, orientation, cut: graph.training_image(tf, data, orientation, cut, crop)  # noqa: E731
    return tf.function(make, input_signature=takes, autograph=False)


def _dataset(
    tf: Any, split: Split, crop: Crop, plan: Callable[[int], _Plan], start: int, stop: int | None, threads: int
) -> Any:
    """The tf.data.Dataset of this process' batches of steps [start, stop)."""
    paths = split.paths

    def rows(step: int) -> tuple[np.ndarray, ...]:
        planned = plan(int(step))
        index = planned.index
        # Here, step by step: of all of ImageNet's paths a copy in bytes takes 130 MB.
        where = index if paths is None else np.array([os.fsencode(paths[i]) for i in index], object)
        labels, orientations = split.labels[index].astype(np.int32), split.orientations[index].astype(np.int32)
        return where, index.astype(np.int32), labels, planned.mask, orientations, *planned.cut

    of_a_cut = (tf.int32, tf.int32, tf.int32, tf.float32)
    kinds = (tf.int64 if paths is None else tf.string, tf.int32, tf.int32, tf.float32, tf.int32, *of_a_cut)
    share = len(plan(start).index)

    # What branches here are TensorFlow's own operations: there is nothing to convert, and no file to leave in /tmp.
    @tf.autograph.experimental.do_not_convert
    def planned_rows(step: Any) -> tuple[Any, ...]:
        columns = tf.numpy_function(rows, [step], kinds)
        cut = Cut(*columns[5:])
        for column in (*columns[:5], cut.halvings):
            column.set_shape([share])
        for column in (cut.box, cut.window, cut.place):
            column.set_shape([share, 4])
        return tf.data.Dataset.from_tensor_slices((*columns[:5], cut))

    @tf.autograph.experimental.do_not_convert
    def example(where: Any, index: Any, label: Any, mask: Any, orientation: Any, cut: Cut) -> dict[str, Any]:
        def image() -> Any:
            if paths is None:
                data = tf.numpy_function(lambda i: split.read(int(i)), [where], tf.string)
                data.set_shape([])
            else:
                data = tf.io.read_file(where)
            return _training_image(crop)(data, orientation, cut)

        size = (crop.image_size, crop.image_size, 3)
        pixels = tf.cond(mask > 0, image, lambda: tf.zeros(size, tf.uint8))
        return {"image": tf.ensure_shape(pixels, size), "label": label, "mask": mask, "index": index}

    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    options.autotune.enabled = False
    steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max if stop is None else stop)
    examples = steps.flat_map(planned_rows).map(example, num_parallel_calls=_IN_FLIGHT * threads, deterministic=True)
    return examples.batch(share, drop_remainder=True).prefetch(_PREFETCHED).with_options(options)
