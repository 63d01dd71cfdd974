"""What a run's network said of every test image, kept beside its figures so that the report can show the pictures."""

import dataclasses
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from input_pipeline.errors import InputError, printable

PREDICTIONS_FILE = "predictions.npz"


@dataclasses.dataclass(frozen=True)
class KeptPredictions:
    """One row an image of the test split, in the split's order.

    probabilities: float32[N, C], see losses.probabilities. labels: int32[N], the true classes. ids: the images' names
    (Split.ids). leaked: bool[N], whether the image, or a copy of it that is known, stands in an earlier split too.
    step: of the checkpoint that was asked.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    ids: tuple[str, ...]
    leaked: np.ndarray
    step: int


def room_of_predictions(workdir: Path, ids: Sequence[str], num_classes: int) -> int:
    """Bytes that predictions.npz of these images will take in `workdir`; 0 where it is there already."""
    if (workdir / PREDICTIONS_FILE).exists():
        return 0
    # NumPy keeps texts at the length of the longest, 4 bytes a character; besides them a label and a mark an image.
    return len(ids) * (4 * num_classes + 4 * max(map(len, ids), default=0) + 5)


def write_predictions(workdir: Path, predictions: KeptPredictions) -> None:
    """Write WORKDIR/predictions.npz (plain arrays, 4·C bytes an image) beside its place and rename it: never a part."""
    path = workdir / PREDICTIONS_FILE
    # Of one name whichever process writes: what a kill leaves, which may take gigabytes, the next one overwrites.
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            np.savez(
                file,
                probabilities=predictions.probabilities.astype(np.float32, copy=False),
                labels=predictions.labels.astype(np.int32),
                ids=np.array(predictions.ids, np.str_),
                leaked=predictions.leaked.astype(bool),
                step=np.int64(predictions.step),
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_predictions(workdir: Path) -> KeptPredictions | None:
    """What `write_predictions` wrote; None where there is no such file. Nothing in the file is unpickled.

    Raises InputError for a file that is damaged or whose arrays do not belong together.
    """
    path = workdir / PREDICTIONS_FILE
    if not path.exists():
        return None
    try:
        check_stored(path)
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("probabilities", "labels", "ids", "leaked", "step")}
        probabilities, labels, ids, leaked = (arrays[name] for name in ("probabilities", "labels", "ids", "leaked"))
        count, classes = probabilities.shape
        sound = (
            probabilities.dtype == np.float32
            and labels.dtype == np.int32
            and leaked.dtype == bool
            and ids.dtype.kind == "U"
            and labels.shape == ids.shape == leaked.shape == (count,)
            and (count == 0 or (labels.min() >= 0 and labels.max() < classes))
        )
        if not sound:
            raise ValueError("its arrays do not belong together")
        step = int(arrays["step"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{printable(str(path))} cannot be read ({printable(str(error))[:200]}); remove it, "
            "and the same training command writes it again"
        ) from error
    return KeptPredictions(probabilities, labels, tuple(ids.tolist()), leaked, step)


def check_stored(path: Path) -> None:
    """Raise ValueError for a file that would swell, or whose reading would wait: what is written here does neither."""
    if not path.is_file():
        raise ValueError("it is not a regular file")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it is compressed")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("it claims more data than it has")
