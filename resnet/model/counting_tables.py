"""Counts as people read them: one network as in Table 1 of He et al. 2015; named ones beside the published figures."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from resnet.model.spec import ResNetSpec
from resnet.model.traced_program import Operation
from resnet.model.variants import Variant

if TYPE_CHECKING:
    from resnet.model.counting import Counts

TIMES = "\N{MULTIPLICATION SIGN}"
STAGE_COLUMNS = ("stage", "output", "layers", "parameters", "multiply-adds")
CHECK_COLUMNS = ("model", "parameters", "published", "by", "multiply-adds", "expected", "by", "in print")


def describe(spec: ResNetSpec, stage: int, blocks: Mapping[str, Sequence[Operation]]) -> str:
    """A stage's layers in the paper's notation, read from the traced program: block name -> its operations, in order.

    Stage 0 is the stem, the last one the head; their operations stand under any one name. Projections are not shown, as
    in the paper.
    """
    if stage == 0:
        return "; ".join(convolution_text(layer, show_stride=True) for layers in blocks.values() for layer in layers)
    if stage > len(spec.stage_sizes):
        hidden = f"{spec.head_hidden}-d fc, " if spec.head_hidden else ""
        return f"average pool, {hidden}{spec.num_classes}-d fc"
    # Blocks that read alike stand together: [3×3, 64; 3×3, 64] × 3.
    runs: list[tuple[str, int]] = []
    for text in map(block_text, blocks.values()):
        repeats = runs.pop()[1] if runs and runs[-1][0] == text else 0
        runs.append((text, repeats + 1))
    pool = [f"3{TIMES}3 max pool, stride 2"] if stage == 1 and spec.stem != "cifar" else []
    return "; ".join(pool + [f"[{text}] {TIMES} {repeats}" for text, repeats in runs])


def block_text(layers: Sequence[Operation]) -> str:
    """A block's branch: its convolutions and, of squeeze-and-excitation, the widths of its dense layers."""
    convolutions = [convolution_text(layer) for layer in layers if re.fullmatch(r"conv\d", layer.scope[-1])]
    dense = [str(layer.features) for layer in layers if not layer.kernel]
    return "; ".join(convolutions + ([f"fc, [{', '.join(dense)}]"] if dense else []))


def convolution_text(layer: Operation, show_stride: bool = False) -> str:
    """'3×3, 64', with ', C=32' for groups and, if asked for, ', stride 2'."""
    groups = f", C={layer.groups}" if layer.groups > 1 else ""
    stride = f", stride {layer.strides[0]}" if show_stride and layer.strides[0] > 1 else ""
    return f"{TIMES.join(map(str, layer.kernel))}, {layer.features}{groups}{stride}"


def stage_table(counts: "Counts") -> str:
    """Table 1 of the paper for one network, with a row of totals, as a markdown table."""
    rows = [
        (
            stage.name,
            f"{stage.output_size}{TIMES}{stage.output_size}",
            stage.layers,
            stage.parameters,
            stage.multiply_adds,
        )
        for stage in counts.stages
    ]
    return markdown(STAGE_COLUMNS, [*rows, ("total", "", "", counts.parameters, counts.multiply_adds)])


def totals(counts: "Counts", batch_size: int, dtype: str) -> str:
    """What the table leaves out, a line each."""
    mebibytes = counts.activation_bytes(batch_size, dtype) / 2**20
    images = "image" if batch_size == 1 else "images"
    return (
        f"trainable parameters      {counts.parameters:,}\n"
        f"BN statistics             {counts.statistics:,} (with parameters {counts.parameters + counts.statistics:,})\n"
        f"multiply-adds             {counts.multiply_adds:,} per image\n"
        f"training FLOPs            {counts.training_flops:,} per image, forward and backward\n"
        f"activations for backward  {mebibytes:,.1f} MiB for a batch of {batch_size:,} {images} in {dtype} "
        f"({counts.activations:,} values per image)"
    )


def check_table(checked: Iterable[tuple[str, Variant, "Counts"]]) -> str:
    """Named networks: counted and published figures side by side, as a markdown table."""
    rows = [
        (
            name,
            counts.parameters,
            variant.parameters,
            variant.source,
            counts.multiply_adds,
            variant.multiply_adds,
            variant.multiply_adds_source,
            "; ".join(map(str, variant.figures)),
        )
        for name, variant, counts in checked
    ]
    return markdown(CHECK_COLUMNS, rows)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str | int]]) -> str:
    """A markdown table that also reads well as text: columns padded, numbers with thousands separators to the right."""
    cells = [[f"{value:,}" if isinstance(value, int) else value for value in row] for row in rows]
    numeric = [bool(rows) and isinstance(rows[0][at], int) for at in range(len(columns))]
    widths = [max(map(len, column), default=3) for column in zip(columns, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        return f"| {' | '.join(parts)} |"

    rule = [f"{'-' * (width - 1)}:" if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    return "\n".join([line(columns), line(rule), *map(line, cells)])
