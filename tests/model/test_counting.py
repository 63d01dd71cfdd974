"""Counts against published figures, arithmetic over the spec, the traced gradient and torch."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jax import lax

from resnet.model import onednn_library
from resnet.model.counting_tables import TIMES
from resnet.model.counts import Stage, count
from resnet.model.errors import SpecError
from resnet.model.network import ResNet
from resnet.model.spec import CHOICES, ResNetSpec
from resnet.model.traced_program import kept_values, operations
from resnet.model.variants import VARIANTS, variant
from tests.model.counting_arithmetic import arithmetic


@st.composite
def specs(draw: st.DrawFn) -> tuple[ResNetSpec, int]:
    """A small network of any design, and an image size that it takes, odd ones included."""
    fields = {
        "block": draw(st.sampled_from(("basic", "bottleneck"))),
        "stage_sizes": tuple(draw(st.lists(st.integers(1, 2), min_size=1, max_size=2))),
        "width": draw(st.sampled_from((8, 24))),
        "in_channels": draw(st.integers(1, 4)),
        "num_classes": draw(st.integers(1, 11)),
        "stem": draw(st.sampled_from(("imagenet", "cifar", "deep"))),
        "stem_width": draw(st.sampled_from((0, 0, 4, 16))),
        "stride_block": draw(st.sampled_from(("first", "last"))),
        "shortcut": draw(st.sampled_from(("none", "A", "B", "C", "D"))),
        "norm": draw(st.sampled_from(("batch", "batch", "group", "none"))),
        "norm_groups": draw(st.sampled_from((1, 2, 4))),
        "conv_bias": draw(st.booleans()),
        "squeeze_excitation": draw(st.sampled_from((0, 4, 16))),
        "activation": draw(st.sampled_from(("relu", "silu", "gelu"))),
    }
    if fields["block"] == "bottleneck":
        fields["base_width"] = draw(st.sampled_from((64, 128, 32)))
        fields["groups"] = draw(st.sampled_from((1, 2, 4)))
        fields["stride_place"] = draw(st.sampled_from(("3x3", "first_1x1")))
    if fields["shortcut"] != "none":
        fields["order"] = draw(st.sampled_from(network_orders()))
        if fields["order"] == "full_preactivation" and fields["norm"] != "none":
            fields["stem_norm"] = draw(st.booleans())
            fields["bias_without_norm"] = draw(st.booleans()) and not fields["conv_bias"]
        transforms = ("identity", "scale", "exclusive_gate", "shortcut_gate", "conv1x1", "dropout")
        fields["shortcut_transform"] = draw(st.sampled_from(transforms))
    try:
        spec = ResNetSpec(**fields)
    except SpecError:
        assume(False)
    return spec, spec.total_stride + draw(st.integers(0, 15))


def network_orders() -> tuple[str, ...]:
    return ("original", "bn_after_addition", "relu_before_addition", "relu_only_preactivation", "full_preactivation")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(specs())
def test_the_traced_count_is_that_of_arithmetic_over_the_spec(drawn: tuple[ResNetSpec, int]) -> None:
    spec, size = drawn
    counts = count(spec, size)
    expected = arithmetic(spec, size)
    for stage, row in zip(counts.stages, expected, strict=True):
        assert (stage.parameters, stage.statistics) == (row.parameters, row.statistics), stage.name
        assert stage.multiply_adds == row.multiply_adds, stage.name
    assert counts.multiply_adds == sum(row.multiply_adds for row in expected)
    assert counts.activations > 0


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_published_count_is_that_of_arithmetic(name: str) -> None:
    """So a figure in the table cannot be one that the program was merely seen to give."""
    named = variant(name)
    rows = arithmetic(named.spec, named.image_size)
    sums = [sum(getattr(row, field) for row in rows) for field in ("parameters", "statistics", "multiply_adds")]
    assert named.differences(*sums) == []


def read(stage: Stage) -> str:
    """A row's layers, typed on any keyboard."""
    return stage.layers.replace(TIMES, "x")


# --- Known figures ----------------------------------------------------------------------------------------------------


def test_known_figures_of_resnet50() -> None:
    counts = count(variant("resnet50").spec, 224)
    assert (counts.parameters, counts.statistics, counts.multiply_adds) == (25_557_032, 53_120, 4_089_184_256)
    assert [stage.output_size for stage in counts.stages] == [112, 56, 28, 14, 7, 1]
    assert [stage.name for stage in counts.stages] == ["conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x", "head"]
    assert read(counts.stages[1]) == "3x3 max pool, stride 2; [1x1, 64; 3x3, 64; 1x1, 256] x 3"


@pytest.mark.parametrize(("size", "gigaflops"), [(224, 24.30), (160, 12.40), (64, 1.995)])
def test_training_flops_of_resnet50(size: int, gigaflops: float) -> None:
    assert count(variant("resnet50").spec, size).training_flops / 1e9 == pytest.approx(gigaflops, abs=0.005)


def test_keras_twin_with_101_classes() -> None:
    spec = dataclasses.replace(variant("resnet50_keras").spec, num_classes=101)
    counts = count(spec, 224)
    assert (counts.parameters, counts.parameters + counts.statistics) == (23_741_541, 23_794_661)


def test_descriptions_of_groups_and_gates() -> None:
    resnext = count(variant("resnext50_32x4d").spec, 64)
    assert read(resnext.stages[4]) == "[1x1, 1024; 3x3, 1024, C=32; 1x1, 2048] x 3"
    gated = count(dataclasses.replace(variant("cifar_resnet20").spec, squeeze_excitation=4), 32)
    assert read(gated.stages[1]) == "[3x3, 16; 3x3, 16; fc, [4, 16]] x 3"


def test_a_hidden_layer_of_the_head_is_counted_in_the_head() -> None:
    plain = variant("resnet18").spec
    counts, before = count(dataclasses.replace(plain, head_hidden=256), 64), count(plain, 64)
    assert counts.stages[-1].parameters == 512 * 256 + 256 + 256 * 1000 + 1000
    assert counts.stages[-1].multiply_adds == 512 * 256 + 256 * 1000
    assert counts.stages[:-1] == before.stages[:-1]
    assert counts.stages[-1].activations == before.stages[-1].activations + 256
    assert counts.stages[-1].layers == "average pool, 256-d fc, 1000-d fc"


def test_parameters_are_those_of_the_arrays() -> None:
    spec = variant("resnet50_d").spec
    variables = jax.eval_shape(
        lambda key: ResNet(spec).init(key, jnp.zeros((1, 64, 64, 3)), mutable=["params", "batch_stats"]),
        jax.random.key(0),
    )
    sizes = {name: sum(math.prod(a.shape) for a in jax.tree.leaves(tree)) for name, tree in variables.items()}
    counts = count(spec, 64)
    assert sizes == {"params": counts.parameters, "batch_stats": counts.statistics}


def test_an_image_too_small_is_refused() -> None:
    with pytest.raises(SpecError, match="at least 32"):
        count(variant("resnet50").spec, 31)


# --- The walk over programs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"block": "bottleneck", "groups": 4, "base_width": 32, "stem": "imagenet"}, 37),
        ({"block": "bottleneck", "stride_place": "first_1x1", "shortcut": "C", "stem": "cifar"}, 9),
        ({"block": "basic", "squeeze_excitation": 4, "shortcut": "D", "stem": "deep", "norm": "none"}, 19),
        ({"block": "basic", "shortcut_transform": "exclusive_gate", "order": "full_preactivation", "stem": "cifar"}, 8),
    ],
)
def test_training_flops_are_those_of_the_traced_gradient(fields: dict[str, object], size: int) -> None:
    """Strided, grouped and transposed convolutions of the backward pass included, to the unit."""
    spec = ResNetSpec(stage_sizes=(1, 2), width=8, num_classes=5, **fields)  # type: ignore[arg-type]
    model = ResNet(spec, backend=lax.conv_general_dilated)
    images = jax.ShapeDtypeStruct((3, size, size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    statistics = {name: tree for name, tree in variables.items() if name == "batch_stats"}

    def loss(params, x):
        logits, _ = model.apply({"params": params, **zeros(statistics)}, x, train=True, mutable=["batch_stats"])
        return logits.sum()

    def zeros(tree):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)

    program = jax.make_jaxpr(jax.grad(loss))(variables["params"], images)
    traced = sum(operation.multiply_adds for operation in operations(program))
    assert 2 * traced == 3 * count(spec, size).training_flops


def test_operations_inside_other_programs_count() -> None:
    image, kernel, matrix = jnp.zeros((2, 9, 7, 6)), jnp.zeros((3, 3, 2, 12)), jnp.zeros((5, 5))

    def convolve(x: jax.Array, dilation: int = 1) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (2, 1), "VALID", rhs_dilation=(dilation,) * 2, dimension_numbers=numbers, feature_group_count=3
        )

    once = 2 * 4 * 5 * 12 * 9 * 2
    dilated = 2 * 3 * 3 * 12 * 9 * 2
    total = lambda f, *x: sum(operation.multiply_adds for operation in operations(jax.make_jaxpr(f)(*x)))  # noqa: E731
    assert total(convolve, image) == total(jax.jit(convolve), image) == total(jax.checkpoint(convolve), image) == once
    assert total(lambda x: convolve(x, dilation=2), image) == dilated
    assert total(lambda x: lax.scan(lambda c, _: (c @ x, None), x, length=7)[0], matrix) == 7 * 125
    either = lambda x: lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x)  # noqa: E731
    assert total(either, matrix) == 2 * 125
    assert total(lambda x: jnp.einsum("bij,bjk->bik", x, x), jnp.zeros((4, 3, 3))) == 4 * 27
    with pytest.raises(ValueError, match="while"):
        total(lambda x: lax.while_loop(lambda y: y[0, 0] < 1, lambda y: y @ y, x), matrix)


def test_what_elementary_functions_keep_counts() -> None:
    """Softmax attention of an own design: exp keeps what leaves it, a division both that enter, a maximum its input."""

    def attention(x: jax.Array, kernel: jax.Array) -> jax.Array:
        y = jnp.tanh(x @ kernel)
        return jnp.exp(y) / jnp.exp(y).sum(-1, keepdims=True)

    program = jax.make_jaxpr(attention)(jnp.ones((1, 4)), jnp.ones((4, 6)))
    # tanh's output, the exponential twice, and the sum of one of them.
    assert sorted(size for _, size in kept_values(program, program.jaxpr.invars[:1])) == [1, 6, 6, 6]


def test_our_own_convolution_counts_as_lax_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its CPU branches leave products with padding out; the branch for other devices has them all."""
    monkeypatch.setattr(onednn_library, "missing", lambda: "not here")
    spec = variant("cifar_resnet20").spec
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    program = jax.make_jaxpr(lambda x: ResNet(spec).init_with_output(jax.random.key(0), x, train=False)[0])(images)
    assert sum(operation.multiply_adds for operation in operations(program)) == 40_551_040


@pytest.mark.skipif(bool(onednn_library.missing()), reason=f"no oneDNN: {onednn_library.missing()}")
def test_what_onednn_computes_cannot_be_counted() -> None:
    images = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
    network = ResNet(variant("cifar_resnet20").spec)
    program = jax.make_jaxpr(lambda x: network.init_with_output(jax.random.key(0), x, train=False)[0])(images)
    with pytest.raises(ValueError, match=r"inside resnet_convolution_evaluated at .*stem cannot"):
        operations(program)


# --- Against torch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", CHOICES["activation"])
@pytest.mark.parametrize(("block_kind", "stem", "size"), [("basic", "imagenet", 65), ("bottleneck", "cifar", 17)])
def test_activations_are_what_torch_saves_and_multiply_adds_what_its_layers_do(
    block_kind: str, stem: str, size: int, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from benchmarks import torch_twin

    # All that its forward pass takes from this module.
    chosen = types.SimpleNamespace(relu=getattr(torch.nn.functional, activation))
    monkeypatch.setattr(torch_twin, "torch", chosen)
    spec = ResNetSpec(block_kind, (2, 1, 1), 8, num_classes=7, stem=stem, activation=activation, head_hidden=5)
    counts = count(spec, size)
    twin = torch_twin.TorchResNet(block_kind, (2, 1, 1), width=8, num_classes=7, stem=stem)
    # The hidden layer's is a ReLU whatever the others are.
    twin.fc = torch.nn.Sequential(torch.nn.Linear(twin.fc.in_features, 5), torch.nn.ReLU(), torch.nn.Linear(5, 7))
    assert sum(p.numel() for p in twin.parameters()) == counts.parameters
    saved, done = {}, []
    own = {p.data_ptr() for p in (*twin.parameters(), *twin.buffers())}
    images = torch.randn(2, 3, size, size)

    def note(tensor):
        # Maps and pooled features; not max-pool's indices, channel statistics, parameters or the images themselves.
        if tensor.is_floating_point() and tensor.ndim > 1 and tensor.data_ptr() not in own | {images.data_ptr()}:
            saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    def product(layer, inputs, output):
        done.append(output.numel() * layer.weight[0].numel())

    for layer in twin.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(product)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = twin(images)
    assert result.requires_grad
    assert sum(done) == 2 * counts.multiply_adds
    assert sum(saved.values()) == 2 * counts.activations
    assert counts.activation_bytes(2) == 4 * sum(saved.values()) == 2 * counts.activation_bytes(2, "bfloat16")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet50_v1", "resnet152"])
def test_multiply_adds_are_those_that_fvcore_counts_on_the_torch_twin(name: str) -> None:
    """fvcore calls multiply-adds flops; it also counts norms, which the paper and this project leave out."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    fvcore = pytest.importorskip("fvcore.nn", reason="fvcore is not installed")
    from benchmarks.torch_twin import TorchResNet

    spec = variant(name).spec
    twin = TorchResNet(spec.block, spec.stage_sizes, num_classes=1000, stride_place=spec.stride_place).eval()
    analysis = fvcore.FlopCountAnalysis(twin, torch.zeros(1, 3, 224, 224)).unsupported_ops_warnings(False)
    by_operator = analysis.by_operator()
    assert by_operator["conv"] + by_operator["linear"] == variant(name).multiply_adds
