"""Weights & Biases and MLflow get every step once, whatever stops the run; what fails there ends nothing."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from input_pipeline.errors import InputError
from resnet.train import trackers
from resnet.train.configuration import validate
from resnet.train.writers import MetricsWriter, read_metrics
from tests.commands import ROOT
from tests.tiny import tiny_config

CONFIG = {"optim.lr": 0.1, "data.flip": "none", "model.width": None, "run.writers": ("wandb",)}


class Fake:
    """A tracker that keeps what it gets in a list that outlives it, as a server does."""

    server: ClassVar[list[tuple[int, dict[str, Any]]]] = []
    ended: ClassVar[list[bool]] = []
    broken = False

    def __init__(self, workdir: Path, identity: str, config: Any) -> None:
        self.identity = identity or "run-1"
        self.config = config

    def log(self, step: int, values: Any) -> None:
        if self.broken:
            raise ConnectionError("the server is gone\nfor good")
        self.server.append((step, dict(values)))

    def close(self, *, finished: bool) -> None:
        self.ended.append(finished)


@pytest.fixture
def fake(monkeypatch) -> type[Fake]:
    kind = type("Kind", (Fake,), {"server": [], "ended": [], "broken": False})
    monkeypatch.setattr(trackers, "KNOWN", {"wandb": kind})
    return kind


def train(workdir: Path, resume: int, last: int, *, finish: bool = False) -> None:
    """A run that logs steps resume + 1 … last, validates every second, and then is killed or done."""
    writer = MetricsWriter(workdir, resume, CONFIG)
    for step in range(resume + 1, last + 1):
        writer.write(step, step / 4, "train", {"loss": 1 / step, "note": "text", "bins": [1]})
        if step % 2 == 0:
            writer.write(step, step / 4, "val", {"top1": step / 100})
    if finish:
        writer.finish()


def test_no_step_twice_however_often_the_run_is_killed(tmp_path, fake):
    train(tmp_path, 0, 8)
    train(tmp_path, 4, 6)  # Killed earlier than before …
    train(tmp_path, 4, 7)  # … and again: the marks are those of the first.
    train(tmp_path, 6, 12, finish=True)
    steps = [(step, kind) for step, values in fake.server for kind in ("train", "val") if f"{kind}/epoch" in values]
    assert not steps
    names = [(step, name) for step, values in fake.server for name in values if name != "epoch"]
    assert len(names) == len(set(names))
    assert [step for step, name in names if name == "train/loss"] == list(range(1, 13))
    assert [step for step, name in names if name == "val/top1"] == list(range(2, 13, 2))
    assert fake.ended == [True]
    assert [line["step"] for line in read_metrics(tmp_path) if line["kind"] == "train"] == list(range(1, 13))


def test_only_numbers_travel(tmp_path, fake):
    train(tmp_path, 0, 1)
    assert fake.server == [(1, {"epoch": 0.25, "train/loss": 1.0})]


def test_one_that_joins_later_gets_what_was(tmp_path, fake):
    with MetricsWriter(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.write(step, 0.0, "train", {"loss": step})
    train(tmp_path, 2, 4)
    assert [step for step, values in fake.server if "train/loss" in values] == [1, 2, 3, 4]


def test_one_that_fails_is_left_out_and_catches_up(tmp_path, fake, capsys):
    fake.broken = True
    train(tmp_path, 0, 3)
    said = capsys.readouterr().err
    assert said.count("wandb failed (the server is gone)") == 1
    assert len(said.splitlines()) == 1
    fake.broken = False
    train(tmp_path, 2, 4)
    assert [step for step, values in fake.server if "train/loss" in values] == [1, 2, 3, 4]


def test_one_that_cannot_be_opened_and_a_damaged_note_are_told(tmp_path, fake, monkeypatch):
    (tmp_path / trackers.FILE).write_text("[1")
    with pytest.raises(InputError, match="damaged: remove it"):
        MetricsWriter(tmp_path, 0, CONFIG)
    (tmp_path / trackers.FILE).unlink()

    def refuse(*arguments: Any) -> None:
        raise OSError("no such server")

    monkeypatch.setattr(trackers, "KNOWN", {"wandb": refuse})
    with pytest.raises(InputError, match=r"run\.writers: wandb cannot be opened \(no such server\)"):
        MetricsWriter(tmp_path, 0, CONFIG)


@pytest.mark.parametrize(
    ("writers", "word"),
    [(("wandb,mlflow",), "--config.run.writers="), (("wandb", "wandb"), "each once"), (("clearml",), "choose from")],
)
def test_names_are_checked(tmp_path, writers, word):
    config = tiny_config(tmp_path)
    config.run.writers = writers
    with pytest.raises(InputError, match=word):
        validate(config)


def test_a_missing_package_names_the_command_that_installs_it(tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    config.run.writers = ("mlflow",)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"mlflow is not installed; \./run\.sh setup writers"):
        validate(config)


def alone(code: str) -> str:
    """Run Python that ends itself at the first word with another machine; what it printed."""
    guard = """
import os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        where = arguments[1] if event == "socket.connect" else arguments
        if isinstance(where, tuple) and where[0] not in ("127.0.0.1", "localhost", "::1", None):
            print("STRANGER", event, where, flush=True)
            os._exit(3)
sys.addaudithook(watch)
"""
    done = subprocess.run([sys.executable, "-c", guard + code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


RUN = """
import signal
from pathlib import Path
from resnet.train.writers import MetricsWriter
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
for resume in (0, 2):
    config = {{"optim.lr": 0.1, "model.width": None, "run.writers": ({name!r},)}}
    with MetricsWriter(Path({folder!r}), resume, config) as writer:
        assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        for step in range(resume + 1, resume + 4):
            writer.write(step, step / 4, "train", {{"loss": 1 / step, "bad": float("nan")}})
        if resume:
            writer.finish()
"""


def test_wandb_itself_offline(tmp_path):
    pytest.importorskip("wandb", reason="no wandb: ./run.sh setup writers installs it")
    assert alone(RUN.format(folder=str(tmp_path), name="wandb")) == ""
    steps = []
    for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        steps += history(file)
    assert sorted(steps) == [1, 2, 3, 4, 5]
    assert len({file.stem for file in tmp_path.glob("wandb/offline-run-*/*.wandb")}) == 1


def history(file: Path) -> list[int]:
    """The steps of the lines in wandb's own file: LevelDB's log format, one block of 32 kB at most here.

    Seven bytes of a head, then records of checksum (4), length (2), type (1) and a message.
    """
    from wandb.proto import wandb_internal_pb2

    data, at, steps = file.read_bytes(), 7, []
    assert data[:4] == b":W&B"
    assert len(data) < 1 << 15
    while at + 7 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 6], "little")
        record = wandb_internal_pb2.Record.FromString(data[at + 7 : at + 7 + length])
        at += 7 + length
        values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        if "train/loss" in values:
            steps.append(round(1 / json.loads(values["train/loss"])))
    return steps


def test_mlflow_itself_in_a_folder(tmp_path):
    pytest.importorskip("mlflow", reason="no mlflow: ./run.sh setup writers installs it")
    store = f"file:{tmp_path / 'store'}"
    place = f'import os\nos.environ |= {{"MLFLOW_TRACKING_URI": {store!r}, "MLFLOW_ALLOW_FILE_STORE": "true"}}\n'
    told = """
import mlflow
client = mlflow.MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
(run,) = client.search_runs([client.get_experiment_by_name("resnet").experiment_id])
print(run.info.status, run.data.params, [one.step for one in client.get_metric_history(run.info.run_id, "train/loss")])
"""
    out = alone(place + RUN.format(folder=str(tmp_path / "run"), name="mlflow") + told)
    assert out.strip() == "FINISHED {'optim.lr': '0.1', 'run.writers': \"('mlflow',)\"} [1, 2, 3, 4, 5]"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
