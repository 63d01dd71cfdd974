"""The figures of a table: errors of each seed, mean and deviation, paired differences and their bootstrap interval."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from resnet.study.ablation_records import FAILED, Record

RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Figures:
    """A variant's test errors in per cent. last, best: one a seed, None for a seed that diverged or was not evaluated.

    difference: mean over the seeds that both have of (last error here - last error of the baseline); interval: its
    95 % bootstrap interval; both None for the baseline itself and where there is nothing to compare, the interval also
    for a single seed.
    """

    last: tuple[float | None, ...]
    best: tuple[float | None, ...]
    pairs: int = 0
    difference: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def mean(self) -> float | None:
        """Mean of the last errors over the seeds that have one."""
        return mean(self.last)

    @property
    def deviation(self) -> float | None:
        """Their sample standard deviation (n - 1); None for fewer than two."""
        values = present(self.last)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    @property
    def best_mean(self) -> float | None:
        """Mean over the seeds of the best error of any evaluation, which flatters: the test split chose it."""
        return mean(self.best)


def present(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def mean(values: Sequence[float | None]) -> float | None:
    there = present(values)
    return float(np.mean(there)) if there else None


def figures(record: Record, baseline: Record | None) -> Figures:
    """The figures of a variant beside those of the baseline, paired by seed; both must have the same seeds."""
    last, best = errors(record)
    if baseline is None or baseline.name == record.name:
        return Figures(last, best)
    pairs = zip(last, errors(baseline)[0], strict=True)
    differences = np.array([own - other for own, other in pairs if own is not None and other is not None])
    if len(differences) == 0:
        return Figures(last, best)
    interval = bootstrap_interval(differences) if len(differences) > 1 else None
    return Figures(last, best, len(differences), float(differences.mean()), interval)


def errors(record: Record) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    """(last, best) test error of each seed in per cent; None where it diverged or there is no evaluation."""
    curves = record.curves
    last: list[float | None] = []
    best: list[float | None] = []
    for seed, diverged in enumerate(curves.diverged):
        shares = present([row[seed] for row in curves.test_top1])
        if record.status == FAILED or diverged is not None or not shares:
            last.append(None)
            best.append(None)
        else:
            last.append(100 * (1 - shares[-1]))
            best.append(100 * (1 - max(shares)))
    return tuple(last), tuple(best)


def bootstrap_interval(differences: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean (Efron and Tibshirani 1993, Section 13.3); the same every time.

    With n differences there are but (2n-1 choose n) distinct resamples: 10 of 3, 126 of 5. Such an interval is coarse,
    and narrower than a t interval.
    """
    chosen = np.random.default_rng(seed).integers(0, len(differences), (resamples, len(differences)))
    low, high = np.percentile(differences[chosen].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)
