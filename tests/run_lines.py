"""The lines of metrics.jsonl that a run writes, but for what a clock says; and a signal sent as one is written."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet.train.writers import MetricsWriter, read_metrics

if TYPE_CHECKING:
    import pytest

# What a clock says differs between runs; everything else may not.
CLOCK = ("images_per_second", "data_wait")


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in read_metrics(workdir)]


def stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process a real SIGTERM when the training line of `step` is written."""
    write = MetricsWriter.write

    def write_then_stop(self, at, epoch, kind, values):
        write(self, at, epoch, kind, values)
        if at == step and kind == "train":
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(MetricsWriter, "write", write_then_stop)
