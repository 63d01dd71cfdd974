"""An ablation's page: the table's figures, every seed, nothing from elsewhere; its legend hides variants."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from input_pipeline.errors import InputError
from resnet.study import report
from resnet.study.ablation_config import Published, Study, read_study
from resnet.study.ablation_figures import all_figures
from resnet.study.ablation_records import DIVERGED, FAILED, Curves, Record
from resnet.study.ablation_report import page, write_report
from resnet.study.report_figures import keys
from resnet.train.checkpoints import find_step
from tests.browser import CHROMIUM, Browser
from tests.study.test_ablation_config import recipe
from tests.study.test_ablation_statistics import BASE, OTHER, record

PROVENANCE = {"command": "-m resnet.study.ablation", "revision": "abc", "device": "cpu"}
COMMAND = "-m resnet.study.ablation --config=x.py"


@pytest.fixture
def study() -> Study:
    config = recipe("depth_cifar")
    config.seeds = (0, 1, 2)
    return read_study(config)


@pytest.fixture
def records() -> dict[str, Record]:
    wild = record("plain32", diverged=(1, 2, 3), status=DIVERGED, reason="3 of 3 seeds")
    failed = record("resnet32", status=FAILED, reason="MemoryError: too large")
    failed = dataclasses.replace(failed, curves=Curves(diverged=[None] * 3), end={})
    return {"resnet20": BASE, "plain20": OTHER, "plain32": wild, "resnet32": failed}


def words(text: str) -> str:
    """What a reader sees of the page's body, without its scripts."""
    body = re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def test_it_says_what_the_table_says(study, records, tmp_path):
    said = words(page(tmp_path, "Ablation depth", study, records, PROVENANCE, COMMAND))
    assert "not finished: 3 of 10 variants" in said
    assert "resnet20 model.name=cifar_resnet20 20.00 ± 10.00 % baseline 13.33 % 3 of 3 1,234,567" in said
    # 20, 20, 50 against 10, 20, 30: differences of 10, 0, 20.
    assert "plain20 model.name=cifar_plain20 30.00 ± 17.32 % +10.00 (-14.84 to +34.84)" in said
    assert "8.75 % [1]" in said
    assert "above plain20 [3]" in said
    assert "plain32: diverged: 3 of 3 seeds" in said
    assert "resnet32 model.name=cifar_resnet32 failed" in said
    assert "resnet32: failed: MemoryError: too large" in said
    assert "resnet110 model.name=cifar_resnet110, optim.warmup_epochs=1.024 not run yet" in said
    assert "data.val_fraction 0.1 0" in said
    assert "./run.sh python -m resnet.study.ablation --config=x.py" in said
    # A key that only some variants have is beside these.
    assert "optim.warmup_epochs 0 " not in said


def test_seeds_that_are_lacking_and_pairs_that_are_few(study, records, tmp_path):
    one = dataclasses.replace(OTHER, identity={"seeds": [0, 1, 7]})
    said = words(page(tmp_path, "", study, {**records, "plain20": one}, PROVENANCE, COMMAND))
    assert "plain20: not trained yet with seeds 2" in said
    assert "+5.00 (-58.53 to +68.53) 2 pairs" in said
    assert "not finished: 2 of 10" in said


def test_it_asks_for_nothing_and_a_papers_words_stay_words(study, records, tmp_path):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    first, *others = study.variants
    first = dataclasses.replace(first, published=Published(hostile, f"{hostile} & more"))
    changed = dataclasses.replace(study, variants=(first, *others))
    text = page(tmp_path, hostile, changed, records, {"command": hostile, "device": hostile}, hostile)
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text


def test_the_figures_there_are(study, records):
    looks = keys([variant.name for variant in study.variants])
    assert list(all_figures(study, {}, looks)) == []
    assert list(all_figures(study, {"resnet20": BASE}, looks)) == ["errors", "error", "loss", "ratio", "gradient"]
    found = all_figures(study, records, looks)
    assert list(found) == ["errors", "differences", "error", "loss", "ratio", "gradient"]
    # From the top: the recipe's order, without what has no figure.
    assert list(found["errors"].y_range.factors) == ["plain20", "resnet20"]
    points = found["errors"].renderers[0].data_source.data
    assert points["what"] == ["seed 0", "seed 1", "seed 2", "mean"]
    assert points["x"] == pytest.approx([10, 20, 30, 20])
    axis = found["differences"].x_range
    assert axis.start < -14.84
    assert axis.end > 34.84
    assert {tag for plot in found.values() for drawn in plot.renderers for tag in drawn.tags} == {0, 5}


def test_a_report_of_an_ablation_is_its_own(tmp_path, monkeypatch):
    """The commands that take runs say what an ablation's folder has."""
    (tmp_path / "ablation.json").touch()
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    with pytest.raises(InputError, match=r"is an ablation's folder, not a run's; its report is report\.html in it"):
        report.main()
    with pytest.raises(InputError, match=r": an ablation's folder; give one of its weights/NAME/seed_S, which --keep"):
        find_step(tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 420])
def test_a_reader_hides_a_variant_and_sorts(study, records, tmp_path, width):
    place = write_report(tmp_path, "Ablation depth", study, records)
    with Browser(width=width) as browser:
        browser.open(Path(place).as_uri())
        browser.until("window.Bokeh && Bokeh.documents.flatMap((d) => d.roots()).length === 6", "the figures")
        drawn = (
            "Bokeh.documents.flatMap((d) => d.roots()).flatMap((r) => [...r.references()])"
            ".filter((m) => m.type === 'GlyphRenderer' && m.tags[0] === 5).map((m) => m.visible)"
        )
        assert set(browser.run(drawn)) == {True}
        alphas = drawn.replace("m.visible", "m.glyph.line_alpha.value ?? m.glyph.line_alpha")
        before = browser.run(alphas)
        assert min(before) < max(before)
        pointed = "document.querySelector(`button[data-run='%d']`).dispatchEvent(new Event('pointer%s'))"
        browser.run(pointed % (0, "enter"))
        assert set(browser.run(alphas)) == {0.12}
        browser.run(pointed % (0, "leave"))
        assert browser.run(alphas) == before
        browser.click("button[data-run='5']")
        assert set(browser.run(drawn)) == {False}
        names = "[...document.querySelectorAll('table.sortable tbody bdi')].map((e) => e.textContent)"
        assert browser.run(names)[:2] == ["resnet20", "resnet32"]
        browser.click("table.sortable th:nth-child(2) button")
        assert browser.run(names)[:2] == ["plain20", "resnet20"]
        assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert [request for request in browser.requests if not request.startswith(("file:", "data:", "blob:"))] == []
        assert [line for line in browser.console if "bokeh" not in line.lower()] == []
