"""metrics.jsonl and TensorBoard through kills, resumes and odd values."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from input_pipeline.errors import InputError
from resnet.train.writers import MetricsWriter, read_metrics


def events(workdir: Path) -> list[Any]:
    """The events of all files, in the order of their names, as TensorBoard reads them."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        # A record is length, checksum, bytes, checksum.
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[12 + length + 4 :]
    return found


def steps(workdir: Path) -> list[int]:
    return [record["step"] for record in read_metrics(workdir)]


def test_lines_are_on_disk_before_close(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(10, 0.5, "train", {"loss": 1.25, "lr": np.float32(0.5)})
        writer.write(20, 1.0, "val", {"top1": jnp.asarray(0.75), "per_class_accuracy": [0.5, None]})
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[0]) == {"step": 10, "epoch": 0.5, "kind": "train", "loss": 1.25, "lr": 0.5}
        assert read_metrics(tmp_path)[1]["per_class_accuracy"] == [0.5, None]
        assert list(read_metrics(tmp_path)[1]) == ["step", "epoch", "kind", "top1", "per_class_accuracy"]


def test_resuming_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2, 3, 4):
            writer.write(step, step / 2, "train", {"loss": 1.0})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 5, "epo')
    assert steps(tmp_path) == [1, 2, 3, 4]
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        assert steps(tmp_path) == [1, 2]
        writer.write(3, 1.5, "train", {"loss": 0.5})
    assert steps(tmp_path) == [1, 2, 3]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_validation_that_comes_again_is_dropped_and_no_other_line(tmp_path: Path, evaluated: bool) -> None:
    lines = [(2, "val"), (4, "train"), (4, "val"), (4, "test")]
    with MetricsWriter(tmp_path) as writer:
        for step, kind in lines:
            writer.write(step, step / 2, kind, {"top1": 0.5})
    with MetricsWriter(tmp_path, resume_step=4, evaluated=evaluated):
        left = [(record["step"], record["kind"]) for record in read_metrics(tmp_path)]
    assert left == [line for line in lines if evaluated or line != (4, "val")]


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_kill_at_any_byte_of_the_last_line_loses_no_other(tmp_path: Path, cut: int) -> None:
    line = b'{"step": 12, "epoch": 1.5, "kind": "train"}'
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line[:cut])
    with MetricsWriter(tmp_path, resume_step=12) as writer:
        writer.write(13, 2.0, "train", {})
    assert steps(tmp_path) == [1, 13]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}')
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        writer.write(3, 1.0, "train", {})
    assert steps(tmp_path) == [1, 2, 3]


def test_damage_elsewhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl line 2 "):
        read_metrics(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="line 2"):
        MetricsWriter(tmp_path, resume_step=5)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_reading_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics\.jsonl does not exist"):
        read_metrics(tmp_path)
    with MetricsWriter(tmp_path):
        assert read_metrics(tmp_path) == []


def test_nan_is_null_in_json_and_nan_in_tensorboard(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, 0.1, "train", {"loss": jnp.asarray(jnp.nan), "other": -math.inf, "bins": [{"x": math.nan}]})
    (record,) = read_metrics(tmp_path)
    assert (record["loss"], record["other"], record["bins"]) == (None, None, [{"x": None}])
    values = {v.tag: v.simple_value for event in events(tmp_path) for v in event.summary.value}
    assert math.isnan(values["train/loss"])
    assert values["train/other"] == -math.inf


def test_tensorboard_has_the_scalars_and_purges_on_resume(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(4, 1.0, "val", {"top1": 0.5, "confusion": [[1, 0], [0, 1]], "auroc": None, "note": "text"})
    with MetricsWriter(tmp_path, resume_step=3) as writer:
        writer.write(4, 1.0, "val", {"top1": 0.625})
    found = events(tmp_path)
    scalars = [(event.step, v.tag, v.simple_value) for event in found for v in event.summary.value]
    assert scalars == [(4, "val/top1", 0.5), (4, "val/top1", 0.625)]
    # SessionLog.START (1) tells TensorBoard to forget older events from this step on.
    starts = [event.step for event in found if event.session_log.status == 1]
    assert starts == [1, 4]


def test_tensorboard_reads_the_files_in_the_order_they_were_made_whatever_the_clock_says(tmp_path, monkeypatch) -> None:
    for step, now in enumerate((2e9, 1e9, 5.0, 2e9), start=1):
        monkeypatch.setattr("time.time", lambda now=now: now)
        with MetricsWriter(tmp_path, resume_step=step - 1) as writer:
            writer.write(step, 1.0, "train", {"loss": step})
    assert [event.step for event in events(tmp_path) if event.summary.value] == [1, 2, 3, 4]


def test_closing_twice_is_fine_and_writing_after_is_not(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "new" / "run")
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(1, 0.0, "train", {})


def test_wrong_kinds_and_names_are_refused(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="train, val, test"):
            writer.write(1, 0.0, "valid", {})
        with pytest.raises(ValueError, match="step"):
            writer.write(1, 0.0, "val", {"step": 3})
