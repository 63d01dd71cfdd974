"""What benchmarks/feed.py compares: our two feeds, bare decoding, and what others would use, as iterators of batches.

Each is made anew for each of its turns: nothing is ahead of the clock that was decoded while others had theirs.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class Setting:
    """The training images of a folder, how they are cropped, and how many make a batch."""

    split: Any
    image_size: int
    batch_size: int

    @property
    def order(self) -> Any:
        from input_pipeline.order import Order

        return Order(len(self.split), self.batch_size, 0)

    @property
    def crop(self) -> Any:
        from input_pipeline.crops import Crop

        return Crop("random_resized", self.image_size)


def opened(data_dir: str, image_size: int, batch_size: int) -> Setting:
    """All images of a folder of classes, or those of its training split."""
    from input_pipeline.sources import open_source

    source = open_source("folder", data_dir, val_fraction=0.0, test_fraction=0.0, progress=False)
    return Setting(source.splits["train"], image_size, batch_size)


def bare_decoding(setting: Setting) -> Iterator[Any]:
    import tensorflow as tf

    paths = list(setting.split.paths)
    files = tf.data.Dataset.from_tensor_slices(paths).repeat().map(tf.io.read_file)
    images = files.map(lambda data: tf.shape(tf.io.decode_jpeg(data, channels=3)), num_parallel_calls=CORES)
    return iter(images.batch(setting.batch_size).prefetch(2).as_numpy_iterator())


def stream(setting: Setting) -> Iterator[Any]:
    from input_pipeline.stream import train_batches

    return train_batches(setting.split, setting.order, setting.crop)


def resident(setting: Setting) -> Iterator[Any]:
    import jax

    from resnet.train.parallel import make_mesh

    feed = resident_feed(setting)
    kept, whole = feed.load(make_mesh()), jax.jit(feed.whole)
    step = 0
    while True:
        yield jax.block_until_ready(whole(kept, feed.rows(step)))
        step += 1


def resident_feed(setting: Setting) -> Any:
    """config.data.feed=resident, asked for, so on a CPU too."""
    from resnet.train.feeding import choose_feed

    return choose_feed("resident", setting.split, setting.order, setting.crop, processes=1, epochs=2.0, platform="any")


def torch_loader(setting: Setting) -> Iterator[Any]:
    import torch
    from PIL import Image

    from input_pipeline.crops import boxes

    split, crop, size = setting.split, setting.crop, setting.image_size

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(split)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            seed = int(torch.randint(1 << 30, ()))
            ((top, left, height, width),) = boxes(crop, seed, np.zeros(1, int), np.array([i]), split.sizes[i : i + 1])
            box = (left, top, left + width, top + height)
            image = Image.open(split.paths[i]).convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box)
            pixels = torch.from_numpy(np.array(image))
            return (pixels.flip(1) if seed % 2 else pixels), int(split.labels[i])

    options: dict[str, Any] = {
        "batch_size": setting.batch_size,
        "shuffle": True,
        "num_workers": CORES,
        "drop_last": True,
    }
    loader = torch.utils.data.DataLoader(Pictures(), persistent_workers=True, **options)
    while True:
        yield from loader


def tf_data(setting: Setting) -> Iterator[Any]:
    import tensorflow as tf

    split = setting.split
    size = (setting.image_size, setting.image_size)

    def example(path: Any, label: Any) -> tuple[Any, Any]:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image), tf.zeros((1, 0, 4)), area_range=(0.08, 1.0), use_image_if_no_bounding_boxes=True
        )
        image = tf.image.resize(tf.slice(image, begin, extent), size)
        return tf.image.random_flip_left_right(image), label

    files = tf.data.Dataset.from_tensor_slices((list(split.paths), split.labels)).shuffle(len(split)).repeat()
    examples = files.map(example, num_parallel_calls=tf.data.AUTOTUNE)
    return iter(examples.batch(setting.batch_size).prefetch(tf.data.AUTOTUNE).as_numpy_iterator())


def keras_directory(setting: Setting) -> Iterator[Any]:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    size = setting.image_size
    # The folder of the classes' folders, which in a data set with splits is that of one split.
    folder = Path(setting.split.paths[0]).parent.parent
    whole = keras.utils.image_dataset_from_directory(
        folder, image_size=(size * 8 // 7, size * 8 // 7), batch_size=setting.batch_size, verbose=False
    )
    layers = keras.Sequential([keras.layers.RandomCrop(size, size), keras.layers.RandomFlip("horizontal")])
    varied = whole.map(lambda images, labels: (layers(images, training=True), labels), num_parallel_calls=CORES)
    return iter(varied.repeat().prefetch(tf.data.AUTOTUNE).as_numpy_iterator())


MAKERS: dict[str, Callable[[Setting], Iterator[Any]]] = {
    "decode": bare_decoding,
    "stream": stream,
    "resident": resident,
    "torch": torch_loader,
    "tf_data": tf_data,
    "keras": keras_directory,
}
