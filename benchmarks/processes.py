"""Peers of a benchmark, each in a process of its own that waits while others have their turn.

So each has the allocator as whoever uses it has it: ours as its commands set it (resnet/allocation.py), which in one
process for all slowed torch and Keras by 3 to 12 % (training, 64 px, batch 32, 2026-11-25).
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Reply = dict[str, Any]
# What a peer does for a word, and what it has to say of it.
Work = Callable[[str], Reply]


def start(module: str, *words: str) -> tuple[Reply, Work]:
    """(the first reply, what asks for more) of `python -m module words...`, which `serve`s and ends with this process.

    Raises ImportError, with the package's name, where it is not installed; RuntimeError, then or when asked, where the
    process has ended.
    """
    command = [sys.executable, "-m", module, *words]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    asks, replies = process.stdin, process.stdout

    def reply() -> Reply:
        if line := replies.readline():
            return dict(json.loads(line))
        raise RuntimeError(f"{words[0]}: its process ended with exit code {process.wait()}; its output is above")

    def ask(word: str) -> Reply:
        # Whoever has ended answers nothing, which says more than a broken pipe.
        with contextlib.suppress(BrokenPipeError):
            asks.write(f"{word}\n")
            asks.flush()
        return reply()

    first = reply()
    if missing := first.get("missing"):
        raise ImportError(f"{missing} is not installed", name=missing)
    return first, ask


def serve(make: Callable[[], tuple[Reply, Work]], *, keep_memory: bool) -> None:
    """Make the peer, say so, and do its work for each line that comes in; every reply is a line of JSON.

    keep_memory: with the allocator as our commands set it.
    """
    # What libraries print goes where errors go; the replies have the way out to themselves.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(reply: Reply) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    if keep_memory:
        from resnet.allocation import keep_freed_memory

        keep_freed_memory()
    with contextlib.suppress(KeyboardInterrupt):
        try:
            first, work = make()
        except ImportError as error:
            say({"missing": error.name})
            return
        say(first)
        for line in sys.stdin:
            say(work(line.strip()))
