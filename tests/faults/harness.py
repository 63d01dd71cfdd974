"""Real runs in processes of their own, injured up to three times each, gone on with by the same command, compared."""

import dataclasses
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from resnet.train.checkpoints import load
from resnet.train.integrity import step_numbers
from tests.commands import Result, run
from tests.faults.injuries import BLOWS, PHASES, Injury, draw, inflict
from tests.run_lines import lines
from tests.tiny import tiny_data

RECIPE = Path(__file__).with_name("recipe.py")
MOST_PER_RUN = 3


@dataclasses.dataclass
class Blow:
    """An injury that took place: how the process ended, what was damaged, and whether its run came out as untouched."""

    injury: Injury
    code: int
    damaged: str
    faults: list[str]
    identical: bool = False

    def line(self) -> str:
        what = self.faults[0] if self.faults else ("identical" if self.identical else "NOT IDENTICAL")
        return f"{self.injury.describe()} exit {self.code:4}  {self.damaged:46} {what}"


class Harness:
    """Everything under `folder`; `kinds` are the blows that this machine can deal."""

    def __init__(self, folder: Path, seed: int, kinds: tuple[str, ...]) -> None:
        self.folder, self.kinds = folder, kinds
        self.generator = random.Random(seed)
        self.environment = {
            "XDG_CACHE_HOME": str(folder / "cache"),
            "FAULTS_DATA": str(tiny_data(folder)),
        }
        self.hits: Counter[str] = Counter()
        untouched = self.folder / "untouched"
        result = self.start(untouched, {})
        assert result.code == 0, result.err
        self.expected = outcome(untouched)

    def start(self, workdir: Path, environment: dict[str, str], script: str = "train_main.py") -> Result:
        flags = (f"--config={RECIPE}", f"--workdir={workdir}")
        return run(script, *flags, environment=self.environment | environment)

    def blows(self, count: int) -> Iterator[Blow]:
        """`count` blows, each handed out when the run that took it has ended and was compared."""
        number = 0
        while count:
            workdir = self.folder / f"run{number}"
            number += 1
            taken = self.injure(workdir, min(count, MOST_PER_RUN))
            count -= len(taken)
            yield from taken
            shutil.rmtree(workdir, ignore_errors=True)

    def injure(self, workdir: Path, most: int) -> list[Blow]:
        """Start one run again and again, injured up to `most` times, until it is done; compare it."""
        taken: list[Blow] = []
        environment: dict[str, str] = {}
        while len(taken) < most:
            injury = draw(self.next_phase(workdir), self.generator, kinds=self.kinds)
            if injury.place == "compile":
                # Nothing compiled yet, from here to the end of this run.
                environment = {"JAX_COMPILATION_CACHE_DIR": str(workdir.with_suffix(".xla"))}
            blow = self.strike(workdir, injury, environment)
            if blow is None:
                break
            taken.append(blow)
        else:
            result = self.start(workdir, environment)
            if result.code:
                taken[-1].faults.append(f"started again: exit {result.code}, {result.err.strip()[-300:]}")
        identical = same(outcome(workdir), self.expected)
        shutil.rmtree(workdir.with_suffix(".xla"), ignore_errors=True)
        for blow in taken:
            blow.identical = identical and not blow.faults
        return taken

    def next_phase(self, workdir: Path) -> str:
        """The phase with the fewest blows so far, of those that a start of this run can reach."""
        possible = [phase for phase in PHASES if phase != "resume" or step_numbers(workdir / "checkpoints")]
        fewest = min(self.hits[phase] for phase in possible)
        return self.generator.choice([phase for phase in possible if self.hits[phase] == fewest])

    def strike(self, workdir: Path, injury: Injury, environment: dict[str, str]) -> Blow | None:
        """Start the run and injure it. None where it ended well before the moment came."""
        marker, ballast = self.folder / "marker", self.folder / "ballast"
        marker.unlink(missing_ok=True)
        order = {name: getattr(injury, name) for name in ("place", "number", "delay", "kind")} | {"marker": str(marker)}
        environment = environment | {"INJURY": json.dumps(order)}
        result = self.start(workdir, environment, "tests/faults/injuring_train.py")
        ballast.unlink(missing_ok=True)
        faults = []
        if not marker.exists():
            if result.code == 0:
                return None
            faults.append(f"not injured: exit {result.code}, {result.err.strip()[-300:]}")
        elif result.code not in (0, *BLOWS[injury.kind]):
            faults.append(f"exit {result.code}: {result.err.strip()[-300:]}")
        if "Traceback" in result.err:
            faults.append(f"traceback: {result.err.strip()[-300:]}")
        self.hits[injury.phase] += 1
        damaged = inflict(injury.damage, workdir, self.generator) if injury.damage else ""
        return Blow(injury, result.code, damaged, faults)


def outcome(workdir: Path) -> dict[str, Any]:
    """Everything that must not depend on what happened on the way; {} for a run that did not come to its end."""
    steps = step_numbers(workdir / "checkpoints")
    if not steps:
        return {}
    arguments = ocp.args.Composite(
        variables=ocp.args.StandardRestore(), training=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()
    )
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    restored = checkpointer.restore(workdir / "checkpoints" / str(steps[0]), arguments)
    arrays = {name: restored[name] for name in ("variables", "training")}
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)}
    # Which of the newest are kept depends on where signals had it saved; the best one does not.
    best = load(workdir)[1].step
    return {
        "arrays": named,
        "lines": lines(workdir),
        "meta": restored["meta"],
        "best": best,
        "files": promised(workdir),
    }


def promised(workdir: Path) -> dict[str, bytes]:
    """What the run's directory holds besides logs, pictures and checkpoints, byte for byte."""
    return {name: (workdir / name).read_bytes() for name in ("config.json", "classes.json")}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two outcomes agree in every bit."""
    if one.keys() != other.keys() or not one:
        return False
    arrays, wanted = one["arrays"], other["arrays"]
    return (
        arrays.keys() == wanted.keys()
        and all(arrays[k].dtype == wanted[k].dtype and arrays[k].tobytes() == wanted[k].tobytes() for k in wanted)
        and all(one[name] == other[name] for name in one if name != "arrays")
    )
