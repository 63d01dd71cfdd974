"""What compare cannot compare is one line with exit code 2, before anything is drawn or run."""

import dataclasses
import sys
from pathlib import Path

import pytest

from input_pipeline.errors import InputError
from resnet import command
from resnet.model.spec import ResNetSpec
from resnet.train.checkpoints import save_converted
from resnet.weights import compare
from resnet.weights.convert import convert

pytest.importorskip("torch", reason="torch is not installed; it writes the files here")

from tests.weights.sources import TINY_BASIC, save_checkpoint, save_twin, with_fields

BOTTLENECK = ResNetSpec(stage_sizes=(1, 1), width=8, num_classes=5)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_twin(tmp_path_factory.mktemp("source"))


def refusal(source: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch, *flags: str) -> str:
    """The line with which the command refuses."""
    patch.setattr(sys, "argv", ["compare", f"--source={source}", *flags])
    # They would change the settings of the tests' own process.
    patch.setattr(command, "quieten", lambda: None)
    patch.setattr("signal.signal", lambda *_: None)
    patch.setattr(compare, "our_features", None)
    with pytest.raises(SystemExit) as left:
        command.run(compare.main)
    said = capsys.readouterr()
    assert (left.value.code, said.out, len(said.err.splitlines())) == (2, "", 1)
    return said.err


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--image_size=-3", "--image_size=-3 must lie in 1..65536"),
        ("--image_size=1000000000000", "must lie in 1..65536"),
        ("--image_size=7", "image_size 7 is too small"),
        ("--tolerance=nan", "--tolerance=nan must be a finite number"),
        ("--tolerance=inf", "--tolerance=inf must be a finite number"),
        ("--tolerance=-1", "--tolerance=-1.0 must be a finite number of at least 0"),
    ],
)
def test_a_flag_out_of_range(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flag: str, words: str
) -> None:
    assert words in refusal(source, capsys, monkeypatch, flag)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stage_sizes": (2, 1)}, "stage_sizes=(2, 1) where"),
        ({"in_channels": 1}, "in_channels=1 where"),
        ({"num_classes": 7}, "num_classes=7 where"),
        ({"activation": "silu"}, "activation='silu' where"),
    ],
)
def test_a_checkpoint_of_another_network(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, object],
    words: str,
) -> None:
    checkpoint = save_checkpoint(tmp_path / "other", with_fields(TINY_BASIC, **fields))
    line = refusal(source, capsys, monkeypatch, f"--checkpoint={checkpoint}")
    assert f"--checkpoint={checkpoint} has {words} --source={source} has" in line
    assert "give the checkpoint that was converted from this source" in line


def test_a_stem_for_other_channels(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = convert(str(source), in_channels=1)
    save_converted(tmp_path / "grey", adapted.variables, adapted.meta)
    assert "in_channels=1 where" in refusal(source, capsys, monkeypatch, f"--checkpoint={tmp_path / 'grey'}")


def test_where_a_bottleneck_strides_is_told_by_the_model(tmp_path: Path) -> None:
    """The shapes fit both; without --model the source is taken as v1.5."""
    source = save_twin(tmp_path, block="bottleneck")
    checkpoint = save_checkpoint(tmp_path / "v1", with_fields(BOTTLENECK, stride_place="first_1x1"))
    with pytest.raises(InputError, match=r"stride_place='first_1x1' .* name the network by --model, or give the check"):
        compare.compare(str(source), checkpoint=str(checkpoint))


def test_what_acts_in_training_alone_may_differ(source: Path, tmp_path: Path) -> None:
    converted = convert(str(source))
    spec = with_fields(converted.meta.spec, dropout=0.5, stochastic_depth=0.2, norm_momentum=0.5)
    meta = dataclasses.replace(converted.meta, spec=spec)
    save_converted(tmp_path / "trained", converted.variables, meta)
    errors = compare.compare(str(source), checkpoint=str(tmp_path / "trained"), image_size=32)
    assert compare.first_difference(errors, 1e-4) is None
