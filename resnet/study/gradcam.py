"""Grad-CAM: where in a picture the evidence for a class lies (Selvaraju et al. 2017, arXiv 1610.02391).

The heat map of a class c at a feature A (channels k, positions i, j) is ReLU(Σ_k α_k A^k) with α_k the mean over the
positions of ∂y^c/∂A^k_ij, y^c the logit (equations 2 and 1).
"""

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from PIL import Image

from input_pipeline.augment import prepare
from input_pipeline.batch_pictures import labelled, letters, magnification, shortened
from input_pipeline.contract import Contract
from input_pipeline.errors import InputError, printable
from input_pipeline.whole_files import beside
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec
from resnet.study.inference import Model, padded
from resnet.train.state import Variables

# Cells a side below which a map shows no place; at 224 px the last stage has 7, at 48 px 2.
FEWEST_CELLS = 4
# Of the hottest spot's colour over the picture's; cooler spots take less of it, cold ones none.
STRENGTH = 0.65
COLOURS = "inferno"


def stages(spec: ResNetSpec) -> tuple[str, ...]:
    """The features that a heat map can be taken at, in the network's order: 'stem', 'layer1_0', …, 'layer1', …"""
    blocks = [
        name
        for stage, size in enumerate(spec.stage_sizes, start=1)
        for name in (*(f"layer{stage}_{index}" for index in range(size)), f"layer{stage}")
    ]
    return ("stem", *blocks)


def default_stage(spec: ResNetSpec, image_size: int) -> str:
    """The deepest stage whose map still has FEWEST_CELLS a side, else the first: the paper takes the last convolution,
    which on small images sees everything at once and points nowhere."""
    network = ResNet(spec, backend=jax.lax.conv_general_dilated)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, spec.in_channels), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    (_, features), _ = jax.eval_shape(
        lambda k, x: network.init_with_output(k, x, train=False, return_features=True), key, images
    )
    names = [f"layer{stage}" for stage in range(len(spec.stage_sizes), 0, -1)]
    return next((name for name in names if features[name].shape[1] >= FEWEST_CELLS), names[-1])


def heat_maps(
    model: Model, images: np.ndarray, classes: np.ndarray, stage: str = "", batch_size: int = 32
) -> np.ndarray:
    """Grad-CAM of each image for one class each: uint8[N, S, S, 3], int[N] -> float32[N, h, w] >= 0.

    images: cropped as `model.crop` says. stage: a name of `stages`, '' for that of `default_stage`; h and w are that
    feature's. A map of zeros says that nothing there speaks for the class. Compiled once for each network,
    stage and batch size. In pre-activated networks a stage's feature is the sum before the next norm and activation.
    Raises InputError for an unknown stage and ValueError for a class that is none.
    """
    stage = stage or default_stage(model.network.spec, model.crop.image_size)
    if stage not in stages(model.network.spec):
        raise InputError(f"stage {printable(stage)!r}: this network has {', '.join(stages(model.network.spec))}")
    classes = np.asarray(classes, np.int32)
    if len(classes) != len(images) or ((classes < 0) | (classes >= model.network.spec.num_classes)).any():
        raise ValueError(f"{len(images)} images need as many classes below {model.network.spec.num_classes}")
    size = max(1, min(batch_size, len(images)))
    maps = [
        jax.device_get(_maps(model.network, model.meta.contract, stage, model.variables, batch, chosen))[:count]
        for batch, chosen, count in _batches(images, classes, size)
    ]
    return np.concatenate(maps) if maps else np.zeros((0, 1, 1), np.float32)


def _batches(images: np.ndarray, classes: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Batches of exactly `size` images with their classes, each with the number of real ones."""
    for (batch, count), (chosen, _) in zip(padded(images, size), padded(classes, size), strict=True):
        yield batch, chosen, count


@functools.partial(jax.jit, static_argnames=("network", "contract", "stage"))
def _maps(
    network: ResNet, contract: Contract, stage: str, variables: Variables, images: np.ndarray, classes: np.ndarray
) -> jax.Array:
    inputs = prepare(images, contract)

    def forward(offsets: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits, features = network.apply(variables, inputs, return_features=True, offsets=offsets)
        own = jnp.take_along_axis(logits, classes[:, None], axis=1)
        # A sum over the batch: in evaluation no image touches another, so each keeps its own gradient.
        return own.sum(), features[stage]

    feature = jax.eval_shape(lambda: forward({})[1])
    gradient, activation = jax.grad(forward, has_aux=True)({stage: jnp.zeros(feature.shape, feature.dtype)})
    weights = gradient[stage].astype(jnp.float32).mean(axis=(1, 2), keepdims=True)
    return jax.nn.relu((weights * activation.astype(jnp.float32)).sum(axis=-1))


def upsample(maps: np.ndarray, size: int) -> np.ndarray:
    """Heat maps float32[N, h, w] -> float32[N, size, size], bilinear between the cells' centres, still >= 0."""
    return np.asarray(jax.image.resize(jnp.asarray(maps), (len(maps), size, size), "linear"))


def normalised(maps: np.ndarray) -> np.ndarray:
    """Each map float32[N, h, w] over its greatest value, so 0..1; a map of zeros stays one."""
    greatest = maps.max(axis=(1, 2), keepdims=True)
    return np.divide(maps, greatest, out=np.zeros_like(maps), where=greatest > 0)


def overlay(images: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Pictures uint8[N, S, S, 3] under their heat maps float32[N, h, w] -> uint8[N, S, S, 3].

    The hotter a spot the more of its colour (dark violet to yellow) covers the picture, at most STRENGTH of it; where
    the map is 0 the picture shows as it is.
    """
    if not len(images):
        return images
    heat = normalised(upsample(maps, images.shape[1]))
    colour = matplotlib.colormaps[COLOURS](heat)[..., :3] * 255
    # The square root keeps warm spots visible on bright pictures.
    share = STRENGTH * np.sqrt(heat)[..., None]
    return np.round(images * (1 - share) + colour * share).astype(np.uint8)


def overlay_name(path: Path) -> str:
    """The file name of an image's overlay: its own, as far as it is harmless, and a hash of where it lies.

    a/1.jpg and b/1.jpg get different names, the same image always the same.
    """
    place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', path.stem)[:80]}-{place}.png"


def write_picture(path: Path, picture: np.ndarray | Image.Image) -> None:
    """Write a picture, or uint8[H, W, 3], as a PNG beside its place and rename it: no reader ever sees half of it."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    with beside(path) as part:
        image.save(part, "PNG", optimize=True)


def write_sheet(path: Path, images: np.ndarray, overlays: np.ndarray, lines: Sequence[Sequence[str]]) -> None:
    """Pictures uint8[N, S, S, 3], each beside its overlay and above its lines of text, as one PNG of 256 colours."""
    pairs = np.concatenate([images, overlays], axis=2)
    most = letters(pairs.shape[2] * magnification(pairs))
    page = labelled(pairs, [[shortened(line, most) for line in own] for own in lines])
    reduced = Image.fromarray(page).quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    write_picture(path, reduced)
