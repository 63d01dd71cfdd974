"""table.md, table.tex and table.csv: every variant's figures beside the baseline's and the papers'."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from input_pipeline.whole_files import write_whole
from resnet.model import table_formats
from resnet.study.ablation_config import Study, Variant
from resnet.study.ablation_diagnostics_table import diagnostics_table
from resnet.study.ablation_records import DIVERGED, FAILED, OK, Record
from resnet.study.ablation_seeds import missing_seeds
from resnet.study.ablation_statistics import Figures, figures, loss_kind, loss_kinds, present
from resnet.study.ablation_weights import kept_seeds

TABLE, TEX, CSV = "table.md", "table.tex", "table.csv"
NOT_RUN = "not run yet"
Records = Mapping[str, Record]
# Variant -> the seeds whose weights are kept (ablation_weights).
Kept = Mapping[str, tuple[int, ...]]


def write_tables(workdir: Path, title: str, study: Study, records: Records) -> None:
    """Write the tables, each in one piece. `records` holds the variants that are done; the others are named too."""
    kept = {name: seeds for name, record in records.items() if (seeds := kept_seeds(workdir, record))}
    write_whole(workdir / TABLE, markdown(title, study, records, kept))
    write_whole(workdir / TEX, latex(title, study, records))
    write_whole(workdir / CSV, comma_separated(study, records, kept))


def markdown(title: str, study: Study, records: Records, kept: Kept = MappingProxyType({})) -> str:
    """The whole of table.md."""
    lines = [f"# {title}", "", setting(study, records), ""]
    columns = heads(study)
    lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    sources: list[str] = []
    for variant in study.variants:
        lines.append("| " + " | ".join(map(in_a_cell, row(variant, study, records, sources))) + " |")
    lines += ["", *footnotes(study, records, sources), *weights_note(kept), ""]
    inside = diagnostics_table(study, records)
    return "\n".join([*lines, *inside]) + "\n"


def latex(title: str, study: Study, records: Records) -> str:
    """The whole of table.tex: the first table of table.md for a paper; what stands below that are comments here."""
    sources: list[str] = []
    rows = [row(variant, study, records, sources) for variant in study.variants]
    notes = [title, setting(study, records), *footnotes(study, records, sources)]
    return table_formats.latex(heads(study), rows, notes, texts=1) + "\n"


def heads(study: Study) -> list[str]:
    """The heads of the columns that `row` fills."""
    return [
        "variant",
        "test error %, last step",
        f"difference to {study.baseline} (95 % interval)",
        "best %",
        "seeds",
        "parameters",
        "multiply-adds",
        "images/s",
        "paper %",
    ]


def setting(study: Study, records: Records) -> str:
    """One line: what all variants have in common."""
    config = study.base
    what = ", ".join(sorted({record.device for record in records.values()})) or "no device yet"
    steps = f"{config.run.steps:,} steps" if config.run.steps else f"{config.run.epochs:g} epochs"
    seeds = ", ".join(map(str, study.seeds))
    rules = dict.fromkeys(f"{one.config.optim.name} {one.config.optim.schedule}" for one in study.variants)
    return (
        f"{steps} of {config.data.batch_size} images at {config.data.image_size} px, {' or '.join(rules)}, "
        f"{config.run.dtype}; seeds {seeds}; {what}."
    )


def row(variant: Variant, study: Study, records: Records, sources: list[str]) -> list[str]:
    """One line of the table; `sources` collects what the papers' column refers to."""
    paper = ""
    if variant.published:
        if variant.published.source not in sources:
            sources.append(variant.published.source)
        error = variant.published.error
        shown = error if isinstance(error, str) else f"{error:.2f}"
        paper = f"{on_a_line(shown)} [{sources.index(variant.published.source) + 1}]"
    record = records.get(variant.name)
    if record is None:
        return [variant.name, NOT_RUN, "", "", "", "", "", "", paper]
    own = figures(record, records.get(study.baseline))
    counted = f"{len(present(own.last))} of {len(study.seeds)}"
    rate = record.images_per_second
    return [
        variant.name,
        record.status if own.mean is None else with_deviation(own),
        difference(own),
        f"{own.best_mean:.2f}" if own.best_mean is not None else "",
        counted,
        f"{record.parameters:,}",
        f"{record.multiply_adds:,}",
        f"{rate:,.0f}" if rate else "",
        paper,
    ]


def in_a_cell(text: str) -> str:
    """Words of a recipe, which may be any, as one cell of a Markdown table."""
    return on_a_line(text).replace("|", "\\|")


def on_a_line(text: str) -> str:
    return " ".join(text.split())


def with_deviation(own: Figures) -> str:
    if own.mean is None:
        return ""
    return f"{own.mean:.2f}" + (f" ± {own.deviation:.2f}" if own.deviation is not None else "")


def difference(own: Figures) -> str:
    if own.difference is None:
        return ""
    interval = f" ({own.interval[0]:+.2f} to {own.interval[1]:+.2f})" if own.interval else ""
    if own.alike:
        interval = " (no interval)"
    pairs = f", {own.pairs} pair{'s' if own.pairs > 1 else ''}" if own.pairs < len(own.last) else ""
    return f"{own.difference:+.2f}{interval}{pairs}"


def footnotes(study: Study, records: Records, sources: list[str]) -> list[str]:
    """What the figures are, what they are not, and what did not go well."""
    lines = [
        "Last: at the last step, mean ± sample standard deviation over the seeds. Best: mean over the seeds of the "
        "best evaluation, which is optimistic, because the test split chose it.",
        *how_compared(study, records),
        *losses_note(study, records),
        *code_note(records),
        "Images/s: training images of all seeds together, without compilation and evaluation.",
    ]
    lines += [f"[{number}] {on_a_line(source)}" for number, source in enumerate(sources, start=1)]
    for variant in study.variants:
        record = records.get(variant.name)
        if record is not None and record.status in (DIVERGED, FAILED):
            lines.append(f"{variant.name}: {record.status}: {record.reason}")
        if record is not None and record.status != FAILED and (missing := missing_seeds(record, study)):
            lines.append(f"{variant.name}: not trained yet with seeds {', '.join(map(str, missing))}")
    return [line + "\n" for line in lines]


def losses_note(study: Study, records: Records) -> list[str]:
    """That losses of several kinds are no numbers of one scale, where the variants minimise several."""
    kinds = loss_kinds(study, records)
    if len(kinds) < 2:
        return []
    done = [variant for variant in study.variants if variant.name in records]
    of = "; ".join(f"{kind}: {', '.join(each.name for each in done if loss_kind(each) == kind)}" for kind in kinds)
    return [
        "The variants minimise different losses, which cannot be compared (in curves.png and variants/NAME.json), "
        f"nor can the norms of their gradients below; errors can. {of}."
    ]


def code_note(records: Records) -> list[str]:
    """That not all variants were trained by the same code, where that is so: a difference may be the code's."""
    of: dict[str, list[str]] = {}
    for name, record in records.items():
        if record.curves.code:
            of.setdefault(" and ".join(record.curves.code), []).append(name)
    if len(of) < 2 and not any(" and " in each for each in of):
        return []
    told = "; ".join(f"{each}: {', '.join(names)}" for each, names in of.items())
    return [
        "**Not all of it was trained by the same code**, so a difference may be due to the code and not the variant; "
        f"delete the variants/NAME.json of whatever should be trained again. By the number of the code: {told}."
    ]


def weights_note(kept: Kept) -> list[str]:
    """Where the weights are that were kept, and of what."""
    if not kept:
        return []
    of = ", ".join(f"{name} ({', '.join(map(str, seeds))})" for name, seeds in kept.items())
    return [f"Weights of the last step: weights/NAME/seed_S, of {of}; each a --checkpoint for other commands.\n"]


def how_compared(study: Study, records: Records) -> list[str]:
    """What the differences and their intervals are of, if there are any; a row says where it has fewer pairs."""
    own = [figures(record, records.get(study.baseline)) for record in records.values()]
    if all(one.difference is None for one in own):
        return []
    told = ["Difference: paired by seed"]
    if counts := sorted({one.pairs for one in own if one.interval}):
        told.append(
            f"interval: Student's t of the mean over {' or '.join(map(str, counts))} pairs, on these test images"
        )
    if any(one.pairs == 1 for one in own):
        told.append("no interval for a single pair")
    if any(one.alike for one in own):
        told.append("no interval where all pairs differ by the same number of test images, too few to show a deviation")
    return ["; ".join(told) + "."]


def comma_separated(study: Study, records: Records, kept: Kept = MappingProxyType({})) -> str:
    """The whole of table.csv: a line a variant, numbers in full, errors of each seed in columns of their own.

    weights: the seeds whose weights are kept, with spaces between.
    """
    seeds = [f"{kind}_seed_{seed}" for kind in ("last", "best") for seed in study.seeds]
    columns = [
        *("variant", "status", "reason", "changes", "last_mean", "last_std", "difference", "low", "high", "pairs"),
        *("best_mean", "diverged", "parameters", "multiply_adds", "images_per_second", "train_seconds", "device"),
        *("paper", "paper_source", "weights", "loss"),
        *seeds,
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for variant in study.variants:
        paper = variant.published
        line: dict[str, object] = {"variant": variant.name, "changes": " ".join(variant.changes), "status": NOT_RUN}
        line["loss"] = loss_kind(variant)
        if paper:
            line |= {"paper": paper.error, "paper_source": paper.source}
        record = records.get(variant.name)
        line["weights"] = " ".join(map(str, kept.get(variant.name, ())))
        if record:
            line |= measured(record, figures(record, records.get(study.baseline)))
        writer.writerow({key: "" if value is None else value for key, value in line.items()})
    return file.getvalue()


def measured(record: Record, own: Figures) -> dict[str, object]:
    low, high = own.interval or (None, None)
    each = {
        f"{kind}_seed_{seed}": value
        for kind, values in (("last", own.last), ("best", own.best))
        for seed, value in zip(record.seeds, values, strict=True)
    }
    return {
        "status": record.status,
        "reason": "" if record.status == OK else record.reason,
        "last_mean": own.mean,
        "last_std": own.deviation,
        "difference": own.difference,
        "low": low,
        "high": high,
        "pairs": own.pairs or None,
        "best_mean": own.best_mean,
        "diverged": sum(step is not None for step in record.curves.diverged),
        "parameters": record.parameters,
        "multiply_adds": record.multiply_adds,
        "images_per_second": record.images_per_second,
        "train_seconds": record.curves.seconds,
        "device": record.device,
        **each,
    }
