"""This project's commands as processes, each noted with its exit code and seconds in one JSON file."""

import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record

ROOT = Path(__file__).resolve().parent.parent


class Unexpected(RuntimeError):
    """A command did not do what it promises."""


@dataclasses.dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


class Shell:
    """Gives commands with Python's interpreter, from the checkout, and notes what came of them in `file`.

    environment: what the commands have. `notes` holds 'commands', 'found' (in words) and figures.
    """

    def __init__(self, file: Path, environment: Mapping[str, str]) -> None:
        self.file, self.environment = file, dict(environment)
        self.notes: dict[str, Any] = {"commands": [], "found": []}

    def run(self, *words: object, expect: int = 0, environment: Mapping[str, str] | None = None) -> Done:
        """Give a command and wait. Raises Unexpected for another exit code, with its last line."""
        with self.started(*words, environment=environment) as process:
            return self.ended(process, words, expect)

    @contextlib.contextmanager
    def started(
        self, *words: object, environment: Mapping[str, str] | None = None
    ) -> Iterator["subprocess.Popen[str]"]:
        """A command under way, to be `ended`; killed where that does not happen."""
        self.begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], cwd=ROOT, env={**self.environment, **(environment or {})}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def ended(self, process: "subprocess.Popen[str]", words: Sequence[object], expect: int) -> Done:
        """Wait for a command and note it. Raises Unexpected for another exit code than `expect`."""
        out, err = process.communicate()
        done = Done(process.returncode, out, err)
        name = record.command_line(["python", *map(str, words)])
        seconds = round(time.perf_counter() - self.begun, 2)
        self.notes["commands"].append({"command": name, "code": done.code, "seconds": seconds})
        self.save()
        if done.code != expect:
            last = (err.strip() or out.strip() or "no output").splitlines()[-1]
            raise Unexpected(f"exit code {done.code}, not {expect}: {last[:200]}")
        return done

    def refused(self, word: str, *words: object) -> None:
        """Give a command that must end with code 2 and one line on standard error, with `word` in it."""
        said = self.run(*words, expect=2).err.strip().splitlines()
        self.note(found=said[-1:])
        # JAX and XLA have lines of their own (warnings, a table of allocations) before a command's error.
        if not said[-1].startswith("error: ") or word not in said[-1] or any("Traceback" in line for line in said):
            raise Unexpected(f"no line on {word!r}, but: {' | '.join(said)[:200]}")
        self.note(lines_on_stderr=len(said))

    def note(self, found: Sequence[str] = (), **figures: Any) -> None:
        self.notes["found"] += [text.strip() for text in found]
        self.notes |= figures
        self.save()

    def compare(self, other: str, differences: Sequence[str], *, equal: bool = False) -> None:
        """Note in what something differs from `other`. equal: it must not, else Unexpected is raised."""
        words = f"differs from {other}: {', '.join(differences)}" if differences else f"equal to {other}, bit for bit"
        self.note(found=[words], equal=not differences)
        if equal and differences:
            raise Unexpected(words)

    def on_device_of(self, workdir: Path) -> None:
        self.note(device=json.loads((workdir / "provenance.json").read_text())["device"])

    def measured(self, workdir: Path) -> None:
        """Note a run's memory and speed: the median of its training lines behind the first, which compiled."""
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        training = [line for line in lines if line["kind"] == "train"]
        rates = [line["images_per_second"] for line in training[1:] or training]
        self.note(
            images_per_second=statistics.median(rates),
            data_wait=statistics.median(line["data_wait"] for line in training[1:] or training),
            **{key: training[-1][key] for key in ("device_memory", "loss") if key in training[-1]},
            **{f"test_{key}": line[key] for line in lines if line["kind"] == "test" for key in ("top1", "loss")},
        )

    def save(self) -> None:
        self.file.write_text(json.dumps(self.notes))
