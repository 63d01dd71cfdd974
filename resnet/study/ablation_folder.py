"""An ablation's folder: whether it is one, what it says of the ablation, what is written anew after each variant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from input_pipeline.errors import InputError, printable
from input_pipeline.recipe import first_line
from resnet.study.ablation_alike import flat_config
from resnet.study.ablation_config import Study
from resnet.study.ablation_records import Record
from resnet.study.report import REPORT_FILE
from resnet.train.workdir import ABLATION, LOCK, PROVENANCE, names_in, write_json

if TYPE_CHECKING:
    from input_pipeline.resident import ResidentData


def check_folder(workdir: Path) -> None:
    """Raise InputError unless `workdir` is an ablation's folder, or empty, or can be made. Touches nothing."""
    entries = names_in(workdir)
    others = [entry for entry in entries if entry not in (LOCK, PROVENANCE, f".{PROVENANCE}.part", f".{ABLATION}.part")]
    if others and ABLATION not in entries:
        raise InputError(
            f"{printable(str(workdir))} is not an ablation's folder but holds {printable(others[0])!r}; give --workdir "
            "a new or empty folder"
        )


def start_folder(workdir: Path, title: str, study: Study, data: ResidentData) -> None:
    """Write what the folder says of the ablation; the first call's provenance stays."""
    # Here, not above, as in `write_outputs`: they take seconds to import, and a slip in the flags is told at once.
    from resnet.train.provenance import provenance

    if not (workdir / ABLATION).exists():
        write_json(workdir / PROVENANCE, provenance(data.as_source(study.base.data.source)))
    variants = {variant.name: list(variant.changes) for variant in study.variants}
    base = flat_config(study.base)
    write_json(
        workdir / ABLATION,
        {"recipe": title, "seeds": list(study.seeds), "baseline": study.baseline, "variants": variants}
        | {key: base[key] for key in base if not key.startswith(("model.", "optim."))},
    )


def write_outputs(workdir: Path, title: str, study: Study, records: dict[str, Record]) -> None:
    """Write tables, curves, TensorBoard's events and the report of what is done so far."""
    from resnet.study.ablation_curves import write_curves
    from resnet.study.ablation_events import write_events
    from resnet.study.ablation_table import write_tables

    write_tables(workdir, f"Ablation {title}", study, records)
    write_curves(workdir, study, records)
    write_events(workdir, study, records)
    try:
        # What they need besides is not on every accelerator's machine.
        from resnet.study.ablation_report import write_report
    except ImportError as error:
        # What an earlier call wrote no longer holds.
        (workdir / REPORT_FILE).unlink(missing_ok=True)
        print(f"No {printable(str(workdir / REPORT_FILE))}: {first_line(error)}", file=sys.stderr)
        return
    write_report(workdir, f"Ablation {title}", study, records)
