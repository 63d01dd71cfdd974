"""Runs without the pictures and the report of what they did, which take more than half of a tiny run's time.

For tests that compare figures, signals and files of runs, and never look at those pages: what draws them is not asked
to. As a program, `tests/bare.py ARGS` is train_main.py like that.
"""

import runpy
from collections.abc import Callable
from typing import Any

import numpy as np


def leave_out(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have the curves, the matrices and the report of runs not be drawn. replace: setattr or one that can be undone."""
    from resnet.study import report
    from resnet.train import figures, loop

    def pixels(confusion: Any, class_names: Any) -> np.ndarray:
        return np.zeros((1, 1, 3), np.uint8)

    replace(loop, "confusion_pixels", pixels)
    replace(figures, "confusion_pixels", pixels)
    for module, name in ((loop, "write_curves"), (figures, "write_confusion"), (report, "write")):
        replace(module, name, lambda *arguments: None)


if __name__ == "__main__":
    leave_out()
    runpy.run_path("train_main.py", run_name="__main__")
