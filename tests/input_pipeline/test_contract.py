import json

import jax
import numpy as np
import pytest

from input_pipeline.contract import CONTRACTS, Contract, contract_by_name, normalise
from input_pipeline.errors import InputError

PIXELS = np.array([[[0, 0, 0], [255, 255, 255], [10, 120, 250]]], np.uint8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torch", [(10 / 255 - 0.485) / 0.229, (120 / 255 - 0.456) / 0.224, (250 / 255 - 0.406) / 0.225]),
        ("caffe", [250 - 103.939, 120 - 116.779, 10 - 123.68]),
        ("tf", [10 / 127.5 - 1, 120 / 127.5 - 1, 250 / 127.5 - 1]),
        ("raw", [10 / 255, 120 / 255, 250 / 255]),
    ],
)
def test_each_contract_gives_its_published_numbers(name, expected):
    for images in (PIXELS, PIXELS.astype(np.float32)):
        result = normalise(images, contract_by_name(name))
        assert result.dtype == np.float32
        np.testing.assert_allclose(result[0, 2], expected, rtol=1e-5, atol=1e-5)


def test_tf_spans_minus_one_to_one_and_raw_zero_to_one():
    np.testing.assert_allclose(normalise(PIXELS, CONTRACTS["tf"])[0, :2, 0], [-1, 1], atol=1e-6)
    np.testing.assert_allclose(normalise(PIXELS, CONTRACTS["raw"])[0, :2, 0], [0, 1], atol=1e-6)


def test_normalise_is_the_same_inside_jit():
    for contract in CONTRACTS.values():
        inside = jax.jit(normalise, static_argnums=1)(PIXELS, contract)
        np.testing.assert_allclose(inside, normalise(PIXELS, contract), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_contract_survives_json(name):
    assert Contract.from_json(json.loads(json.dumps(CONTRACTS[name].to_json()))) == CONTRACTS[name]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match="torch, caffe, tf, raw"):
        contract_by_name("imagenet")


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [1, 2]},
        {"mean": None},
        {"scale": "x"},
        {"channel_order": "gbr"},
        {"interpolation": "area"},
        {"more": 1},
    ],
)
def test_a_malformed_stored_contract_is_refused(change):
    with pytest.raises(InputError, match="stored preprocessing contract"):
        Contract.from_json(CONTRACTS["torch"].to_json() | change)


def test_a_stored_contract_that_lacks_a_key_is_refused():
    stored = CONTRACTS["torch"].to_json()
    del stored["std"]
    with pytest.raises(InputError, match="std"):
        Contract.from_json(stored)
