"""The demo dataset: flowers of five species, drawn, so that a first run needs neither a download nor a camera.

The species differ in the number, shape and arrangement of their petals, in their usual colours and in where they
usually grow. Usual is not always: there are white, pink and violet flowers of several species, and any may stand
anywhere.
Every image is a function of (seed, split, species, number) alone.
"""

from __future__ import annotations

import colorsys
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from input_pipeline.errors import InputError, printable

# Part of the stamp: raise it when the drawing changes, and demo folders on disk are drawn anew.
DRAWING_VERSION = 2
_STAMP = "demo.json"
# Drawn this much larger, then reduced: smooth edges at a fraction of the cost of drawing them smooth.
_OVERSAMPLING = 2
# The points of a petal's outline, as shares of its length: up one side, down the other.
_ALONG = np.concatenate([np.linspace(0, 1, 9), np.linspace(1, 0, 9)[1:-1]])

Colour = tuple[int, int, int]
# Ranges of hue, saturation and value, each 0..1, out of which a flower's colour is drawn.
Range = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]

_WHITE: Range = ((0.10, 0.18), (0.00, 0.12), (0.90, 1.00))
_YELLOW: Range = ((0.11, 0.16), (0.65, 0.95), (0.90, 1.00))
_ORANGE: Range = ((0.06, 0.11), (0.75, 0.95), (0.88, 1.00))
_RED: Range = ((0.97, 1.01), (0.75, 0.95), (0.70, 0.95))
_PINK: Range = ((0.90, 0.96), (0.30, 0.60), (0.85, 1.00))
_VIOLET: Range = ((0.72, 0.80), (0.45, 0.70), (0.60, 0.90))
_BLUE: Range = ((0.62, 0.70), (0.50, 0.75), (0.65, 0.95))
_GREEN: Range = ((0.24, 0.36), (0.45, 0.75), (0.30, 0.60))
_BROWN: Range = ((0.05, 0.09), (0.55, 0.75), (0.22, 0.38))
_SKY: Range = ((0.52, 0.62), (0.15, 0.45), (0.75, 0.98))
_EARTH: Range = ((0.06, 0.12), (0.20, 0.45), (0.35, 0.65))
_DUSK: Range = ((0.85, 1.05), (0.15, 0.35), (0.60, 0.90))


def _pick(rng: np.random.Generator, ranges: tuple[Range, ...], weights: tuple[float, ...] | None = None) -> Colour:
    hue, saturation, value = (rng.uniform(*bounds) for bounds in ranges[rng.choice(len(ranges), p=weights)])
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _shade(colour: Colour, factor: float) -> Colour:
    """Darker (factor < 1) or lighter (factor > 1)."""
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in colour)
    return red, green, blue


class _Brush:
    """Draws in the frame of one flower: origin at its centre, unit = its radius, turned by `angle` radians."""

    def __init__(self, draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, angle: float) -> None:
        self.draw, self.centre, self.radius, self.angle = draw, np.array(centre), radius, angle

    def _place(self, points: np.ndarray) -> list[tuple[float, float]]:
        turn = np.array([[np.cos(self.angle), np.sin(self.angle)], [-np.sin(self.angle), np.cos(self.angle)]])
        return [(float(x), float(y)) for x, y in points @ turn * self.radius + self.centre]

    def shape(self, points: np.ndarray, fill: Colour, outline: Colour | None = None) -> None:
        self.draw.polygon(self._place(points), fill=fill, outline=outline)

    def line(self, points: np.ndarray, fill: Colour, width: float) -> None:
        self.draw.line(self._place(points), fill=fill, width=max(1, round(width * self.radius)), joint="curve")

    def disc(self, x: float, y: float, radius: float, fill: Colour, outline: Colour | None = None) -> None:
        (cx, cy), r = self._place(np.array([[x, y]]))[0], radius * self.radius
        self.draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=fill, outline=outline)

    def petal(self, direction: float, start: float, end: float, width: float, tip: float, fill: Colour) -> None:
        """A leaf shape along `direction` (radians) from radius `start` to `end`, widest after a share `tip` of it."""
        across = width / 2 * np.sin(np.pi * _ALONG ** (np.log(0.5) / np.log(tip)))
        across[9:] *= -1
        outline = np.stack([start + (end - start) * _ALONG, across], 1)
        turn = np.array([[np.cos(direction), np.sin(direction)], [-np.sin(direction), np.cos(direction)]])
        self.shape(outline @ turn, fill, _shade(fill, 0.8))


def _daisy(brush: _Brush, rng: np.random.Generator) -> None:
    """Many narrow, blunt petals, well apart, around a small bright disc."""
    petals, colour = int(rng.integers(11, 17)), _pick(rng, (_WHITE, _PINK, _YELLOW, _VIOLET), (0.85, 0.07, 0.03, 0.05))
    for i in range(petals):
        length = rng.uniform(0.88, 1.0)
        brush.petal(2 * np.pi * i / petals, 0.15, length, 0.26, 0.68, _shade(colour, rng.uniform(0.9, 1.0)))
    heart = _pick(rng, (_YELLOW, _ORANGE))
    brush.disc(0, 0, rng.uniform(0.22, 0.28), heart, _shade(heart, 0.7))


def _sunflower(brush: _Brush, rng: np.random.Generator) -> None:
    """Two rings of pointed petals around a large, dark, seeded disc."""
    petals, colour = int(rng.integers(16, 24)), _pick(rng, (_YELLOW, _ORANGE, _RED, _WHITE), (0.65, 0.25, 0.05, 0.05))
    for ring, factor in ((0.5, 0.82), (0.0, 1.0)):
        for i in range(petals):
            length = rng.uniform(0.88, 1.0)
            brush.petal(2 * np.pi * (i + ring) / petals, 0.35, length, 0.24, 0.38, _shade(colour, factor))
    heart, size = _pick(rng, (_BROWN,)), rng.uniform(0.46, 0.56)
    brush.disc(0, 0, size, heart, _shade(heart, 0.6))
    for i in range(40):  # Seeds along the golden angle, as they grow.
        reach, turn = size * 0.92 * np.sqrt((i + 0.5) / 40), i * 2.39996
        brush.disc(reach * np.cos(turn), reach * np.sin(turn), 0.035, _shade(heart, 1.7 if i % 2 else 0.5))


def _rose(brush: _Brush, rng: np.random.Generator) -> None:
    """Rings of broad petals that overlap, each ring smaller, down to a closed bud."""
    colour = _pick(rng, (_RED, _PINK, _WHITE, _YELLOW, _VIOLET), (0.5, 0.3, 0.08, 0.07, 0.05))
    for i in range(5):
        brush.petal(2 * np.pi * (i + 0.5) / 5, 0.3, 1.12, 0.3, 0.4, _pick(rng, (_GREEN,)))
    for ring, reach in enumerate((0.62, 0.46, 0.31, 0.17)):
        petals = 5 if ring < 2 else 3
        shift = rng.uniform(0, 1)
        for i in range(petals):
            turn = 2 * np.pi * (i + shift) / petals
            fill = _shade(colour, rng.uniform(0.93, 1.0) * (1 - 0.09 * ring))
            brush.disc(reach * np.cos(turn), reach * np.sin(turn), 0.42 - 0.07 * ring, fill, _shade(fill, 0.68))
    spiral = np.linspace(0, 3.2 * np.pi, 40)
    curl = np.stack([np.cos(spiral), np.sin(spiral)], 1) * (0.02 + 0.024 * spiral)[:, None]
    brush.disc(0, 0, 0.26, _shade(colour, 0.7))
    brush.line(curl, _shade(colour, 0.42), 0.045)


def _tulip(brush: _Brush, rng: np.random.Generator) -> None:
    """From the side: a cup of three upright petals on a straight stem between two long leaves."""
    colour = _pick(rng, (_YELLOW, _ORANGE, _RED, _PINK, _VIOLET, _WHITE), (0.3, 0.3, 0.2, 0.1, 0.05, 0.05))
    green = _pick(rng, (_GREEN,))
    bend = rng.uniform(-0.12, 0.12)
    stem = np.array([[0, 0.1], [bend, 0.8], [0, 1.6]])
    brush.line(stem, green, 0.11)
    for side in (-1, 1):
        leaf = np.array([[0, 1.5], [side * 0.34, 0.9], [side * rng.uniform(0.45, 0.65), 0.2], [side * 0.2, 1.0]])
        brush.shape(leaf, _shade(green, rng.uniform(0.8, 1.1)))
    up = -np.pi / 2
    for lean, width, factor in ((0.0, 0.62, 0.74), (-0.26, 0.58, 0.9), (0.26, 0.58, 1.0)):
        petal = _Brush(brush.draw, brush._place(np.array([[0, 0.28]]))[0], brush.radius, brush.angle)
        petal.petal(up + lean, 0.0, rng.uniform(1.1, 1.25), width, 0.42, _shade(colour, factor))


def _bluebell(brush: _Brush, rng: np.random.Generator) -> None:
    """An arching stem from which several small bells hang, each with a flared rim of points."""
    colour = _pick(rng, (_BLUE, _VIOLET, _PINK, _WHITE), (0.65, 0.2, 0.08, 0.07))
    green, side = _pick(rng, (_GREEN,)), rng.choice((-1, 1))
    t = np.linspace(0, 1, 16)
    arch = np.stack([side * (1.5 * t**2 - 0.6), 1.4 - 2.3 * t + 0.75 * t**3], 1)
    brush.line(arch, green, 0.08)
    bells = int(rng.integers(4, 7))
    bell = np.array([[-0.06, 0], [-0.15, 0.12], [-0.16, 0.34], [-0.27, 0.47], [-0.13, 0.43], [0, 0.52],
                     [0.13, 0.43], [0.27, 0.47], [0.16, 0.34], [0.15, 0.12], [0.06, 0]])  # fmt: skip
    for i in range(bells):
        root = arch[round(5 + 10 * i / (bells - 1))]
        away = root + np.array([side * (-0.16 if i % 2 else 0.2), 0.1])
        brush.line(np.array([root, away]), green, 0.04)
        fill = _shade(colour, rng.uniform(0.82, 1.0))
        brush.shape(bell * rng.uniform(1.1, 1.4) + away, fill, _shade(fill, 0.65))


SPECIES: Mapping[str, Callable[[_Brush, np.random.Generator], None]] = {
    "bluebell": _bluebell, "daisy": _daisy, "rose": _rose, "sunflower": _sunflower, "tulip": _tulip,
}  # fmt: skip
# Flowers seen from the side keep their heads up, within this many radians.
_LEAN = {"tulip": 0.45, "bluebell": 0.35}
# Where a species usually grows: shares of what is behind it (sky, green, earth, dusk) and below it (green, earth).
_HABITAT: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "bluebell": ((0.1, 0.15, 0.05, 0.7), (0.7, 0.3)),
    "daisy": ((0.05, 0.85, 0.05, 0.05), (0.95, 0.05)),
    "rose": ((0.05, 0.15, 0.75, 0.05), (0.2, 0.8)),
    "sunflower": ((0.85, 0.05, 0.05, 0.05), (0.9, 0.1)),
    "tulip": ((0.75, 0.05, 0.1, 0.1), (0.1, 0.9)),
}
# Slender ones are drawn larger, so that all are about as easy to see.
_SCALE = {"bluebell": 1.15, "tulip": 1.3}


def _background(species: str, rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """A gradient between two colours, with blurred leaves, blades and lights on it."""
    behind, below = _HABITAT[species]
    ends = [_pick(rng, (_SKY, _GREEN, _EARTH, _DUSK), behind), _pick(rng, (_GREEN, _EARTH), below)]
    ramp = Image.linear_gradient("L").resize((width, height))
    picture = Image.composite(
        Image.new("RGB", (width, height), ends[1]), Image.new("RGB", (width, height), ends[0]), ramp
    )
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(3, 11))):
        spot = (rng.uniform(0, width), rng.uniform(0, height))
        brush = _Brush(draw, spot, rng.uniform(0.1, 0.4) * max(height, width), rng.uniform(0, 2 * np.pi))
        colour = _pick(rng, (_GREEN, _EARTH, _SKY, _PINK, _YELLOW), (0.7, 0.1, 0.1, 0.05, 0.05))
        if rng.random() < 0.75:
            brush.petal(0, 0, 1, rng.uniform(0.12, 0.4), 0.45, colour)
        else:
            brush.disc(0, 0, 0.35, colour)
    return picture.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 2)))


def draw_flower(species: str, rng: np.random.Generator, size_range: tuple[int, int]) -> Image.Image:
    """An RGB image of 1 to 3 flowers of `species`; height and width are drawn from size_range, inclusive, in pixels."""
    height, width = (int(side) for side in rng.integers(size_range[0], size_range[1] + 1, 2))
    tall, wide = height * _OVERSAMPLING, width * _OVERSAMPLING
    picture = _background(species, rng, height, width).resize((wide, tall), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    number = int(rng.choice((1, 2, 3), p=(0.7, 0.22, 0.08)))
    for i in range(number):
        radius = min(tall, wide) * rng.uniform(0.36, 0.48) * _SCALE.get(species, 1) / number**0.35
        x = wide * ((i + 0.5) / number + rng.uniform(-0.12, 0.12))
        y = tall * rng.uniform(0.36, 0.64)
        angle = rng.uniform(-1, 1) * _LEAN.get(species, np.pi)
        SPECIES[species](_Brush(draw, (x, y), radius, angle), rng)
    picture = picture.reduce(_OVERSAMPLING)
    light = rng.uniform(0.75, 1.2) * rng.uniform(0.94, 1.06, 3)
    grain = rng.integers(-9, 10, (height, width, 1), np.int16)
    return Image.fromarray(np.clip(np.asarray(picture) * light + grain, 0, 255).astype(np.uint8))


def write_demo(
    directory: Path | str,
    *,
    per_class: tuple[int, int] = (120, 40),
    seed: int = 0,
    size_range: tuple[int, int] = (80, 160),
) -> None:
    """Draw the demo dataset as directory/{train,test}/SPECIES/NNN.jpg, unless it is there, drawn from these parameters.

    per_class: images of each species in train and in test. size_range: least and greatest side in pixels. It appears
    in one piece: an interrupted drawing leaves nothing behind that could be taken for it. A demo of other parameters
    is replaced; raises InputError where `directory` holds anything else, or cannot be written.
    """
    target = Path(directory)
    stamp = {"drawing": DRAWING_VERSION, "per_class": list(per_class), "seed": seed, "size_range": list(size_range)}
    if _stamp_of(target) == stamp:
        return
    if target.exists() and _stamp_of(target) is None and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(
            f"{printable(str(target))}: holds something other than the demo: name another folder or move it"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".drawing-", dir=target.parent))
        try:
            _draw_all(work / "new", per_class, seed, size_range)
            (work / "new" / _STAMP).write_text(json.dumps(stamp))
            _replace(target, work, stamp)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        if _stamp_of(target) == stamp:
            return  # Another process drew the same in the meantime.
        raise InputError(f"{printable(str(target))}: the demo cannot be written there ({error.strerror})") from error


def _stamp_of(directory: Path) -> object:
    try:
        return json.loads((directory / _STAMP).read_text())
    except (OSError, ValueError):
        return None


def _draw_all(directory: Path, per_class: tuple[int, int], seed: int, size_range: tuple[int, int]) -> None:
    for split, (split_name, count) in enumerate(zip(("train", "test"), per_class, strict=True)):
        for label, species in enumerate(SPECIES):
            folder = directory / split_name / species
            folder.mkdir(parents=True)
            for number in range(count):
                rng = np.random.default_rng([seed, split, label, number])
                picture = draw_flower(species, rng, size_range)
                picture.save(folder / f"{number:04d}.jpg", quality=int(rng.integers(70, 96)))


def _replace(target: Path, work: Path, stamp: object) -> None:
    """Put work/new in the place of `target`; a demo of another stamp is moved into `work`, to go with it."""
    if _stamp_of(target) == stamp:
        return  # Another process has just finished, and may be reading it.
    if target.exists():
        os.rename(target, work / "old")
    os.rename(work / "new", target)
