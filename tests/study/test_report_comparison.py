"""The interval of a paired difference: a published example, cases by hand, symmetries, and what it covers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet.study.report_comparison import newcombe_interval
from resnet.train.metrics import wilson_interval

CELL = st.integers(0, 5000)


def test_a_published_example():
    """Complete response before and after consolidation (Cavo et al. 2012), Fagerland, Lydersen and Laake 2017, ch. 8.

    Figures of the authors' R package contingencytables; without the correction of phi they are -0.1174 and -0.0059.
    """
    assert newcombe_interval(59, 6, 16, 80) == pytest.approx((-0.1186, -0.0046), abs=5e-5)


def test_where_all_is_right_once_the_proportions_do_not_go_together():
    """14 gained of 50 to all right, phi 0: the root of the sum of both squared distances to Wilson's limits."""
    low, high = wilson_interval(36, 50)
    full = wilson_interval(50, 50)[0]
    expected = (0.28 - math.hypot(1 - full, high - 0.72), 0.28 + math.hypot(0.72 - low, 1 - 1))
    assert newcombe_interval(36, 14, 0, 0) == pytest.approx(expected)


@pytest.mark.parametrize(("both", "neither"), [(200, 0), (0, 200), (180, 20), (1, 0)])
def test_runs_that_never_differ_are_not_known_to_be_equal(both, neither):
    low, high = newcombe_interval(both, 0, 0, neither)
    assert high == pytest.approx(-low)
    assert high > 0.4 / (both + neither)


@given(CELL, CELL, CELL, CELL)
def test_symmetries_and_range(both, gained, lost, neither):
    """Exchanging the runs turns it round; calling right what is wrong, in either run, only mirrors it twice."""
    count = both + gained + lost + neither
    if not count:
        return
    low, high = newcombe_interval(both, gained, lost, neither)
    assert -1 <= low <= (gained - lost) / count <= high <= 1
    assert low < high
    assert newcombe_interval(both, lost, gained, neither) == pytest.approx((-high, -low), abs=1e-12)
    assert newcombe_interval(neither, gained, lost, both) == pytest.approx((low, high), abs=1e-12)


def test_what_it_covers():
    """Exactly, over all tables of 40 images; Wald's interval covers 64, 91, 93 and 94 % of these."""
    count = 40
    tables = np.array(
        [
            (both, gained, lost, count - both - gained - lost)
            for gained in range(count + 1)
            for lost in range(count + 1 - gained)
            for both in range(count + 1 - gained - lost)
        ]
    )
    low, high = np.array([newcombe_interval(*map(int, table)) for table in tables]).T
    logarithms = np.array([math.lgamma(number + 1) for number in range(count + 1)])
    arrangements = logarithms[count] - logarithms[tables].sum(axis=1)
    for shares in ((0.96, 0.02, 0.005, 0.015), (0.9, 0.06, 0.01, 0.03), (0.6, 0.1, 0.1, 0.2), (0.4, 0.2, 0.2, 0.2)):
        probabilities = np.exp(arrangements + tables @ np.log(shares))
        assert probabilities.sum() == pytest.approx(1)
        truth = shares[1] - shares[2]
        assert probabilities[(low <= truth) & (truth <= high)].sum() > 0.945
