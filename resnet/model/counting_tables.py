"""Counts as people read them: one network as in Table 1 of He et al. 2015; named ones beside the published figures.

And as papers and programs do: each as LaTeX and CSV.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from resnet.model.spec import ResNetSpec
from resnet.model.table_formats import Row, comma_separated, latex, line_width, markdown, shown
from resnet.model.traced_program import Operation
from resnet.model.variants import Variant

if TYPE_CHECKING:
    from resnet.model.counts import Counts

TIMES = "\N{MULTIPLICATION SIGN}"
STAGE_COLUMNS = ("stage", "output", "layers", "parameters", "multiply-adds")
CHECK_COLUMNS = ("model", "parameters", "published", "by", "multiply-adds", "expected", "by", "in print")
# What a narrow terminal shows of these: whether the others agree is told below the table, and which does not.
NARROW = ("model", "parameters", "multiply-adds", "in print")
# CSV has a row for each of STAGE_COLUMNS' and no pages to tell networks apart by.
CSV_COLUMNS = ("model", "set", "image_size", "stage", "output", "layers", "parameters", "statistics", "multiply_adds")
CSV_CHECK_COLUMNS = (
    *("model", "parameters", "published", "published_by", "multiply_adds", "expected", "expected_by"),
    *("in_print", "differences"),
)


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


def stage_table(counts: "Counts", width: int | None = None) -> str:
    """Table 1 of the paper for one network, with a row of totals, as a markdown table; width: as for `markdown`."""
    return markdown(STAGE_COLUMNS, stage_rows(counts), width)


def stage_rows(counts: "Counts") -> list[Row]:
    """The rows of the network's stages, and one of totals, in STAGE_COLUMNS."""
    rows: list[Row] = [
        (
            stage.name,
            f"{stage.output_size}{TIMES}{stage.output_size}",
            stage.layers,
            stage.parameters,
            stage.multiply_adds,
        )
        for stage in counts.stages
    ]
    return [*rows, ("total", "", "", counts.parameters, counts.multiply_adds)]


def tables(
    counted: Mapping[str, "Counts"],
    settings: Sequence[str],
    *,
    form: str,
    batch_size: int,
    dtype: str,
    width: int | None = None,
) -> str:
    """What the counting command prints of networks by their names, in one of FORMATS.

    settings: the fields that were set, 'shortcut=C', which name all of them on. batch_size, dtype: as for `totals`.
    width: as for `markdown`.
    """
    if form == "csv":
        return comma_separated(
            CSV_COLUMNS, [row for name in counted for row in csv_rows(name, settings, counted[name])]
        )
    texts = []
    for name, counts in counted.items():
        title = f"{' '.join([name, *settings])}, {counts.image_size} pixels a side"
        told = totals(counts, batch_size, dtype)
        if form == "latex":
            texts.append(latex(STAGE_COLUMNS, stage_rows(counts), note=[title, told]) + "\n")
        else:
            texts.append(f"{title}\n\n{stage_table(counts, width)}\n\n{told}\n")
    return "\n".join(texts)


def csv_rows(name: str, settings: Sequence[str], counts: "Counts") -> list[Row]:
    """The rows of one network, and one of its totals, in CSV_COLUMNS."""
    about = (name, " ".join(settings), counts.image_size)
    rows: list[Row] = [
        (
            *about,
            stage.name,
            stage.output_size,
            stage.layers,
            stage.parameters,
            stage.statistics,
            stage.multiply_adds,
        )
        for stage in counts.stages
    ]
    return [*rows, (*about, "total", "", "", counts.parameters, counts.statistics, counts.multiply_adds)]


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


def check_table(
    checked: Sequence[tuple[str, Variant, "Counts"]],
    differences: Mapping[str, Sequence[str]],
    form: str = "markdown",
    width: int | None = None,
) -> str:
    """Named networks: counted and published figures side by side, in one of FORMATS.

    differences: by name, in what the two differ, a line each; the CSV's last column. A Markdown table that is wider
    than `width` characters is cut down to NARROW.
    """
    rows: list[Row] = [
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
    if form == "csv":
        return comma_separated(CSV_CHECK_COLUMNS, [(*row, "; ".join(differences[str(row[0])])) for row in rows])
    if form == "latex":
        return latex(CHECK_COLUMNS, rows)
    widths = [max(map(len, column)) for column in zip(CHECK_COLUMNS, *map(shown, rows), strict=True)]
    if width is None or line_width(widths) <= width:
        return markdown(CHECK_COLUMNS, rows)
    places = [CHECK_COLUMNS.index(column) for column in NARROW]
    return markdown(NARROW, [[row[place] for place in places] for row in rows], width)
