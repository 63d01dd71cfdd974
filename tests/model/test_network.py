"""The network computes what its torch twin does, names what it promises, and keeps training and evaluation apart."""

import dataclasses
import functools

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.model.blocks import Block
from resnet.model.layers import ACTIVATIONS
from resnet.model.network import ResNet, initialise
from resnet.model.spec import ResNetSpec
from resnet.model.variants import variant
from tests.networks import by_name, draw, random_variables, trained, variable_shapes

LAX = jax.lax.conv_general_dilated
BASIC = ResNetSpec(block="basic", stage_sizes=(1, 2), width=8, stem="cifar", num_classes=7)
BOTTLENECK = dataclasses.replace(BASIC, block="bottleneck", stage_sizes=(1, 2))
KEY = functools.partial(jax.random.key, impl="rbg")  # its programs compile four times as fast as threefry's


@functools.cache
def forward(spec: ResNetSpec, size: int) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """(logits, features, images) of a spec with random variables, as evaluation computes them."""
    images = np.random.default_rng(1).normal(size=(2, size, size + 2, 3)).astype(np.float32)
    run = jax.jit(lambda variables, x: ResNet(spec).apply(variables, x, return_features=True))
    logits, features = jax.device_get(run(random_variables(spec), images))
    return logits, features, images


def imagenet(spec: ResNetSpec, **changes) -> ResNetSpec:
    return dataclasses.replace(spec, stem="imagenet", **changes)


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        pytest.param(imagenet(BASIC), 33, id="basic-imagenet-B"),
        pytest.param(imagenet(BASIC, shortcut="A"), 38, id="basic-imagenet-A"),
        pytest.param(dataclasses.replace(BASIC, shortcut="A"), 15, id="basic-cifar-A"),
        pytest.param(dataclasses.replace(BASIC, stem_width=4, order="full_preactivation"), 9, id="basic-narrow-stem"),
        pytest.param(dataclasses.replace(BOTTLENECK, stem_width=6, shortcut="A"), 9, id="bottleneck-narrow-stem-A"),
        pytest.param(imagenet(BOTTLENECK), 38, id="bottleneck-imagenet-B-v1.5"),
        pytest.param(imagenet(BOTTLENECK, stride_place="first_1x1"), 38, id="bottleneck-imagenet-B-v1"),
        pytest.param(dataclasses.replace(BOTTLENECK, shortcut="A"), 13, id="bottleneck-cifar-A-v1.5"),
        *(
            pytest.param(
                dataclasses.replace(spec, stage_sizes=(2, 1), stride_block="last", order=order),
                11,
                id=f"{spec.block}-{order}-stride-last",
            )
            for spec, order in ((BASIC, "original"), (BOTTLENECK, "full_preactivation"))
        ),
        *(
            pytest.param(dataclasses.replace(spec, order=order), 9, id=f"{spec.block}-{order}")
            for spec, order in (
                (BASIC, "bn_after_addition"),
                (BASIC, "relu_before_addition"),
                (BASIC, "relu_only_preactivation"),
                (BASIC, "full_preactivation"),
                (BOTTLENECK, "full_preactivation"),
            )
        ),
    ],
)
def test_every_stage_equals_the_torch_twin(spec, size):
    torch = pytest.importorskip("torch", reason="torch is not installed (./run.sh setup bench)")
    from tests.model import torch_twin

    logits, features, images = forward(spec, size)
    twin = torch_twin.Twin(spec)
    variables = random_variables(spec)
    torch_twin.load(twin, by_name(variables["params"]) | by_name(variables["batch_stats"]))
    with torch.no_grad():
        expected_logits, expected = twin(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    assert set(features) == set(expected)
    for name, value in features.items():
        wanted = expected[name].numpy()
        assert_close(value, wanted.transpose(0, 2, 3, 1) if wanted.ndim == 4 else wanted, name)
    assert_close(logits, expected_logits.numpy(), "logits")


def assert_close(value: np.ndarray, wanted: np.ndarray, name: str) -> None:
    np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max(), err_msg=name)


def test_v1_and_v1_5_share_their_parameters_and_differ_in_what_they_compute():
    v1_5, v1 = imagenet(BOTTLENECK), imagenet(BOTTLENECK, stride_place="first_1x1")
    assert jax.tree.map(jnp.shape, random_variables(v1_5)) == jax.tree.map(jnp.shape, random_variables(v1))
    before, after = forward(v1_5, 38)[1], forward(v1, 38)[1]
    np.testing.assert_array_equal(before["layer1"], after["layer1"])
    assert before["layer2"].shape == after["layer2"].shape
    assert np.abs(before["layer2"] - after["layer2"]).max() > 0.1


def test_names_of_parameters_follow_torchvision():
    from_ours = {name: leaf.shape for name, leaf in by_name(variable_shapes(variant("resnet50").spec)).items()}
    conv, bn, expected = {}, {}, {}
    conv["conv1"], bn["bn1"] = (7, 7, 3, 64), 64
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        planes = 32 * 2**stage
        for index in range(blocks):
            block = f"layer{stage}_{index}"
            conv[f"{block}/conv1"], bn[f"{block}/bn1"] = (1, 1, inputs, planes), planes
            conv[f"{block}/conv2"], bn[f"{block}/bn2"] = (3, 3, planes, planes), planes
            conv[f"{block}/conv3"], bn[f"{block}/bn3"] = (1, 1, planes, 4 * planes), 4 * planes
            if index == 0:
                conv[f"{block}/downsample_conv"] = (1, 1, inputs, 4 * planes)
                bn[f"{block}/downsample_bn"] = 4 * planes
            inputs = 4 * planes
    expected |= {f"params/{name}/kernel": shape for name, shape in conv.items()}
    for name, channels in bn.items():
        expected |= {f"params/{name}/{kind}": (channels,) for kind in ("scale", "bias")}
        expected |= {f"batch_stats/{name}/{kind}": (channels,) for kind in ("mean", "var")}
    assert from_ours == expected | {"params/fc/kernel": (2048, 1000), "params/fc/bias": (1000,)}


@pytest.mark.parametrize("train", [False, True])
def test_bfloat16_stops_at_the_activations(train):
    spec = imagenet(BOTTLENECK, stage_sizes=(2, 1), squeeze_excitation=4)
    network = ResNet(spec, dtype=jnp.bfloat16)

    def run(variables):
        images = jnp.zeros((2, 32, 48, 3))
        return network.apply(variables, images, train=train, return_features=True, mutable=["batch_stats"])

    (logits, features), new = jax.eval_shape(run, variable_shapes(spec))
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    shapes = {name: leaf.shape for name, leaf in features.items()}
    assert shapes == {
        "stem": (2, 8, 12, 8),
        "layer1_0": (2, 8, 12, 32),
        "layer1_1": (2, 8, 12, 32),
        "layer1": (2, 8, 12, 32),
        "layer2_0": (2, 4, 6, 64),
        "layer2": (2, 4, 6, 64),
        "pooled": (2, 64),
    }
    kinds = {name: leaf.dtype for name, leaf in features.items()}
    assert kinds.pop("pooled") == jnp.float32
    assert set(kinds.values()) == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves((variable_shapes(spec), new))} == {jnp.dtype(jnp.float32)}


def test_features_stand_in_the_order_in_which_they_are_computed():
    names: list[str] = []

    def run(variables):
        features = ResNet(BASIC).apply(variables, jnp.zeros((1, 8, 8, 3)), return_features=True)[1]
        names.extend(features)
        assert features["layer2"] is features["layer2_1"]

    jax.eval_shape(run, variable_shapes(BASIC))
    assert names == ["stem", "layer1_0", "layer1", "layer2_0", "layer2_1", "layer2", "pooled"]


def test_evaluation_leaves_the_statistics_alone_and_training_moves_them():
    spec = dataclasses.replace(BASIC, stage_sizes=(1,), width=4)
    variables = random_variables(spec)
    images = np.random.default_rng(0).normal(2, 3, (4, 6, 6, 3)).astype(np.float32)

    @functools.partial(jax.jit, static_argnames="train")
    def statistics(variables, images, train):
        network = ResNet(spec, backend=LAX)
        return network.apply(variables, images, train=train, mutable=["batch_stats"])[1]["batch_stats"]

    before, after = variables["batch_stats"], statistics(variables, images, train=False)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    moved = by_name(statistics(variables, images, train=True))
    assert all(np.all(moved[name] != value) for name, value in by_name(before).items())
    # New = 0.9 · old + 0.1 · the batch's (torch's momentum 0.1), the variance biased: of the stem's first channel.
    kernel = variables["params"]["conv1"]["kernel"]
    stem = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    for name, batch in (("mean", stem.mean((0, 1, 2))), ("var", stem.var((0, 1, 2)))):
        np.testing.assert_allclose(moved[f"bn1/{name}"], 0.9 * before["bn1"][name] + 0.1 * batch, rtol=1e-4)


def single_block(**changes) -> tuple[ResNetSpec, Block]:
    """A shape-keeping basic block in mid-network, apart from any network."""
    spec = dataclasses.replace(BASIC, **changes)
    block = Block(spec, stage=0, stride=1, depth_share=0.5, first=False, dtype=jnp.float32, backend=LAX)
    return spec, block


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_init_last_gamma": True},
        {"zero_init_last_gamma": True, "order": "relu_only_preactivation", "norm": "group", "norm_groups": 2},
        {"norm": "none"},
        {"norm": "none", "order": "relu_before_addition"},
        {"norm": "none", "order": "full_preactivation"},
    ],
    ids=lambda changes: "-".join(f"{value}" for value in changes.values()),
)
def test_blocks_that_start_as_their_shortcut_do_and_can_leave_it(changes, monkeypatch):
    # What starts at zero is asked of the real initialisation, with kernels of ones, which compile at once.
    monkeypatch.setattr("resnet.model.layers.HE_INITIALIZER", jax.nn.initializers.ones)
    spec, block = single_block(**changes)
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 8)).astype(np.float32)
    start = jax.device_get(jax.jit(lambda: block.init(KEY(0), x, train=False))())
    start.pop("diagnostics", None)
    # Scales and biases that start at zero stay there; everything else is as after some training.
    random = draw(start, trained, seed=0)
    variables = jax.tree.map(lambda s, r: np.where(np.any(s), r, s).astype(np.float32), start, random)
    last = "bn2" if spec.zero_init_last_gamma else "branch_scale"
    assert not np.any(variables["params"][last]["scale"])
    weights = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, rest):
        out = block.apply({"params": params, **rest}, x, train=False)
        return jnp.sum(out * weights), out

    rest = {name: value for name, value in variables.items() if name != "params"}
    (_, out), gradient = jax.device_get(jax.jit(run)(variables["params"], rest))
    passed = ACTIVATIONS[spec.activation](x) if spec.order == "original" else x
    np.testing.assert_array_equal(out, passed)
    assert np.all(np.abs(gradient[last]["scale"]) > 1e-3), "a branch that starts at zero must be able to leave it"


def test_initialisation_is_that_of_the_papers():
    spec = dataclasses.replace(BASIC, stage_sizes=(1,), width=32, num_classes=100, zero_init_last_gamma=True)
    variables = by_name(jax.device_get(initialise(ResNet(spec), KEY(0), 8)))
    # He et al. 2015 (1502.01852), fan-out form: variance 2 / (3·3·32).
    for name in ("params/conv1/kernel", "params/layer1_0/conv1/kernel", "params/layer1_0/conv2/kernel"):
        assert variables.pop(name).std() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.1)
    assert variables.pop("params/fc/kernel").std() == pytest.approx(0.01, rel=0.1)
    zero = {name for name, value in variables.items() if not value.any()}
    ones = {name for name, value in variables.items() if np.all(value == 1)}
    assert zero | ones == set(variables)
    assert {name for name in zero if name.endswith(("scale", "var"))} == {"params/layer1_0/bn2/scale"}
    assert not {name for name in ones if name.endswith(("bias", "mean"))}


def test_stochastic_depth_keeps_the_expectation_in_training_and_does_nothing_in_evaluation():
    """Huang et al. 2016: half-way down the net half of the rate; a row keeps its whole branch or none of it."""
    rate, rows = 0.5, 4000
    spec, block = single_block(order="relu_only_preactivation", norm="group", norm_groups=2, stochastic_depth=rate)
    x = np.repeat(np.random.default_rng(0).normal(size=(1, 2, 2, 8)).astype(np.float32), rows, axis=0)
    variables = draw(jax.eval_shape(lambda: block.init(KEY(0), x, train=False))["params"], trained, seed=0)

    @functools.partial(jax.jit, static_argnames="train")
    def run(params, key, train):
        return block.apply({"params": params}, x, train=train, rngs={"dropout": key})

    evaluated = np.asarray(run(variables, KEY(0), train=False))
    branch = evaluated[0] - x[0]
    trained_branch = np.asarray(run(variables, KEY(0), train=True)) - x
    keep = 1 - rate * block.depth_share
    kept = np.abs(trained_branch).max((1, 2, 3)) > 0
    np.testing.assert_allclose(trained_branch[kept], np.broadcast_to(branch / keep, x[kept].shape), atol=1e-5)
    # Four standard deviations of a share of 4,000 draws.
    assert kept.mean() == pytest.approx(keep, abs=4 * (keep * (1 - keep) / rows) ** 0.5)
    assert not np.array_equal(kept, np.abs(np.asarray(run(variables, KEY(1), train=True)) - x).max((1, 2, 3)) > 0)
    same = dataclasses.replace(spec, stochastic_depth=0.0)
    plain = block.clone(spec=same).apply({"params": variables}, x[:1], train=True)
    np.testing.assert_allclose(plain, evaluated[:1], rtol=1e-5, atol=1e-6)


def test_dropout_acts_in_training_only_and_asks_for_its_key_only_then():
    spec = dataclasses.replace(BASIC, stage_sizes=(1,), width=4, norm="group", norm_groups=2, dropout=0.5)
    params = {"params": random_variables(spec)["params"]}
    images = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)

    @functools.partial(jax.jit, static_argnames=("spec", "train"))
    def run(params, key, spec, train):
        rngs = None if key is None else {"dropout": key}
        return ResNet(spec, backend=LAX).apply(params, images, train=train, rngs=rngs)

    evaluated = run(params, None, spec, train=False)
    without = dataclasses.replace(spec, dropout=0.0)
    np.testing.assert_allclose(evaluated, run(params, None, without, train=True), rtol=1e-5, atol=1e-6)
    first, second = run(params, KEY(0), spec, train=True), run(params, KEY(1), spec, train=True)
    assert np.abs(first - second).max() > 0.01
    np.testing.assert_array_equal(first, run(params, KEY(0), spec, train=True))
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(lambda p: ResNet(spec).apply(p, images, train=True), params)


def test_squeeze_excitation_and_deep_stem_have_the_shapes_of_their_papers():
    spec = ResNetSpec(stage_sizes=(1, 1), stem="deep", squeeze_excitation=16)
    shapes = {name: leaf.shape for name, leaf in by_name(variable_shapes(spec)["params"]).items()}
    # He, T. et al. 2019, Figure 2b.
    assert [shapes[f"conv1_{i}/kernel"] for i in (1, 2, 3)] == [(3, 3, 3, 32), (3, 3, 32, 32), (3, 3, 32, 64)]
    assert [shapes[f"bn1_{i}/scale"] for i in (1, 2, 3)] == [(32,), (32,), (64,)]
    # Hu et al. 2018, Figure 3: reduction 16 of the block's output.
    for block, channels in (("layer1_0", 256), ("layer2_0", 512)):
        assert shapes[f"{block}/se/fc1/kernel"] == (channels, channels // 16)
        assert shapes[f"{block}/se/fc2/kernel"] == (channels // 16, channels)


def test_shortcut_transforms_compute_what_the_paper_writes():
    """He et al. 2016, Section 3.1: y = relu(F·a + x·b), the factors by the kind of shortcut."""
    x = np.random.default_rng(0).uniform(0, 1, (2, 3, 3, 8)).astype(np.float32)

    def run(transform: str, params: dict) -> np.ndarray:
        _, block = single_block(norm="none", shortcut_transform=transform, shortcut_scale=0.25)
        return np.asarray(jax.jit(lambda p: block.apply({"params": p}, x, train=False))(params))

    _, gated = single_block(norm="none", shortcut_transform="exclusive_gate")
    shapes = jax.eval_shape(lambda: gated.init(KEY(0), x, train=False))["params"]
    params = draw(shapes, trained, seed=3)
    # The branch alone, read off the identity's pre-activation: option none gives relu(F), so F's sign is lost; take a
    # branch that is positive by its bias.
    params["conv2"]["bias"] = np.full(8, 20.0, np.float32)
    params["branch_scale"]["scale"] = np.float32(0.1)
    plain = {name: value for name, value in params.items() if name != "gate"}
    branch = run("identity", plain) - x
    assert branch.min() > 0
    logit = np.einsum("bhwi,io->bhwo", x, params["gate"]["kernel"][0, 0]) + params["gate"]["bias"]
    gate = 1 / (1 + np.exp(-logit))
    np.testing.assert_allclose(run("scale", plain), 0.25 * (branch + x), rtol=1e-5)
    np.testing.assert_allclose(run("exclusive_gate", params), gate * branch + (1 - gate) * x, rtol=1e-4)
    np.testing.assert_allclose(run("shortcut_gate", params), branch + (1 - gate) * x, rtol=1e-4)
    np.testing.assert_allclose(run("dropout", plain), branch + x, rtol=1e-5)
