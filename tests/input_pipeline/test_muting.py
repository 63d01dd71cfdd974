import os
import subprocess
import sys
from pathlib import Path

import pytest

from input_pipeline.muting import muted_errors

ROOT = Path(__file__).resolve().parent.parent.parent


def test_what_is_written_below_python_is_held_back(capfd):
    with muted_errors():
        os.write(2, b"a library's notice\n")
    os.write(2, b"heard again\n")
    assert capfd.readouterr().err == "heard again\n"


def test_a_failure_tells_what_was_held_back(capfd):
    def fail() -> None:
        with muted_errors():
            os.write(2, b"why it failed\n")
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    os.write(2, b"heard again\n")
    assert capfd.readouterr().err == "why it failed\nheard again\n"


def test_a_process_without_standard_error_goes_on():
    code = "import os; os.close(2)\nfrom input_pipeline.muting import muted_errors\nwith muted_errors(): print('done')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"
