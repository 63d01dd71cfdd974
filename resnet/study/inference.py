"""A trained network ready to be asked: what a checkpoint holds, put together."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format, Layout

from input_pipeline.augment import prepare
from input_pipeline.contract import Contract
from input_pipeline.crops import Crop
from input_pipeline.errors import InputError, printable
from resnet.model import onednn_prepared
from resnet.model.convolution import with_kernels_ahead
from resnet.model.folding import fold
from resnet.model.network import ResNet, evaluate
from resnet.train.checkpoints import Meta, load
from resnet.train.losses import probabilities
from resnet.train.parallel import compiler_options
from resnet.train.state import Variables

# Images a call, and pixels in them: larger images go fewer at a time, for the memory that their feature maps take.
BATCH = 32
PIXELS = BATCH * 224**2


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with its variables, class names and preprocessing, from one checkpoint."""

    network: ResNet
    variables: Variables
    meta: Meta
    crop: Crop

    def probabilities(self, images: np.ndarray, batch_size: int = 0) -> np.ndarray:
        """uint8[N, S, S, 3], cropped as `crop` says -> float32[N, C]; compiled once for one batch size.

        They are softmax, or sigmoid as `meta.loss` says (losses.probabilities). batch_size: images in one call, 0 for
        `best_batch`. Norms are folded: equal to evaluation's probabilities up to rounding.
        """
        size = max(1, min(batch_size or best_batch(self.crop.image_size), len(images)))
        rows = [jax.device_get(self._answer(batch))[:count] for batch, count in padded(images, size)]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.meta.class_names)), np.float32)

    @functools.cached_property
    def folded(self) -> tuple[ResNet, Variables]:
        """The network and its variables with batch norms folded into the convolutions: the same up to rounding."""
        return fold(self.network, jax.device_get(self.variables))

    @functools.cached_property
    def _answer(self) -> Callable[[np.ndarray], jax.Array]:
        network, variables = self.folded
        network = network.clone(backend=with_kernels_ahead) if onednn_prepared.pays() else network
        return ready(answer(network, self.meta.contract, self.meta.loss), variables)


def best_batch(image_size: int) -> int:
    """Images a call.

    ResNet-50, 224 px, seconds for 32 images on two cores, by 1, 2, 4, 8, 16 and 32 of them: 1.44, 1.34, 1.28, 1.35,
    1.29, 1.26 (2026-11-26; without oneDNN, on a faster machine, by 1, 2, 4, 8 and 32: 1.00, 0.95, 0.94, 0.90, 0.89).
    """
    return max(1, min(BATCH, PIXELS // image_size**2))


Answer = Callable[[Variables, jax.Array | np.ndarray], jax.Array]


def answer(network: ResNet, contract: Contract, loss: str = "softmax") -> Answer:
    """The function (variables, uint8[B, S, S, 3]) -> probabilities float32[B, C]: what is compiled, and exported.

    loss: the kind that the network was trained with, one of losses.LOSSES.
    """

    def answered(variables: Variables, images: jax.Array | np.ndarray) -> jax.Array:
        return probabilities(evaluate(network, variables, prepare(images, contract)), loss)

    return answered


def ready(function: Answer, variables: Variables) -> Callable[[np.ndarray], jax.Array]:
    """`function` of batches alone, compiled for each size that comes; the variables lie on the device.

    On a GPU in the order in which the program reads them, on a CPU with kernels as oneDNN wants them.
    """
    if jax.default_backend() == "gpu":
        return LaidOut(function, variables)
    if onednn_prepared.pays():
        return onednn_prepared.Prepared(function, variables)
    return functools.partial(jax.jit(function), jax.device_put(variables))


class LaidOut:
    """`ready` on a GPU: the variables lie in the order in which the compiled program reads them.

    Else it turns every kernel round in each call: ResNet-50 folded, one image, H100: 53 of 113 kernels started, 0.12 of
    0.42 ms at work (bfloat16, 2026-11-26).
    """

    def __init__(self, function: Answer, variables: Variables) -> None:
        self.function, self.variables = function, variables
        self.formats: Any = Format(Layout.AUTO)
        self.programs: dict[tuple[int, ...], Callable[..., jax.Array]] = {}

    def __call__(self, images: np.ndarray | jax.Array) -> jax.Array:
        if (program := self.programs.get(images.shape)) is None:
            program = self.programs[images.shape] = self._compile(images)
        return program(self.variables, jax.device_put(images))

    def _compile(self, images: np.ndarray | jax.Array) -> Callable[..., jax.Array]:
        shape_of = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)  # noqa: E731
        program = jax.jit(self.function, in_shardings=(self.formats, None), compiler_options=compiler_options())
        compiled = program.lower(jax.tree.map(shape_of, self.variables), shape_of(images)).compile()
        # The order that suits the first size is the others' too.
        self.formats = compiled.input_formats[0][0]
        self.variables = jax.device_put(self.variables, self.formats)
        return compiled


def padded(images: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of exactly `size` images, the last filled up with copies, each with the number of real ones."""
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        count = len(batch)
        if count < size:
            batch = np.concatenate([batch, np.repeat(batch[:1], size - count, axis=0)])
        yield batch, count


def crop_values(crop: Crop) -> dict[str, Any]:
    """How a picture is cropped before the network sees it, as JSON values: in words, and as numbers."""
    side, shorter = crop.image_size, crop.shorter_side
    if crop.resize_shorter:
        words = (
            f"resize so that the shorter side is {shorter}, the longer in ratio and rounded down, then cut the centre "
            f"{side} x {side}"
        )
    else:
        words = f"resize the whole image to {side} x {side}, whatever its ratio"
    return {
        "do": f"turn upright by EXIF, convert to RGB, {words} ({crop.interpolation}, antialiased), round to uint8",
        "resize_shorter_side": shorter if crop.resize_shorter else None,
        "centre": side,
        "interpolation": crop.interpolation,
        "antialias": True,
    }


def load_model(checkpoint: str | Path) -> Model:
    """The model in a run's workdir (its best checkpoint), a step's folder or converted weights.

    Raises InputError for anything else, for a network without a head or of a loss that this code does not know, and for
    one that does not take RGB, which is all that images are read as.
    """
    variables, meta = load(checkpoint)
    meta.check_loss()
    if meta.progress.get("head") == "none":
        where = printable(str(checkpoint))
        raise InputError(
            f"{where}: a network without a head (its weights had none), so it knows no classes; train one on your "
            f"images: --config=configs/transfer.py --config.transfer.weights={where}"
        )
    if meta.spec.in_channels != 3:
        raise InputError(
            f"{printable(str(checkpoint))}: its network takes images of {meta.spec.in_channels} channels, but they are "
            "read as RGB; convert its weights with --in_channels=3, which adapts the stem"
        )
    crop = Crop(
        kind="none",
        image_size=meta.image_size,
        resize_shorter=meta.resize_shorter,
        interpolation=meta.contract.interpolation,
    )
    return Model(ResNet(meta.spec), variables, meta, crop)
