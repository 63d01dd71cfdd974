"""Whatever export takes, convert reads back as the same network with the same bits."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from input_pipeline.contract import CONTRACTS
from input_pipeline.errors import InputError
from resnet.model.errors import SpecError
from resnet.model.spec import ResNetSpec
from resnet.train.checkpoints import Meta
from resnet.weights.convert import convert
from resnet.weights.export import export
from resnet.weights.recognise import KERAS_EPSILON, TRAINING_FIELDS
from tests.networks import random_variables

pytest.importorskip("torch", reason="torch is not installed; it writes and reads the files here")

from tests.weights.sources import TINY_BASIC, TINY_KERAS, TINY_KERAS_V2, with_fields

BASES = [
    (TINY_BASIC, "torchvision"),
    (with_fields(TINY_BASIC, stem="cifar", shortcut="A", stage_sizes=(1, 2, 1)), "torchvision"),
    (ResNetSpec(stage_sizes=(1, 1), width=16, stem="deep", shortcut="D", squeeze_excitation=16), "torchvision"),
    (ResNetSpec(stage_sizes=(1, 1), width=8, num_classes=5), "torchvision"),
    (TINY_KERAS, "keras"),
    (TINY_KERAS_V2, "keras"),
]
# Field -> values to put in its place: of what names and shapes may tell, and of what acts in training alone.
SHAPING = {
    "block": ["basic", "bottleneck"],
    "stage_sizes": [(1,), (2,), (1, 1), (2, 1), (1, 1, 1)],
    "width": [1, 2, 3, 8, 12],
    "base_width": [8, 12, 64, 96, 128],
    "groups": [1, 2, 4],
    "in_channels": [1, 3, 4],
    "num_classes": [1, 10],
    "stem": ["imagenet", "cifar", "deep"],
    "stem_width": [2, 4, 9, 16],
    "shortcut": ["A", "B", "D"],
    "squeeze_excitation": [1, 2, 3, 5, 16],
    "conv_bias": [True, False],
    "bias_without_norm": [True, False],
    "dropout": [0.5],
    "norm_momentum": [0.5],
    "norm_groups": [1],
}
# And of the rest.
OTHERS = {
    "shortcut": ["none", "C"],
    "shortcut_transform": ["scale", "conv1x1"],
    "stride_place": ["3x3", "first_1x1"],
    "stride_block": ["first", "last"],
    "order": ["original", "bn_after_addition", "full_preactivation"],
    "norm": ["none"],
    "norm_epsilon": [1e-5, KERAS_EPSILON],
    "activation": ["silu"],
    "stem_norm": [True, False],
    "head_hidden": [3],
}


def values(choices: dict[str, list], most: int) -> st.SearchStrategy[dict[str, object]]:
    """Values for at most so many of the fields."""
    fields = st.lists(st.sampled_from(sorted(choices)), max_size=most, unique=True)
    return fields.flatmap(lambda names: st.fixed_dictionaries({name: st.sampled_from(choices[name]) for name in names}))


@st.composite
def exports(draw: st.DrawFn) -> tuple[ResNetSpec, str]:
    """A network near one that can be exported, and a format: mostly its own."""
    spec, form = draw(st.sampled_from(BASES))
    fields = draw(values(SHAPING, 3)) | draw(st.just({}) | st.just({}) | values(OTHERS, 1))
    form = draw(st.sampled_from([form, form, form, "keras", "torchvision"]))
    try:
        return with_fields(spec, **fields), form
    except SpecError:
        reject()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(chosen=exports())
def test_what_is_exported_is_read_back_as_the_same_network(
    tmp_path_factory: pytest.TempPathFactory, chosen: tuple[ResNetSpec, str]
) -> None:
    (spec, form), folder = chosen, tmp_path_factory.mktemp("any")
    out = folder / ("out.h5" if form == "keras" else "out.pth")
    meta = Meta(spec, (), CONTRACTS["torch"], image_size=32, resize_shorter=1.0)
    variables, refused = random_variables(spec), ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnet.weights.export.load", lambda checkpoint: (variables, meta))
        try:
            export("checkpoint", form, out)
        except InputError as error:
            refused = str(error)
    if refused:
        assert "\n" not in refused
        assert list(folder.iterdir()) == []
        return
    back = convert(str(out))
    # What acts in training alone, or is not read in such networks, is in no file of weights.
    trained = {name: getattr(ResNetSpec(), name) for name in (*TRAINING_FIELDS, "norm_groups", "shortcut_scale")}
    biases = {name: getattr(back.meta.spec, name) for name in ("conv_bias", "bias_without_norm")}
    assert back.meta.spec == with_fields(spec, **trained, **(biases if form == "keras" else {}))
    found, wanted = flatten_dict(back.variables), flatten_dict(variables)
    for path, array in found.items():
        # Keras' biases where ours had none.
        np.testing.assert_array_equal(array, wanted.pop(path, np.zeros_like(array)), err_msg=str(path))
    assert not wanted
    assert form == "keras" or found.keys() == flatten_dict(variables).keys()
