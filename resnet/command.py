"""How every command starts and ends: one line for what the user can mend, exit code 2, no traceback."""

import argparse
import contextlib
import errno
import io
import os
import signal
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from input_pipeline.errors import InputError, printable
from native.own_folders import cache_folder, check_own
from resnet import allocation
from resnet.model.errors import SpecError
from resnet.no_device import no_device
from resnet.out_of_memory import out_of_memory

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
# What the machine refuses in the middle of a run and its owner can mend, and a path that no file could have; any other
# OSError is a fault of ours.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors: one line, without the usage text."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def check_checkpoint(name: str) -> None:
    """Raise InputError where --checkpoint names no folder: told at once, before what reads one is imported."""
    if not Path(name).is_dir():
        raise InputError(
            f"--checkpoint={printable(name)}: no such folder; name a run's workdir, a step's folder or converted "
            "weights"
        )


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and leave with its code (None is 0). What the user can mend: one line 'error: …', code 2."""
    replace_closed_streams()
    have_a_home()
    quieten()
    show_lines_at_once()
    try:
        code = main() or 0
        # Here, where a reader that has gone is noticed, not in the interpreter's own exit.
        sys.stdout.flush()
    except (InputError, SpecError) as error:
        code = refuse(str(error))
    except BrokenPipeError:
        # `command | head`: whoever read has seen enough. The interpreter would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        said = refusal(error)
        if said is None:
            raise
        code = refuse(said)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception as error:
        said = out_of_memory(error) or no_device(error)
        if said is None:
            raise
        code = refuse(said)
    # Outside the main thread Python takes no handlers. Where `main` left one of its own, that one knows better.
    with contextlib.suppress(ValueError):
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, leave_at_once)
    sys.exit(code)


def refusal(error: BaseException) -> str | None:
    """What the machine refused (REFUSALS) and what to do, in one line; None for any other error."""
    if not (isinstance(error, OSError) and error.errno in REFUSALS):
        return None
    where = printable(str(error.filename or "the disk"))
    return f"{where}: {error.strerror}; fix that and run the same command again"


def replace_closed_streams() -> None:
    """Have what was closed of the three standard streams (`>&-`, some daemons) lead nowhere.

    Python has None in its place, at which the first print to it or question to it fails, and the next file that is
    opened gets its number: what a C library says would end up in a checkpoint.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # In this order each gets the number of the one that was closed, the least that is free.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def have_a_home() -> None:
    """Where the system knows no home of this user (a container under a bare number, without HOME), make one for caches.

    In the temporary folder, and nobody else's: who writes in it decides what compiled programs are loaded.
    """
    try:
        Path.home()
    except RuntimeError:
        own = Path(tempfile.gettempdir()) / f"resnet-jax-{os.getuid()}"
        with contextlib.suppress(OSError):
            own.mkdir(mode=0o700)
        told = own.lstat()
        private = stat.S_ISDIR(told.st_mode) and told.st_uid == os.getuid() and not told.st_mode & 0o077
        os.environ["HOME"] = str(own) if private else tempfile.mkdtemp()


def show_lines_at_once() -> None:
    """Standard output line by line, into a pipe or a file too: `| tee` shows a run's lines as they come, and a command
    that Ctrl-C ends has printed all that it had to say."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def leave_at_once(number: int, frame: FrameType | None) -> None:
    """Ctrl-C's handler in a command that has nothing left that it could harm: end the process, with code 130.

    Python's own handler raises KeyboardInterrupt wherever the process is. In a callback of a weak reference, as in what
    libraries and the interpreter take down at their end, that prints a traceback, and the process goes on.
    """
    os.write(2, b"\ninterrupted\n")
    os._exit(130)


def refuse(message: str) -> int:
    """Print the error as one line, whatever is in it, and nothing after it; the exit code."""
    # Coroutines that orbax leaves unfinished die with the error, each with a page of "Exception ignored".
    sys.unraisablehook = lambda unraisable: None
    print(f"error: {printable(message)}", file=sys.stderr)
    return 2


def report_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Python's report of an error that nobody can catch, but for one that says nothing of its own.

    Orbax closes its event loop when the first array of a save fails, as on a full disk. Tensorstore's threads, still
    writing the others, then fail to tell that loop so, each with a traceback and at any time, in the midst of our error
    line too (orbax 0.12.8, tensorstore 0.1.86; `python -m tests.faults`). The save's own error is raised all the same.
    """
    loop_is_gone = unraisable.object is None and str(unraisable.exc_value) == "Event loop is closed"
    if not (loop_is_gone and unraisable.exc_type is RuntimeError):
        sys.__unraisablehook__(unraisable)


def quieten() -> None:
    """Fewer words from libraries, freed memory kept where the CPU computes (see `resnet.allocation`), and compiled
    programs kept between runs (set JAX_COMPILATION_CACHE_DIR to move them).

    Called by commands only, before anything is compiled: importing this project changes no setting.
    """
    allocation.keep_freed_memory()
    sys.unraisablehook = report_unraisable
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # No command uses tf.keras. This has TensorFlow (2.21) not import Keras 3 at its own import, and with it what else
    # is installed of matplotlib and scikit-learn: a command's first image comes 1 to 2 s of 5 to 6 earlier.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    from absl import logging

    # Orbax logs as errors, in pages, what it then raises.
    logging.set_verbosity(logging.FATAL)
    if not sys.warnoptions:
        # Those of libraries, which the user of a command can do nothing about; python -W default shows them.
        warnings.simplefilter("ignore")
    if not os.environ.get(CACHE_VARIABLE):
        folder = cache_folder("xla")
        try:
            # It holds programs, which JAX would load and run.
            check_own(folder)
        except OSError:
            return
        # JAX reads it when imported. That takes seconds, so it is not done here: a slip in the flags is told at once.
        os.environ[CACHE_VARIABLE] = str(folder)
        if "jax" in sys.modules:
            sys.modules["jax"].config.update("jax_compilation_cache_dir", str(folder))
