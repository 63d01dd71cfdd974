"""Which damaged content is the i-th of a target: a function of (target, seed, i), so that a finding comes back."""

import random
from pathlib import Path

from tests.fuzz.mutations import Edit, mutate, mutate_json, random_edits
from tests.fuzz.targets import SELF_TEST, TARGETS


class Inputs:
    """The damaged contents of one target."""

    def __init__(self, target: str, folder: Path) -> None:
        self.name, self.seeds = target, (TARGETS | SELF_TEST)[target].seeds(folder)

    def numbered(self, seed: int, i: int) -> bytes:
        """Content number `i` of the run with this seed."""
        generator = random.Random(f"{self.name} {seed} {i}")
        return self.damaged(i, generator.randrange(len(self.seeds)), random_edits(generator))

    def damaged(self, base: int, other: int, edits: list[Edit]) -> bytes:
        """A sound content by number, edited; of a checkpoint's files the name in front is left alone."""
        sound, spare = (self.seeds[number % len(self.seeds)] for number in (base, other))
        if self.name == "metadata" and base % 4:
            # Damaged text is seldom JSON still; damaged values reach behind its parser.
            return mutate_json(sound, edits)
        if self.name != "checkpoint":
            return mutate(sound, edits, spare)
        name, newline, body = sound.partition(b"\n")
        return name + newline + mutate(body, edits, spare.partition(b"\n")[2])
