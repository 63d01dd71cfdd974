"""Counts against published figures, arithmetic over the spec and torch, and the command that prints them."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jax import lax

from resnet.model import counting, network
from resnet.model.counting import count
from resnet.model.counting_tables import TIMES
from resnet.model.errors import SpecError
from resnet.model.network import ResNet
from resnet.model.spec import ResNetSpec, block_width
from resnet.model.traced_program import operations
from resnet.model.variants import VARIANTS, variant

ROOT = Path(__file__).resolve().parents[2]


# --- Arithmetic over the spec, written without looking at the program -------------------------------------------------


class Ledger:
    """Parameters, statistics and multiply-adds of one row, layer by layer."""

    def __init__(self, spec: ResNetSpec) -> None:
        self.spec, self.parameters, self.statistics, self.multiply_adds = spec, 0, 0, 0

    def conv(
        self, size: int, kernel: int, sources: int, targets: int, stride: int = 1, groups: int = 1, bias=None
    ) -> int:
        biased = (self.spec.conv_bias or self.spec.norm == "none") if bias is None else bias
        size = (size + 2 * (kernel // 2) - kernel) // stride + 1
        weights = kernel * kernel * (sources // groups) * targets
        self.parameters += weights + targets * biased
        self.multiply_adds += size * size * weights
        return size

    def norm(self, channels: int) -> None:
        self.parameters += 2 * channels * (self.spec.norm != "none")
        self.statistics += 2 * channels * (self.spec.norm == "batch")

    def dense(self, sources: int, targets: int) -> None:
        self.parameters += sources * targets + targets
        self.multiply_adds += sources * targets


def arithmetic(spec: ResNetSpec, size: int) -> list[Ledger]:
    """Stem, stages, head."""
    rows = [Ledger(spec)]
    half, full = spec.width // 2, spec.width
    stems = {
        "imagenet": [(7, spec.in_channels, full, 2)],
        "cifar": [(3, spec.in_channels, full, 1)],
        "deep": [(3, spec.in_channels, half, 2), (3, half, half, 1), (3, half, full, 1)],
    }
    for kernel, sources, targets, stride in stems[spec.stem]:
        size = rows[0].conv(size, kernel, sources, targets, stride)
        rows[0].norm(targets)
    if spec.stem != "cifar":
        size = (size + 2 - 3) // 2 + 1
    channels = spec.width
    for stage, blocks in enumerate(spec.stage_sizes):
        rows.append(Ledger(spec))
        for index in range(blocks):
            stride = 2 if stage > 0 and index == 0 else 1
            size, channels = block(rows[-1], size, channels, stage, stride, first=stage == index == 0)
    rows.append(Ledger(spec))
    if spec.order == "full_preactivation":
        rows[-1].norm(channels)
    rows[-1].dense(channels, spec.num_classes)
    return rows


def block(row: Ledger, size: int, channels: int, stage: int, stride: int, first: bool) -> tuple[int, int]:
    spec = row.spec
    planes, inner = spec.width * 2**stage, block_width(spec, stage)
    out = planes * (4 if spec.block == "bottleneck" else 1)
    keeps_shape = stride == 1 and channels == out
    early = stride if spec.stride_place == "first_1x1" else 1
    if spec.block == "bottleneck":
        layers = [
            (1, channels, inner, early, 1),
            (3, inner, inner, stride // early, spec.groups),
            (1, inner, out, 1, 1),
        ]
    else:
        layers = [(3, channels, out, stride, 1), (3, out, out, 1, 1)]
    if spec.order == "full_preactivation" and not first:
        row.norm(channels)
    after = size
    for kernel, sources, targets, step, groups in layers:
        after = row.conv(after, kernel, sources, targets, step, groups)
        row.norm(targets)
    if spec.order == "full_preactivation":
        # The last convolution has no norm behind it. (After an addition it has one, as wide.)
        row.parameters -= 2 * out * (spec.norm != "none")
        row.statistics -= 2 * out * (spec.norm == "batch")
    if spec.squeeze_excitation:
        squeezed = max(out // spec.squeeze_excitation, 1)
        row.dense(out, squeezed)
        row.dense(squeezed, out)
    row.parameters += spec.norm == "none"
    everywhere = spec.shortcut == "C" or spec.shortcut_transform == "conv1x1"
    padded = spec.shortcut == "A" and not keeps_shape
    if spec.shortcut != "none" and not padded and (everywhere or not keeps_shape):
        row.conv(after, 1, channels, out)
        if spec.order not in ("relu_only_preactivation", "full_preactivation"):
            row.norm(out)
    if keeps_shape and spec.shortcut_transform in ("exclusive_gate", "shortcut_gate"):
        row.conv(after, 1, out, out, bias=True)
    return after, out


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


def read(stage: counting.Stage) -> str:
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


def test_our_own_convolution_counts_as_lax_does() -> None:
    """Its CPU branches leave products with padding out; the branch for other devices has them all."""
    spec = variant("cifar_resnet20").spec
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    program = jax.make_jaxpr(lambda x: ResNet(spec).init_with_output(jax.random.key(0), x, train=False)[0])(images)
    assert sum(operation.multiply_adds for operation in operations(program)) == 40_551_040


# --- Against torch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("block_kind", "stem", "size"), [("basic", "imagenet", 65), ("bottleneck", "cifar", 17)])
def test_activations_are_what_torch_saves_and_multiply_adds_what_its_layers_do(
    block_kind: str, stem: str, size: int
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from benchmarks.torch_twin import TorchResNet

    spec = ResNetSpec(block=block_kind, stem=stem, stage_sizes=(2, 1, 1), width=8, num_classes=7)
    counts = count(spec, size)
    twin = TorchResNet(block_kind, (2, 1, 1), width=8, num_classes=7, stem=stem)
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


# --- The command ------------------------------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["counting", *arguments])
    return counting.run()


def test_check_agrees_and_the_documentation_shows_its_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--check") == 0
    printed = capsys.readouterr().out
    table = printed[: printed.rindex("|") + 1]
    documentation = (ROOT / "docs" / "counts.md").read_text()
    assert all(f"| {name} " in table for name in VARIANTS)
    assert table in documentation, "paste what python -m resnet.model.counting --check prints into docs/counts.md"
    assert call(monkeypatch) == 0
    assert capsys.readouterr().out.strip() in documentation, "paste what python -m resnet.model.counting prints"


def test_check_names_the_variant_whose_stride_moved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = network.Block

    def moved(*, name: str, stride: int, **fields: object) -> object:
        """The third stage halves its map one block later."""
        return original(name=name, stride={"layer3_0": 1, "layer3_1": 2}.get(name, stride), **fields)

    monkeypatch.setattr(network, "Block", moved)
    assert call(monkeypatch, "--check", "--model", "cifar_resnet20", "cifar_plain20") == 1
    captured = capsys.readouterr()
    assert "0 of 2 models agree" in captured.out
    assert "cifar_resnet20: " in captured.err
    assert "40,551,040 published" in captured.err


def test_check_in_json_tells_the_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = VARIANTS["cifar_resnet20"]
    monkeypatch.setitem(VARIANTS, "cifar_resnet20", dataclasses.replace(named, parameters=named.parameters + 1))
    assert call(monkeypatch, "--check", "--json", "--model", "cifar_resnet20", "--model", "cifar_resnet20_b") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert "difference -1" in report["models"]["cifar_resnet20"]["differences"][0]
    assert report["models"]["cifar_resnet20_b"]["differences"] == []


def test_json_holds_what_the_table_shows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model", "cifar_resnet20", "--set", "shortcut=B", "stage_sizes=(3,3,3)", "--image_size=32", "--json")
    assert call(monkeypatch, *arguments, "--batch_size=128", "--dtype=bfloat16") == 0
    found = json.loads(capsys.readouterr().out)["cifar_resnet20"]
    assert (found["parameters"], found["multiply_adds"]) == (272_474, 40_813_184)
    assert sum(stage["multiply_adds"] for stage in found["stages"]) == found["multiply_adds"]
    assert found["activation_bytes"] == found["activations"] * 128 * 2
    assert found["spec"]["shortcut"] == "B"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model=resnet51"], "resnet51"),
        (["--set", "depth=3"], "depth=3"),
        (["--set", "conv_bias=maybe"], "true or false"),
        (["--set", "stage_sizes=3,x"], "stage_sizes=3,x"),
        (["--set", "shortcut=E"], "shortcut='E'"),
        (["--image_size=0"], "--image_size=0"),
        (["--image_size=16"], "too small"),
        (["--batch_size=many"], "--batch_size"),
        (["--check", "--set", "shortcut=C"], "--set"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert named in captured.err
    assert captured.err.count("\n") == 1


def test_the_command_as_it_is_typed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "resnet.model.counting", "--model=resnet51"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown model 'resnet51'")
    assert done.stderr.count("\n") == 1
