"""The report says what metrics.jsonl says, holds everything in itself, and lives with what is missing or hostile."""

import dataclasses
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.errors import InputError
from resnet.study import report, report_pictures
from resnet.study.report_comparison import newcombe_interval, paired_difference, run_names
from resnet.study.report_page import page
from resnet.study.report_tables import class_rows, percent
from resnet.study.run_record import read_run
from resnet.train.predictions import PREDICTIONS_FILE, KeptPredictions, read_predictions, write_predictions
from tests.tiny import tiny_run

MOST = 5_000_000
HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    return tiny_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def whole(run) -> str:
    return page(read_run(run[1]))


@pytest.fixture
def copy(run, tmp_path) -> Path:
    """A run's directory to spoil; its checkpoints stay behind."""
    return Path(shutil.copytree(run[1], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "tensorboard")))


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def rewrite(path: Path, change) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def rewrite_lines(folder: Path, keep) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines if keep(json.loads(line))))


def test_the_figures_are_those_of_metrics_jsonl(run, whole):
    record, text = read_run(run[1]), Elements(whole).text
    test = record.test
    assert percent(test["top1"]) in text
    assert f"{percent(test['top1_low'], 1)} to {percent(test['top1_high'], 1)}" in text
    assert f"{test['loss']:.4f}" in text
    assert f"{test['auroc']:.4f}" in text
    assert percent(test["ece"]) in text
    # bokeh's own data hold the curves' numbers to the last digit.
    for line in (*record.of_kind("train"), *record.of_kind("val")):
        assert repr(line["loss"]) in whole
    for name in record.class_names:
        assert name in text
    assert "data.image_size" in text
    assert record.provenance["versions"]["jax"] in text
    assert "--config" in record.provenance["command"] or record.provenance["command"].split()[0] in text


def test_the_matrix_and_its_pictures_are_those_of_the_test(run, whole):
    record = read_run(run[1])
    elements = Elements(whole).found
    confusion = np.array(record.test["confusion"])
    buttons = [attributes["data-cell"] for tag, attributes in elements if tag == "button" and "data-cell" in attributes]
    assert sorted(buttons) == sorted(f"{true},{said}" for true, said in np.argwhere(confusion))
    data = json.loads(re.search(r'id="data">(.*?)</script>', whole, re.S)[1])
    assert {key: cell["count"] for key, cell in data["cells"].items()} == {
        f"{true},{said}": int(confusion[true, said]) for true, said in np.argwhere(confusion)
    }
    predicted, _ = report_pictures.answers(record.predictions)
    for key, cell in data["cells"].items():
        for row in cell["rows"]:
            assert f"{record.predictions.labels[row]},{predicted[row]}" == key
            assert data["pictures"][str(row)]["id"] == record.predictions.ids[row]
            assert data["pictures"][str(row)]["src"].startswith("data:image/jpeg;base64,")


def test_mistakes_are_the_surest_and_carry_their_heat_maps(run, whole):
    record = read_run(run[1])
    chosen = report_pictures.mistakes(record.predictions)
    predicted, confidence = report_pictures.answers(record.predictions)
    wrong = predicted != record.predictions.labels
    assert len(chosen) == min(12, wrong.sum())
    assert [confidence[one.row] for one in chosen] == sorted(confidence[wrong], reverse=True)[: len(chosen)]
    assert whole.count('alt="Grad-CAM of the predicted class"') == len(chosen)


def test_nothing_is_asked_of_the_network_and_the_page_is_small(whole):
    assert len(whole.encode()) <= MOST
    loading = {"src", "href", "action", "data", "poster", "srcset", "formaction", "background", "ping", "cite"}
    for tag, attributes in Elements(whole).found:
        assert tag not in ("link", "iframe", "object", "embed", "base", "frame"), tag
        for name in loading & attributes.keys():
            assert attributes[name].startswith(("data:", "#")), (tag, name, attributes[name][:80])
        assert not any(name.startswith("on") for name in attributes), attributes
    style = whole.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(
        r"fetch\(|XMLHttpRequest|WebSocket|import\(", (report_template_folder() / "page.js").read_text()
    )
    policy = next(a["content"] for tag, a in Elements(whole).found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "connect-src" not in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


def report_template_folder() -> Path:
    from resnet.study.report_template import FOLDER

    return FOLDER


def test_hostile_names_stay_text(copy):
    """Class names, paths, the command, a value of the configuration: all of them come from files."""
    rewrite(copy / "classes.json", lambda names: [f"{HOSTILE}{name}" for name in names])
    rewrite(copy / "provenance.json", lambda told: told | {"command": HOSTILE, "device": HOSTILE})
    rewrite(copy / "config.json", lambda config: config | {"data.dir": HOSTILE})
    found = read_predictions(copy)
    write_predictions(copy, dataclasses.replace(found, ids=tuple(f"{HOSTILE}{name}" for name in found.ids)))
    folder = copy.rename(copy.parent / "<img src=x onerror=alert(1)>")
    clean = page(read_run(folder))
    scripts = sum(tag == "script" for tag, _ in Elements(clean).found)
    assert scripts == 4
    assert not any("evil" in str(attributes.get("src")) for _, attributes in Elements(clean).found)
    assert "<img src=x" not in clean.split("<body>")[1].split("<script")[0]
    assert not any(name.startswith("on") for _, attributes in Elements(clean).found for name in attributes)


def test_hostile_names_behind_the_cells_stay_text(run, copy):
    """The data are there, so that names also stand in the page's JSON."""
    rewrite(copy / "classes.json", lambda names: [f"</script>{HOSTILE}{name}" for name in names])
    text = page(read_run(copy))
    data = re.search(r'id="data">(.*?)</script>', text, re.S)[1]
    assert "<" not in data
    assert all("</script>" in name for name in json.loads(data)["names"])


def test_without_the_data_the_rest_is_told(copy):
    rewrite(copy / "config.json", lambda config: config | {"data.dir": str(copy / "gone")})
    text = Elements(page(read_run(copy))).text
    assert "--data=DATA_DIR" in text
    assert "Most confident mistakes" in text
    assert "data-cell" not in text


def test_other_data_are_not_shown_as_the_runs(run, copy, tmp_path):
    other = Path(shutil.copytree(run[0], tmp_path / "other"))
    next((other / "test").rglob("*.jpg")).unlink()
    assert "are not those of the run" in Elements(page(read_run(copy), data_dir=str(other))).text


def test_an_older_run_says_how_to_get_its_pictures(copy):
    (copy / PREDICTIONS_FILE).unlink()
    text = Elements(page(read_run(copy))).text
    assert "The same training command on this folder writes it" in text
    assert percent(read_run(copy).test["top1"]) in text


def test_a_run_without_its_checkpoint_says_so(copy):
    text = Elements(page(read_run(copy))).text
    assert "no checkpoint here" in text


def test_a_run_under_way(copy):
    (copy / PREDICTIONS_FILE).unlink()
    rewrite_lines(copy, lambda line: line["kind"] != "test" and line["step"] <= 4)
    text = Elements(page(read_run(copy))).text
    assert "not finished: step 4 of 6" in text
    assert "best validation top-1 so far" in text
    rewrite_lines(copy, lambda line: line["kind"] == "train" and line["step"] <= 1)
    assert "No evaluation yet" in Elements(page(read_run(copy))).text
    rewrite_lines(copy, lambda line: False)
    assert "Nothing logged yet" in Elements(page(read_run(copy))).text


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl"),
        (lambda run: (run / "config.json").unlink(), "is not a run"),
        (lambda run: (run / "classes.json").write_text("{}"), "classes.json"),
        (lambda run: (run / "provenance.json").write_text("nonsense"), "provenance.json"),
        (lambda run: (run / PREDICTIONS_FILE).write_bytes(b"PK\x03\x04 torn"), PREDICTIONS_FILE),
        (lambda run: rewrite(run / "classes.json", lambda names: names[:-1]), "numbers of classes"),
        (
            lambda run: (
                (run / PREDICTIONS_FILE).unlink(),
                rewrite(run / "classes.json", lambda names: [*names, "one more"]),
            ),
            "metrics.jsonl and classes.json",
        ),
    ],
)
def test_a_damaged_run_is_one_line(copy, monkeypatch, spoil, named):
    spoil(copy)
    monkeypatch.setattr(sys, "argv", ["report", str(copy)])
    with pytest.raises(InputError, match=named) as error:
        report.main()
    assert "\n" not in str(error.value)
    assert not (copy / "report.html").exists()


def test_the_command_writes_beside_the_run_or_where_it_is_told(copy, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["report", str(copy)])
    assert report.main() == 0
    assert str(copy / "report.html") in capsys.readouterr().out
    assert not list(copy.glob(".*part"))
    before = (copy / "report.html").read_bytes()
    monkeypatch.setattr(sys, "argv", ["report", str(copy), f"--out={tmp_path / 'missing' / 'x.html'}"])
    with pytest.raises(InputError, match="--out"):
        report.main()
    assert (copy / "report.html").read_bytes() == before


def test_runs_beside_each_other(run, copy, monkeypatch, tmp_path):
    rewrite(copy / "config.json", lambda config: config | {"optim.lr": 0.0123})
    out = tmp_path / "comparison.html"
    monkeypatch.setattr(sys, "argv", ["report", str(run[1]), str(copy), f"--out={out}"])
    assert report.main() == 0
    text = Elements(out.read_text()).text
    assert percent(read_run(run[1]).test["top1"]) in text
    assert "optim.lr" in text
    assert "0.0123" in text
    assert "data.flip" not in text
    assert out.stat().st_size <= MOST
    monkeypatch.setattr(sys, "argv", ["report", str(run[1]), str(copy)])
    with pytest.raises(InputError, match="--out"):
        report.main()


def test_paired_difference_by_hand(run):
    record = read_run(run[1])
    labels = np.zeros(100, np.int32)
    ids = tuple(map(str, range(100)))

    def answering(right: int) -> KeptPredictions:
        table = np.zeros((100, 5), np.float32)
        table[:right, 0] = table[right:, 1] = 1
        return KeptPredictions(table, labels, ids, np.zeros(100, bool), 1)

    one, two = (dataclasses.replace(record, predictions=answering(right)) for right in (80, 90))
    # 80 right in both, ten gained, none lost, ten wrong in both.
    assert paired_difference(one, two) == (0.10, *newcombe_interval(80, 10, 0, 10))
    assert paired_difference(two, one) == (-0.10, *newcombe_interval(80, 0, 10, 10))
    difference, low, high = paired_difference(one, one)
    assert difference == 0
    assert high == pytest.approx(-low)
    assert high > 0.01
    assert paired_difference(one, record) is None
    assert run_names([one, two]) == ["run (1)", "run (2)"]


def test_class_rows_by_hand():
    rows = class_rows(("a", "b", "c"), [[3, 1, 0], [1, 1, 0], [0, 0, 0]], [0.6, 0.5, None])
    # One image of a gave no softmax: 3 hits at 0.6 are 5 images.
    assert [(row.count, row.precision, row.recall) for row in rows] == [(5, 0.75, 0.6), (2, 0.5, 0.5), (0, None, None)]
    assert rows[0].f1 == pytest.approx(2 * 0.75 * 0.6 / 1.35)


def test_predictions_survive_the_way_to_the_disk_and_nothing_is_unpickled(tmp_path):
    table = np.random.default_rng(0).random((3, 2)).astype(np.float32)
    told = KeptPredictions(
        table, np.array([0, 1, 1], np.int32), ("a", "ü\udcff", "c" * 50), np.array([1, 0, 0], bool), 7
    )
    write_predictions(tmp_path, told)
    found = read_predictions(tmp_path)
    np.testing.assert_array_equal(found.probabilities, table)
    np.testing.assert_array_equal(found.leaked, told.leaked)
    assert (found.ids, found.step) == (told.ids, 7)
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS_FILE]
    np.savez(tmp_path / PREDICTIONS_FILE, ids=np.array([{"a": 1}], object), probabilities=table)
    with pytest.raises(InputError, match=PREDICTIONS_FILE):
        read_predictions(tmp_path)


def test_many_classes_and_long_names_stay_within_the_size(copy):
    """1,000 classes: a picture of the matrix, the most frequent confusions, a page in bounds."""
    count = 1_000
    rewrite(copy / "classes.json", lambda names: [f"class {number} {'x' * 300}" for number in range(count)])
    draw = np.random.default_rng(0)
    confusion = draw.poisson(0.05, (count, count)) + np.diag(draw.poisson(40, count))
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines[-1] |= {"confusion": confusion.tolist(), "per_class_accuracy": [0.9] * count, "count": int(confusion.sum())}
    (copy / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (copy / PREDICTIONS_FILE).unlink()
    text = page(read_run(copy))
    assert len(text.encode()) <= MOST
    assert text.count('class="pairs') == 1
    assert 'class="matrix"' not in text
