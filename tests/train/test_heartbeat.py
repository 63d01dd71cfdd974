"""What is left of a process' watch over its peers once its run is done, and what a failure of its own ends in."""

import contextlib
import errno
import os
import sys
import threading
import time

import jax
import pytest

from resnet.train import heartbeat, peers, verdict
from resnet.train.verdict import LOST_PEER


class Store:
    """A coordination service that answers late: after as long as it may."""

    def __init__(self):
        self.signs = []

    def key_value_set(self, key, value, allow_overwrite=False):
        self.signs.append(value)

    def blocking_key_value_get(self, key, milliseconds):
        time.sleep(milliseconds / 1e3)
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: nobody says anything")

    def key_value_dir_get(self, prefix):
        return []


def test_no_thread_of_it_outlives_its_end(monkeypatch):
    """One that came back from a message while the interpreter ended crashed it: exit code 75 of a run that was well."""
    store = Store()
    monkeypatch.setattr(heartbeat, "store", lambda: store)
    monkeypatch.setattr(heartbeat.Heartbeat, "_catch_abort", lambda self: None)
    monkeypatch.setattr(heartbeat, "SIGN_SECONDS", 0.3)
    line = heartbeat.Heartbeat()
    line.start()
    time.sleep(0.4)
    assert all(thread.is_alive() for thread in line._threads)
    line.end()
    assert not any(thread.is_alive() for thread in line._threads)
    assert store.signs[-1] == heartbeat.OVER


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes."), 2),
        (MemoryError(), 2),
        (OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"), 2),
        (OSError(errno.ENOENT, "No such file or directory", "a.jpg"), LOST_PEER),
        (jax.errors.JaxRuntimeError("INTERNAL: a kernel failed"), LOST_PEER),
        (ValueError("a bug"), LOST_PEER),
    ],
)
def test_what_the_user_can_mend_is_no_reason_to_start_again(monkeypatch, error, code):
    class Ended(BaseException):
        pass

    def leave(reason: str, code: int):
        raise Ended(reason, code)

    for name in ("start", "hear_out"):
        monkeypatch.setattr(heartbeat.Heartbeat, name, lambda self: None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(peers, "leave", leave)
    with pytest.raises(Ended) as end, peers.together():
        raise error
    assert end.value.args[1] == code
    mended = ("out of memory (", "metrics.jsonl: No space left on device; fix that")
    assert end.value.args[0].startswith(mended) is (code == 2)


@pytest.mark.parametrize("stream", [None, "/dev/full"])
def test_a_process_ends_where_its_last_line_can_go_nowhere(stream, monkeypatch):
    """On a full disk its log was the end of `end`: the line failed, and the process stayed."""
    codes = []
    monkeypatch.setattr(verdict, "ENDING", threading.Lock())
    monkeypatch.setattr(verdict, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(os, "_exit", codes.append)
    with open(stream or os.devnull, "w") as file:
        monkeypatch.setattr(sys, "stderr", stream and file)
        verdict.end(verdict.Verdict(0, "why", LOST_PEER))
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            file.close()
    assert codes == [LOST_PEER]
