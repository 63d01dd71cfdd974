"""The report's pictures: thumbnails behind the cells of the confusion matrix, and the most confident mistakes."""

import base64
import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.configured import open_data
from input_pipeline.errors import InputError, printable
from input_pipeline.sources import ARRAYS, DEMO_DIR, Split
from input_pipeline.thumbnails import encoded, thumbnail
from resnet.study.run_record import RunRecord
from resnet.train.predictions import KeptPredictions

# Pixels a side, pictures a cell and in all, and characters of base64 for all: the page may take 5 MB.
SIDE, A_CELL, IN_ALL, CHARACTERS = 88, 12, 500, 2_000_000
MISTAKES, MISTAKE_SIDE = 12, 144
# CSS pixels of the picture of a large confusion matrix (.picture in page.css is as wide).
PICTURE_SIDE = 480


@dataclasses.dataclass(frozen=True)
class Cell:
    """The test images of one true and one predicted class. rows: of predictions.npz, most telling first."""

    true: int
    predicted: int
    rows: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One wrong answer: a row of predictions.npz, and three pictures as data URIs ('' where they cannot be had).

    said, true: the picture under the heat map of the class that was said and of the true one.
    """

    row: int
    picture: str = ""
    said: str = ""
    true: str = ""


def open_test_images(run: RunRecord, data_dir: str) -> Split:
    """The run's test split, opened as the run did, from `data_dir` ('': where the run had it).

    Raises InputError where the data are not there any more, or are other data than the run's.
    """
    config = run.full_config()
    data = config.data
    data.dir = folder = data_dir or data.dir or (DEMO_DIR if data.source == "demo" else "")
    if data.source == "demo":
        # Else its images would be drawn anew where they are missing.
        data.source = "folder"
    there = Path(folder).is_file() if data.source == ARRAYS else Path(folder).is_dir()
    if not data.source.startswith("tfds:") and not there:
        raise InputError(f"the data are not at {printable(folder)}; say where they are with --data=DATA_DIR")
    source = open_data(config)
    if not source.is_of(run.provenance.get("dataset", {}).get("fingerprint", "")):
        raise InputError(f"the data at {printable(folder)} are not those of the run (other files, labels or splits)")
    if "test" not in source.splits or (run.predictions and source.splits["test"].ids != run.predictions.ids):
        raise InputError(f"the test images at {printable(folder)} are not those of predictions.npz; restore them")
    return source.splits["test"]


def answers(predictions: KeptPredictions) -> tuple[np.ndarray, np.ndarray]:
    """(predicted class int[N], -1 where the network gave no softmax; its probability float[N])."""
    valid = np.isfinite(predictions.probabilities).all(axis=1)
    return np.where(valid, predictions.probabilities.argmax(axis=1), -1), np.where(
        valid, predictions.probabilities.max(axis=1), 0.0
    )


def cells(predictions: KeptPredictions) -> list[Cell]:
    """Every cell that has images: mistakes first, the fullest first. The surest mistakes lead a cell, and the least
    sure hits."""
    predicted, confidence = answers(predictions)
    members: dict[tuple[int, int], list[int]] = {}
    for row in np.argsort(-confidence, kind="stable").tolist():
        if predicted[row] >= 0:
            members.setdefault((int(predictions.labels[row]), int(predicted[row])), []).append(row)
    found = [
        Cell(true, said, tuple(reversed(rows) if true == said else rows)) for (true, said), rows in members.items()
    ]
    return sorted(found, key=lambda cell: (cell.true == cell.predicted, -len(cell.rows), cell.true, cell.predicted))


def shown_rows(found: list[Cell]) -> Iterator[int]:
    """Rows to show, in the order in which they deserve room: the first of every cell, the second of every cell, …"""
    for hits in (False, True):
        those = [cell for cell in found if (cell.true == cell.predicted) == hits]
        for place in range(A_CELL):
            for cell in those:
                if place < len(cell.rows):
                    yield cell.rows[place]


def thumbnails(split: Split, rows: Iterator[int]) -> dict[int, str]:
    """Data URIs of as many of `rows` as IN_ALL and CHARACTERS allow; pictures that cannot be read are left out."""
    found: dict[int, str] = {}
    left = CHARACTERS
    for row in rows:
        if len(found) >= IN_ALL:
            break
        try:
            data, _ = thumbnail(split.read(row), SIDE, quality=72)
        except Exception:  # Any: the file may have gone since the run, and the page has the rest to show.
            continue
        if len(data) > left:
            break
        left -= len(data)
        found[row] = f"data:image/jpeg;base64,{data}"
    return found


def mistakes(predictions: KeptPredictions, limit: int = MISTAKES) -> list[Mistake]:
    """The wrong answers that the network was surest of, without pictures."""
    predicted, confidence = answers(predictions)
    wrong = np.flatnonzero((predicted != predictions.labels) & (predicted >= 0))
    return [Mistake(row) for row in wrong[np.argsort(-confidence[wrong], kind="stable")][:limit].tolist()]


def with_heat(chosen: list[Mistake], split: Split, predictions: KeptPredictions, checkpoint: Path) -> list[Mistake]:
    """The mistakes with their pictures as the network saw them, and Grad-CAM for what it said and for the truth.

    Raises InputError where the checkpoint or a picture cannot be read.
    """
    # Here, not above: they import jax, orbax and TensorFlow.
    from jax import lax

    from input_pipeline.stream import eval_image
    from resnet.study.gradcam import heat_maps, overlay
    from resnet.study.inference import load_model

    if not chosen:
        return []
    model = load_model(checkpoint)
    # A dozen images take no time; lax' own convolutions compile in 2.2 s where ours take 5.6 (ResNet-50 on a CPU).
    model = dataclasses.replace(model, network=model.network.clone(backend=lax.conv_general_dilated))
    rows = np.array([mistake.row for mistake in chosen])
    try:
        images = np.stack([eval_image(split, row, model.crop) for row in rows.tolist()])
    except OSError as error:
        raise InputError(f"a test image cannot be read ({error.strerror})") from error
    predicted, _ = answers(predictions)
    classes = np.concatenate([predicted[rows], predictions.labels[rows]])
    both = np.concatenate([images, images])
    drawn = overlay(both, heat_maps(model, both, classes))
    uris = as_uris(np.concatenate([images, drawn]))
    count = len(rows)
    return [
        Mistake(mistake.row, uris[number], uris[count + number], uris[2 * count + number])
        for number, mistake in enumerate(chosen)
    ]


def as_uris(pictures: np.ndarray) -> list[str]:
    """JPEG data URIs of uint8[N, S, S, 3], at most MISTAKE_SIDE pixels a side."""

    def uri(pixels: np.ndarray) -> str:
        picture = Image.fromarray(pixels)
        picture.thumbnail((MISTAKE_SIDE, MISTAKE_SIDE))
        return f"data:image/jpeg;base64,{encoded(picture, quality=82)}"

    return [uri(pixels) for pixels in pictures]


def cells_a_dot(num_classes: int) -> int:
    """Cells a side of what a pixel of `confusion_picture` shows: so many that the page shows every pixel."""
    return -(-num_classes // PICTURE_SIDE)


def confusion_picture(confusion: list[list[int]]) -> str:
    """The matrix as a PNG data URI, darker for a larger share of the true class: for many classes.

    A pixel is `cells_a_dot` squared cells, the darkest of them: a mean would lose single confusions among a thousand.
    """
    counts = np.asarray(confusion, np.float64)
    shares = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    starts = np.arange(0, len(shares), cells_a_dot(len(shares)))
    shares = np.maximum.reduceat(np.maximum.reduceat(shares, starts, axis=0), starts, axis=1)
    light, dark = np.array([238, 242, 247.0]), np.array([23, 72, 134.0])
    pixels = np.round(light + shares[..., None] * (dark - light)).astype(np.uint8)
    picture = Image.fromarray(pixels)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def attempt(say: list[str], work: Callable[[], Any]) -> Any:
    """What `work` gives; None, with its reason added to `say`, where it is refused."""
    try:
        return work()
    except (InputError, OSError) as error:
        say.append(str(error))
        return None
