"""report.html of an ablation: its tables, every seed's figure, curves, and what the networks look like inside."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline.errors import printable
from input_pipeline.shell_words import shell_words
from input_pipeline.whole_files import write_whole
from resnet.study import ablation_figures, report_figures, report_tables
from resnet.study.ablation_alike import flat_config
from resnet.study.ablation_config import Study, Variant
from resnet.study.ablation_records import DIVERGED, FAILED, Record
from resnet.study.ablation_seeds import missing_seeds
from resnet.study.ablation_statistics import Figures, figures
from resnet.study.ablation_table import footnotes, setting
from resnet.study.ablation_weights import kept_seeds
from resnet.study.report import REPORT_FILE
from resnet.study.report_template import render
from resnet.study.run_record import changed_keys, read_json
from resnet.train.provenance import arguments
from resnet.train.workdir import PROVENANCE

Records = Mapping[str, Record]


def write_report(workdir: Path, title: str, study: Study, records: Records) -> Path:
    """Write WORKDIR/report.html in one piece, of what is done so far; its place."""
    file = workdir / PROVENANCE
    provenance = read_json(file, dict) if file.is_file() else {}
    text = page(workdir, title, study, records, provenance, shell_words(arguments()))
    write_whole(workdir / REPORT_FILE, text, errors="backslashreplace")
    return workdir / REPORT_FILE


def page(workdir: Path, title: str, study: Study, records: Records, provenance: dict[str, Any], command: str) -> str:
    """The whole page as HTML, which loads nothing from anywhere.

    provenance: of the call that began the ablation. command: of the one that writes the page, the words behind
    `python`.
    """
    keys = report_figures.keys([variant.name for variant in study.variants])
    script, places = report_figures.embedded(ablation_figures.all_figures(study, records, keys))
    flat = flat_config(study.base)
    sources: list[str] = []
    context = {
        "title": printable(title),
        "state": state(study, records),
        "setting": setting(study, records),
        "baseline": study.baseline,
        "rows": [row(variant, key, study, records, sources) for variant, key in zip(study.variants, keys, strict=True)],
        "notes": footnotes(study, records, sources),
        "kept": {name: seeds for name, record in records.items() if (seeds := kept_seeds(workdir, record))},
        "figures": places,
        "legend": [key for key in keys if key.name in records],
        "numbers": {key.name: number for number, key in enumerate(keys)},
        "seeds_drawn": ablation_figures.draws_seeds(records),
        "changed": [
            (key, report_tables.shown(default), report_tables.shown(value))
            for key, default, value in changed_keys(flat)
            if not key.startswith(("model.", "optim.")) or all_have(study, key, value)
        ],
        "provenance": report_tables.flattened(provenance),
        "command": f"./run.sh python {printable(command)}",
    }
    return render("ablation.html", context, figure_script=script)


def state(study: Study, records: Records) -> str:
    """'finished', or how much of it is done."""
    done = [name for name, record in records.items() if record.status != FAILED and not missing_seeds(record, study)]
    total = len(study.variants)
    return "finished" if len(done) == total else f"not finished: {len(done)} of {total} variants"


def all_have(study: Study, key: str, value: Any) -> bool:
    """Whether a key of the base has this value in all variants: what they differ in stands beside each of them."""
    return all(flat_config(variant.config)[key] == value for variant in study.variants)


def row(
    variant: Variant, key: report_figures.Key, study: Study, records: Records, sources: list[str]
) -> dict[str, Any]:
    """A variant's line of the table; `sources` is given what the papers' column refers to."""
    record = records.get(variant.name)
    own = figures(record, records.get(study.baseline)) if record and record.status != FAILED else None
    paper = variant.published
    if paper and paper.source not in sources:
        sources.append(paper.source)
    return {
        "key": key,
        "changes": [change for change in variant.changes if change != f"model.name={variant.name}"],
        "status": "not run yet" if record is None else record.status,
        "diverged": sum(at is not None for at in record.curves.diverged) if record else 0,
        "record": record,
        "own": own,
        "seeds": seeds_told(own, study),
        "paper": paper,
        "source": sources.index(paper.source) + 1 if paper else None,
        "failed": record is not None and record.status in (DIVERGED, FAILED),
    }


def seeds_told(own: Figures | None, study: Study) -> str:
    """'3 of 5': seeds that have a result."""
    return f"{sum(value is not None for value in own.last)} of {len(study.seeds)}" if own else ""
