"""The resident feed: a set of small images decoded once, kept on the accelerator, cut there.

The same examples, pixels and order as the tf.data feed (`stream`) for the same seed: both ask `order` and `crops`. What
crosses to the accelerator for a step is where to look and where to cut, 12 bytes an image. Several runs over one copy
of the data, each in its own order, then cost no more memory than one.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from input_pipeline.bars import Bar
from input_pipeline.crops import Crop, boxes
from input_pipeline.errors import InputError, printable
from input_pipeline.images import SPLITS, content_of
from input_pipeline.order import Order, evaluation_batches
from input_pipeline.sources import Source, Split
from input_pipeline.stream import eval_batches
from input_pipeline.whole_files import beside

# Crops whose training image is a window of evaluation's image, so that one decoded copy serves every epoch.
CROPS = ("pad", "none")
# Decoded bytes that a resident set may take: a tenth of a large accelerator's memory. CIFAR-10 takes 0.2 GB.
MOST_BYTES = 8 * 1024**3
_DECODED_AT_A_TIME = 256
_CLASSES = "class_names"


@dataclasses.dataclass(frozen=True)
class Images:
    """The decoded examples of one split: images uint8[N, S, S, 3], RGB, cut as in evaluation; labels int32[N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class ResidentData:
    """A decoded dataset. splits: 'train', 'val', 'test', those that there are.

    fingerprint: sha256 (hex) over class names, labels and pixels: the same wherever the same pixels come from.
    origin: the fingerprint of the `Source` that was decoded; '' where there was none.
    """

    class_names: tuple[str, ...]
    splits: Mapping[str, Images]
    fingerprint: str
    origin: str = ""

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return int(next(iter(self.splits.values())).images.shape[1])

    def as_source(self, name: str) -> Source:
        """The same as a `Source`; an example's bytes are made when they are read, a PNG of its pixels."""
        return Source(
            name, self.class_names, {n: _as_split(n, s) for n, s in self.splits.items()}, self.fingerprint, ()
        )


def decode_source(source: Source, crop: Crop, *, threads: int | None = None) -> ResidentData:
    """Decode every split of `source` once, as `crop` says for evaluation, whatever its kind.

    Raises InputError for more than MOST_BYTES of pixels (before any is decoded) and for an image that cannot be read.
    """
    count = sum(len(split) for split in source.splits.values())
    _check_bytes(count * crop.image_size**2 * 3, f"{count:,} images at {crop.image_size} px")
    splits = {}
    with Bar("decoding images", count) as bar:
        for name, split in source.splits.items():
            images = np.empty((len(split), crop.image_size, crop.image_size, 3), np.uint8)
            for batch in eval_batches(split, min(_DECODED_AT_A_TIME, len(split)), crop, threads=threads):
                real = batch["mask"] > 0
                images[batch["index"][real]] = batch["image"][real]
                bar.update(int(real.sum()))
            splits[name] = Images(images, split.labels.astype(np.int32))
    return dataclasses.replace(make_resident(source.class_names, splits), origin=source.fingerprint)


def make_resident(class_names: tuple[str, ...], splits: Mapping[str, Images]) -> ResidentData:
    """The decoded dataset of these splits, with its fingerprint."""
    digest = hashlib.sha256(json.dumps(list(class_names)).encode())
    for name, split in splits.items():
        digest.update(f"{name} {split.images.shape}".encode())
        digest.update(np.ascontiguousarray(split.labels, np.int32).data)
        digest.update(np.ascontiguousarray(split.images).data)
    return ResidentData(tuple(class_names), splits, digest.hexdigest())


def write_arrays(data: ResidentData, file: Path) -> None:
    """Write `data` as one .npz file that `read_arrays` reads, in one piece: readers see all of it or none."""
    arrays: dict[str, np.ndarray] = {_CLASSES: np.array(json.dumps(list(data.class_names)))}
    for name, split in data.splits.items():
        arrays |= {f"{name}_images": split.images, f"{name}_labels": split.labels}
    with beside(file) as part, part.open("wb") as opened:
        np.savez(opened, allow_pickle=False, **arrays)


def read_arrays(file: Path, image_size: int) -> ResidentData:
    """The dataset in a file of `write_arrays`; nothing in it is unpickled.

    Raises InputError naming the file when it is not of that form, is too large or holds images of another size.
    """
    name = printable(str(file))
    try:
        if file.exists() and not (file.is_file() or file.is_dir()):
            # Opening a pipe would wait for a writer.
            raise ValueError("not a regular file")
        with zipfile.ZipFile(file) as archive:
            _check_bytes(sum(member.file_size for member in archive.infolist()), name)
        with np.load(file, allow_pickle=False) as stored:
            class_names = tuple(json.loads(str(stored[_CLASSES])))
            splits = {
                split: Images(stored[f"{split}_images"], stored[f"{split}_labels"])
                for split in SPLITS
                if f"{split}_images" in stored
            }
    except (OSError, EOFError, KeyError, ValueError, TypeError, MemoryError, RuntimeError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a complete file of arrays"
        raise InputError(
            f"{name}: cannot be read ({reason}); give --config.data.dir a file that write_arrays wrote"
        ) from error
    _check_arrays(name, class_names, splits, image_size)
    return make_resident(class_names, splits)


def _check_arrays(name: str, class_names: tuple[str, ...], splits: Mapping[str, Images], image_size: int) -> None:
    if "train" not in splits or len(class_names) < 2 or not all(isinstance(word, str) for word in class_names):
        raise InputError(f"{name}: needs a train split and the names of two or more classes")
    for split, examples in splits.items():
        shape, labels = examples.images.shape, examples.labels
        whole = examples.images.dtype == np.uint8 and labels.dtype == np.int32 and labels.ndim == 1 and len(labels) > 0
        if not whole or len(shape) != 4 or shape[0] != len(labels) or shape[1] != shape[2] or shape[3] != 3:
            raise InputError(f"{name}: its {split} split is not uint8[N, S, S, 3] with int32[N] labels")
        if shape[1] != image_size:
            raise InputError(f"{name}: holds images of {shape[1]} px; set --config.data.image_size={shape[1]}")
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise InputError(f"{name}: a label of its {split} split is none of the {len(class_names)} classes")


def _check_bytes(count: int, what: str) -> None:
    if count > MOST_BYTES:
        raise InputError(
            f"{what}: {count / 1e9:.1f} GB decoded, more than the {MOST_BYTES / 1e9:.1f} GB that an accelerator may "
            "hold; lower --config.data.image_size or use fewer images"
        )


def _as_split(name: str, split: Images) -> Split:
    def read(index: int) -> bytes:
        encoded = io.BytesIO()
        Image.fromarray(split.images[index]).save(encoded, "PNG", compress_level=0)
        return encoded.getvalue()

    count, size = len(split), split.images.shape[1]
    ids = tuple(f"{name}#{index}" for index in range(count))
    contents = np.array([content_of(np.ascontiguousarray(image).data) for image in split.images], "S32")
    sizes, upright = np.full((count, 2), size, np.int32), np.ones(count, np.int8)
    return Split(name, split.labels, ids, sizes, upright, None, contents, read, split.images)


def step_rows(order: Order, crop: Crop, start: int, count: int) -> dict[str, np.ndarray]:
    """What the steps start .. start + count - 1 show: 'index' int32[count, B] and 'offset' int32[count, B, 2].

    The offset is that of `cut`: top and left, in 0..2 * crop.padding, zeros for crop 'none'.
    Raises InputError for a crop that is not one of CROPS.
    """
    if crop.kind not in CROPS:
        raise InputError(
            f"config.data.crop={crop.kind!r} needs whole images of any size; resident data support {' or '.join(CROPS)}"
        )
    steps = range(start, start + count)
    index = np.concatenate([order.indices(step) for step in steps])
    shape = (count, order.batch_size)
    if crop.kind == "none":
        offset = np.zeros((*shape, 2), np.int32)
    else:
        epochs = np.concatenate([order.epochs(step) for step in steps])
        sizes = np.full((len(index), 2), crop.image_size)
        offset = boxes(crop, order.seed, epochs, index, sizes)[:, :2].reshape(*shape, 2)
    return {"index": index.reshape(shape).astype(np.int32), "offset": offset}


def cut(images: jax.Array, index: jax.Array, offset: jax.Array, padding: int) -> jax.Array:
    """Rows `index` int32[B] of images uint8[N, S, S, 3], zero-padded, cut at `offset` int32[B, 2]: uint8[B, S, S, 3].

    To be called inside jit. With padding 0 the images themselves.
    """
    chosen = images[index]
    if padding == 0:
        return chosen
    wide = jnp.pad(chosen, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = images.shape[1:]
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), size))(wide, offset)


def evaluation_rows(split: Images, batch_size: int) -> list[dict[str, np.ndarray]]:
    """The batches of `stream.eval_batches`: every example once, in order, the last batch filled up under mask 0."""
    batches = []
    for index, mask in evaluation_batches(len(split), batch_size):
        images = np.where(mask[:, None, None, None] > 0, split.images[index], np.uint8(0))
        labels = split.labels[index]
        batches.append({"image": images, "label": labels, "mask": mask, "index": index.astype(np.int32)})
    return batches
