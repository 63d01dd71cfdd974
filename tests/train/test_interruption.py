"""Real signals to real processes: what was done is saved, the same command goes on, and nobody can tell afterwards."""

import dataclasses
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from resnet.train.interruption import SIGNALS, Interruption, waiting_handler
from resnet.train.loop import train
from tests.commands import Result, Running, run, start, wait_until
from tests.run_lines import lines
from tests.tiny import tiny_config, tiny_data, tiny_recipe

# What docs/faults.md promises of a run whose step takes a blink: from the signal until all is on the disk.
PROMISED_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Place:
    """Data, a recipe of 6 steps, evaluated and saved after each second one, and where commands keep their caches."""

    data: Path
    recipe: Path
    environment: dict[str, str]

    def arguments(self, workdir: Path) -> tuple[str, str]:
        return f"--config={self.recipe}", f"--workdir={workdir}"

    def train(self, workdir: Path) -> Result:
        return run("train_main.py", *self.arguments(workdir), environment=self.environment)

    def train_bare(self, workdir: Path) -> Result:
        """The same without its pictures and its report."""
        return run("tests/bare.py", *self.arguments(workdir), environment=self.environment)

    def paused(self, workdir: Path, place: str) -> Running:
        """The same run, waiting at `place` (see pausing_train.py) until `workdir`.paused is removed."""
        file = workdir.with_suffix(".paused")
        environment = self.environment | {"PAUSE_AT": place, "PAUSE_FILE": str(file)}
        running = start("tests/train/pausing_train.py", *self.arguments(workdir), environment=environment)
        wait_until(file.exists, f"the run to reach {place}")
        return running


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("interruption")
    data = tiny_data(folder)
    return Place(data, tiny_recipe(folder / "recipe.py", data), {"XDG_CACHE_HOME": str(folder / "cache")})


@pytest.fixture(scope="module")
def undisturbed(place, tmp_path_factory) -> Path:
    """The folder of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    result = place.train(workdir)
    assert result.code == 0, result.err
    return workdir


def signal_and_go_on(running: Running, workdir: Path, number: signal.Signals) -> Result:
    running.send(number)
    # Its handler has run before the file is gone: the pause sleeps for a hundredth of a second at a time.
    time.sleep(0.1)
    workdir.with_suffix(".paused").unlink()
    return running.wait()


def finishes_as_if_undisturbed(place: Place, workdir: Path, undisturbed: Path, *, bare: bool = False) -> None:
    """It goes on by the very command, or by one without pictures and report, where another case looks for those."""
    result = place.train_bare(workdir) if bare else place.train(workdir)
    assert result.code == 0, result.err
    assert lines(workdir) == lines(undisturbed)
    assert bare or {"curves.png", "confusion.png", "report.html"} <= {entry.name for entry in workdir.iterdir()}


def test_of_its_listening_nothing_is_left(capfd):
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interruption() as interruption:
        assert not interruption.requested
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: interruption.requested, "the signal")
            time.sleep(0.05)
        assert interruption.exit_code == 143
        assert interruption.seconds >= 0.1
    assert capfd.readouterr().err.count("SIGTERM: saving") == 1
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert "signals" not in [thread.name for thread in threading.enumerate()]


def test_no_ctrl_c_is_lost_while_its_listening_ends(monkeypatch):
    """Whoever is to hear Ctrl-C afterwards hears it before the last that listens is gone, and goes on to."""
    heard: list[int] = []
    before, join = signal.getsignal(signal.SIGINT), threading.Thread.join

    def join_late(thread: threading.Thread, timeout: float | None = None) -> None:
        signal.raise_signal(signal.SIGINT)
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", join_late)
    try:
        with Interruption(afterwards=lambda number, frame: heard.append(number)) as interruption:
            pass
        assert (heard, interruption.requested) == ([signal.SIGINT], False)
        signal.raise_signal(signal.SIGINT)
        assert heard == 2 * [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_that_is_done_waits_for_the_others_until_a_second_ctrl_c(monkeypatch, capfd):
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        with Interruption(afterwards=waiting_handler(), of=SIGNALS):
            pass
        for number in (signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert codes == []
        signal.raise_signal(signal.SIGINT)
        assert codes == [130]
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
    assert capfd.readouterr().err.count("leaves with the others") == 1


def test_outside_the_main_thread_signals_act_as_ever():
    seen: list[object] = []

    def enter() -> None:
        with Interruption() as interruption:
            seen.extend((signal.getsignal(signal.SIGTERM), interruption.requested))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before, False]


@pytest.mark.parametrize(
    ("numbers", "code", "said"),
    [
        # Launchers send one to each process and pass on another: the second must not spoil the save.
        ((signal.SIGTERM, signal.SIGTERM), 143, "SIGTERM: saving, then leaving."),
        ((signal.SIGINT,), 130, "Ctrl-C once more leaves at once"),
        ((signal.SIGINT, signal.SIGTERM), 130, "Ctrl-C once more leaves at once"),
    ],
)
def test_signals_in_training_save_and_leave(numbers, code, said, place, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    running = place.paused(workdir, "train:3")
    for number in numbers[:-1]:
        running.send(number)
        time.sleep(0.1)
    result = signal_and_go_on(running, workdir, numbers[-1])
    assert result.code == code, result.err
    assert said in result.err
    assert "Traceback" not in result.err
    stopped = re.search(r"^Stopped at step 3 of 6, saved ([\d.]+) s after the signal\.", result.out, re.MULTILINE)
    assert stopped, result.out
    assert float(stopped[1]) < PROMISED_SECONDS
    assert (workdir / "checkpoints" / "3").is_dir()
    finishes_as_if_undisturbed(place, workdir, undisturbed, bare=code != 143)


@pytest.mark.parametrize("where", ["train:3", "save:2", "val:1", "deaf:0"])
def test_a_second_ctrl_c_ends_at_once(where, place, undisturbed, tmp_path):
    """Also in the midst of a save, and while XLA compiles and Python hears nothing."""
    workdir = tmp_path / "run"
    running = place.paused(workdir, where)
    running.send(signal.SIGINT)
    wait_until(lambda: "Ctrl-C once more leaves at once" in running.err.read_text(), "the first to be acknowledged")
    sent = time.monotonic()
    running.send(signal.SIGINT)
    result = running.wait()
    assert time.monotonic() - sent < PROMISED_SECONDS
    assert result.code == 130
    assert result.err.endswith("interrupted\n")
    assert "Traceback" not in result.err
    assert workdir.with_suffix(".paused").exists(), "it ended where it stood"
    assert not (workdir / "checkpoints" / "3").exists()
    finishes_as_if_undisturbed(place, workdir, undisturbed, bare=where != "save:2")


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_signal_in_an_evaluation_is_heard_between_batches(split, place, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    result = signal_and_go_on(place.paused(workdir, f"{split}:1"), workdir, signal.SIGTERM)
    assert result.code == 143, result.err
    assert "Traceback" not in result.err
    assert split not in [line["kind"] for line in lines(workdir)]
    finishes_as_if_undisturbed(place, workdir, undisturbed, bare=split == "val")


@pytest.mark.parametrize("where", ["train:5", "save:4", "val:1", "test:1"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(where, place, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    running = place.paused(workdir, where)
    running.send(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    finishes_as_if_undisturbed(place, workdir, undisturbed, bare=where in ("train:5", "val:1"))


def test_ctrl_c_before_the_run_has_begun_leaves_nothing(place, tmp_path):
    running = place.paused(tmp_path / "run", "open:0")
    running.send(signal.SIGINT)
    result = running.wait()
    assert (result.code, result.err) == (130, "interrupted\n")
    assert not (tmp_path / "run").exists()


def test_ctrl_c_once_the_run_has_ended_is_not_lost_in_what_it_leaves(place, undisturbed, tmp_path):
    """There KeyboardInterrupt would print a traceback and the command go on, with exit code 0."""
    workdir = tmp_path / "run"
    running = place.paused(workdir, "ended:0")
    running.send(signal.SIGINT)
    result = running.wait()
    assert result.code == 130, result.err
    assert result.err.endswith("\ninterrupted\n")
    assert "Traceback" not in result.err
    assert workdir.with_suffix(".paused").exists(), "it ended where it stood"
    assert lines(workdir) == lines(undisturbed)


def test_whoever_calls_train_has_the_old_handlers_back(place, undisturbed, tmp_path):
    """A notebook: Ctrl-C stops a cell of it, before a run and after."""
    shutil.copytree(undisturbed, tmp_path / "run")
    handler = lambda number, frame: None  # noqa: E731
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        assert train(tiny_config(place.data), tmp_path / "run") == 0
        assert [signal.getsignal(number) for number in SIGNALS] == [handler, handler]
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def test_a_run_killed_before_its_configuration_was_written_begins_anew(place, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / ".lock").touch()
    (workdir / "classes.json").write_text('["of another dataset"]')
    (workdir / ".config.json.part").write_text('{"data.batch')
    finishes_as_if_undisturbed(place, workdir, undisturbed)
    assert len(json.loads((workdir / "classes.json").read_text())) == 5


def test_a_finished_run_whose_last_line_was_torn_writes_it_again(place, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    metrics = workdir / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-20])
    shutil.rmtree(workdir / "tensorboard")
    finishes_as_if_undisturbed(place, workdir, undisturbed)
