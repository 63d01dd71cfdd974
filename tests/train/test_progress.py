"""The clock arithmetic of speed, waiting and time left, and what is printed where."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios

import pytest

from resnet.train.progress import DataWait, EpochBar, Speed


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_waiting_share_and_images_per_second() -> None:
    clock = Clock()
    wait = DataWait(clock)
    for _ in range(4):
        with wait.waiting():
            clock.now += 0.5
        clock.now += 1.5
        wait.count(32)
    interval = wait.interval()
    assert (interval.seconds, interval.waited, interval.images) == (8.0, 2.0, 128)
    assert (interval.share, interval.images_per_second) == (0.25, 16.0)
    empty = wait.interval()
    assert (empty.share, empty.images_per_second) == (0.0, 0.0)


def test_pauses_are_no_part_of_an_interval() -> None:
    clock = Clock()
    wait = DataWait(clock)
    clock.now += 2.0
    with wait.paused():
        clock.now += 50.0
    wait.count(10)
    assert wait.interval().images_per_second == 5.0
    clock.now += 1.0
    assert wait.interval().seconds == 1.0


def test_waiting_is_counted_when_the_feed_ends() -> None:
    clock = Clock()
    wait = DataWait(clock)

    def ending() -> None:
        clock.now += 3.0
        raise StopIteration

    with pytest.raises(StopIteration), wait.waiting():
        ending()
    assert wait.interval().waited == 3.0


def test_speed_of_bursts_is_that_of_their_totals() -> None:
    speed = Speed()
    assert speed.images_per_second is None
    for _ in range(200):
        for _ in range(9):
            speed.add(0.0, 1, 32)
        speed.add(0.5, 1, 32)
    assert speed.images_per_second == pytest.approx(640.0, rel=0.05)
    assert speed.seconds_per_step == pytest.approx(0.05, rel=0.05)


def test_speed_follows_a_change() -> None:
    speed = Speed()
    for seconds in [1.0] * 100 + [2.0] * 50:
        speed.add(seconds, 1, 10)
    assert speed.images_per_second == pytest.approx(5.0, rel=0.01)


def test_plain_lines_come_seldom_and_leave_out_compilation_and_pauses() -> None:
    clock, stream = Clock(), io.StringIO()
    with EpochBar(100, 50.0, stream=stream, plain_every=30.0, clock=clock) as bar:
        clock.now += 25.0  # compilation
        bar.update(1, 64)
        for step in range(2, 101):
            if step == 51:
                with bar.paused():
                    clock.now += 10.0
            clock.now += 1.0
            bar.update(step, 64, loss=1.5, top1=0.5, wait_share=0.02)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5  # 134 seconds, and the last step
    assert lines[0].startswith("epoch 1/2  step 6/100  loss 1.5  top-1 50.0%  64 images/s  waiting for data 2%")
    assert lines[0].endswith("01:34 left")
    assert all("64 images/s" in line for line in lines)
    assert lines[-1].startswith("epoch 2/2  step 100/100")
    assert lines[-1].endswith("00:00 left")
    assert "\r" not in stream.getvalue()


def test_the_same_step_again_adds_what_is_known_but_no_line() -> None:
    clock, stream = Clock(), io.StringIO()
    bar = EpochBar(2, 2.0, stream=stream, clock=clock)
    bar.update(1, 8, loss=2.0)
    bar.update(2, 8, loss=1.0)
    bar.update(2, 0, top1=0.5)
    bar.close()
    assert len(stream.getvalue().splitlines()) == 1


def test_time_left_reckons_with_pauses() -> None:
    clock, stream = Clock(), io.StringIO()
    bar = EpochBar(40, 10.0, stream=stream, plain_every=0.0, clock=clock)
    for step in range(1, 21):
        clock.now += 1.0
        bar.update(step, 8)
        if step in (10, 20):
            with bar.paused():
                clock.now += 5.0
    clock.now += 1.0
    bar.update(21, 8)
    assert stream.getvalue().splitlines()[-1].endswith("00:28 left")  # 19 steps of 1 s, 10 s of pauses per 21 steps


def test_a_bar_per_epoch_on_a_terminal() -> None:
    clock, stream = Clock(), Terminal()
    with EpochBar(7, 2.5, stream=stream, clock=clock) as bar:
        for step in range(1, 8):
            clock.now += 1.0
            bar.update(step, 16, loss=0.25 if step > 3 else None)
        bar.write("evaluated")
    # Epochs of 2.5 steps end at steps 3, 5 and (the run's end) 7.
    finished = re.findall(r"epoch (\d)/3 100%\|[^|]*\| (\d)/(\d)", stream.getvalue())
    assert set(finished) == {("1", "3", "3"), ("2", "2", "2"), ("3", "2", "2")}
    assert "evaluated\n" in stream.getvalue()
    assert "loss 0.25" in stream.getvalue()


def test_resuming_within_an_epoch_starts_the_bar_there() -> None:
    clock, stream = Clock(), Terminal()
    with EpochBar(20, 10.0, start_step=14, stream=stream, clock=clock) as bar:
        bar.update(15, 16)
    assert re.findall(r"epoch 2/2 +(\d+)%\|[^|]*\| (\d+)/10", stream.getvalue())[-1] == ("50", "5")


def test_several_steps_at_a_time_cross_epochs() -> None:
    clock, stream = Clock(), Terminal()
    with EpochBar(9, 3.0, stream=stream, clock=clock) as bar:
        for step in (2, 4, 9):
            clock.now += 1.0
            bar.update(step, 16)
    finished = re.findall(r"epoch (\d)/3 100%\|[^|]*\| (\d)/(\d)", stream.getvalue())
    assert ("1", "3", "3") in finished
    assert finished[-1] == ("3", "3", "3")


def test_closing_twice_and_never_updating() -> None:
    stream = Terminal()
    bar = EpochBar(5, 5.0, stream=stream)
    bar.close()
    bar.close()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("columns", [0, 60, 140])
def test_a_real_terminal_of_any_width_shows_the_bar(columns, monkeypatch) -> None:
    """0: a terminal that does not know how wide it is, as under `script` and in containers."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40 if columns else 0, columns, 0, 0))
    with open(writer, "w") as stream, monkeypatch.context() as patch, EpochBar(4, 2.0, stream=stream) as bar:
        # tqdm asks the terminal in other ways where its file is standard error, as in a run.
        patch.setattr(sys, "stderr", stream)
        for step in range(1, 5):
            bar.update(step, 16, loss=0.25)
        bar.write("evaluated")
    shown = b""
    with contextlib.suppress(OSError):  # Behind the last byte Linux says that the other side has gone.
        while part := os.read(reader, 1 << 16):
            shown += part
    os.close(reader)
    lines = re.split(r"[\r\n]+", shown.decode())
    for epoch in (1, 2):
        assert any(line.startswith(f"epoch {epoch}/2 100%|") for line in lines), lines
    assert "evaluated" in lines
    assert all(len(line) <= (columns or 100) for line in lines)


@pytest.mark.parametrize(
    ("columns", "shown"),
    [(120, "top-1 28.7%  32 images/s  waiting for data 2%  "), (80, "top-1 28.7%  32 images/s  "), (60, "")],
)
def test_the_loss_and_the_time_left_fit_whatever_the_width(columns, shown, monkeypatch) -> None:
    """tqdm cuts off the end of what is too long, which was the time left on a terminal of 80 columns."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    clock = Clock()
    with open(writer, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        with EpochBar(1700, 1700.0, stream=stream, clock=clock) as bar:
            for step in range(1, 4):
                clock.now += 1.0
                bar.update(step, 32, loss=1.346, top1=0.287, wait_share=0.02)
    told = b""
    with contextlib.suppress(OSError):
        while part := os.read(reader, 1 << 16):
            told += part
    os.close(reader)
    last = re.split(r"[\r\n]+", told.decode().rstrip())[-1]
    assert last.endswith(f"loss 1.346  {shown}28:17 left"), last
    assert len(last) < columns
