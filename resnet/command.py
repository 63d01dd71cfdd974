"""How every command starts and ends: one line for what the user can mend, exit code 2, no traceback."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from input_pipeline.errors import InputError
from resnet.model.errors import SpecError

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


class Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors: one line, without the usage text."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and leave with its code (None is 0); InputError and SpecError become 'error: …' and code 2."""
    quieten()
    try:
        code = main() or 0
    except (InputError, SpecError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        # `command | head`: whoever read has seen enough. The interpreter would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.stdout.flush()
    sys.exit(code)


def quieten() -> None:
    """Fewer words from libraries, and compiled programs kept between runs (set JAX_COMPILATION_CACHE_DIR to move them).

    Called by commands only, before anything is compiled: importing this project changes no setting.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Also silences its notice at import; it only decodes images here.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import jax
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    if not os.environ.get(CACHE_VARIABLE):
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "resnet-jax" / "xla"))
