"""Parameters, multiply-adds and activations of a network, counted stage by stage from its traced program.

`python -m resnet.model.counting` prints them, and its top says what counts as a multiply-add.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from resnet.model import counting_tables
from resnet.model.network import ResNet
from resnet.model.spec import BEHIND_BLOCKS, HEAD, ResNetSpec
from resnet.model.traced_program import Operation, Scope, kept_values, operations

BYTES = {"float32": 4, "bfloat16": 2}
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
