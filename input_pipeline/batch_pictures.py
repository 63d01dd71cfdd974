"""Training images as the network sees them, brought back to pictures, and a sheet of them with their labels."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from input_pipeline.augment import ALTERNATING, AUGMENT, Augmentation, alternately_mirrored, augment
from input_pipeline.contract import Contract, pictures
from input_pipeline.errors import printable
from input_pipeline.order import dealt

# Small images are shown enlarged, so that their labels have room beneath them.
LEAST_SIDE, GAP, TEXT_SIZE = 112, 8, 12
# Of a soft label, classes below this share are not named, and no more than so many.
LEAST_SHARE, MOST_CLASSES = 0.05, 3
PAPER, INK = (255, 255, 255), (38, 49, 61)


def as_seen(
    batch: Mapping[str, np.ndarray],
    augmentation: Augmentation,
    contract: Contract,
    *,
    seed: int,
    step: int,
    num_classes: int,
    parts: int = 1,
    group: int = 1,
    num_examples: int = 0,
    rows: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What step number `step` (from 0) of a run of this seed makes of a batch of `stream.train_batches`.

    parts: config.optim.accumulation, each of which is augmented by itself. group: rows that are dealt out to them
    together (config.model.ghost_batch_size, 1 without). num_examples: of the training split, for flip='alternating'.
    rows: those of the batch whose 'image' and 'label' are given, as `rows_behind` says them, all by default; 'index' is
    the whole batch's.
    Returns (pictures uint8[B, S, S, 3], RGB, un-normalised, so that what erasing set to 0 has the contract's mean
    colour; targets float32[B, num_classes]).
    """
    mirrored = None
    if augmentation.flip == ALTERNATING:
        mirrored = np.asarray(alternately_mirrored(jax.random.key(seed), step, batch["index"], num_examples))
    key = jax.random.fold_in(jax.random.key(seed), step)
    images = np.empty(batch["image"].shape, np.uint8)
    targets = np.empty((len(images), num_classes), np.float32)
    size = len(batch["index"])
    held = np.full(size, -1)
    held[slice(None) if rows is None else rows] = np.arange(len(images))
    for part, members in enumerate(dealt(np.arange(size), parts, group)):
        places = np.flatnonzero(held[members] >= 0)
        if not len(places):
            continue
        own = held[members[places]]
        part_key = key if parts == 1 else jax.random.fold_in(key, part)
        inputs, soft = _augmented(
            jax.random.fold_in(part_key, AUGMENT), batch["image"][own], batch["label"][own], augmentation, contract,
            num_classes, None if mirrored is None else mirrored[members[places]], places,
        )  # fmt: skip
        images[own], targets[own] = pictures(inputs, contract), soft
    return images, targets


def rows_behind(count: int, batch_size: int, parts: int = 1, group: int = 1) -> np.ndarray:
    """The rows, ascending, that the first `count` pictures of a batch are made of, for `as_seen`.

    The first `count` rows, and the last row of each part whose first row is among them: mixing mixes these two.
    """
    wanted = np.arange(batch_size) < count
    for members in dealt(np.arange(batch_size), parts, group):
        wanted[members[-1]] |= wanted[members[0]]
    return np.flatnonzero(wanted)


_augmented = functools.partial(jax.jit, static_argnames=("augmentation", "contract", "num_classes"))(augment)


def caption(target: np.ndarray, class_names: Sequence[str], longest: int) -> list[str]:
    """A label as lines of at most `longest` characters: the class, or the shares of a soft label, greatest first."""
    order = np.argsort(-target, kind="stable")
    if target[order[0]] > 1 - 1e-6:
        return [shortened(class_names[order[0]], longest)]
    named = [index for index in order[:MOST_CLASSES] if target[index] >= LEAST_SHARE] or [order[0]]
    return [f"{shortened(class_names[index], longest - 5)} {target[index]:.0%}" for index in named]


def shortened(name: str, longest: int) -> str:
    name = printable(name)
    return name if len(name) <= longest else f"{name[: max(longest - 1, 1)]}…"


def sheet(images: np.ndarray, targets: np.ndarray, class_names: Sequence[str], title: str = "") -> np.ndarray:
    """Pictures uint8[N, S, S, 3] in rows, each above its label float32[N, C]: uint8[H, W, 3]. N is at least 1."""
    longest = letters(images.shape[2] * magnification(images))
    return labelled(images, [caption(target, class_names, longest) for target in targets], title)


def magnification(images: np.ndarray) -> int:
    """The whole factor by which a sheet enlarges pictures [N, H, W, 3]."""
    return max(1, math.ceil(LEAST_SIDE / images.shape[1]))


def letters(width: int) -> int:
    """How many letters fit beneath a picture of so many pixels."""
    return max(8, int(width / (0.62 * TEXT_SIZE)))


def labelled(images: np.ndarray, captions: Sequence[Sequence[str]], title: str = "") -> np.ndarray:
    """Pictures uint8[N, H, W, 3] in rows, each above its lines of text, beneath a title. N is at least 1."""
    font, line, factor = _font(), TEXT_SIZE + 4, magnification(images)
    high, wide = images.shape[1] * factor, images.shape[2] * factor
    columns = max(1, min(len(images), math.ceil(math.sqrt(len(images) * 1.6 * high / wide))))
    height = high + line * max(map(len, captions)) + GAP
    width = columns * (wide + GAP) + GAP
    head = _wrapped(title, width - 2 * GAP, font)
    top = len(head) * line + 2 * GAP if head else GAP
    page = Image.new("RGB", (width, top + height * math.ceil(len(images) / columns)), PAPER)
    pen = ImageDraw.Draw(page)
    for number, text in enumerate(head):
        pen.text((GAP, GAP + number * line), text, INK, font)
    for number, (image, lines) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(number, columns)
        left, upper = GAP + column * (wide + GAP), top + row * height
        page.paste(Image.fromarray(image).resize((wide, high), Image.Resampling.NEAREST), (left, upper))
        for place, text in enumerate(lines):
            pen.text((left, upper + high + 1 + place * line), text, INK, font)
    return np.asarray(page)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    # matplotlib's own: it has most alphabets, and stands on every machine that this runs on.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), TEXT_SIZE)


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """`text` in lines that are at most `width` pixels wide, broken at spaces."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
