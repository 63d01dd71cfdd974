"""What a reader sees where there is much to see: curves told apart, spikes kept, no number without its meaning."""

import base64
import io
import shlex

import numpy as np
from PIL import Image

from configs.default import get_config
from resnet.study.report_comparison import comparison, other_sources
from resnet.study.report_figures import POINTS, POINTS_OF_MANY, curves, keys, points, thinned
from resnet.study.report_page import no_test, page, reproduction
from resnet.study.report_pictures import PICTURE_SIDE, cells_a_dot, confusion_picture
from resnet.study.report_tables import not_finite
from resnet.study.run_record import RunRecord, plain
from resnet.train.configuration import flatten


def a_run(tmp_path, name: str = "run", losses=(1.0, 0.5), **config) -> RunRecord:
    """A run of lines alone: a training line each loss, a validation after each."""
    whole = {key: plain(value) for key, value in flatten(get_config()).items()} | config
    lines = []
    for step, loss in enumerate(losses, start=1):
        common = {"step": step, "epoch": float(step), "loss": loss, "top1": 0.5}
        lines.append(common | {"kind": "train", "learning_rate": 0.1, "bad_steps": 0})
        lines.append(common | {"kind": "val", "count": 10, "top1_low": 0.2, "top1_high": 0.8})
    return RunRecord(tmp_path / name, whole, {"dataset": {"images": {"train": 64, "test": 9}}}, ("a", "b"), lines, None)


def test_runs_of_two_losses_are_marked_and_those_of_one_are_not(tmp_path):
    softmax, sigmoid = a_run(tmp_path, "one"), a_run(tmp_path, "two", **{"optim.loss": "sigmoid"})
    warning = "different losses, whose values cannot be compared"
    assert warning in comparison([softmax, sigmoid])
    assert warning not in comparison([softmax, a_run(tmp_path, "three")])


def test_a_loss_that_is_not_known_is_told_by_its_name(tmp_path):
    softmax, own = a_run(tmp_path, "one"), a_run(tmp_path, "two", **{"optim.loss": "focal"})
    assert "different losses, whose values cannot be compared" in comparison([softmax, own])
    assert "Loss: focal." in comparison([own, own])


def test_runs_of_different_code_name_its_files(tmp_path):
    one, two = a_run(tmp_path, "one"), a_run(tmp_path, "two")
    one.provenance["sources"] = ["resnet/train/losses.py 1", "resnet/train/steps.py 1"]
    words = "These runs used different code: <code>resnet/train/losses.py</code>."
    assert words not in comparison([one, two])
    two.provenance["sources"] = ["resnet/train/losses.py 2", "resnet/train/steps.py 1"]
    assert words in comparison([one, two])
    assert "continued with other code" not in page(one)
    one.provenance["new_code"] = [{"after_step": 5, "files": ["resnet/train/losses.py"]}]
    assert "<b>but it continued with other code</b> after step 5" in page(one)


def test_code_that_changed_midway_counts_as_well(tmp_path):
    def gone_on(step: int, *later: object) -> RunRecord:
        run = a_run(tmp_path)
        entries = [{"after_step": step, "sources": lines} for lines in later]
        run.provenance.update(sources=["a.py 1", "b.py 1"], new_code=entries)
        return run

    straight, later, same = gone_on(0), gone_on(5, ["a.py 2", "b.py 1"]), gone_on(5, ["a.py 2", "b.py 1"])
    assert other_sources([straight, later]) == other_sources([later, straight]) == ["a.py"]
    assert other_sources([later, same]) == []
    assert other_sources([later, gone_on(7, ["a.py 2", "b.py 1"])]) == ["a.py"]
    # What no run writes.
    for damaged in ([["a.py 2"], 1], None, "x"):
        assert other_sources([straight, gone_on(5, damaged)]) == []
        straight.provenance["new_code"] = damaged
        assert other_sources([straight, gone_on(0)]) == reproduction(straight)["new_code"] == []
    straight.provenance["sources"] = [["a.py 1"]]
    assert other_sources([later, straight]) == []


def test_a_spike_and_a_gap_outlive_thinning(tmp_path):
    losses: list[float | None] = [1.0] * 10_000
    losses[4_321], losses[7_000] = 99.0, None
    source = points(a_run(tmp_path, losses=losses), "train", "loss")
    assert len(source.data["x"]) <= 1.5 * POINTS
    assert max(value for value in source.data["y"] if np.isfinite(value)) == 99.0
    assert source.data["step"][int(np.isnan(source.data["y"]).argmax())] == 7_001
    places = thinned([np.nan] * 5 + list(range(95)), 10)
    assert places[0] == 0
    assert places[-1] == 99
    assert places == sorted(set(places))


def test_losses_that_are_no_numbers_are_told(tmp_path):
    run = a_run(tmp_path, losses=(1.0, None, 0.5))
    assert "2 of 6 lines, first at step 2" in not_finite(run)
    assert not_finite(a_run(tmp_path)) == ""
    run.lines[-2]["bad_steps"] = 3
    assert "3 training steps" in page(run)


def test_thirty_runs_look_different_and_share_the_page(tmp_path):
    runs = [a_run(tmp_path, f"run{number}", losses=[1.0] * 600) for number in range(30)]
    looks = {(key.colour, key.dash) for key in keys([run.folder.name for run in runs])}
    assert len(looks) == 30
    loss = curves(runs, [run.folder.name for run in runs])["loss"]
    drawn = [each for each in loss.renderers if each.tags]
    assert sorted(each.tags[0] for each in drawn) == list(range(30))
    assert all(len(each.data_source.data["x"]) <= 1.5 * POINTS_OF_MANY for each in drawn)


def test_a_single_confusion_among_a_thousand_classes_is_seen():
    counts = np.zeros((1_000, 1_000), int)
    counts[7, 501] = 1
    data = confusion_picture(counts.tolist()).partition("base64,")[2]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), int)
    side = cells_a_dot(1_000)
    assert pixels.shape[0] == -(-1_000 // side) <= PICTURE_SIDE
    assert pixels[7 // side, 501 // side].sum() < pixels[0, 0].sum() - 300
    assert [cells_a_dot(count) for count in (31, PICTURE_SIDE, PICTURE_SIDE + 1)] == [1, 1, 2]


def test_a_folder_with_a_space_is_one_word_of_the_command(tmp_path):
    folder = tmp_path / "it's mine"
    assert shlex.split(reproduction(a_run(tmp_path, folder.name))["report"])[-1] == str(folder)


def test_a_run_without_its_test_does_not_claim_to_have_no_test_split(tmp_path):
    run = a_run(tmp_path)
    assert not any("has no test split" in no_test(run, finished) for finished in (False, True))
    run.provenance["dataset"]["images"].pop("test")
    assert all("has no test split" in no_test(run, finished) for finished in (False, True))
