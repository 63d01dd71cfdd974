"""Weights & Biases and MLflow beside metrics.jsonl, for those who ask for them (config.run.writers).

Both get the numbers of every line as `kind/name`, and the configuration. A line is sent once, whatever stopped the run
in between: trackers.json in the run's folder says how far each has come. Nothing leaves the machine unless the
libraries' own variables say so: WANDB_MODE=online, MLFLOW_TRACKING_URI=https://…
"""

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from input_pipeline.errors import InputError, printable
from input_pipeline.recipe import first_line
from resnet.train.workdir import write_json

FILE = "trackers.json"
PROJECT = "resnet"
# MLflow takes no more in one call.
PARAMETERS_AT_ONCE = 100


class Tracker(Protocol):
    """What stands between a run and one library. `identity` names the run in it, for the next start."""

    identity: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of one line. May raise anything that its library raises."""

    def close(self, *, finished: bool) -> None:
        """Nothing more comes. finished: the run is done, not stopped."""


class Wandb:
    """Weights & Biases. Without WANDB_MODE offline, into RUN/wandb, from where `wandb sync` takes it."""

    def __init__(self, workdir: Path, identity: str, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_MODE", "offline")
        import wandb

        self.identity = identity or secrets.token_hex(8)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.identity,
            name=workdir.resolve().name,
            dir=str(workdir),
            config=dict(config),
            resume="allow",
            # The terminal is the progress bar's; what provenance.json says of code and machine is enough.
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        if not finished:
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if finished else 1)


class Mlflow:
    """MLflow. Without MLFLOW_TRACKING_URI into RUN/mlflow.db, which `mlflow ui` shows."""

    def __init__(self, workdir: Path, identity: str, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # A server that is gone costs a line some seconds, not many minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        import mlflow
        from mlflow.entities import Param

        self._library = mlflow
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(workdir / 'mlflow.db').resolve()}"
        self._client = mlflow.MlflowClient(tracking_uri=place)
        if identity:
            self.identity = identity
            self._client.update_run(identity, status="RUNNING")
            return
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(title)
        number = experiment.experiment_id if experiment else self._client.create_experiment(title)
        self.identity = self._client.create_run(number, run_name=workdir.resolve().name).info.run_id
        parameters = [Param(key, str(value)[:500]) for key, value in config.items() if value is not None]
        for start in range(0, len(parameters), PARAMETERS_AT_ONCE):
            self._client.log_batch(self.identity, params=parameters[start : start + PARAMETERS_AT_ONCE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metric = self._library.entities.Metric
        self._client.log_batch(
            self.identity, metrics=[metric(name, float(value), now, step) for name, value in values.items()]
        )

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self.identity, status="FINISHED" if finished else "KILLED")


KNOWN: dict[str, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {"wandb": Wandb, "mlflow": Mlflow}


class Trackers:
    """The trackers of a run, each fed once with every line. Where one fails, the run goes on without it."""

    def __init__(self, names: Sequence[str], workdir: Path, config: Mapping[str, Any]) -> None:
        """Open them, or go on where an earlier process of this run left. Raises InputError for one that refuses."""
        self._file = workdir / FILE
        self._notes: dict[str, dict[str, Any]] = self._read()
        self._open: dict[str, Tracker] = {}
        for name in names:
            note = self._notes.setdefault(name, {"id": "", "sent": {}})
            try:
                self._open[name] = KNOWN[name](workdir, note["id"], config)
            except Exception as error:  # Any: a library, its server and its settings, all of them the user's to mend.
                reason = first_line(error)[:300]
                raise InputError(
                    f"config.run.writers: {name} cannot be opened ({reason}); fix that, or leave it out"
                ) from error
            note["id"] = self._open[name].identity
        if names:
            write_json(self._file, self._notes)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            notes = json.loads(self._file.read_bytes())
            return {str(name): {"id": str(one["id"]), "sent": dict(one["sent"])} for name, one in notes.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{printable(str(self._file))} is damaged: remove it, and the trackers receive this run again"
            ) from error

    def catch_up(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Send what `lines` of metrics.jsonl hold that a tracker has not had: of one that joins later, everything."""
        for line in lines if self._open else ():
            values = {name: value for name, value in line.items() if name not in ("step", "epoch", "kind")}
            self.write(line["step"], line["epoch"], line["kind"], values)

    def write(self, step: int, epoch: float, kind: str, values: Mapping[str, Any]) -> None:
        """Send the numbers of a line to each tracker that has not had this step of this kind."""
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
        for name in list(self._open):
            sent = self._notes[name]["sent"]
            before = sent.get(kind, -1)
            if step <= before:
                continue
            # Noted first: a line that is lost by a kill in between is better than one that stands there twice.
            sent[kind] = step
            write_json(self._file, self._notes)
            try:
                self._open[name].log(step, {"epoch": epoch, **numbers})
            except Exception as error:  # Any: what a server or its library does must not end a training run.
                sent[kind] = before
                write_json(self._file, self._notes)
                self._give_up(name, error)

    def close(self, *, finished: bool) -> None:
        """Close all of them; calling it again does nothing."""
        for name in list(self._open):
            try:
                self._open.pop(name).close(finished=finished)
            except Exception as error:  # Any: as above.
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        self._open.pop(name, None)
        print(
            f"{name} failed ({first_line(error)[:300]}). The run continues without it, and metrics.jsonl has "
            "everything; it catches up when the run is started again.",
            file=sys.stderr,
        )
