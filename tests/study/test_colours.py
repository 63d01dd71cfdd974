"""Runs in a comparison are told apart on the light and the dark page, by colour-blind eyes too."""

import itertools
import re

import numpy as np
import pytest

from resnet.study.colours import BLACK, MARK, RUNS, TRAIN, VAL
from resnet.study.report_template import FOLDER

SETS = {"runs": RUNS, "variants": (BLACK, *RUNS), "one run": (TRAIN, VAL, MARK)}
# Machado, Oliveira and Fernandes 2009, Table 1, severity 1.0: linear RGB as the dichromat sees it.
EYES = {
    "common": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
# sRGB to XYZ (D65), each row over the white's.
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) / [
    [0.9505],
    [1.0],
    [1.089],
]


def linear(colour: str) -> np.ndarray:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    value = np.array([int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    share = XYZ @ np.clip(rgb, 0, 1)
    x, y, z = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(first: str, second: str) -> float:
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (first, second))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", SETS)
def test_no_two_look_alike(name):
    for eyes, seen in EYES.items():
        points = [lab(np.array(seen) @ linear(colour)) for colour in SETS[name]]
        nearest = min(np.linalg.norm(one - other) for one, other in itertools.combinations(points, 2))
        assert nearest > 20, (eyes, nearest)


def test_all_stand_out_from_the_page():
    cards = re.findall(r"--card: (#[0-9a-f]{3,6});", (FOLDER / "page.css").read_text())
    assert len(set(cards)) == 2
    for card, colour in itertools.product(cards, (*RUNS, TRAIN, VAL, MARK)):
        assert contrast(card, colour) >= 3, (card, colour)
