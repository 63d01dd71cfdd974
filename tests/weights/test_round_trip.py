"""In, out and in again: the same bits, under names that the other side loads strictly."""

import dataclasses
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.contract import CONTRACTS
from input_pipeline.errors import InputError
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from resnet.train.checkpoints import Meta, load, save_converted
from resnet.weights import formats, mapping, names, safetensors_files, shortcut_padding
from resnet.weights.convert import Converted, convert, summary
from resnet.weights.export import export, way_back
from tests.networks import random_variables

torch = pytest.importorskip("torch", reason="torch is not installed; it writes and reads the files here")

import safetensors.torch  # noqa: E402

from tests.weights.sources import (  # noqa: E402
    TINY_BASIC,
    TINY_KERAS,
    TINY_KERAS_V2,
    save_checkpoint,
    save_keras,
    twin,
    with_fields,
)

OPTION_A = with_fields(TINY_BASIC, stem="cifar", shortcut="A", stage_sizes=(1, 2, 1))
NARROW = with_fields(OPTION_A, stem_width=4)
OPTION_D = ResNetSpec(stage_sizes=(1, 1), width=16, stem="deep", shortcut="D", squeeze_excitation=16, num_classes=5)


@pytest.mark.parametrize(
    ("spec", "form", "name"),
    [
        (TINY_BASIC, "torchvision", "w.pth"),
        (OPTION_A, "torchvision", "w.pth"),
        (OPTION_D, "torchvision", "w.pth"),
        # A stem of its own width, an odd one too, of which the deep stem's first convolutions have less than half.
        (NARROW, "torchvision", "w.pth"),
        (with_fields(OPTION_D, stem_width=9), "torchvision", "w.pth"),
        (with_fields(TINY_KERAS, stem_width=4), "keras", "w.h5"),
        (with_fields(TINY_KERAS_V2, stem_width=4), "keras", "w.h5"),
        (OPTION_A, "torchvision", "w.safetensors"),
        (TINY_KERAS, "keras", "w.h5"),
        (TINY_KERAS, "keras", "w.weights.h5"),
        (TINY_KERAS_V2, "keras", "w.h5"),
        (TINY_KERAS_V2, "keras", "w.weights.h5"),
    ],
    ids=[
        "B",
        "A",
        "D",
        "narrow-A",
        "odd-D",
        "narrow-keras",
        "narrow-V2",
        "safetensors",
        "h5",
        "weights.h5",
        "V2-h5",
        "V2-weights.h5",
    ],
)
def test_out_and_in_again_is_bit_identical(tmp_path: Path, spec: ResNetSpec, form: str, name: str) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", spec)
    count = export(checkpoint, form, tmp_path / name)
    back = convert(str(tmp_path / name))
    assert back.meta.spec == spec
    assert count == len(names.variable_shapes(spec))
    jax.tree.map(np.testing.assert_array_equal, back.variables, random_variables(spec))


def test_exported_weights_load_strictly_in_torch(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", TINY_BASIC)
    export(checkpoint, "torchvision", tmp_path / "out.pth")
    network = twin()
    network.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)


def test_safetensors_hold_what_torchs_own_file_holds(tmp_path: Path) -> None:
    """By the package's loader for torch, which timm uses too: the same names, types and bits, strictly loaded."""
    checkpoint = save_checkpoint(tmp_path / "checkpoint", TINY_BASIC)
    for name in ("out.pth", "OUT.SAFETENSORS"):
        export(checkpoint, "torchvision", tmp_path / name)
    wanted = torch.load(tmp_path / "out.pth", weights_only=True)
    with safetensors.safe_open(tmp_path / "OUT.SAFETENSORS", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    found = safetensors.torch.load_file(tmp_path / "OUT.SAFETENSORS")
    assert found.keys() == wanted.keys()
    assert all(found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]) for name in wanted)
    twin().load_state_dict(found, strict=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_come_in_as_float32_of_the_same_values(tmp_path: Path, dtype: torch.dtype) -> None:
    half = {name: tensor.to(dtype) for name, tensor in twin().state_dict().items() if tensor.is_floating_point()}
    safetensors.torch.save_file(half, tmp_path / "half.safetensors")
    converted = convert(str(tmp_path / "half.safetensors"))
    save_converted(tmp_path / "checkpoint", converted.variables, converted.meta)
    export(tmp_path / "checkpoint", "torchvision", tmp_path / "out.safetensors")
    found = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in half.items())
    # And what is written in half precision has the bits of what was read in it.
    safetensors_files.write(tmp_path / "again", safetensors_files.read(tmp_path / "half.safetensors"))
    again = safetensors.torch.load_file(tmp_path / "again")
    assert all(again[name].dtype == dtype and torch.equal(again[name], tensor) for name, tensor in half.items())


@pytest.mark.parametrize(
    ("container", "prefix"), [("", ""), ("state_dict", "module."), ("model", "_orig_mod.module."), ("net", "model.")]
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_torch_in_out_is_bit_identical(tmp_path: Path, container: str, prefix: str, zipped: bool) -> None:
    from resnet.train.checkpoints import save_converted

    state = twin().state_dict()
    named: dict = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    content = {container: named, "epoch": 3} if container else named
    torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=zipped)
    converted = convert(str(tmp_path / "in.pth"))
    save_converted(tmp_path / "checkpoint", converted.variables, converted.meta)
    export(tmp_path / "checkpoint", "torchvision", tmp_path / "out.pth")
    back = torch.load(tmp_path / "out.pth", weights_only=True)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_weights_without_a_head_stay_without(tmp_path: Path) -> None:
    from resnet.train.checkpoints import save_converted

    state = {name: tensor for name, tensor in twin().state_dict().items() if not name.startswith("fc.")}
    torch.save(state, tmp_path / "in.pth")
    converted = convert(str(tmp_path / "in.pth"))
    assert converted.meta.class_names == ("(no head)",)
    save_converted(tmp_path / "checkpoint", converted.variables, converted.meta)
    assert load(tmp_path / "checkpoint")[1] == converted.meta
    export(tmp_path / "checkpoint", "torchvision", tmp_path / "out.pth")
    assert set(torch.load(tmp_path / "out.pth", weights_only=True)) == set(state)


@pytest.mark.parametrize("spec", [TINY_KERAS, TINY_KERAS_V2], ids=["V1", "V2"])
@pytest.mark.parametrize("name", ["in.h5", "in.weights.h5"])
def test_keras_files_without_top_stay_without(tmp_path: Path, spec: ResNetSpec, name: str) -> None:
    from resnet.train.checkpoints import save_converted

    converted = convert(str(save_keras(tmp_path / name, spec, has_head=False)))
    assert converted.meta.class_names == ("(no head)",)
    assert converted.meta.spec == with_fields(spec, num_classes=1)
    assert "The file has no head" in summary(converted, "out")
    wanted = random_variables(spec)
    del wanted["params"]["fc"]
    del converted.variables["params"]["fc"]
    jax.tree.map(np.testing.assert_array_equal, converted.variables, wanted)
    back = convert(str(save_keras(tmp_path / name, spec, has_head=False)))
    save_converted(tmp_path / "checkpoint", back.variables, back.meta)
    export(tmp_path / "checkpoint", "keras", tmp_path / f"out-{name}")
    assert formats.read(tmp_path / f"out-{name}").tensors.keys() == back.file.tensors.keys()


@pytest.mark.parametrize(("spec", "contract"), [(TINY_KERAS, "caffe"), (TINY_KERAS_V2, "tf"), (TINY_BASIC, "torch")])
def test_the_contract_is_that_of_the_weights_authors(tmp_path: Path, spec: ResNetSpec, contract: str) -> None:
    if contract == "torch":
        source = tmp_path / "in.pth"
        torch.save(twin().state_dict(), source)
    else:
        source = save_keras(tmp_path / "in.h5", spec)
    assert convert(str(source)).meta.contract == CONTRACTS[contract]


@pytest.mark.parametrize("channels", [1, 6])
def test_a_stem_for_other_channels_answers_as_before(tmp_path: Path, channels: int) -> None:
    """A grey image in one channel, or in twice three, gives the logits that it gave in three equal ones."""
    torch.save(twin().state_dict(), tmp_path / "in.pth")
    plain, adapted = (convert(str(tmp_path / "in.pth"), in_channels=number) for number in (0, channels))
    assert adapted.meta.spec.in_channels == channels
    said = summary(adapted, "out")
    assert f"The network takes {channels} channel{'s' if channels > 1 else ''}: for resnet.weights.export" in said
    assert "predict, evaluate, demo and export read images as RGB and refuse it" in said
    assert "--in_channels" not in said
    grey = np.random.default_rng(0).normal(size=(2, 33, 33, 1)).astype(np.float32)
    backend = jax.lax.conv_general_dilated
    logits = [
        jax.jit(ResNet(made.meta.spec, backend=backend).apply)(made.variables, np.repeat(grey, count, axis=-1))
        for made, count in ((plain, 3), (adapted, channels))
    ]
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "form", "word"),
    [
        ({"order": "full_preactivation"}, "torchvision", "order="),
        ({"norm_epsilon": 1e-3}, "torchvision", "norm_epsilon="),
        ({"stride_block": "last"}, "torchvision", "stride_block="),
        # Of the four stems and shortcuts that no published network joins: as B, or as a CIFAR network, it would load.
        ({"stem": "cifar", "shortcut": "D"}, "torchvision", r"shortcut='D' where the CIFAR ResNets .* have 'A' or 'B'"),
        ({"shortcut": "A"}, "torchvision", "shortcut='A' where torchvision's and timm's"),
        ({"stem": "deep", "shortcut": "A"}, "torchvision", "shortcut='A' where timm's"),
        ({"shortcut": "C"}, "torchvision", "shortcut='C'"),
        # A basic network of one stage has no projection, by which B would be told from A.
        ({"stage_sizes": (2,)}, "torchvision", "shortcut='B', but .* read as shortcut='A'"),
        # A squeeze that does not divide the channels, and 3x3 convolutions of a width that is rounded.
        ({"squeeze_excitation": 5}, "torchvision", "squeeze_excitation=5, but .* read as squeeze_excitation=8"),
        ({"block": "bottleneck", "base_width": 12}, "torchvision", "base_width=12, but .* read as base_width=8"),
        (
            {"block": "bottleneck", "width": 200, "base_width": 1},
            "torchvision",
            "shapes do not form a ResNet .base_width=0",
        ),
        ({"block": "bottleneck", "order": "full_preactivation"}, "keras", "stride_block='first' where Keras' V2"),
        ({}, "keras", "block="),
    ],
)
def test_refuses_what_the_other_side_would_compute_differently(
    tmp_path: Path, fields: dict, form: str, word: str
) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", with_fields(TINY_BASIC, **fields))
    with pytest.raises(InputError, match=word):
        export(checkpoint, form, tmp_path / ("out.h5" if form == "keras" else "out.pth"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("torchvision", "out.h5"),
        ("torchvision", "out.weights.h5"),
        ("torchvision", "OUT.HDF5"),
        ("torchvision", "out.keras"),
        ("torchvision", "out.safetensors.keras"),
        ("keras", "out.pth"),
    ],
)
def test_a_file_is_not_written_under_anothers_ending(tmp_path: Path, form: str, name: str) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", TINY_BASIC)
    with pytest.raises(InputError, match=f"--out=.*{name}: .*name it"):
        export(checkpoint, form, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_keras_file_does_not_pass_for_torch(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    from resnet.train.checkpoints import save_converted

    converted = convert(str(save_keras(tmp_path / "in.h5")))
    save_converted(checkpoint, converted.variables, converted.meta)
    with pytest.raises(InputError, match="stride_place='first_1x1'"):
        export(checkpoint, "torchvision", tmp_path / "out.pth")


@given(width=st.integers(1, 9), stages=st.integers(1, 4), block=st.sampled_from(["basic", "bottleneck"]))
def test_channel_orders_are_permutations_and_undone(width: int, stages: int, block: str) -> None:
    stem = {"stem": "cifar", "stem_width": width}
    spec = ResNetSpec(block=block, stage_sizes=(2,) * stages, width=width * 2, shortcut="A", **stem)  # type: ignore[arg-type]
    for order in shortcut_padding.channel_orders(spec):
        assert sorted(order) == list(range(len(order)))
    path = ("params", f"layer{stages}_1", "conv1", "kernel")
    kernel = np.random.default_rng(0).normal(size=(1, 1, spec.width * 2 ** (stages - 1) * spec.expansion, 3))
    there = shortcut_padding.pad_both_sides(shortcut_padding.pad_behind(kernel, path, spec), path, spec)
    np.testing.assert_array_equal(there, kernel)


@given(inputs=st.integers(1, 5), channels=st.integers(1, 7))
def test_stem_for_other_channels_answers_equal_channels_alike(inputs: int, channels: int) -> None:
    kernel = np.random.default_rng(0).uniform(size=(3, 3, inputs, 2)).astype(np.float32)
    adapted = mapping.with_input_channels(kernel, channels)
    assert adapted.shape == (3, 3, channels, 2)
    if channels % inputs == 0 or channels == 1:
        # A grey image, the same in every channel, gives what it gave.
        np.testing.assert_allclose(adapted.sum(2), kernel.sum(2), rtol=1e-5)


@pytest.mark.parametrize("dialect", [names.TORCH, names.TORCH_D, names.CIFAR])
def test_no_two_tensors_share_a_name(dialect: names.Dialect) -> None:
    for spec in (TINY_BASIC, OPTION_D):
        found = [entry.name for entry in names.table(spec, dialect)]
        assert len(set(found)) == len(found)


def taken_back(checkpoint: Path, out: Path) -> tuple[Converted, dict[str, str]]:
    """What the command that an export prints makes of the file, and the command's flags."""
    *_, line = way_back(checkpoint, out).splitlines()
    given = dict(word.removeprefix("--").split("=") for word in shlex.split(line)[4:-1])
    kinds = {"image_size": int, "resize_shorter": float}
    values = {name: kinds.get(name, str)(value) for name, value in given.items() if name not in ("source", "classes")}
    return convert(given["source"], class_file=given.get("classes", ""), **values), given


def test_a_contract_of_ones_own_comes_back_or_is_told(tmp_path: Path) -> None:
    """Bicubic by a flag, as timm's weights have it; numbers that no contract of convert has, in words."""
    variables = random_variables(TINY_BASIC)
    names_of_classes = tuple(f"class {number}" for number in range(TINY_BASIC.num_classes))
    own = dataclasses.replace(CONTRACTS["torch"], interpolation="bicubic", resize_shorter=235 / 224)
    save_converted(tmp_path / "in", variables, Meta(TINY_BASIC, names_of_classes, own, 224, own.resize_shorter))
    export(tmp_path / "in", "torchvision", tmp_path / "w.safetensors")
    back, given = taken_back(tmp_path / "in", tmp_path / "w.safetensors")
    assert given["interpolation"] == back.meta.contract.interpolation == "bicubic"
    assert (back.meta.contract.name, back.meta.resize_shorter) == ("torch", 235 / 224)
    assert "except for" not in way_back(tmp_path / "in", tmp_path / "w.safetensors")
    mine = dataclasses.replace(own, mean=(0.5, 0.5, 0.5))
    save_converted(tmp_path / "other", variables, Meta(TINY_BASIC, names_of_classes, mine, 224, 1.0))
    told = way_back(tmp_path / "other", tmp_path / "w.safetensors")
    assert (
        "except for its preprocessing's mean: (0.5, 0.5, 0.5), where --contract=torch has (0.485, 0.456, 0.406)" in told
    )
    assert told.count("except for") == 1
    named = dataclasses.replace(CONTRACTS["torch"], name="mine")
    broken = ("a\nb", *names_of_classes[1:])
    save_converted(tmp_path / "named", variables, Meta(TINY_BASIC, broken, named, 224, 1.0))
    told = way_back(tmp_path / "named", tmp_path / "elsewhere.pth")
    assert "except for its preprocessing's name: mine, where --contract=torch has torch" in told
    assert "except for the names of the classes" in told


def test_what_a_file_cannot_hold_is_told_at_its_export_and_given_back(tmp_path: Path) -> None:
    """Preprocessing, crop and classes of one's own: the printed command makes the same checkpoint of the file."""
    spec = with_fields(TINY_BASIC, stem="cifar", shortcut="A", stage_sizes=(1, 1, 1), num_classes=10)
    mine = tuple("abcdefghij")
    save_converted(tmp_path / "in", random_variables(spec), Meta(spec, mine, CONTRACTS["raw"], 48, 1.25))
    export(tmp_path / "in", "torchvision", tmp_path / "w.pth")
    back, given = taken_back(tmp_path / "in", tmp_path / "w.pth")
    assert (back.meta.class_names, back.meta.contract, back.meta.image_size) == (mine, CONTRACTS["raw"], 48)
    assert back.meta.resize_shorter == 1.25
    assumed = convert(given["source"])
    assert "assumed to be CIFAR-10's classes; if not, give --classes=FILE" in summary(assumed, "out")
    (tmp_path / "w2.pth.classes.txt").touch()
    with pytest.raises(InputError, match=r"w2\.pth\.classes\.txt: already exists"):
        export(tmp_path / "in", "torchvision", tmp_path / "w2.pth")
    with pytest.raises(InputError, match=r"--resize_shorter=0\.5 must be 0 or from 1 to 16"):
        convert(given["source"], resize_shorter=0.5)
