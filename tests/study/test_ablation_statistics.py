"""The figures of the table against numbers worked out by hand."""

import csv
import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from configs.ablations.study import study as recipe_of
from configs.default import get_config as default_config
from resnet.study import ablation_curves
from resnet.study.ablation_config import Published, read_study
from resnet.study.ablation_curves import FILE, write_curves
from resnet.study.ablation_records import DIVERGED, FAILED, OK, Curves, Record, drop_outdated, read_record, write_record
from resnet.study.ablation_statistics import errors, figures, t_interval
from resnet.study.ablation_table import comma_separated, latex, markdown
from tests.study.test_ablation_config import recipe

INSIDE = {
    "branch_to_shortcut": {"layer1_0": [0.5, 0.6, 0.7], "layer1_1": [0.3, 0.4, 0.5], "layer2_0": [1.0, 2.0, 3.0]},
    "gradient_norm": {"stem": [9.0] * 3, "layer1_0": [0.1, 0.2, 0.3], "layer2_0": [2.0, 3.0, 4.0], "head": [9.0] * 3},
}


def record(name: str, *top1: tuple[float | None, ...], diverged=(None, None, None), status=OK, reason="") -> Record:
    """A record whose evaluations, one tuple of three seeds each, gave these shares."""
    curves = Curves(
        test_step=list(range(1, len(top1) + 1)),
        test_top1=[list(row) for row in top1],
        test_loss=[[1.0] * 3 for _ in top1],
        train_step=[1, 2],
        train_loss=[[2.0, None, 1.0], [1.0, None, 0.5]],
        train_top1=[[0.1, None, 0.2]] * 2,
        diverged=list(diverged),
        seconds=4.0,
        images=1000,
        start=INSIDE,
    )
    return Record(name, status, reason, {"seeds": [0, 1, 2]}, 1234567, 40_551_040, "map", "cpu", None, curves, INSIDE)


BASE = record("resnet20", (0.5, 0.6, 0.9), (0.9, 0.8, 0.7))
OTHER = record("plain20", (0.88, 0.70, 0.1), (0.8, 0.8, 0.5))


def test_last_best_mean_and_deviation():
    """Errors 10, 20, 30: mean 20, sample deviation 10. Best of each seed 10, 20, 10."""
    own = figures(BASE, None)
    assert own.last == pytest.approx((10, 20, 30))
    assert own.best == pytest.approx((10, 20, 10))
    assert own.mean == pytest.approx(20)
    assert own.deviation == pytest.approx(10)
    assert own.best_mean == pytest.approx(40 / 3)
    assert own.difference is None
    assert own.interval is None


def test_variants_of_two_codes_are_told_apart():
    """By none that noted no code: it came in November 2026."""
    base = default_config()
    base.data.crop = "pad"
    study = read_study(recipe_of(base, {"resnet20": {}, "plain20": {"optim": {"name": "lamb"}}}, baseline="resnet20"))
    records = {"resnet20": dataclasses.replace(BASE, curves=dataclasses.replace(BASE.curves, code=["a1"]))}
    words = "Not all of it was trained by the same code"
    for of_plain, told in ([], None), (["a1"], None), (["b2"], "b2: plain20"), (["a1", "b2"], "a1 and b2: plain20"):
        curves = dataclasses.replace(OTHER.curves, code=of_plain)
        table = markdown("t", study, {**records, "plain20": dataclasses.replace(OTHER, curves=curves)})
        assert (words in table) == (told is not None)
        assert told is None or f"By the number of the code: a1: resnet20; {told}." in table
    assert "sgd cosine or lamb cosine, float32" in table


def test_differences_are_paired_by_seed():
    """20, 20, 50 against 10, 20, 30: +10, 0, +20, mean +10, deviation 10; t of 2 degrees, from any table: 4.303."""
    own = figures(OTHER, BASE)
    assert own.difference == pytest.approx(10)
    assert own.pairs == 3
    margin = 4.303 * 10 / 3**0.5
    assert own.interval == pytest.approx((10 - margin, 10 + margin), abs=0.01)


def test_a_seed_that_diverged_is_in_no_mean_and_no_pair():
    own = figures(record("b", (0.8, 0.8, 0.5), diverged=(40, None, None), status=DIVERGED), BASE)
    assert own.last == pytest.approx((None, 20, 50))
    assert own.mean == pytest.approx(35)
    assert own.pairs == 2
    assert own.difference == pytest.approx((0 + 20) / 2)


def test_nothing_is_made_of_nothing():
    alone = record("b", diverged=(1, 2, 3), status=DIVERGED)
    own = figures(alone, BASE)
    assert (own.mean, own.deviation, own.best_mean, own.difference, own.interval) == (None,) * 5
    single = figures(record("b", (0.8, None, None), diverged=(None, 1, 1)), BASE)
    assert (single.mean, single.deviation, single.interval, single.pairs) == (pytest.approx(20), None, None, 1)
    assert errors(record("b", (0.5, 0.5, 0.5), status=FAILED)) == ((None,) * 3, (None,) * 3)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_the_interval_covers_the_truth_as_often_as_it_says(count):
    """Of 40,000 ablations of normal differences; the percentile bootstrap covers 50, 74, 84 and 90 % of them."""
    truth = 3.0
    low, high = t_interval(np.random.default_rng(count).normal(truth, 2.0, (40_000, count)))
    assert 0.94 < ((low <= truth) & (truth <= high)).mean() < 0.96


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=8))
def test_the_interval_is_scipys(values):
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95) if np.ptp(values) > 0 else (values[0],) * 2
    assert t_interval(np.array(values)) == pytest.approx(tuple(theirs), abs=1e-9)


@pytest.mark.parametrize("shares", [(0.8, 0.7, 0.6), (0.9, 0.8, 0.7)], ids=["ten points", "nothing"])
def test_no_interval_of_no_width_is_claimed(study, shares):
    """Each seed is off by equally many images, up to rounding (0.9 - 0.8 is not 0.8 - 0.7)."""
    own = figures(record("plain20", shares), BASE)
    assert own.difference == pytest.approx(100 * (0.9 - shares[0]))
    assert own.interval is None
    assert own.alike
    records = {"resnet20": BASE, "plain20": record("plain20", shares)}
    text = markdown("", study, records)
    assert f"| {own.difference:+.2f} (no interval) |" in text
    assert "; no interval where all pairs differ by the same number of test images" in text
    lines = csv.DictReader(io.StringIO(comma_separated(study, records)))
    (line,) = (line for line in lines if line["variant"] == "plain20")
    assert (line["low"], line["high"], line["pairs"]) == ("", "", "3")


@pytest.fixture
def study():
    config = recipe("depth_cifar")
    config.seeds = (0, 1, 2)
    return read_study(config)


def test_the_table_says_what_is_measured_published_missing_and_broken(study):
    failed = record("plain32", status=FAILED, reason="MemoryError: too large")
    records = {"resnet20": BASE, "plain20": OTHER, "plain32": failed}
    text = markdown("Ablation depth", study, records)
    assert "| resnet20 | 20.00 ± 10.00 |  | 13.33 | 3 of 3 | 1,234,567 | 40,551,040 | 250 | 8.75 [1] |" in text
    assert "| plain20 | 30.00 ± 17.32 | +10.00 (-14.84 to +34.84) |" in text
    assert "| plain32 | failed |" in text
    assert "plain32: failed: MemoryError: too large" in text
    assert "| resnet56 | not run yet |  |  |  |  |  |  | 6.97 [1] |" in text
    assert "[1] He et al. 2015, Table 6\n" in text
    assert "over 3 pairs" in text
    # Means over blocks and seeds: of 0.5, 0.6, 0.7, 0.3, 0.4, 0.5, of 1, 2, 3; gradients of 0.1, 0.2, 0.3 and 2, 3, 4.
    assert "| resnet20 | 0.5 → 0.5, 2 → 2 | 0.2 → 0.2 | 3 → 3 |" in text


def test_the_table_for_a_paper_has_the_same_cells(study):
    records = {"resnet20": BASE, "plain20": OTHER}
    text = latex("Ablation depth_cifar", study, records)
    lines = text.splitlines()
    assert lines[0] == "% Ablation depth_cifar"
    assert "% [1] He et al. 2015, Table 6" in lines
    assert r"resnet20 & 20.00 $\pm$ 10.00 &  & 13.33 & 3 of 3 & 1,234,567 & 40,551,040 & 250 & 8.75 [1] \\" in lines
    assert r"plain20 & 30.00 $\pm$ 17.32 & $+$10.00 ($-$14.84 to $+$34.84) &" in text
    assert r"variant & test error \%, last step & difference to resnet20 (95 \% interval) &" in text
    begun = lines.index(r"\begin{tabular}{lrrrrrrrr}")
    assert not [line for line in lines[:begun] if not line.startswith("%")]
    assert lines[-1] == r"\end{tabular}"


def test_what_a_recipe_publishes_stays_in_its_cell(study):
    """Words with the table's own bar, a line's end, a quote and a comma; the CSV reader gives them back as they are."""
    words = Published('a | b,\n"c"', "page 1 |\nTable 2")
    variants = (dataclasses.replace(study.variants[0], published=words), *study.variants[1:])
    changed = dataclasses.replace(study, variants=variants)
    text = markdown("", changed, {})
    assert '| resnet20 | not run yet |  |  |  |  |  |  | a \\| b, "c" [1] |\n' in text
    assert "[1] page 1 | Table 2\n" in text
    (line, *_) = csv.DictReader(io.StringIO(comma_separated(changed, {}), newline=""))
    assert (line["paper"], line["paper_source"]) == (words.error, words.source)


@pytest.mark.parametrize(
    ("well", "cell", "note"),
    [
        (3, "+10.00 (-14.84 to +34.84)", "; interval: Student's t of the mean over 3 pairs, on these test images.\n"),
        (2, "+5.00 (-58.53 to +68.53), 2 pairs", " over 2 pairs, on these test images.\n"),
        (1, "+10.00, 1 pair", "Difference: paired by seed; no interval for a single pair.\n"),
        (0, "", None),
    ],
)
def test_the_footnote_speaks_of_the_pairs_that_there_are(study, well, cell, note):
    """Differences of +10, 0 and +20, of which the first `well` are left."""
    diverged = (None,) * well + (1,) * (3 - well)
    other = dataclasses.replace(OTHER, curves=dataclasses.replace(OTHER.curves, diverged=list(diverged)))
    text = markdown("", study, {"resnet20": BASE, "plain20": other})
    line = next(line for line in text.splitlines() if line.startswith("| plain20 "))
    assert line.split(" | ")[2] == cell
    assert "Difference:" not in text if note is None else note in text
    assert ("Student" in text) == (well > 1)


def test_the_footnote_speaks_of_each_number_of_pairs(study):
    two = record("plain32", (0.5, 0.6, 0.7), diverged=(None, 3, None), status=DIVERGED)
    text = markdown("", study, {"resnet20": BASE, "plain20": OTHER, "plain32": two})
    assert "over 2 or 3 pairs, on these test images.\n" in text


def test_a_single_seed_has_no_interval_and_it_is_said():
    config = recipe("depth_cifar")
    config.seeds = (7,)
    one = {
        name: dataclasses.replace(
            BASE,
            name=name,
            identity={"seeds": [7]},
            curves=Curves(test_step=[1], test_top1=[[share]], diverged=[None]),
            end={},
        )
        for name, share in (("resnet20", 0.9), ("plain20", 0.8))
    }
    text = markdown("", read_study(config), one)
    assert "| plain20 | 20.00 | +10.00 | 20.00 | 1 of 1 |" in text
    assert "Difference: paired by seed; no interval for a single pair.\n" in text


def test_the_csv_has_every_variant_and_every_seed(study):
    lines = list(csv.DictReader(io.StringIO(comma_separated(study, {"resnet20": BASE, "plain20": OTHER}))))
    assert [line["variant"] for line in lines] == [variant.name for variant in study.variants]
    by_name = {line["variant"]: line for line in lines}
    assert float(by_name["plain20"]["difference"]) == pytest.approx(10)
    assert float(by_name["plain20"]["last_seed_2"]) == pytest.approx(50)
    assert by_name["resnet20"]["difference"] == ""
    assert by_name["resnet32"]["status"] == "not run yet"
    assert by_name["plain110"]["paper"] == "above 60"


def test_curves_are_drawn_whatever_is_there(study, tmp_path):
    write_curves(tmp_path, study, {})
    plain = record("plain20", (0.5, None, 0.5), diverged=(None, 1, None), status=DIVERGED)
    write_curves(tmp_path, study, {"resnet20": BASE, "plain20": plain})
    assert (tmp_path / FILE).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_variants_of_different_losses_are_named_as_such(study):
    records = {"resnet20": BASE, "plain20": OTHER}
    assert "different losses" not in markdown("", study, records)
    study.variants[[one.name for one in study.variants].index("plain20")].config.optim.loss = "sigmoid"
    assert "errors can. sigmoid: plain20; softmax: resnet20." in markdown("", study, records)
    assert "sigmoid and softmax: not comparable" in ablation_curves.loss_title(study, records)
    assert "not comparable" not in ablation_curves.loss_title(study, {"resnet20": BASE})


def test_of_many_variants_the_baseline_and_the_best_have_a_look_of_their_own(study, monkeypatch):
    records = {"resnet20": record("resnet20", (0.1, 0.1, 0.1)), "plain20": BASE, "resnet32": OTHER}
    monkeypatch.setattr(ablation_curves, "NAMED", 2)
    assert ablation_curves.named(study, records) == ["resnet20", "plain20"]


HALF_DEAD = {
    "branch_to_shortcut": {"layer1_0": [0.5, 900.0, 0.7], "layer2_0": [1.0, None, 3.0]},
    "gradient_norm": {"layer1_0": [0.1, 900.0, 0.3], "layer2_0": [2.0, None, 4.0]},
}


def half_dead(diverged=(None, 2, None)) -> Record:
    """A record whose second seed diverged: finite and far off in places, not finite in others."""
    one = record("plain20", (0.5, 0.1, 0.7), (0.6, 0.1, 0.8), diverged=diverged, status=DIVERGED)
    curves = dataclasses.replace(one.curves, train_loss=[[2.0, 90.0, 1.0], [1.0, None, 0.5]], start=HALF_DEAD)
    return dataclasses.replace(one, curves=curves, end=HALF_DEAD)


def test_a_seed_that_diverged_is_in_no_mean_of_what_is_inside(study):
    """(0.5 + 0.7) / 2 and (1 + 3) / 2; gradients (0.1 + 0.3) / 2 and (2 + 4) / 2, whatever the second seed has."""
    text = markdown("", study, {"resnet20": BASE, "plain20": half_dead()})
    assert "| plain20 | 0.6 → 0.6, 2 → 2 | 0.2 → 0.2 | 3 → 3 |" in text
    assert "| plain20 | diverged |  |  |" in markdown("", study, {"plain20": half_dead((1, 2, 3))})


def test_a_value_of_a_well_seed_that_is_not_finite_is_told(study):
    assert "| plain20 | 450 → 450, not finite → not finite |" in markdown(
        "", study, {"plain20": half_dead((None, None, 2))}
    )


def test_a_seed_that_diverged_is_in_no_curve(study, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(ablation_curves, "draw", lambda axes, places, series, look: drawn.append(series))
    write_curves(tmp_path, study, {"plain20": half_dead()})
    error, loss, ratio, gradient = drawn
    assert error == [pytest.approx([50, 30]), pytest.approx([40, 20])]
    assert loss == [[2.0, 1.0], [1.0, 0.5]]
    assert ratio == [[0.5, 0.7], [1.0, 3.0]]
    assert gradient == [[0.1, 0.3], [2.0, 4.0]]
    monkeypatch.undo()
    write_curves(tmp_path, study, {"plain20": half_dead((1, 2, 3))})


def test_a_record_comes_back_as_it_was(tmp_path):
    (tmp_path / "variants").mkdir()
    write_record(tmp_path, BASE)
    assert read_record(tmp_path, "resnet20") == BASE
    assert read_record(tmp_path, "absent") is None


def test_blocks_come_back_by_depth_not_by_name(tmp_path):
    (tmp_path / "variants").mkdir()
    names = ["stem", *(f"layer1_{index}" for index in range(12)), "layer2_0", "head"]
    inside = {"gradient_norm": {name: [float(number)] * 3 for number, name in enumerate(names)}}
    write_record(tmp_path, dataclasses.replace(BASE, end=inside))
    again = read_record(tmp_path, "resnet20")
    assert list(again.end["gradient_norm"]) == names
    assert list(again.curves.start["gradient_norm"]) == ["stem", "layer1_0", "layer2_0", "head"]


def test_what_another_configuration_failed_at_is_dropped_before_training_alone(tmp_path):
    (tmp_path / "variants" / "a" / "checkpoints").mkdir(parents=True)
    failed = Record("a", FAILED, "no memory", {"optim.lr": 0.1, "seeds": [0]}, 0, 0, "map", "cpu", None, Curves(), {})
    write_record(tmp_path, failed)
    drop_outdated(tmp_path, "a", {"optim.lr": 0.1, "seeds": [0]})
    drop_outdated(tmp_path, "a", {"optim.lr": 0.1, "seeds": [0, 1]})
    assert read_record(tmp_path, "a") == failed
    assert (tmp_path / "variants" / "a").is_dir()
    drop_outdated(tmp_path, "a", {"optim.lr": 0.2, "seeds": [0]})
    drop_outdated(tmp_path, "a", {"optim.lr": 0.2, "seeds": [0]})
    assert list((tmp_path / "variants").iterdir()) == []
    done = dataclasses.replace(failed, status=OK)
    write_record(tmp_path, done)
    drop_outdated(tmp_path, "a", {"optim.lr": 0.2, "seeds": [0]})
    assert read_record(tmp_path, "a") == done
