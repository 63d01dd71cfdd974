"""The one line that says what is wrong with a weights file."""

from pathlib import Path

from input_pipeline.errors import InputError, printable


def fault(source: str | Path, what: str) -> InputError:
    """An InputError that names the file or the known weights, safely for a terminal, and says what to mend."""
    return InputError(f"{printable(str(source))}: {what}")
