"""What a run writes down: metrics.jsonl and TensorBoard events, with no step logged twice however the run was resumed.

metrics.jsonl has one JSON object a line: {"step": int, "epoch": float, "kind": "train" | "val" | "test", ...values}.
It is strict JSON: NaN and infinities are written as null (TensorBoard gets them as they are). The trackers of
config.run.writers get the same numbers (resnet/train/trackers.py).
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from input_pipeline.errors import InputError, printable
from resnet.train.tensorboard_events import EventFile
from resnet.train.trackers import Trackers
from resnet.train.workdir import without_nan

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
KINDS = ("train", "val", "test")
_RESERVED = frozenset({"step", "epoch", "kind"})


class MetricsWriter:
    """Appends to WORKDIR/metrics.jsonl and WORKDIR/tensorboard; one process per run holds one. A context manager."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        resume_step: int = 0,
        config: Mapping[str, Any] | None = None,
        *,
        evaluated: bool = True,
    ) -> None:
        """Open the files of a run that goes on after `resume_step` (steps done; 0 for a new run).

        What an earlier process logged beyond `resume_step`, and a last line it left half-written, is dropped: those
        steps will be done again. evaluated: whether the checkpoint knows of the validation at `resume_step`; where not,
        that line is dropped as well, for it will come again (TensorBoard then has the same figures twice). config: the
        run's, flat, for TensorBoard's table of hparams and for the trackers that 'run.writers' in it names. Raises
        InputError for a metrics.jsonl that is damaged elsewhere, and for a tracker that cannot be opened.
        """
        folder = Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS_FILE
        if path.exists():
            _drop_after(path, resume_step, evaluated)
        self._trackers = Trackers((config or {}).get("run.writers", ()), folder, config or {})
        self._file = path.open("a", encoding="utf-8")
        self._trackers.catch_up(record for record, _ in _records(path))
        self._events = EventFile(folder / TENSORBOARD_FOLDER, purge_step=resume_step + 1)
        if config:
            self._events.write_hparams(config)

    def write(self, step: int, epoch: float, kind: str, values: Mapping[str, Any]) -> None:
        """Log `values` (numbers, scalar arrays, None, strings, or lists and dicts of such) under `kind`, one of KINDS.

        `step` is the number of steps done, `epoch` the epochs done. The line is handed to the operating system before
        this returns, so that it outlives the process. TensorBoard gets the numbers as scalars `kind/name`. Raises
        ValueError for another kind, for a value named step, epoch or kind, and after `close`.
        """
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}: known are {', '.join(KINDS)}")
        if taken := _RESERVED & values.keys():
            raise ValueError(f"{sorted(taken)} name every line's own fields, not values")
        plain = {name: _plain(value) for name, value in values.items()}
        line = {"step": int(step), "epoch": float(epoch), "kind": kind, **without_nan(plain)}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        self._events.write(
            int(step), {f"{kind}/{name}": value for name, value in plain.items() if isinstance(value, int | float)}
        )
        self._trackers.write(int(step), float(epoch), kind, plain)

    def show(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture, uint8[H, W, 3], for TensorBoard."""
        self._events.write_image(step, name, pixels)

    def sync(self) -> None:
        """Push metrics.jsonl to the disk: no checkpoint may outlive the lines of its steps in a power cut."""
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Close everything, and tell TensorBoard and the trackers that the run is done."""
        self._events.write_end()
        self._trackers.close(finished=True)
        self.close()

    def close(self) -> None:
        """Flush and close everything. Calling it again does nothing."""
        if not self._file.closed:
            self._trackers.close(finished=False)
            self._file.close()
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The first error is the one to tell: on a full disk, closing fails again.
        with contextlib.suppress(*((OSError,) if error else ())):
            self.close()


class SilentWriter:
    """Stands where a MetricsWriter would, in the processes of a run that do not write."""

    def write(self, step: int, epoch: float, kind: str, values: Mapping[str, Any]) -> None:
        """Log nothing."""

    def show(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Show nothing."""

    def sync(self) -> None:
        """There is nothing to push to the disk."""

    def finish(self) -> None:
        """There is nothing to close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to close."""


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of WORKDIR/metrics.jsonl in order, without a half-written last one; [] if it is empty.

    What was NaN or infinite is None. Raises InputError if there is no such file or another line is damaged.
    """
    path = Path(workdir) / METRICS_FILE
    if path.exists() and not path.is_file():
        raise InputError(f"{printable(str(path))} is not a regular file; restore it")
    try:
        return [record for record, _ in _records(path)]
    except FileNotFoundError:
        raise InputError(f"{printable(str(path))} does not exist: give the folder of a run that has started") from None


def _records(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each whole line of the file as a record and as its bytes (newline included)."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                if not isinstance(record["step"], int):
                    raise TypeError
            except (ValueError, TypeError, KeyError, RecursionError):
                # Only a last line can be a write that was cut short; after it the file has nothing more.
                if file.read(1) == b"":
                    return
                raise InputError(
                    f"{printable(str(path))} line {number} is damaged: delete that line, or the file, to continue"
                ) from None
            yield record, line.rstrip(b"\r\n") + b"\n"


def _drop_after(path: Path, step: int, evaluated: bool) -> None:
    """Rewrite the file without the records beyond `step`, nor the validation at it unless `evaluated`.

    By way of a second file, so that a kill leaves one whole.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        for record, line in _records(path):
            again = record["step"] == step and record.get("kind") == "val" and not evaluated
            if record["step"] <= step and not again:
                file.write(line)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    """`value` as Python's own numbers, strings, lists and dicts; arrays (NumPy, JAX) become numbers or lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return np.asarray(value).tolist()
