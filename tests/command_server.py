"""Forks a process for each command, with the slow third-party imports already done; `tests.commands` talks to it.

Nothing of this project is imported here and no backend is started: what is forked off reads the code, starts and ends
as a fresh interpreter does, only seconds sooner. One JSON request a line on standard input, one answer a line.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import sys
import threading
import traceback
import warnings
from typing import Any

import bokeh.plotting  # noqa: F401 - imported for the children, as are those below
import flax.linen  # noqa: F401
import matplotlib.figure  # noqa: F401
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401
import tensorboardX  # noqa: F401
import tensorflow  # noqa: F401


def become(request: dict[str, Any]) -> None:
    """Turn this forked process into the command that was asked for; does not return."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    # As in a terminal's foreground: shells have what they start in the background ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.resetwarnings()
    sys.argv = request["arguments"]
    target, code = sys.argv[0], 0
    try:
        if target.endswith(".py"):
            runpy.run_path(target, run_name="__main__")
        else:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    # As the interpreter ends, but for taking a gigabyte of modules to pieces, which costs two seconds.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code or 0)


def main() -> None:
    # JAX warns of forking a process that has threads; without a backend it has none.
    warnings.simplefilter("ignore")
    # What is collected once is copied once, not by every child.
    gc.freeze()
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "wait" in request:
            status = os.waitpid(request["wait"], 0)[1]
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                become(request)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
