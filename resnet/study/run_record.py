"""A run's directory, read: what the report and the comparison of runs stand on. Nothing is written."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.default import get_config as default_config
from input_pipeline.errors import InputError, printable
from input_pipeline.ordinary_files import read_ordinary
from resnet.train.configuration import BEST_METRICS, flatten, make_spec, steps_of
from resnet.train.integrity import MOST_JSON
from resnet.train.predictions import KeptPredictions, read_predictions
from resnet.train.workdir import ABLATION, CLASSES, CONFIG, PROVENANCE
from resnet.train.writers import read_metrics

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run wrote down of itself. config: flat ('data.batch_size'), complete. lines: those of metrics.jsonl.

    predictions: None for a run without a test split, not finished, or older than predictions.npz.
    """

    folder: Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    class_names: tuple[str, ...]
    lines: list[Line]
    predictions: KeptPredictions | None

    def of_kind(self, kind: str) -> list[Line]:
        """The lines of kind 'train', 'val' or 'test', in order."""
        return [line for line in self.lines if line["kind"] == kind]

    @property
    def test(self) -> Line | None:
        """The line of kind 'test' of a finished run with a test split, its last; one of an earlier end is history."""
        return self.lines[-1] if self.lines and self.lines[-1]["kind"] == "test" else None

    @property
    def last_step(self) -> int:
        """Steps that the last line tells of."""
        return max((line["step"] for line in self.lines), default=0)

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None where the number of training images is not known."""
        images = self.provenance.get("dataset", {}).get("images", {}).get("train")
        if self.config.get("run.steps"):
            return int(self.config["run.steps"])
        if not images:
            return None
        return steps_of(self.config["run.epochs"], images, self.config["data.batch_size"])

    @property
    def best_validation(self) -> Line | None:
        """The validation that chose the checkpoint: best by run.best_metric, of equal ones the latest."""
        metric = self.config.get("run.best_metric", "top1")
        rated = [line for line in reversed(self.of_kind("val")) if line.get(metric) is not None]
        # Of a metric that this code does not know nobody can say which way is better.
        if not rated or metric not in BEST_METRICS:
            return None
        return (min if BEST_METRICS[metric] else max)(rated, key=lambda line: line[metric])

    def full_config(self) -> ConfigDict:
        """The configuration as an object, without keys that there are no more."""
        config = default_config()
        known = flatten(config)
        with config.unlocked():
            for key, value in self.config.items():
                if key in known:
                    room, _, name = key.partition(".")
                    config[room][name] = tuple(value) if isinstance(value, list) else value
        return config

    @functools.cached_property
    def counts(self) -> Any:
        """counts.Counts of the run's network at its image size. Raises InputError or SpecError."""
        # Here, not above: it imports jax.
        from resnet.model.counts import count

        return count(make_spec(self.full_config(), len(self.class_names)), self.config["data.image_size"])


def read_run(folder: Path) -> RunRecord:
    """The run in `folder`. Raises InputError, one line that names the file, for what is no run or is damaged."""
    name = printable(str(folder))
    if not folder.is_dir():
        raise InputError(f"{name}: no such folder; name a run's folder (--workdir of train_main.py)")
    if (folder / ABLATION).is_file():
        raise InputError(f"{name} is an ablation's folder, not a run's; its report is report.html in it")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{name} is not a run: it has no {CONFIG}; name a run's folder (--workdir of train_main.py)")
    # Keys that are new since the run have their defaults.
    config = {key: plain(value) for key, value in flatten(default_config()).items()} | read_json(folder / CONFIG, dict)
    class_names = read_json(folder / CLASSES, list)
    lines = read_metrics(folder)
    try:
        for line in lines:
            line["epoch"], line["kind"] = float(line["epoch"]), str(line["kind"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name}: metrics.jsonl has a line without an epoch or a kind; restore the file") from error
    predictions = read_predictions(folder)
    if predictions and predictions.probabilities.shape[1] != len(class_names):
        raise InputError(f"{name}: predictions.npz and {CLASSES} are of different numbers of classes; restore them")
    run = RunRecord(
        folder, config, read_json(folder / PROVENANCE, dict), tuple(map(str, class_names)), lines, predictions
    )
    if run.test and len(run.test.get("confusion") or class_names) != len(class_names):
        raise InputError(f"{name}: metrics.jsonl and {CLASSES} are of different numbers of classes; restore them")
    return run


def read_json(path: Path, kind: type) -> Any:
    """What a JSON file holds. Raises InputError unless that is a `kind`."""
    try:
        value = json.loads(read_ordinary(path, MOST_JSON, "any such file"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{printable(str(path))} cannot be read; restore it") from error
    if not isinstance(value, kind):
        raise InputError(f"{printable(str(path))} holds no {kind.__name__}; restore it")
    return value


def changed_keys(config: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, default, value) of every key that the run set otherwise than configs/default.py."""
    default = flatten(default_config())
    return [(key, default.get(key), value) for key, value in sorted(config.items()) if plain(default.get(key)) != value]


def plain(value: Any) -> Any:
    """`value` as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
