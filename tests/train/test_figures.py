"""Pictures are written whole, for every number of classes and for runs that have logged little."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from input_pipeline.errors import InputError
from resnet.train import figures
from resnet.train.figures import write_confusion, write_curves
from resnet.train.writers import MetricsWriter


def assert_picture(path: Path, at_least: int = 300) -> None:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) >= at_least
        assert max(image.size) <= 4000
        assert len(np.unique(np.asarray(image.convert("L")))) > 10
    assert not list(path.parent.glob(".*.part"))


def test_curves_of_a_run(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        for step in range(1, 131):
            loss = float("nan") if step == 50 else 1 / step
            writer.write(step, step / 10, "train", {"loss": loss, "top1": 1 - 1 / step, "learning_rate": 0.1})
            if step % 10 == 0:
                writer.write(step, step / 10, "val", {"loss": 2 / step, "top1": 1 - 2 / step})
    path = write_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    assert_picture(path)
    before = path.stat().st_ino
    write_curves(tmp_path)
    assert path.stat().st_ino != before  # replaced, not written over


def test_curves_of_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, 0.1, "train", {"loss": 2.3})
    assert_picture(write_curves(tmp_path))


@pytest.mark.parametrize(("metric", "epoch"), [("top1", "3"), ("loss", "1"), ("auroc", None)])
def test_the_best_validation_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, epoch: str | None
) -> None:
    with MetricsWriter(tmp_path) as writer:
        for step, (loss, top1) in enumerate([(0.5, 0.6), (0.7, 0.8), (0.6, 0.8), (0.9, 0.7)], start=1):
            writer.write(step, float(step), "val", {"loss": loss, "top1": top1})
    labels: list[str] = []
    save = figures._save

    def spy(figure: Figure, path: Path) -> None:
        labels.extend(label for axes in figure.axes for label in axes.get_legend_handles_labels()[1])
        save(figure, path)

    monkeypatch.setattr(figures, "_save", spy)
    write_curves(tmp_path, metric)
    marked = {label.split(":")[0] for label in labels if label.startswith("best")}
    assert marked == ({f"best epoch {epoch}"} if epoch else set())


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        write_curves(tmp_path)
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, 0.1, "test", {"loss": 2.3})
        writer.write(1, 0.1, "train", {"loss": float("nan")})
    with pytest.raises(InputError, match="nothing to draw"):
        write_curves(tmp_path)


@pytest.mark.parametrize("num_classes", [1, 2, 20, 60, 1000])
def test_confusion_of_few_and_many_classes(tmp_path: Path, num_classes: int) -> None:
    draw = np.random.default_rng(0)
    confusion = draw.poisson(0.3, (num_classes, num_classes)) + np.diag(draw.poisson(50, num_classes))
    names = [f"a $name$ of_some^length\n number {i}" for i in range(num_classes)]
    path = tmp_path / "confusion.png"
    write_confusion(path, confusion.tolist(), names)
    assert_picture(path)


def test_a_class_without_examples_is_no_division_by_zero(tmp_path: Path) -> None:
    with np.errstate(all="raise"):
        write_confusion(tmp_path / "c.png", [[3, 1], [0, 0]], ["a", "b"])
    assert_picture(tmp_path / "c.png")


def test_names_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 class names"):
        write_confusion(tmp_path / "c.png", [[1, 0], [0, 1]], ["a", "b", "c"])
    assert not list(tmp_path.iterdir())


def test_pyplot_is_not_even_imported() -> None:
    code = "import sys, resnet.train.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
