"""Repeated runs summed up: which runs repeat each other, and figures by hand."""

import dataclasses
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from configs.default import get_config
from resnet.study.report_comparison import comparison, other_data
from resnet.study.report_repeats import repeats, told
from resnet.study.run_record import RunRecord, plain
from resnet.train.configuration import flatten
from resnet.train.metrics import wilson_interval


def a_run(top1: float, images: str = "one", count: int = 200, **config: object) -> RunRecord:
    """A finished run of nothing but its test line; keys with '__' for '.'."""
    whole = {key: plain(value) for key, value in flatten(get_config()).items()}
    whole |= {name.replace("__", "."): value for name, value in config.items()}
    low, high = wilson_interval(round(top1 * count), count)
    test = {"kind": "test", "step": 5, "epoch": 5.0, "loss": 1.0, "top1": top1, "count": count}
    test |= {"top1_low": low, "top1_high": high, "balanced_accuracy": top1 - 0.1, "ece": 0.1}
    return RunRecord(
        Path("runs") / str(id(test)), whole, {"dataset": {"fingerprint": images}}, ("a", "b"), [test], None
    )


def named(runs: list[RunRecord]) -> list[str]:
    return [f"r{number}" for number in range(len(runs))]


SEEDS = [a_run(share, run__seed=seed, data__dir=f"at/{seed}") for seed, share in enumerate((0.9, 0.93, 0.88))]
FOLDS = [
    a_run(share, f"fold {fold}", count, data__folds=3, data__fold=fold)
    for fold, (share, count) in enumerate(((0.9, 10), (0.8, 10), (1.0, 9)))
]


def test_runs_of_several_seeds_have_a_mean_a_deviation_and_students_interval():
    (found,) = repeats(SEEDS, named(SEEDS))
    shares = [0.9, 0.93, 0.88]
    assert found.top1 == pytest.approx((statistics.mean(shares), statistics.stdev(shares)))
    assert found.balanced == pytest.approx((statistics.mean(shares) - 0.1, statistics.stdev(shares)))
    assert (found.lowest, found.highest, found.pooled, found.against) == (0.88, 0.93, None, None)
    theirs = stats.ttest_1samp(shares, 0).confidence_interval(0.95)
    assert found.interval == pytest.approx(tuple(theirs))
    assert found.differ == "run.seed 0, 1, 2"
    low, high = (f"{100 * end:.1f}" for end in theirs)
    line = f"3 runs (r0, r1, r2; run.seed 0, 1, 2): test top-1 90.33 ± 2.52 % (95 % interval {low} to {high})"
    assert told(found) == line


def test_all_folds_are_pooled_and_some_are_not():
    (found,) = repeats(FOLDS, named(FOLDS))
    assert found.pooled == pytest.approx(26 / 29)
    assert found.interval == wilson_interval(26, 29)
    assert found.top1[0] == pytest.approx(0.9)
    assert "test top-1 90.00 ± 10.00 %, 89.66 % of all folds' images (95 % interval " in told(found)
    (some,) = repeats(FOLDS[:2], named(FOLDS[:2]))
    # Folds share their training images: no interval of their mean holds (Bengio and Grandvalet 2004).
    assert (some.pooled, some.interval) == (None, None)
    assert told(some) == "2 runs (r0, r1; data.fold 0, 1): test top-1 85.00 ± 7.07 %"


def test_equal_figures_claim_no_interval():
    same = [a_run(0.9, run__seed=seed) for seed in range(3)]
    (found,) = repeats(same, named(same))
    assert (found.top1[1], found.interval) == (0.0, None)
    (found,) = repeats([*same, a_run(0.9, run__seed=3)], [*named(same), "r3"])
    assert found.label == "r0 to r3"


def test_a_comparison_leaves_out_all_leaks_that_were_found():
    """Copies too, where the run looked for them; else byte-identical images alone."""
    looked, exact = (dataclasses.replace(run, lines=[dict(run.test or {})]) for run in SEEDS[:2])
    looked.lines[0] |= {"leaked": 3, "clean": {"top1": 0.8761}, "near_leaked": 2, "cleanest": {"top1": 0.8642}}
    exact.lines[0] |= {"leaked": 3, "clean": {"top1": 0.8523}}
    page = comparison([looked, exact])
    assert [figure in page for figure in ("86.42", "85.23", "87.61")] == [True, True, False]


def test_what_is_no_repetition_is_left_out():
    assert repeats(SEEDS[:1], ["r0"]) == []
    other_rate = a_run(0.5, run__seed=7, optim__lr=0.3)
    assert [found.names for found in repeats([*SEEDS, other_rate], named([*SEEDS, other_rate]))] == [("r0", "r1", "r2")]
    # The same seed twice, and the same split on other images.
    assert repeats([*SEEDS, SEEDS[0]], named([*SEEDS, SEEDS[0]])) == []
    strange = [SEEDS[0], a_run(0.4, "two", run__seed=9)]
    assert repeats(strange, named(strange)) == []
    unfinished = dataclasses.replace(SEEDS[1], lines=[])
    assert repeats([SEEDS[0], unfinished], ["r0", "r1"]) == []


def test_runs_from_other_weights_or_of_other_images_are_sets_of_their_own():
    """Of weights the digest counts, not the path; folds of other images have other fingerprints in any case."""

    def noted(run: RunRecord, digest: str, **images: int) -> RunRecord:
        provenance = {"dataset": {**run.provenance["dataset"], "images": images}, "weights": {"sha256": digest}}
        return dataclasses.replace(run, provenance=provenance, config=run.config | {"transfer.weights": str(id(run))})

    two = [noted(run, digest) for digest in "AB" for run in SEEDS]
    assert [found.names for found in repeats(two, named(two))] == [("r0", "r1", "r2"), ("r3", "r4", "r5")]
    assert repeats([two[0], two[4]], ["r0", "r1"]) == []
    unlike = [noted(run, "A", train=20 - test, test=test) for run, test in zip(FOLDS, (10, 10, 9), strict=True)]
    (found,) = repeats(unlike, named(unlike))
    assert found.pooled == pytest.approx(26 / 29)
    unlike[2] = noted(FOLDS[2], "A", train=12, test=9)
    assert [found.names for found in repeats(unlike, named(unlike))] == [("r0", "r1")]
    unlike = [dataclasses.replace(run, config=run.config | {"data.drop_leaks": True}) for run in unlike]
    assert len(repeats(unlike, named(unlike))[0].names) == 3


def test_a_second_set_is_compared_with_the_first_by_pairs():
    others = [a_run(share, run__seed=seed, optim__lr=0.3) for seed, share in ((2, 0.9), (0, 0.95), (5, 0.1))]
    _, found = repeats([*SEEDS, *others], named([*SEEDS, *others]))
    assert found.names == ("r4", "r3", "r5")
    # Seeds 0 and 2 are of both.
    differences = np.array([0.95 - 0.9, 0.9 - 0.88])
    assert found.against is not None
    mean, interval = found.against
    assert mean == pytest.approx(differences.mean())
    assert interval == pytest.approx(tuple(stats.ttest_1samp(differences, 0).confidence_interval(0.95)))
    fewer = [a_run(0.5, f"fold {fold}", data__folds=3, data__fold=fold, optim__lr=0.3) for fold in range(2)]
    *_, folded = repeats([*FOLDS, *fewer], named([*FOLDS, *fewer]))
    assert folded.against == (pytest.approx(-0.35), None)


def test_the_page_shows_them_and_says_which_images_are_others():
    page = comparison(FOLDS)
    assert "<h3>Repeated runs</h3>" in page
    assert "data.fold 0, 1, 2" in page
    assert "89.66" in page
    assert "These runs are of different splits: their figures cannot be compared with one another." in page
    page = comparison(SEEDS)
    assert "cannot be compared with one another" not in page
    assert "<h3>Repeated runs</h3>" not in comparison([SEEDS[0], a_run(0.9, optim__lr=0.3)])
    assert other_data([SEEDS[0], a_run(0.9, "two")]) == "different data"
