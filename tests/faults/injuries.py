"""What is done to a run: blows while it works, damage to its files once it lies still. All drawn from a seed."""

import dataclasses
import json
import random
import signal
from pathlib import Path

from resnet.train.integrity import COMMITTED, step_numbers

# Phase -> (place of injuring_train.py, how often a run reaches it, seconds after it within which the blow falls).
PHASES: dict[str, tuple[tuple[str, int, float], ...]] = {
    "start-up": (("open", 1, 0.3), ("directory", 3, 0.0)),
    "resume": (("restore", 1, 0.05),),
    "compilation": (("compile", 1, 1.0),),
    "step": (("step", 6, 0.02),),
    "save": (("save", 3, 0.15), ("seal", 3, 0.0)),
    "evaluation": (("val", 8, 0.01),),
    "final save": (("final_save", 1, 0.15),),
    "test": (("test", 3, 0.01), ("end", 1, 0.2)),
}
# Kind -> the exit codes it may lead to besides 0: a signal before the run has begun to listen kills by itself.
BLOWS: dict[str, tuple[int, ...]] = {
    "kill": (-signal.SIGKILL,),
    "terminate": (143, -signal.SIGTERM),
    "interrupt": (130, -signal.SIGINT),
    "interrupt_twice": (130, -signal.SIGINT),
    "fill_disk": (2,),
}
DAMAGES = ("cut", "flip", "lose", "empty", "stray", "tear_line")


@dataclasses.dataclass(frozen=True)
class Injury:
    """A blow at a moment of a phase and, for a kill, maybe a damage afterwards ('' for none), as a power cut leaves."""

    phase: str
    place: str
    number: int
    delay: float
    kind: str
    damage: str

    def describe(self) -> str:
        moment = f"{self.place} {self.number}" + (f" + {1000 * self.delay:.0f} ms" if self.delay else "")
        return f"{self.phase:12} {moment:22} {self.kind + (', ' + self.damage if self.damage else ''):18}"


def draw(phase: str, generator: random.Random, *, kinds: tuple[str, ...]) -> Injury:
    """An injury of that phase."""
    place, times, delay = generator.choice(PHASES[phase])
    kind = generator.choice(kinds)
    damage = generator.choice(("", *DAMAGES)) if kind == "kill" else ""
    # Half of the blows fall at the place itself.
    seconds = generator.choice((0.0, generator.uniform(0.0, delay)))
    return Injury(phase, place, generator.randrange(times), round(seconds, 4), kind, damage)


def inflict(damage: str, workdir: Path, generator: random.Random) -> str:
    """Damage the newest checkpoint or the last line of a run that lies still; what was done, '' where nothing could."""
    root = workdir / "checkpoints"
    steps = step_numbers(root)
    if damage == "tear_line":
        return tear_line(workdir / "metrics.jsonl", steps[0] if steps else 0, generator)
    if damage == "stray":
        if not root.is_dir():
            return ""
        (root / "99").mkdir()
        return "empty folder 99"
    if not steps:
        return ""
    newest = root / str(steps[0])
    files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size]
    # Orbax' own mark says nothing that anybody reads.
    victim = generator.choice(sorted(path for path in files if not (path.parent == newest and path.name == COMMITTED)))
    name = str(victim.relative_to(root))
    if damage == "cut":
        victim.write_bytes(victim.read_bytes()[: generator.randrange(victim.stat().st_size)])
    elif damage == "flip":
        data = bytearray(victim.read_bytes())
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        victim.write_bytes(data)
    elif damage == "lose":
        victim.unlink()
    else:
        for path in files:
            path.unlink()
        name = newest.name
    return f"{damage} {name}"


def tear_line(metrics: Path, saved: int, generator: random.Random) -> str:
    """Cut the last line short, if no checkpoint stands for its step: lines of those that are saved lie on the disk."""
    lines = metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else []
    if not lines:
        return ""
    try:
        record = json.loads(lines[-1])
    except ValueError:
        return ""
    if record["step"] <= saved and record["kind"] != "test":
        return ""
    metrics.write_bytes(b"".join(lines[:-1]) + lines[-1][: generator.randrange(len(lines[-1]))])
    return f"tear line of step {record['step']}"
