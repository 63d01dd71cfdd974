"""Exports, loaded back in their own runtimes as docs/export.md shows it, give this project's probabilities."""

import dataclasses
import errno
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

from input_pipeline.contract import contract_by_name
from input_pipeline.crops import Crop
from input_pipeline.errors import InputError
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from resnet.study import export, export_onnx, export_onnx_graph, export_savedmodel, export_stablehlo
from resnet.study.export_program import make_program
from resnet.study.inference import Model, answer, load_model
from resnet.study.predict import read_image
from resnet.train.meta import Meta
from resnet.train.pretrained import digest_of
from tests.commands import run_fresh
from tests.model.test_counting import specs
from tests.networks import random_variables
from tests.place import names
from tests.tiny import tiny_run

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^([A-Za-z ]+)[,:][^\n]*\n\n```python\n(.*?)```", DOCS, re.MULTILINE | re.DOTALL))
HEADINGS = {"stablehlo": "jax", "savedmodel": "TensorFlow", "onnx": "onnxruntime"}
FORMATS = tuple(HEADINGS)


def needs(form: str) -> None:
    if form == "onnx":
        for package in ("onnx", "onnxruntime"):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed (./run.sh setup export)")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    return tiny_run(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def model(run) -> Model:
    return load_model(run[1])


@pytest.fixture(scope="module")
def images(run, model) -> np.ndarray:
    """32 drawn images as the network sees them: uint8[32, 16, 16, 3]."""
    files = sorted((run[0] / "train").rglob("*.jpg"))[:32]
    return np.stack([read_image(model, file) for file in files])


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The folder that the command wrote for a format, and what it printed; once for each."""
    done: dict[str, tuple[Path, str]] = {}

    def folder(form: str, capsys, monkeypatch) -> tuple[Path, str]:
        needs(form)
        if form not in done:
            out = tmp_path_factory.mktemp("out") / form
            monkeypatch.setattr(sys, "argv", ["export", f"--checkpoint={run[1]}", f"--format={form}", f"--out={out}"])
            capsys.readouterr()
            assert export.main() == 0
            done[form] = out, capsys.readouterr().out
        return done[form]

    return folder


@pytest.mark.parametrize("form", FORMATS)
def test_loaded_as_the_docs_say_it_gives_our_probabilities(form, exported, model, images, capsys, monkeypatch):
    folder, printed = exported(form, capsys, monkeypatch)
    expected = model.probabilities(images, batch_size=32)
    unfolded = jax.jit(answer(model.network, model.meta.contract))(model.variables, images)
    assert expected.std() > 0.01
    for count in (1, 3, 32):
        place = {"folder": str(folder), "images": images[:count]}
        exec(BLOCKS[HEADINGS[form]], place)
        found = np.asarray(place["probabilities"])
        assert (found.shape, found.dtype) == ((count, 5), np.float32)
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=1e-4)
        np.testing.assert_allclose(found, unfolded[:count], rtol=0, atol=1e-4)
    assert "uint8[batch, 16, 16, 3] -> float32[batch, 5]" in printed
    assert "Loaded back by" in printed


@pytest.mark.parametrize("form", FORMATS)
def test_what_stands_beside_it(form, exported, model, run, capsys, monkeypatch):
    folder, _ = exported(form, capsys, monkeypatch)
    about = json.loads((folder / "metadata.json").read_text())
    assert about["format"] == form
    assert about["class_names"] == json.loads((run[1] / "classes.json").read_text())
    assert about["contract"] == model.meta.contract.to_json()
    assert about["network"]["stage_sizes"] == [1, 1]
    assert about["input"]["shape"] == ["batch", 16, 16, 3]
    assert about["crop"]["resize_shorter_side"] == model.crop.shorter_side == 18
    assert about["source"]["weights_sha256"] == digest_of(model.variables)
    assert about["source"]["step"] == model.meta.step
    assert 0 <= about["checked"]["difference"] < 1e-5
    assert str(run[1]) not in json.dumps(about), "no place on this machine"
    files = json.loads((folder / "integrity.json").read_text())["files"]
    assert set(files) == {name for name in names(folder) if (folder / name).is_file()} - {"integrity.json"}
    assert [path.name for path in folder.parent.iterdir()] == [form], "no temporary folder is left"


def test_a_picture_cropped_as_the_docs_say_is_what_the_feed_gives(exported, model, run, capsys, monkeypatch):
    folder, _ = exported("stablehlo", capsys, monkeypatch)
    for file in sorted((run[0] / "test").rglob("*.jpg"))[:5]:
        place = {"folder": str(folder), "file": str(file)}
        exec(BLOCKS["A picture"], place)
        ours = read_image(model, file)[None]
        assert place["images"].shape == ours.shape
        assert np.abs(place["images"].astype(int) - ours).mean() < 1


def model_of(spec: ResNetSpec, size: int, contract: str = "raw") -> Model:
    """With drawn weights whose logits lie near zero, so that no probability is 0 or 1."""
    variables = random_variables(spec)
    variables["params"]["fc"]["kernel"] = variables["params"]["fc"]["kernel"] * np.float32(
        0.1 if contract == "raw" else 1e-3
    )
    classes = tuple(map(str, range(spec.num_classes)))
    meta = Meta(spec, classes, contract_by_name(contract), size, 0.0)
    return Model(ResNet(spec), variables, meta, Crop("none", size, resize_shorter=0.0))


def assert_exports(model: Model, form_module, folder: Path) -> None:
    """The format holds the model's function for batches of 1 and 3."""
    size = model.crop.image_size
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    plain = model.network.clone(backend=jax.lax.conv_general_dilated)
    expected = np.asarray(jax.jit(answer(plain, model.meta.contract))(model.variables, images))
    form_module.write(make_program(model, {}), folder)
    ask = form_module.load(folder)
    for count in (3, 1):
        np.testing.assert_allclose(ask(images[:count]), expected[:count], rtol=0, atol=1e-4)


SMALL = ResNetSpec(block="basic", stage_sizes=(1, 2), width=8, stem="cifar", num_classes=5)
DESIGNS = {
    "deep stem, option D, caffe": ({"stem": "deep", "shortcut": "D"}, 33, "caffe"),
    "imagenet stem, option A, gelu, tf": ({"stem": "imagenet", "shortcut": "A", "activation": "gelu"}, 33, "tf"),
    "group norm, elu": ({"norm": "group", "norm_groups": 2, "activation": "elu"}, 9, "torch"),
    "no norm, silu, hidden head": ({"norm": "none", "activation": "silu", "head_hidden": 6}, 9, "raw"),
    "pre-activated, leaky relu, SE": (
        {"order": "full_preactivation", "activation": "leaky_relu", "squeeze_excitation": 4},
        9,
        "raw",
    ),
    "norm after addition, gates": ({"order": "bn_after_addition", "shortcut_transform": "exclusive_gate"}, 9, "raw"),
    "bare stem, stride in the last block": (
        {
            "order": "full_preactivation",
            "stem": "imagenet",
            "stem_norm": False,
            "stride_block": "last",
            "bias_without_norm": True,
        },
        33,
        "tf",
    ),
    "bottlenecks in groups, v1": ({"block": "bottleneck", "groups": 2, "stride_place": "first_1x1"}, 10, "raw"),
}


@pytest.mark.parametrize("design", DESIGNS)
def test_onnx_of_every_kind_of_layer(design, tmp_path):
    needs("onnx")
    changes, size, contract = DESIGNS[design]
    assert_exports(model_of(dataclasses.replace(SMALL, **changes), size, contract), export_onnx, tmp_path)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=specs())
def test_onnx_of_any_network(drawn, tmp_path):
    needs("onnx")
    spec, size = drawn
    assume(spec.num_classes > 1)
    assert_exports(model_of(dataclasses.replace(spec, in_channels=3), size), export_onnx, tmp_path)


@pytest.mark.parametrize("form_module", [export_stablehlo, export_savedmodel], ids=["stablehlo", "savedmodel"])
def test_other_designs_in_the_other_formats(form_module, tmp_path):
    changes, size, contract = DESIGNS["imagenet stem, option A, gelu, tf"]
    assert_exports(model_of(dataclasses.replace(SMALL, **changes), size, contract), form_module, tmp_path)


def test_an_operation_that_nothing_writes_in_onnx_is_refused_by_name(tmp_path, monkeypatch):
    needs("onnx")
    monkeypatch.delitem(export_onnx_graph.RULES, "conv_general_dilated")
    program = make_program(model_of(SMALL, 16, "torch"), {"step": 7})
    with pytest.raises(InputError, match=r"--format=onnx: .* no rule that writes conv_general_dilated in ONNX; use"):
        export_onnx.write(program, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_onnx_graph_is_what_a_person_would_write():
    needs("onnx")
    spec = dataclasses.replace(SMALL, stem="imagenet", block="bottleneck")
    made = export_onnx.make_model(make_program(model_of(spec, 33, "torch"), {"step": 7}))
    operators = [node.op_type for node in made.graph.node]
    assert operators.count("Transpose") == 1, "channels first throughout"
    # Nine in the branches, a projection in each stage, and the stem's; each with its norm as bias.
    assert operators.count("Conv") == 12
    assert all(len(node.input) == 3 for node in made.graph.node if node.op_type == "Conv")
    assert operators.count("Relu") == 1 + 3 * 3
    assert operators.count("Add") == 3 + 1
    assert not {"Sqrt", "BatchNormalization", "Slice", "Expand", "Reshape", "Max"} & set(operators)
    assert "layer1_0/conv1/kernel" in {tensor.name for tensor in made.graph.initializer}
    assert [(entry.domain, entry.version) for entry in made.opset_import] == [("", 18)]
    assert json.loads({p.key: p.value for p in made.metadata_props}["metadata"])["source"] == {"step": 7}


def test_the_stablehlo_file_holds_no_gather_and_serves_every_platform(exported, capsys, monkeypatch):
    folder, _ = exported("stablehlo", capsys, monkeypatch)
    program = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "rocm", "tpu")
    assert "gather" not in program.mlir_module()


def refuse(monkeypatch, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    with pytest.raises(InputError) as error:
        export.main()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_refusals_write_nothing(run, tmp_path, monkeypatch):
    there = tmp_path / "there"
    there.mkdir()
    flags = {"--checkpoint": run[1], "--format": "stablehlo", "--out": tmp_path / "new"}
    for change, words in (
        ({"--out": there}, f"--out={there}: already exists"),
        ({"--format": "tflite"}, "invalid choice: 'tflite'"),
        ({"--checkpoint": tmp_path / "absent"}, "absent: no such folder"),
        ({"--checkpoint": tmp_path}, "no checkpoint here"),
    ):
        told = refuse(monkeypatch, *(f"{name}={value}" for name, value in (flags | change).items()))
        assert words in told
    assert names(tmp_path) == ["there"]


def test_a_missing_package_is_named_with_the_command_that_installs_it(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    told = refuse(monkeypatch, f"--checkpoint={run[1]}", "--format=onnx", f"--out={tmp_path / 'new'}")
    assert told == "--format=onnx needs onnx, which is not installed: ./run.sh setup export"


def test_without_onnxruntime_it_is_written_and_said_that_nobody_looked(run, tmp_path, monkeypatch, capsys):
    needs("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out = tmp_path / "new"
    monkeypatch.setattr(sys, "argv", ["export", f"--checkpoint={run[1]}", "--format=onnx", f"--out={out}"])
    assert export.main() == 0
    assert "Not loaded back" in capsys.readouterr().out
    assert json.loads((out / "metadata.json").read_text())["checked"] is None


@pytest.mark.parametrize("fault", ["disk", "comparison", "interrupt"])
def test_what_fails_leaves_nothing(fault, model, tmp_path, monkeypatch):
    def full(program, folder):
        (folder / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def interrupted(program, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_stablehlo, "write", {"disk": full, "interrupt": interrupted}.get(fault, lambda *_: None))
    monkeypatch.setattr(export_stablehlo, "load", lambda folder: lambda images: np.zeros((len(images), 5), np.float32))
    kind, words = {
        "disk": (InputError, "No space left on device"),
        "comparison": (RuntimeError, "nothing was written"),
        "interrupt": (KeyboardInterrupt, None),
    }[fault]
    with pytest.raises(kind, match=words):
        export.export(model, "stablehlo", tmp_path / "new")
    assert names(tmp_path) == []


@pytest.mark.parametrize("form", ["onnx", "savedmodel"])
def test_a_disk_that_is_full_in_fact(form, run, tmp_path):
    needs(form)
    script = 'mount -t tmpfs -o size=16k none "$0" && "$@"; code=$?; ls -A "$0"; exit $code'
    flags = (f"--checkpoint={run[1]}", f"--format={form}", f"--out={tmp_path / 'new'}")
    command = (sys.executable, "-m", "resnet.study.export", *flags)
    allowed = ("unshare", "--map-root-user", "--mount")
    if run_fresh(*allowed, "mount", "-t", "tmpfs", "none", tmp_path).code:
        pytest.skip("this machine lets us mount no small disk (unshare --map-root-user --mount)")
    result = run_fresh(*allowed, "sh", "-c", script, tmp_path, *command)
    assert (result.code, result.out) == (2, ""), result
    assert result.err.count("\n") == 1
    assert result.err.startswith(f"error: --out={tmp_path / 'new'}: cannot be written (")
    assert "No space left on device" in result.err
