"""Heat maps point at what decides, are what the equations say, and their curves tell good orders from bad ones."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from input_pipeline.augment import Augmentation, prepare
from input_pipeline.contract import CONTRACTS, contract_by_name, normalise
from input_pipeline.crops import Crop
from input_pipeline.errors import InputError
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from resnet.study import gradcam, predict
from resnet.study.inference import Model
from resnet.train.checkpoints import Meta
from resnet.train.state import create_state
from resnet.train.steps import Recipe, make_train_step, sum_names
from tests.networks import fresh_variables
from tests.study.saliency_curves import area, deletion_curve, insertion_curve, mean_pixel
from tests.tiny import tiny_run

SIZE, SQUARE = 32, 12
SPEC = ResNetSpec(block="basic", stage_sizes=(1, 1), width=8, stem="cifar", num_classes=4)
CONTRACT = contract_by_name("torch")


def squares(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey noise with one coloured square, whose colour alone is the class: (images, labels, bool[N, S, S] region)."""
    return pictures(np.random.default_rng(seed).integers(0, 3, count).astype(np.int32), seed)


def pictures(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`squares` of the classes asked for. Class 3 is grey alone: without it grey would speak for one of the colours, as
    the absence of the two others."""
    draw, count = np.random.default_rng([seed, 1]), len(labels)
    images = np.repeat(draw.integers(90, 160, (count, SIZE, SIZE, 1)), 3, axis=-1)
    region = np.zeros((count, SIZE, SIZE), bool)
    for number, (top, left) in enumerate(draw.integers(0, SIZE - SQUARE + 1, (count, 2))):
        region[number, top : top + SQUARE, left : left + SQUARE] = True
        images[number][region[number]] += np.eye(4, dtype=int)[labels[number], :3] * 90
    return images.astype(np.uint8), labels, region


@pytest.fixture(scope="module")
def model() -> Model:
    """Trained on squares until it finds every one."""
    network = ResNet(SPEC, backend=jax.lax.conv_general_dilated)
    optimizer = optax.sgd(0.05, momentum=0.9)
    recipe = Recipe(seed=0, contract=CONTRACT, augmentation=Augmentation())
    step = jax.jit(make_train_step(network, optimizer, recipe))
    variables = jax.tree.map(jnp.asarray, fresh_variables(SPEC))
    state = create_state(variables, optimizer, ema=False, sum_names=sum_names(4))
    for number in range(60):
        images, labels, _ = pictures(np.arange(32, dtype=np.int32) % 4, number)
        state, _ = step(state, {"image": images, "label": labels, "mask": np.ones(32, np.float32)})
    meta = Meta(SPEC, ("red", "green", "blue", "none"), CONTRACT, SIZE, 0.0)
    return Model(network, state.evaluated(), meta, Crop(kind="none", image_size=SIZE, resize_shorter=0.0))


def test_the_heat_lies_where_the_class_is_decided(model):
    images, labels, region = squares(32, 10_000)
    assert (model.probabilities(images).argmax(axis=1) == labels).mean() >= 0.95
    heat = gradcam.upsample(gradcam.heat_maps(model, images, labels), SIZE)
    assert heat.min() >= 0
    inside = (heat * region).sum(axis=(1, 2)) / heat.sum(axis=(1, 2))
    assert region.mean() < 0.15
    assert np.median(inside) >= 0.7, inside
    assert inside.mean() >= 0.7, inside


def test_maps_are_those_of_the_equations(model):
    """Against autodiff through the head alone: behind the last stage there is pooling and one matrix."""
    images, labels, _ = squares(5, 1)
    found = gradcam.heat_maps(model, images, labels, "layer2", batch_size=2)
    _, features = model.network.apply(model.variables, prepare(images, CONTRACT), return_features=True)
    feature = np.asarray(features["layer2"])
    kernel = np.asarray(model.variables["params"]["fc"]["kernel"])
    alpha = kernel[:, labels].T / np.prod(feature.shape[1:3])
    expected = np.maximum((feature * alpha[:, None, None, :]).sum(axis=-1), 0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_gradient_at_an_inner_stage_is_the_slope_of_the_logit(model):
    """α of equation 1, channel by channel, against a central difference in the feature."""
    images, labels, _ = squares(1, 2)
    inputs = prepare(images, CONTRACT)
    variables = model.variables

    def logit(offset):
        return model.network.apply(variables, inputs, offsets={"layer1": offset})[0, labels[0]]

    _, features = model.network.apply(variables, inputs, return_features=True)
    feature = np.asarray(features["layer1"])
    slope = jax.jit(logit)
    alpha = np.zeros(feature.shape[-1])
    for channel in range(feature.shape[-1]):
        nudge = np.zeros(feature.shape, np.float32)
        nudge[..., channel] = 1e-3
        alpha[channel] = (slope(nudge) - slope(-nudge)) / 2e-3 / np.prod(feature.shape[1:3])
    expected = np.maximum((feature * alpha).sum(axis=-1), 0)
    found = gradcam.heat_maps(model, images, labels, "layer1")
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.02 * expected.max())


def test_every_stage_can_be_named_and_another_is_refused(model):
    assert gradcam.stages(SPEC) == ("stem", "layer1_0", "layer1", "layer2_0", "layer2")
    _, features = jax.eval_shape(
        lambda v: model.network.apply(v, jnp.zeros((1, SIZE, SIZE, 3)), return_features=True), model.variables
    )
    assert set(gradcam.stages(SPEC)) == set(features) - {"pooled"}
    images, labels, _ = squares(1, 0)
    with pytest.raises(InputError, match=r"layer9.*layer2"):
        gradcam.heat_maps(model, images, labels, "layer9")
    with pytest.raises(ValueError, match="below 4"):
        gradcam.heat_maps(model, images, np.array([4]))
    assert gradcam.heat_maps(model, images[:0], labels[:0]).shape == (0, 1, 1)


def test_an_overlay_leaves_cold_pixels_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    maps = np.zeros((2, 8, 8), np.float32)
    maps[1, 2, 3] = 5.0
    drawn = gradcam.overlay(images, maps)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[0], images[0])
    changed = (drawn[1] != images[1]).any(axis=-1)
    assert changed[2, 3]
    assert changed.sum() == 1


def test_deletion_by_heat_falls_faster_than_at_random_and_insertion_rises_faster(model):
    images, labels, _ = squares(4, 77)
    heat = gradcam.upsample(gradcam.heat_maps(model, images, labels), SIZE)
    chance = np.random.default_rng(0).random(heat.shape)
    areas = {}
    for curve in (deletion_curve, insertion_curve):
        for name, orders in (("heat", heat), ("chance", chance)):
            drawn = [curve(model, *each, steps=16) for each in zip(images, orders, labels, strict=True)]
            areas[curve, name] = np.mean([area(one) for one in drawn])
    deletion, insertion = dict.fromkeys(curve for curve, _ in areas)
    assert areas[deletion, "heat"] < areas[deletion, "chance"] - 0.2, areas
    assert areas[insertion, "heat"] > areas[insertion, "chance"] + 0.05, areas


def test_curves_begin_and_end_at_the_whole_and_the_empty_picture(model):
    images, labels, _ = squares(1, 5)
    heat = np.arange(SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    falling = deletion_curve(model, images[0], heat, labels[0], steps=3)
    rising = insertion_curve(model, images[0], heat, labels[0], steps=3)
    empty = np.broadcast_to(mean_pixel(CONTRACT), images.shape).astype(np.uint8)
    whole, nothing = model.probabilities(np.concatenate([images, empty]))[:, labels[0]]
    assert falling.shape == (4,)
    np.testing.assert_allclose([*falling[[0, -1]], *rising[[0, -1]]], [whole, nothing, nothing, whole], atol=1e-6)
    assert area(np.array([1.0, 0.0, 0.0])) == pytest.approx(0.25)


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_pixel_taken_away_is_one_that_the_network_sees_as_nothing(name):
    contract = contract_by_name(name)
    seen = np.asarray(normalise(mean_pixel(contract)[None, None], contract))
    half_a_level = 0.5001 * contract.scale / np.array(contract.std)
    assert (np.abs(seen) <= half_a_level).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    return tiny_run(tmp_path_factory.mktemp("gradcam"))


def test_predict_writes_one_overlay_an_image_whatever_their_names(run, monkeypatch, capsys, tmp_path):
    files = sorted((run[0] / "test").rglob("*.jpg"))[:3]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    twins = [tmp_path / "a" / "x?.jpg", tmp_path / "b" / "x?.jpg", tmp_path / "b" / "x!.jpg"]
    for twin, file in zip(twins, files, strict=True):
        twin.write_bytes(file.read_bytes())
    arguments = ["predict", f"--checkpoint={run[1]}", "--json", f"--gradcam={tmp_path / 'maps'}", *map(str, twins)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert predict.main() == 0
    answers = json.loads(capsys.readouterr().out)["images"]
    written = [Path(answer["gradcam"]) for answer in answers]
    assert len(set(written)) == 3
    assert sorted(written) == sorted((tmp_path / "maps").iterdir())
    for file in written:
        with Image.open(file) as picture:
            assert (picture.format, picture.size) == ("PNG", (16, 16))


def test_predict_puts_all_overlays_on_one_sheet(run, monkeypatch, capsys, tmp_path):
    files = sorted((run[0] / "test").rglob("*.jpg"))[:3]
    sheet = tmp_path / "sheet.png"
    command = ["predict", f"--checkpoint={run[1]}", "--json", f"--gradcam={sheet}"]
    monkeypatch.setattr(sys, "argv", [*command, *map(str, files)])
    assert predict.main() == 0
    assert {answer["gradcam"] for answer in json.loads(capsys.readouterr().out)["images"]} == {str(sheet)}
    with Image.open(sheet) as picture:
        # Three pairs of 16 px, enlarged sevenfold.
        assert picture.format == "PNG"
        assert picture.width > 2 * 112
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    monkeypatch.setattr(sys, "argv", [*command, *[str(files[0])] * (predict.SHEET + 1)])
    with pytest.raises(InputError, match="a sheet holds 64"):
        predict.main()
    monkeypatch.setattr(sys, "argv", [*command[:-1], f"--gradcam={tmp_path / 'absent' / 'x.png'}", str(files[0])])
    with pytest.raises(InputError, match="folder that exists"):
        predict.main()


def test_predict_refuses_a_file_as_the_overlays_folder(run, monkeypatch, tmp_path):
    (tmp_path / "taken").write_text("mine")
    image = next((run[0] / "test").rglob("*.jpg"))
    arguments = ["predict", f"--checkpoint={run[1]}", f"--gradcam={tmp_path / 'taken'}", str(image)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(InputError, match="--gradcam"):
        predict.main()
    assert (tmp_path / "taken").read_text() == "mine"
