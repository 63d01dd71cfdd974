"""The second table of table.md: what `ablation_diagnostics` saw inside the networks, stage by stage."""

from collections.abc import Mapping

import numpy as np

from resnet.study.ablation_config import Study
from resnet.study.ablation_records import DIVERGED, Diagnosis, Record
from resnet.study.ablation_statistics import present


def diagnostics_table(study: Study, records: Mapping[str, Record]) -> list[str]:
    """Inside the networks, stage by stage: means over blocks and well seeds, before the first step and at the end."""
    rows = []
    for variant in study.variants:
        record = records.get(variant.name)
        if record is None or not record.end:
            continue
        if None not in record.curves.diverged:
            rows.append(f"| {variant.name} | {DIVERGED} |  |  |")
            continue
        start, end = well(record, record.curves.start), well(record, record.end)
        cells = [f"{norm_at(start, kind)} → {norm_at(end, kind)}" for kind in ("first", "last")]
        rows.append(f"| {variant.name} | {ratios(start, end)} | {cells[0]} | {cells[1]} |")
    if not rows:
        return []
    return [
        "## Inside the networks",
        "",
        "Before the first step → after the last, means over the seeds that did not diverge: root mean square of a "
        "block's branch over that of its shortcut, by stage; norm of the loss' gradient by the parameters of the first "
        "and of the last block. Every block's figures are in variants/NAME.json.",
        "",
        "| variant | branch / shortcut, stage by stage | gradient, first block | gradient, last block |",
        "| --- | --- | --- | --- |",
        *rows,
    ]


def well(record: Record, found: Diagnosis) -> Diagnosis:
    """A diagnosis of the seeds that did not diverge alone."""
    return {
        quantity: {block: record.curves.well(values) for block, values in blocks.items()}
        for quantity, blocks in found.items()
    }


def ratios(start: Diagnosis, end: Diagnosis) -> str:
    """'0.52 → 0.31, 0.50 → 0.28, …': one pair a stage."""
    stages: dict[str, list[str]] = {}
    for block in end.get("branch_to_shortcut", {}):
        stages.setdefault(block.partition("_")[0], []).append(block)
    shown = []
    for blocks in stages.values():
        pair = [
            average([value for block in blocks for value in found.get("branch_to_shortcut", {}).get(block, [])])
            for found in (start, end)
        ]
        shown.append(" → ".join(pair))
    return ", ".join(shown) or "no shortcuts"


def norm_at(found: Diagnosis, which: str) -> str:
    """The gradient norm of the first or last block, mean over seeds."""
    norms = {name: values for name, values in found.get("gradient_norm", {}).items() if name.startswith("layer")}
    names = list(norms)
    return average(norms[names[0 if which == "first" else -1]]) if names else "?"


def average(values: list[float | None]) -> str:
    there = present(values)
    return f"{np.mean(there):.3g}" if there and len(there) == len(values) else "not finite"
