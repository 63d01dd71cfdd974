"""Parameters, multiply-adds and activations of a network, stage by stage, as Table 1 of He et al. 2015 has them.

    python -m resnet.model.counting --model resnet50 resnet101 [--image_size=224] [--batch_size=1] [--json]
    python -m resnet.model.counting --model=resnet50 --set shortcut=C --set num_classes=101 [--format=latex|csv]
    python -m resnet.model.counting --check                every named network against its published figures

Multiply-adds are those of convolutions and matrix products, products with padding included; biases, norms, activations,
pooling and additions are not counted: the convention of He et al. 2015 ("FLOPs (multiply-adds)"), torchvision and timm.
"""

import argparse
import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from resnet.model import counting_tables
from resnet.model.errors import SpecError
from resnet.model.network import ResNet
from resnet.model.spec import BEHIND_BLOCKS, HEAD, ResNetSpec
from resnet.model.table_formats import FORMATS, terminal_width
from resnet.model.traced_program import Operation, Scope, kept_values, operations
from resnet.model.variants import VARIANTS, Variant, variant

BYTES = {"float32": 4, "bfloat16": 2}
# Flags that say what is counted, and of which --check has its own mind.
NOT_CHECKED = ("set", "image_size", "batch_size", "dtype")
# Field -> another, and the values of that under which something reads it.
READ_IF: dict[str, tuple[str, tuple[str, ...]]] = {
    "norm_groups": ("norm", ("group",)),
    "norm_momentum": ("norm", ("batch",)),
    "ghost_batch_size": ("norm", ("batch",)),
    "norm_epsilon": ("norm", ("batch", "group")),
    "conv_bias": ("norm", ("batch", "group")),
    "shortcut_scale": ("shortcut_transform", ("scale",)),
    "gate_bias": ("shortcut_transform", ("exclusive_gate", "shortcut_gate")),
    "shortcut_dropout": ("shortcut_transform", ("dropout",)),
}
BLOCK_NAME = re.compile(r"layer(\d+)_\d+")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of the table: the stem, a stage of blocks, or the head. Counts are for one image."""

    # conv1, conv2_x, …, as the paper names them, and head.
    name: str
    # Height and width of what the row's last convolution gives; 1 for the head.
    output_size: int
    # The layers in the paper's notation.
    layers: str
    parameters: int
    # Running means and variances of batch norm: saved with the network, not trained.
    statistics: int
    multiply_adds: int
    # Values that a training step keeps for its backward pass; see `Counts.activation_bytes`.
    activations: int


@dataclasses.dataclass(frozen=True)
class Counts:
    """The table of one network at one image size; every total is the sum over its rows."""

    spec: ResNetSpec
    image_size: int
    stages: tuple[Stage, ...]
    # Of the convolution that sees the images, whose input needs no gradient.
    first_multiply_adds: int

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return sum(stage.parameters for stage in self.stages)

    @property
    def statistics(self) -> int:
        """Running statistics of batch norm: numbers that a checkpoint holds beside the parameters."""
        return sum(stage.statistics for stage in self.stages)

    @property
    def multiply_adds(self) -> int:
        """Of one image, forward."""
        return sum(stage.multiply_adds for stage in self.stages)

    @property
    def activations(self) -> int:
        """Values kept for the backward pass of one image."""
        return sum(stage.activations for stage in self.stages)

    @property
    def training_flops(self) -> int:
        """FLOPs (a multiply-add is two) of one image's forward and backward pass; what MFU is computed from.

        Backward takes as many for the inputs' gradients as forward and as many for the weights'; the images need none.
        """
        return 2 * (3 * self.multiply_adds - self.first_multiply_adds)

    def activation_bytes(self, batch_size: int = 1, dtype: str = "float32") -> int:
        """Bytes that a training step on `batch_size` images keeps from forward to backward, at `dtype` (see BYTES).

        Counted once each: what enters a convolution, a dense layer, a norm, max pooling or a gate, what leaves a ReLU
        or a sigmoid, and what enters any other activation: what torch's autograd saves where nothing is in place, but
        for images, max-pool's indices and per-channel statistics. A compiler may keep less, by computing again, or more
        for a while. Masks of dropout and stochastic depth come on top.
        """
        return self.activations * batch_size * BYTES[dtype]


def count(spec: ResNetSpec, image_size: int) -> Counts:
    """Trace the network on one image of image_size×image_size pixels and count; nothing is computed or compiled.

    Raises SpecError if the image is too small for the network.
    """
    spec.check_image_size(image_size)
    program, variables = traced(spec, image_size)
    # ReLU is the activation that stands out in the traced program; what the gradient of another needs is known. It may
    # have parameters and products of its own.
    rectified = spec if spec.activation == "relu" else dataclasses.replace(spec, activation="relu")
    with_relu = program if rectified is spec else traced(rectified, image_size)[0]
    found = operations(program)
    blocks: list[dict[str, list[Operation]]] = [{} for _ in range(len(spec.stage_sizes) + 2)]
    for operation, (stage, block) in zip(found, places(spec, [each.scope for each in found]), strict=True):
        blocks[stage].setdefault(block, []).append(operation)
    # The ReLU in the head is one whatever the spec's activation is.
    rectifies = lambda made_at: spec.activation == "relu" or HEAD[0] in made_at  # noqa: E731
    kept = kept_values(with_relu, with_relu.jaxpr.invars[:1], rectifies)
    activations = [0] * len(blocks)
    for (_, size), (stage, _) in zip(kept, places(spec, [scope for scope, _ in kept]), strict=True):
        activations[stage] += size
    parameters = sizes_by_stage(spec, variables["params"])
    statistics = sizes_by_stage(spec, variables.get("batch_stats", {}))
    stages = []
    for stage, names in enumerate(blocks):
        layers = [layer for block in names.values() for layer in block]
        stages.append(
            Stage(
                name="head" if stage == len(blocks) - 1 else "conv1" if stage == 0 else f"conv{stage + 1}_x",
                output_size=next((layer.output[1] for layer in reversed(layers) if layer.kernel), 1),
                layers=counting_tables.describe(spec, stage, names),
                parameters=parameters[stage],
                statistics=statistics[stage],
                multiply_adds=sum(layer.multiply_adds for layer in layers),
                activations=activations[stage],
            )
        )
    return Counts(spec, image_size, tuple(stages), found[0].multiply_adds)


def traced(spec: ResNetSpec, image_size: int) -> tuple[ClosedJaxpr, dict[str, Any]]:
    """The program of (one image, key) that makes and evaluates the network; the shapes of its variables."""
    network = ResNet(spec, backend=jax.lax.conv_general_dilated)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, spec.in_channels), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    # Without it a process with FLAX_PROFILE=0 would trace equations that do not tell their layer.
    with nn.override_named_call(True):
        # One pass gives parameters and program, in a third of the time of init and apply: flax' apply traces every
        # initialiser once more to compare shapes.
        trace = jax.make_jaxpr(
            lambda x, k: network.init_with_output(k, x, train=False, mutable=["params", "batch_stats"]),
            return_shape=True,
        )
        program, (_, variables) = trace(images, key)
    return program, variables


def places(spec: ResNetSpec, scopes: Iterable[Scope]) -> list[tuple[int, str]]:
    """(row, block) of scopes in the order of the program: row 0 (stem) before the first block, the last behind all."""
    found, passed = [], 0
    for scope in scopes:
        blocks = [match for match in map(BLOCK_NAME.fullmatch, scope) if match]
        if blocks:
            passed = int(blocks[0][1])
            found.append((passed, blocks[0][0]))
        else:
            found.append((len(spec.stage_sizes) + 1, "head") if passed else (0, "stem"))
    return found


def sizes_by_stage(spec: ResNetSpec, variables: dict[str, Any]) -> list[int]:
    """Numbers in the arrays of each row, by the names of the top-level modules."""
    sizes = [0] * (len(spec.stage_sizes) + 2)
    for name, arrays in variables.items():
        block = BLOCK_NAME.fullmatch(name)
        stage = int(block[1]) if block else len(spec.stage_sizes) + 1 if name in BEHIND_BLOCKS else 0
        sizes[stage] += sum(math.prod(array.shape) for array in jax.tree.leaves(arrays))
    return sizes


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise SpecError(f"{message}; see --help")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "--model", nargs="+", action="extend", metavar="NAME", help="named networks (default: resnet50)"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="any field of ResNetSpec"
    )
    parser.add_argument("--image_size", type=int, help="pixels a side (default: the network's own, 224 or 32)")
    parser.add_argument("--batch_size", type=int, help="images the activations are counted for (default: 1)")
    parser.add_argument("--dtype", choices=tuple(BYTES), help="of the activations (default: float32)")
    parser.add_argument(
        "--check", action="store_true", help="compare with the published figures; exit code 1 if one is off"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument(
        "--format", choices=FORMATS, help="of the tables (default: markdown; latex takes the booktabs package)"
    )
    arguments = parser.parse_args()
    if arguments.json and arguments.format:
        raise SpecError(f"--json and --format={arguments.format} are two ways to print; leave one out")
    form = "json" if arguments.json else arguments.format or "markdown"
    if arguments.check:
        unread = [f"--{name}" for name in NOT_CHECKED if getattr(arguments, name) not in (None, [])]
        if unread:
            raise SpecError(f"--check is about networks as named and published; leave {' and '.join(unread)} out")
        return check(arguments.model or list(VARIANTS), form)
    for field in ("image_size", "batch_size"):
        if getattr(arguments, field) is not None and getattr(arguments, field) < 1:
            raise SpecError(f"--{field}={getattr(arguments, field)} must be at least 1")
    arguments.batch_size, arguments.dtype = arguments.batch_size or 1, arguments.dtype or "float32"
    counted = {}
    for name in arguments.model or ["resnet50"]:
        named = variant(name)
        counted[name] = count(with_fields(named.spec, arguments.set), arguments.image_size or named.image_size)
    if form == "json":
        print(json.dumps({name: as_json(counts, arguments) for name, counts in counted.items()}, indent=1))
        return 0
    batch = {"batch_size": arguments.batch_size, "dtype": arguments.dtype}
    print(counting_tables.tables(counted, arguments.set, form=form, **batch, width=terminal_width()))
    return 0


def with_fields(spec: ResNetSpec, settings: Iterable[str]) -> ResNetSpec:
    """`spec` with fields set from 'FIELD=VALUE' texts.

    Raises SpecError for a field that is unknown, set twice or read by nothing, and for an unreadable value.
    """
    known = {field.name: field.default for field in dataclasses.fields(ResNetSpec)}
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in known:
            raise SpecError(f"--set {setting}: takes FIELD=VALUE, FIELD one of {', '.join(known)}")
        if name in changes:
            raise SpecError(f"--set {setting}: {name} is set twice; leave one of the two out")
        changes[name] = read_value(setting, text, known[name])
    changed = dataclasses.replace(spec, **changes)
    for name in changes.keys() & READ_IF:
        other, values = READ_IF[name]
        if getattr(changed, other) not in values:
            raise SpecError(f"--set {name}={changes[name]} is read only where {other} is {' or '.join(values)}")
    return changed


def read_value(setting: str, text: str, default: Any) -> Any:
    """`text` as a value of the type of `default`; a tuple is written 3,4,6,3 with or without parentheses."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(int(part) for part in text.strip("()").split(",") if part.strip())
        return type(default)(text)
    except (KeyError, ValueError):
        kind = "true or false" if isinstance(default, bool) else f"a value like {default!r}"
        raise SpecError(f"--set {setting}: needs {kind}") from None


def as_json(counts: Counts, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything counted, in JSON's types."""
    derived = ("parameters", "statistics", "multiply_adds", "activations", "training_flops")
    return {
        **dataclasses.asdict(counts),
        **{name: getattr(counts, name) for name in derived},
        "batch_size": arguments.batch_size,
        "dtype": arguments.dtype,
        "activation_bytes": counts.activation_bytes(arguments.batch_size, arguments.dtype),
    }


def check(names: Iterable[str], form: str = "markdown") -> int:
    """Print named networks' counts beside the published; 1 if one differs, which is then named, else 0.

    form: 'json' or one of FORMATS.
    """
    checked: list[tuple[str, Variant, Counts]] = []
    differences: dict[str, list[str]] = {}
    for name in names:
        named = variant(name)
        counts = count(named.spec, named.image_size)
        checked.append((name, named, counts))
        differences[name] = named.differences(counts.parameters, counts.statistics, counts.multiply_adds)
    off = {name: found for name, found in differences.items() if found}
    if form == "json":
        fields = ("parameters", "statistics", "multiply_adds")
        rows = {
            name: {field: getattr(counts, field) for field in fields} | {"differences": differences[name]}
            for name, _, counts in checked
        }
        print(json.dumps({"ok": not off, "models": rows}, indent=1))
    else:
        print(counting_tables.check_table(checked, differences, form, terminal_width()))
        if form == "markdown":
            print(f"\n{len(checked) - len(off)} of {len(checked)} models agree with their published figures")
    for name, found in off.items():
        for difference in found:
            print(f"{name}: {difference}", file=sys.stderr)
    return 1 if off else 0


def run() -> int:
    """Call `main`; what a user can mend becomes one line and exit code 2 (resnet.command does it for other rooms)."""
    # Nothing is computed, so no accelerator is needed: do not take one's memory from a run in progress.
    jax.config.update("jax_platforms", "cpu")
    try:
        return main()
    except SpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # `command | head`: the reader has seen enough. The interpreter would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(run())
