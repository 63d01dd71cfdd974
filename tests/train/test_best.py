"""Which evaluation is the best so far."""

import math
from types import SimpleNamespace

import pytest

from resnet.train.loop import Run
from resnet.train.meta import Progress


@pytest.mark.parametrize(
    ("values", "sign", "best", "since"),
    [
        ([3.0, 2.0, 2.5], -1, 2, 1),
        ([0.1, 0.3, 0.3], 1, 3, 1),
        # What is no number is the best only as long as there is no other.
        ([math.nan, 2.0], -1, 2, 0),
        ([math.nan, math.nan, 5.0, 6.0], -1, 3, 1),
        ([2.0, math.nan], -1, 1, 1),
        ([math.inf, math.nan, 1.0], -1, 3, 0),
    ],
)
def test_any_number_is_better_than_none(values, sign, best, since):
    run = SimpleNamespace(progress=Progress(), sign=sign)
    for step, value in enumerate(values, start=1):
        Run.note(run, step, value)
    assert (run.progress.best_step, run.progress.since_best) == (best, since)
