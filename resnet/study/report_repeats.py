"""Runs that are alike but for their seed or fold, summed up: what the figure of a single run cannot tell."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from resnet.study.ablation_statistics import t_interval
from resnet.study.run_record import RunRecord
from resnet.train.configuration import FREE, PLACES
from resnet.train.metrics import wilson_interval

# On which repeated runs may differ. Test images follow the last two, where the data bring no test split.
REPEATED = ("run.seed", "data.split_seed", "data.fold")
# Where all runs agree up to rounding there is no deviation to speak of.
_SAME = 1e-9
Interval = tuple[float, float]
# (seed, split seed, fold) -> a run and its name.
Group = dict[tuple[int, ...], tuple[RunRecord, str]]


@dataclasses.dataclass(frozen=True)
class Repeats:
    """Finished runs of one configuration. Shares lie in 0..1, deviations are sample standard deviations (n - 1).

    names: of the runs. differ: on what, 'run.seed 0, 1, 2'. top1, balanced: (mean, deviation) over the runs; pooled:
    top-1 of all folds' images together, each of which was tested once, else None. interval: of 95 %; of seeds alone
    Student's t of the mean (other seeds, these images), of all folds Wilson's of `pooled` (other images); None where
    neither holds. against: (mean difference in top-1 to the first of several, its t interval where seeds alone differ),
    over the runs of equal seed and fold.
    """

    names: tuple[str, ...]
    differ: str
    top1: Interval
    balanced: Interval
    lowest: float
    highest: float
    pooled: float | None
    interval: Interval | None
    against: tuple[float, Interval | None] | None = None

    @property
    def label(self) -> str:
        """The names of a few runs, the ends of many."""
        return ", ".join(self.names) if len(self.names) <= 3 else f"{self.names[0]} to {self.names[-1]}"


def repeats(runs: Sequence[RunRecord], names: Sequence[str]) -> list[Repeats]:
    """What repeats what among runs of these names, in the order of their first; of two runs with a test figure or more.

    Runs that began with other weights, or have another number of images, do not repeat each other. Runs of one seed and
    fold on different images, or the same run twice, are no repetition and left out.
    """
    groups: dict[str, Group] = {}
    spoilt: set[str] = set()
    for run, name in zip(runs, names, strict=True):
        if not run.test:
            continue
        shared = {k: v for k, v in run.config.items() if k not in (*REPEATED, *FREE, *PLACES)}
        key = json.dumps([shared, run.class_names, weights_of(run), count_of(run)])
        group, place = groups.setdefault(key, {}), tuple(run.config[name] for name in REPEATED)
        images = {fingerprint_of(other) for seen, (other, _) in group.items() if seen[1:] == place[1:]}
        if place in group or images - {fingerprint_of(run)}:
            spoilt.add(key)
        group[place] = (run, name)
    kept = [group for key, group in groups.items() if len(group) > 1 and key not in spoilt]
    return [summed_up(group, kept[0] if number else None) for number, group in enumerate(kept)]


def fingerprint_of(run: RunRecord) -> str:
    return str(run.provenance.get("dataset", {}).get("fingerprint", ""))


def weights_of(run: RunRecord) -> str:
    """What tells the weights that a run began with from others, wherever they lie; '' where it began from nothing."""
    return str(run.provenance.get("weights", {}).get("sha256") or run.config["transfer.weights"])


def count_of(run: RunRecord) -> int:
    """Images of all splits; 0 where leaks were left out, of which another split has others.

    Other splits of the same images have other fingerprints, so that these do not tell other images from another split.
    """
    images = run.provenance.get("dataset", {}).get("images", {})
    return 0 if run.config["data.drop_leaks"] else sum(images.values())


def summed_up(group: Group, first: Group | None) -> Repeats:
    """The figures of a group, and its difference to the `first` of several; None for that itself."""
    places = sorted(group)
    tests = [group[place][0].test or {} for place in places]
    columns = dict(zip(REPEATED, zip(*places, strict=True), strict=True))
    differing = {key: sorted(set(values)) for key, values in columns.items() if len(set(values)) > 1}
    top1 = np.array([test["top1"] for test in tests])
    interval = student(top1) if list(differing) == ["run.seed"] else None
    pooled = None
    folds = group[places[0]][0].config["data.folds"]
    if list(differing) == ["data.fold"] and len(places) == folds:
        counts = np.array([test["count"] for test in tests])
        hits = round(float(top1 @ counts))
        pooled, interval = hits / int(counts.sum()), wilson_interval(hits, int(counts.sum()))
    return Repeats(
        names=tuple(group[place][1] for place in places),
        differ="; ".join(f"{key} {', '.join(map(str, values))}" for key, values in differing.items()),
        top1=spread(top1),
        balanced=spread(np.array([test["balanced_accuracy"] for test in tests])),
        lowest=float(top1.min()),
        highest=float(top1.max()),
        pooled=pooled,
        interval=interval,
        against=difference(group, first, seeds=list(differing) == ["run.seed"]) if first else None,
    )


def difference(group: Group, first: Group, *, seeds: bool) -> tuple[float, Interval | None] | None:
    """(mean difference in top-1, its t interval if `seeds`) over the pairs of equal seed and fold and equal images."""
    pairs = [
        (group[place][0], first[place][0])
        for place in sorted(group.keys() & first.keys())
        if fingerprint_of(group[place][0]) == fingerprint_of(first[place][0])
    ]
    if not pairs:
        return None
    differences = np.array([(own.test or {})["top1"] - (other.test or {})["top1"] for own, other in pairs])
    return float(differences.mean()), student(differences) if seeds else None


def student(values: np.ndarray) -> Interval | None:
    """The t interval of the mean of float[n]; None of a single value or of equal ones, which show no deviation."""
    if len(values) < 2 or np.ptp(values) <= _SAME:
        return None
    low, high = t_interval(values)
    return float(low), float(high)


def spread(values: np.ndarray) -> Interval:
    return float(values.mean()), float(values.std(ddof=1))


def told(found: Repeats) -> str:
    """`found` in a line for the screen."""
    mean, deviation = (f"{100 * value:.2f}" for value in found.top1)
    line = f"{len(found.names)} runs ({found.label}; {found.differ}): test top-1 {mean} ± {deviation} %"
    if found.pooled is not None:
        line += f", {100 * found.pooled:.2f} % of all folds' images"
    if found.interval:
        line += f" (95 % interval {100 * found.interval[0]:.1f} to {100 * found.interval[1]:.1f})"
    return line
