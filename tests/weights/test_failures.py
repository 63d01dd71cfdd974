"""A file that is damaged, wrong or hostile is one line that names the first offender, and nothing is written."""

import contextlib
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from input_pipeline.errors import InputError
from resnet.model.errors import SpecError
from resnet.model.spec import ResNetSpec
from resnet.weights import formats, mapping, names
from resnet.weights.convert import main

torch = pytest.importorskip("torch", reason="torch is not installed; it writes the files here")

from tests.networks import random_variables  # noqa: E402
from tests.weights.sources import KINDS, TINY_KERAS_V2, save_keras, save_kind, twin, with_fields  # noqa: E402


class Hostile:
    """A pickle of this runs a command when it is loaded carelessly."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def refusal(monkeypatch: pytest.MonkeyPatch, source: Path, *flags: str) -> str:
    """The message with which the convert command refuses `source`; nothing may have been written."""
    folder = source.parent
    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr(sys, "argv", ["convert", f"--source={source}", f"--out={folder / 'out'}", *flags])
    with pytest.raises((InputError, SpecError)) as caught:
        main()
    assert sorted(path.name for path in folder.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save_state(folder: Path, change: Callable[[dict], object], **options: object) -> Path:
    state = dict(twin().state_dict())
    change(state)
    torch.save(state, folder / "w.pth", **options)  # type: ignore[arg-type]
    return folder / "w.pth"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("layer2.0.bn1.running_var"), "tensor layer2.0.bn1.running_var is missing"),
        (lambda s: s.pop("conv1.weight"), "tensor conv1.weight is missing"),
        (lambda s: s.pop("layer2.0.conv1.weight"), "tensor layer2.0.conv1.weight is missing"),
        (lambda s: s.update(extra=torch.zeros(3)), "tensor extra belongs to no layer"),
        (lambda s: s.update({"fc.bias": torch.zeros(4)}), "tensor fc.bias has shape (4,) where the network needs (5,)"),
        (lambda s: s["layer1.0.conv2.weight"].view(-1)[7:8].fill_(float("nan")), "layer1.0.conv2.weight has values"),
        (lambda s: s["layer1.0.bn2.running_var"].neg_(), "tensor layer1.0.bn2.running_var has negative"),
        (lambda s: s.update({"bn1.bias": torch.zeros(8, dtype=torch.int64)}), "tensor bn1.bias is of type int64"),
        (lambda s: s.update({"bn1.bias": torch.zeros(1).expand(10**12)}), "bn1.bias claims more data"),
        (lambda s: s.update({"bn1.bias": torch.zeros(8).to_sparse()}), "bn1.bias is not a dense"),
        (lambda s: s.clear(), "holds no named tensors"),
    ],
)
def test_names_the_first_tensor_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict], object], words: str
) -> None:
    assert words in refusal(monkeypatch, save_state(tmp_path, change))


@pytest.mark.parametrize("new_format", [True, False])
def test_hostile_pickle_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_format: bool) -> None:
    mark = tmp_path / "ran"
    source = tmp_path / "w.pth"
    torch.save({"conv1.weight": Hostile(f"touch {mark}")}, source, _use_new_zipfile_serialization=new_format)
    message = refusal(monkeypatch, source)
    assert "system" in message
    assert "could run code" in message
    assert not mark.exists()


def test_plain_hostile_pickle_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "w.pth"
    source.write_bytes(pickle.dumps(Hostile(f"touch {tmp_path / 'ran'}"), protocol=2))
    assert "w.pth: " in refusal(monkeypatch, source)
    assert not (tmp_path / "ran").exists()


def nested_key(levels: int) -> bytes:
    """A pickle of {t: 1} where t nests a tuple in itself so many times, twice at each level."""
    body = b"\x80\x02})q\x00"
    for level in range(levels):
        body += b"0h" + bytes([level]) + b"h" + bytes([level]) + b"\x86q" + bytes([level + 1])
    return body + b"K\x01s."


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_never_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    assert pickle.loads(nested_key(2)) == {(((), ()), ((), ())): 1}
    source = tmp_path / "w.pth"
    if zipped:
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("archive/data.pkl", nested_key(60))
            archive.writestr("archive/version", "3")
    else:
        source.write_bytes(nested_key(60))
    assert "nests tuples deeper" in refusal(monkeypatch, source)


def test_a_whole_network_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(twin(), tmp_path / "w.pth")
    assert "torch.save(model.state_dict(), file)" in refusal(monkeypatch, tmp_path / "w.pth")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, share: float) -> None:
    source = save_kind(tmp_path, kind)
    data = source.read_bytes()
    source.write_bytes(data[: int(share * len(data))])
    assert str(source) in refusal(monkeypatch, source)


@pytest.mark.parametrize("kind", KINDS)
def test_recognised_by_content_and_whole(tmp_path: Path, kind: str) -> None:
    found = formats.read(save_kind(tmp_path, kind))
    assert found.is_keras == (kind in ("h5", "keras"))
    assert all(tensor.dtype == np.float32 for name, tensor in found.tensors.items() if "num_batches" not in name)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_kind(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_damage_anywhere_is_an_input_error_or_harmless(
    tmp_path: Path, sound: dict[str, Path], data: st.DataObject, kind: str
) -> None:
    content = bytearray(sound[kind].read_bytes())
    # Most damage where the structure is: at both ends.
    span = len(content) if data.draw(st.booleans()) else min(2000, len(content))
    for place in data.draw(st.lists(st.integers(-span, span - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content)
    with contextlib.suppress(InputError):
        formats.read(damaged)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"RIFF1234WEBPVP8 ", "is not a known kind of weights file"),
    ],
)
def test_what_is_no_weights_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    assert words in refusal(monkeypatch, tmp_path / "w.pth")


def test_no_such_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such file" in refusal(monkeypatch, tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}, "does not have"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "does not fit"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "no proper shape"),
        ({"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}, "type other than"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "should lie at bytes 4 to 8"),
        ({}, "4 bytes at its end belong to no tensor"),
    ],
)
def test_lying_safetensors_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: dict[str, object], words: str
) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "w").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    assert words in refusal(monkeypatch, tmp_path / "w")


@pytest.mark.parametrize("kind", ["external", "soft", "storage", "cycle", "huge"])
def test_hdf5_that_leads_elsewhere_or_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    source = save_keras(tmp_path / "w.h5")
    with h5py.File(source, "a") as file:
        if kind == "external":
            file["conv1_conv/more"] = h5py.ExternalLink("/etc/passwd", "/")
        elif kind == "soft":
            file["conv1_conv/more"] = h5py.SoftLink("/conv1_bn")
        elif kind == "storage":
            (tmp_path / "other").write_bytes(bytes(64))
            file.create_dataset("conv1_conv/more", (16,), "f4", external=[(str(tmp_path / "other"), 0, 64)])
        elif kind == "cycle":
            file["conv1_conv/more"] = file["conv1_conv"]
        else:
            file.create_dataset("conv1_conv/more", (1 << 20, 1 << 20), "f4", chunks=(1, 1024))
    words = {"cycle": "contains itself", "huge": "claims more data"}.get(kind, "is a link to somewhere else")
    assert words in refusal(monkeypatch, source)


@pytest.mark.parametrize("missing", ["conv3_block2_preact_bn/gamma", "post_bn/moving_mean", "conv2_block1_3_conv/bias"])
def test_a_tensor_that_keras_v2_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    source = save_keras(tmp_path / "w.h5", TINY_KERAS_V2)
    with h5py.File(source, "a") as file:
        layer = missing.split("/")[0]
        del file[f"{layer}/{missing}:0"]
    assert f"tensor {missing} is missing" in refusal(monkeypatch, source)


def test_keras_v1_and_v2_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_keras(tmp_path / "w.h5", with_fields(TINY_KERAS_V2, width=64, stage_sizes=(3, 4, 6, 3)))
    message = refusal(monkeypatch, source, "--model=resnet50_keras")
    assert "holds resnet50_v2_keras, not --model=resnet50_keras; give --model=resnet50_v2_keras" in message


def test_model_that_the_file_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_state(tmp_path, lambda state: None)
    assert "not --model=resnet50" in refusal(monkeypatch, source, "--model=resnet50")
    assert "unknown model 'resnet51'" in refusal(monkeypatch, source, "--model=resnet51")


def test_output_that_exists_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_state(tmp_path, lambda state: None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    assert "already exists" in refusal(monkeypatch, source)
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import orbax.checkpoint as ocp

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    source = save_state(tmp_path, lambda state: None)
    monkeypatch.setattr(ocp.Checkpointer, "save", full)
    assert "No space left" in refusal(monkeypatch, source)


def test_class_names_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_state(tmp_path, lambda state: None)
    listing = tmp_path / "classes.txt"
    listing.write_text("a\nb\n")
    assert "has 2 lines and the network 5 outputs" in refusal(monkeypatch, source, f"--classes={listing}")
    listing.write_text("a\nb\nb\nc\nd\n")
    assert "the name 'b'" in refusal(monkeypatch, source, f"--classes={listing}")


def test_a_layer_that_the_other_program_has_no_name_for_is_refused() -> None:
    spec = ResNetSpec(block="basic", stage_sizes=(2,), width=4, shortcut_transform="shortcut_gate", num_classes=2)
    with pytest.raises(InputError, match="ResNets have no layer 'gate'"):
        mapping.from_variables(random_variables(spec), spec, names.TORCH, has_head=True)
