"""The figures of a table: errors of each seed, mean and deviation, paired differences and their t interval."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

from resnet.study.ablation_config import Study, Variant
from resnet.study.ablation_records import FAILED, Record

# Percentage points; far above what rounding does to a difference, far below what one test image is worth.
_SAME = 1e-9


@dataclasses.dataclass(frozen=True)
class Figures:
    """A variant's test errors in per cent. last, best: one a seed, None for a seed that diverged or was not evaluated.

    difference: mean over the seeds that both have of (last error here - last error of the baseline); interval: its
    95 % interval (`t_interval`); both None for the baseline itself and where there is nothing to compare. The interval
    is None as well for a single pair and where all pairs differ alike (`alike`): no width of 0 is claimed.
    """

    last: tuple[float | None, ...]
    best: tuple[float | None, ...]
    pairs: int = 0
    difference: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def alike(self) -> bool:
        """Whether there are several pairs and all differ by the same, in so many test images: no deviation is seen."""
        return self.pairs > 1 and self.interval is None

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


def loss_kinds(study: Study, records: Mapping[str, Record]) -> list[str]:
    """What the variants that are done minimise, sorted: config.optim.loss, and of smoothed targets how much."""
    return sorted({loss_kind(variant) for variant in study.variants if variant.name in records})


def loss_kind(variant: Variant) -> str:
    """'softmax', 'sigmoid, smoothing 0.1': training losses of two kinds have no common scale."""
    optim = variant.config.optim
    return str(optim.loss) + (f", smoothing {optim.label_smoothing:g}" if optim.label_smoothing else "")


def present(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def mean(values: Sequence[float | None]) -> float | None:
    there = present(values)
    return float(np.mean(there)) if there else None


def figures(record: Record, baseline: Record | None) -> Figures:
    """The figures of a variant beside those of the baseline, paired by seed; seeds that one has alone are no pairs."""
    last, best = errors(record)
    if baseline is None or baseline.name == record.name:
        return Figures(last, best)
    others = dict(zip(baseline.seeds, errors(baseline)[0], strict=True))
    pairs = [(own, others.get(seed)) for seed, own in zip(record.seeds, last, strict=True)]
    differences = np.array([own - other for own, other in pairs if own is not None and other is not None])
    if len(differences) == 0:
        return Figures(last, best)
    interval = None
    if np.ptp(differences) > _SAME:
        low, high = t_interval(differences)
        interval = float(low), float(high)
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


def t_interval(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), each float[...], of the 95 % interval of the mean over the last axis; differences float[..., n > 1].

    Mean ± t(n - 1; 0.975) · s / √n (Student, "The probable error of a mean", Biometrika 6, 1908): exact where the
    differences are independent and normal, with 2 of them already.
    """
    count = differences.shape[-1]
    margin = stdtrit(count - 1, 0.975) * differences.std(axis=-1, ddof=1) / np.sqrt(count)
    centre = differences.mean(axis=-1)
    return centre - margin, centre + margin
