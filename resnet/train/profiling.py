"""Some steps of a run under JAX' profiler, for TensorBoard's profile plugin (config.run.profile)."""

import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from input_pipeline.errors import InputError, printable

SPAN = re.compile(r"([0-9]{1,10}):([0-9]{1,10})")


def read_span(text: str) -> tuple[int, int] | None:
    """'100:105' -> (100, 105): the steps after the 100th, up to and with the 105th. None for ''.

    Raises InputError for anything else, and for a span without a step.
    """
    if not text:
        return None
    match = SPAN.fullmatch(text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if first >= last:
        raise InputError(
            f"config.run.profile={printable(text)!r} must be FIRST:LAST with FIRST below LAST, such as 100:105"
        )
    return first, last


def check_span(text: str, total_steps: int) -> None:
    """Raise InputError for steps that a run of `total_steps` never gets to."""
    span = read_span(text)
    if span and span[1] > total_steps:
        raise InputError(f"config.run.profile={text} goes beyond the run, which has {total_steps:,} steps")


class Profiler:
    """Traces the steps of a span into `folder`/plugins/profile. A run that goes on within the span traces the rest."""

    def __init__(self, text: str, folder: Path) -> None:
        self._span = read_span(text)
        self._folder = folder
        self.tracing = False

    def during(self, step: int, state: Any) -> AbstractContextManager[Any]:
        """To be entered around step number `step` (from 0): begins the trace at the first, names each step in it."""
        if self._span is None:
            return nullcontext()
        # Here, not above: configurations are checked before jax is imported.
        import jax

        first, last = self._span
        if not self.tracing and first <= step < last:
            # What was dispatched before belongs to other steps.
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self.tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step) if self.tracing else nullcontext()

    def after(self, step: int, state: Any) -> None:
        """`step` steps are done: ends the trace at the last."""
        if self.tracing and self._span and step >= self._span[1]:
            self.end(state)

    def end(self, state: Any) -> None:
        """Wait for the steps under way and write the trace; nothing where none is open."""
        if self.tracing:
            import jax

            self.tracing = False
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
