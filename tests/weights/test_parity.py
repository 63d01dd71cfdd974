"""Converted weights compute what they computed in the framework that they come from."""

import functools
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from input_pipeline.contract import CONTRACTS, normalise
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from resnet.weights import names
from resnet.weights.compare import compare, first_difference
from resnet.weights.convert import convert

torch = pytest.importorskip("torch", reason="torch is not installed; it is the peer here")

from tests.weights.sources import (  # noqa: E402  torch first, or the skip above comes too late
    TINY_BASIC,
    save_checkpoint,
    save_twin,
    torch_state,
    twin,
    with_fields,
)

# As the issue states it: the largest difference over the spread of the values.
TOLERANCE = 1e-4


def random_images(side: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, side, side, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("", {"block": "basic", "stage_sizes": (2, 1)}),
        ("", {"block": "bottleneck", "stage_sizes": (1, 2)}),
        ("", {"block": "basic", "stage_sizes": (1, 1, 1), "stem": "cifar"}),
        # The whole depth of ResNet-18 and 34, at an eighth of their width.
        ("", {"block": "basic", "stage_sizes": (2, 2, 2, 2)}),
        ("", {"block": "basic", "stage_sizes": (3, 4, 6, 3)}),
    ],
)
def test_agrees_with_torch(tmp_path: Path, model: str, options: dict) -> None:
    converted = convert(str(save_twin(tmp_path, **options)), model=model)
    # An odd side, where SAME and torch's padding would differ most.
    images = random_images(33)
    logits = jax.jit(lambda x: ResNet(converted.meta.spec).apply(converted.variables, x))(images)
    with torch.inference_mode():
        expected = twin(**options)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert np.abs(np.asarray(logits) - expected).max() <= TOLERANCE * expected.std()


@pytest.mark.parametrize(
    ("spec", "dialect"),
    [
        # The CIFAR ResNets: zero channels on both sides of the shortcut where ours pads behind; two such shortcuts.
        (with_fields(TINY_BASIC, stem="cifar", shortcut="A", stage_sizes=(1, 2, 1)), names.CIFAR),
        # What is written in the CIFAR ResNets' names and nobody published: the gates' channels are sorted as well.
        (
            ResNetSpec(stage_sizes=(1, 1), width=8, stem="cifar", shortcut="A", squeeze_excitation=4, num_classes=5),
            names.CIFAR,
        ),
        # timm's resnet50d family and squeeze-and-excitation; ResNeXt's groups.
        (
            ResNetSpec(
                stage_sizes=(1, 1),
                width=16,
                stem="deep",
                shortcut="D",
                squeeze_excitation=16,
                groups=4,
                base_width=32,
                num_classes=5,
            ),
            names.TORCH_D,
        ),
    ],
)
def test_every_layer_agrees(tmp_path: Path, spec: ResNetSpec, dialect: names.Dialect) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torch_state(spec, dialect), path)
    assert convert(str(path)).meta.spec == spec
    errors = compare(str(path), images=random_images(34))
    assert [*errors][:1] + [*errors][-1:] == ["stem", "logits"]
    assert first_difference(errors, TOLERANCE) is None, errors


def test_names_the_first_layer_that_differs(tmp_path: Path) -> None:
    spec = with_fields(TINY_BASIC, stage_sizes=(2, 1))
    path = tmp_path / "weights.pth"
    state = torch_state(spec)
    checkpoint = save_checkpoint(tmp_path / "converted", spec)
    state["layer1.1.conv2.weight"][0, 0, 0, 0] += 1.0
    torch.save(state, path)
    errors = compare(str(path), checkpoint=str(checkpoint), image_size=32)
    assert first_difference(errors, TOLERANCE) == "layer1_1"


def test_same_padding_is_caught_in_the_first_layer_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Keras and flax pad by default: less in front at stride 2, with the same shapes everywhere."""

    def same_padding(x: jax.Array, kernel: jax.Array, strides: tuple, padding: object, **options: object) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", **options)

    source = save_twin(tmp_path, block="basic", stage_sizes=(1, 1), stem="cifar")
    assert first_difference(compare(str(source), images=random_images(32)), TOLERANCE) is None
    monkeypatch.setattr("resnet.weights.compare.ResNet", functools.partial(ResNet, backend=same_padding))
    errors = compare(str(source), images=random_images(32))
    assert first_difference(errors, TOLERANCE) == "layer2_0"
    assert errors["layer2_0"] > 0.1


KERAS = pytest.mark.skipif(
    importlib.util.find_spec("keras") is None, reason="keras is not installed; it is the peer here"
)


@KERAS
@pytest.mark.parametrize(("module", "contract"), [("resnet", "caffe"), ("resnet_v2", "tf")])
def test_contracts_are_keras_own_preprocessing(module: str, contract: str) -> None:
    """Red, green and blue differ, so that means of the other order would be seen."""
    import keras

    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    theirs = getattr(keras.applications, module).preprocess_input(pixels.astype(np.float32))
    ours = np.asarray(normalise(pixels, CONTRACTS[contract]))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert np.abs(ours - np.asarray(normalise(pixels[..., ::-1], CONTRACTS[contract]))).max() > 0.1


@KERAS
@pytest.mark.parametrize(
    ("builder", "model", "contract"),
    [("ResNet50", "resnet50_keras", "caffe"), ("ResNet50V2", "resnet50_v2_keras", "tf")],
)
def test_agrees_with_keras_applications_both_ways(tmp_path: Path, builder: str, model: str, contract: str) -> None:
    import keras

    from resnet.weights.export import export

    keras.utils.set_random_seed(0)
    build = getattr(keras.applications, builder)
    network = build(weights=None, classes=7, classifier_activation=None, input_shape=(64, 64, 3))
    generator = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, *rest = (generator.uniform(0.5, 1.5, w.shape) for w in layer.weights)
            layer.set_weights([gamma, rest[0] - 1, rest[1] - 1, rest[2]])
        elif layer.weights:
            kernel, *bias = layer.weights
            layer.set_weights([kernel.numpy(), *(generator.uniform(-0.1, 0.1, array.shape) for array in bias)])
    source = tmp_path / "network.h5"
    network.save_weights(tmp_path / "network.weights.h5")
    network.save(tmp_path / "network.keras")
    network.save(source)
    errors = compare(str(source), model, images=random_images(64))
    assert len(errors) == 19
    assert first_difference(errors, TOLERANCE) is None, errors

    converted = convert(str(source))
    assert converted.meta.contract.name == contract
    for other in ("network.weights.h5", "network.keras"):
        jax.tree.map(np.testing.assert_array_equal, convert(str(tmp_path / other)).variables, converted.variables)

    from resnet.train.checkpoints import save_converted

    save_converted(tmp_path / "checkpoint", converted.variables, converted.meta)
    weights = [weight.numpy() for weight in network.weights]
    for name in ("back.h5", "back.weights.h5"):
        export(tmp_path / "checkpoint", "keras", tmp_path / name)
        for weight in network.weights:
            weight.assign(np.zeros(weight.shape, np.float32))
        network.load_weights(tmp_path / name)
        for weight, before in zip(network.weights, weights, strict=True):
            np.testing.assert_array_equal(weight.numpy(), before, err_msg=weight.path)
