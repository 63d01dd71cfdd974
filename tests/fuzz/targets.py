"""What is fuzzed: for each target sound files to damage, and the code that has to take whatever comes of them."""

import dataclasses
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.errors import InputError
from resnet.model.errors import SpecError


@dataclasses.dataclass(frozen=True)
class Target:
    """seeds: sound contents. take: reads damaged content, given a scratch folder; any Exception that it lets out is a
    finding. Returns whether the content was taken for sound."""

    seeds: Callable[[Path], list[bytes]]
    take: Callable[[bytes, Path], bool]


def image_seeds(folder: Path) -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    smooth = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)
    colour, grey = Image.fromarray(pixels), Image.fromarray(smooth)
    exif = Image.Exif()
    exif[0x0112] = 6
    forms: list[tuple[Image.Image, str, dict]] = [
        (grey.convert("RGB"), "JPEG", {"quality": 60, "exif": exif}),
        (grey.convert("RGB"), "JPEG", {"progressive": True}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour, "PNG", {"exif": exif}),
        (colour.convert("P"), "PNG", {}),
        (Image.fromarray(smooth.astype(np.uint16) * 200), "PNG", {}),
        (colour, "BMP", {}),
        (colour.convert("P"), "BMP", {}),
        (colour, "GIF", {"save_all": True, "append_images": [colour.rotate(180)]}),
        (grey.convert("RGB"), "WEBP", {"quality": 60, "exif": exif}),
        (colour.convert("RGBA"), "WEBP", {"lossless": True}),
    ]
    contents = []
    for image, form, options in forms:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        contents.append(buffer.getvalue())
    return contents


def take_image(content: bytes, folder: Path) -> bool:
    """As the audit, the doctor and predict read a file."""
    from input_pipeline.crops import Crop
    from input_pipeline.fingerprints import CHROMA_SIDE, SIDE, look
    from input_pipeline.images import sniff
    from input_pipeline.stream import decode_eval

    look(content, np.zeros((SIDE, SIDE), np.uint8), np.zeros((2, CHROMA_SIDE, CHROMA_SIDE), np.uint8))
    try:
        header = sniff(content, "image")
        pixels = decode_eval(content, Crop(kind="none", image_size=8, resize_shorter=1.0), header.orientation, "image")
    except InputError:
        return False
    assert pixels.shape == (8, 8, 3)
    return True


def metadata_seeds(folder: Path) -> list[bytes]:
    from input_pipeline.contract import CONTRACTS
    from resnet.model.spec import ResNetSpec
    from resnet.train.checkpoints import Meta

    small = ResNetSpec(block="basic", stage_sizes=(1, 1), width=8, num_classes=3)
    plain = Meta(small, ("a", "b", "c"), CONTRACTS["torch"], image_size=32, resize_shorter=1.0)
    config = {"data.crop_scale": [0.08, 1.0], "optim.lr": 0.1, "data.exclude": []}
    progress = {"best_step": 4, "best_value": 0.5, "evaluated_step": 6, "since_best": 1}
    full = dataclasses.replace(plain, step=6, config=config, progress=progress, fingerprint="0" * 64)
    return [json.dumps(meta.to_json()).encode() for meta in (plain, full)]


def take_metadata(content: bytes, folder: Path) -> bool:
    """As `checkpoints.load` does before it reads an array: the JSON, the meta, the shapes of its network."""
    from input_pipeline.crops import Crop
    from resnet.train.checkpoints import Meta, abstract_variables

    try:
        meta = Meta.from_json(json.loads(content))
    except (InputError, ValueError, RecursionError):  # Those of json.loads, from which orbax' reader is not free.
        return False
    assert Crop("none", meta.image_size, resize_shorter=meta.resize_shorter).shorter_side < 1 << 20
    if meta.spec not in _SEEN:
        # Tracing a network takes a hundredth of a second, and the few seeds' own come back all the time.
        _SEEN.add(meta.spec)
        abstract_variables(meta.spec)
    return True


_SEEN: set[object] = set()


def checkpoint_seeds(folder: Path) -> list[bytes]:
    """The files of one step's folder, each behind its path and a newline."""
    from input_pipeline.contract import CONTRACTS
    from resnet.model.spec import ResNetSpec
    from resnet.train.checkpoints import Meta, save_converted
    from tests.networks import random_variables

    step = folder / "step"
    spec = ResNetSpec(block="basic", stage_sizes=(1,), width=4, stem="cifar", num_classes=2)
    meta = Meta(spec, ("a", "b"), CONTRACTS["torch"], image_size=8, resize_shorter=1.0)
    save_converted(step, random_variables(spec), meta)
    return [
        str(path.relative_to(step)).encode() + b"\n" + path.read_bytes()
        for path in sorted(step.rglob("*"))
        if path.is_file()
    ]


def take_checkpoint(content: bytes, folder: Path) -> bool:
    """`checkpoints.load` of the folder with this one file in the place of the sound one."""
    from resnet.train.checkpoints import load

    step = folder / "step"
    name, _, body = content.partition(b"\n")
    target = step / name.decode("utf-8", "replace")
    if not target.is_file() or step.resolve() not in target.resolve().parents:
        return False
    sound = target.read_bytes()
    target.write_bytes(body)
    try:
        load(step)
    except InputError:
        return False
    finally:
        target.write_bytes(sound)
    return True


def weights_seeds(folder: Path) -> list[bytes]:
    from tests.weights.sources import KINDS, save_kind

    return [save_kind(folder, kind).read_bytes() for kind in KINDS]


def take_weights(content: bytes, folder: Path) -> bool:
    """As convert does: format, tensors, the network that they make."""
    from resnet.weights.convert import convert

    path = folder / "weights"
    path.write_bytes(content)
    try:
        convert(str(path))
    except (InputError, SpecError):
        return False
    return True


TARGETS = {
    "images": Target(image_seeds, take_image),
    "metadata": Target(metadata_seeds, take_metadata),
    "checkpoint": Target(checkpoint_seeds, take_checkpoint),
    "weights": Target(weights_seeds, take_weights),
}


def take_anything(content: bytes, folder: Path) -> bool:
    """By the first byte: fine, a crash, no end, or an exception."""
    behaviour = content[0] % 4 if content else 0
    if behaviour == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    while behaviour == 2:
        pass
    if behaviour == 3:
        raise RuntimeError("let out")
    return True


# What the fuzzer itself is tested on.
SELF_TEST = {"self-test": Target(lambda folder: [bytes(8)], take_anything)}
