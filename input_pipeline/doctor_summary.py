"""What a run's first screen says of its data: the few lines of the doctor's report that a result hangs on."""

from __future__ import annotations

from input_pipeline.errors import printable
from input_pipeline.leaks import earlier, find_leaks
from input_pipeline.shell_words import shell_word
from input_pipeline.sources import Source

# Told by `leak_lines` for the splits as this run has them, and by the audit for the decoder that feeds it.
_TOLD_ELSEWHERE = ("exact_leak", "near_leak", "unreadable")
_MOST = 5


def leak_lines(source: Source) -> list[str]:
    """One line for each split with images that also stand in an earlier one; empty where the doctor did not look."""
    if source.report is None:
        return []
    lines = []
    for name, split in source.splits.items():
        where = " or ".join(earlier(source, name))
        if name in source.dropped:
            exact, near = (len(source.dropped[name][kind]) for kind in ("exact", "near"))
            lines.append(f"left out of {name}, also in {where}: {_counts(exact, near)}; {len(split):,} remain")
            continue
        leaks = find_leaks(source, name)
        if leaks.either.any():
            counts = _counts(int(leaks.exact.sum()), int(leaks.near.sum()))
            advice = "config.data.drop_leaks leaves them out"
            lines.append(f"of {len(split):,} {name} images, also in {where}: {counts}; {advice}")
    return lines


def _counts(exact: int, near: int) -> str:
    parts = [f"{exact:,} byte for byte"] if exact else []
    if near:
        parts.append(f"{near:,} as copies (re-encoded, scaled …)")
    return ", ".join(parts)


def warning_lines(source: Source) -> list[str]:
    """The doctor's errors and warnings, worst first, and where to read the rest; empty where all is well."""
    if source.report is None:
        return []
    wanted = [
        finding for finding in source.report.findings if finding.level != "note" and finding.code not in _TOLD_ELSEWHERE
    ]
    lines = [printable(f"{finding.level}: {finding.summary}") for finding in wanted[:_MOST]]
    more = f"{len(wanted) - _MOST} more; " if len(wanted) > _MOST else ""
    if lines:
        where = shell_word(source.report.where)
        lines.append(f"{more}each case: ./run.sh python -m input_pipeline.doctor {where}")
    return lines
