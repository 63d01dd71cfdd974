"""TensorBoard's picture of the first inputs is of the global batch in the run's own parts, and ends no run."""

from pathlib import Path

import jax
import numpy as np
import pytest

from input_pipeline import batch_pictures
from resnet.train import loop, parallel, shown_inputs
from resnet.train.interruption import Interruption
from resnet.train.shown_inputs import NAME, show_inputs
from tests.tiny import tiny_config


class Noted:
    """A writer and a bar that keep what they are given."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, str, np.ndarray]] = []
        self.lines: list[str] = []

    def show(self, step: int, name: str, pixels: np.ndarray) -> None:
        self.shown.append((step, name, pixels))

    def write(self, line: str) -> None:
        self.lines.append(line)


def run_of(data: Path, workdir: Path, feed: str, parts: int, group: int) -> tuple[loop.Run, Noted]:
    """A run that has not begun, with everything in its augmentation that joins a row to others."""
    config = tiny_config(data)
    config.data.feed, config.data.mixup, config.data.flip = feed, 0.4, "alternating"
    config.optim.accumulation, config.model.ghost_batch_size = parts, group
    source = loop.open_data(config)
    plan = loop.make_plan(config, source)
    mesh = parallel.make_mesh()
    run = loop.Run(config, workdir, mesh, source, plan, Interruption())
    noted = Noted()
    run.writer = run.bar = noted  # type: ignore[assignment]
    return run, noted


@pytest.mark.parametrize(("feed", "parts", "group"), [("stream", 1, 8), ("stream", 2, 2), ("resident", 4, 1)])
def test_it_shows_what_the_whole_batch_makes_of_its_first_rows(data, tmp_path, monkeypatch, feed, parts, group):
    monkeypatch.setattr(shown_inputs, "IMAGES", 3)
    run, noted = run_of(data, tmp_path, feed, parts, group)
    show_inputs(run)
    assert noted.lines == []
    ((step, name, pixels),) = noted.shown
    assert (step, name) == (0, NAME)
    recipe, names = run.plan.recipe, run.source.class_names
    pictures, targets = batch_pictures.as_seen(
        jax.device_get(run.streamed(next(run.batches(0)))), recipe.augmentation, recipe.contract, seed=recipe.seed,
        step=0, num_classes=len(names), parts=parts, group=group, num_examples=recipe.num_examples,
    )  # fmt: skip
    assert len(pictures) == 8
    # Rounding: a program for another number of rows.
    expected = batch_pictures.sheet(pictures[:3], targets[:3], names).astype(int)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= 1


def test_what_cannot_be_drawn_is_said_in_a_line(data, tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise ValueError("no such font\nat all")

    run, noted = run_of(data, tmp_path, "stream", 1, 8)
    monkeypatch.setattr(batch_pictures, "sheet", fails)
    show_inputs(run)
    assert noted.shown == []
    (line,) = noted.lines
    assert "train/inputs" in line
    assert "ValueError: no such font)" in line
