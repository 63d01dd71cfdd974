"""images/s of the train and evaluation step: ours, plain flax, torch, Keras, interleaved in one run; compile times.

    ./run.sh bench step [--model=resnet50] [--image_size=64] [--batch_size=32] [--rounds=5] [--peers=ours,torch]

Every peer (benchmarks/step_peers.py) trains the same network (SGD with momentum, float32) on the same random batch, in
a process of its own that waits while others have their turn: resnet50 with 1,000 classes, or a CIFAR ResNet with 10 (no
Keras there: it has none). A round runs each peer once, so that a noisy machine disturbs all alike; medians are quoted.
--rounds=0 compiles alone. What ours and plain flax take to lower and compile is in seconds of the clock and of the
processor, with nothing cached; medians of --compiles processes each.
Writes benchmarks/results/step_MODEL_SIZE_DEVICE.json.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import record
from benchmarks.step_peers import Peer, Setting, Taken, separate
from input_pipeline.errors import InputError
from resnet import command

# Side of the images, images a batch, and who takes part, unless the flags say.
MODELS: dict[str, tuple[int, int, str]] = {
    "resnet50": (64, 32, "ours,linen,torch,torch_compiled,keras"),
    "cifar_resnet20": (32, 128, "ours,linen,torch,torch_compiled"),
    "cifar_resnet110": (32, 128, "ours,linen,torch,torch_compiled"),
}
KINDS = ("train", "eval")
WARM = 2
# A step of so many seconds has touched all its memory and made all its kernels the first time, and cold caches are
# nothing in it: it is timed after a rest, in which torch's threads, which spin on after their last call, fall asleep.
LONG, REST = 5.0, 0.5


@dataclass
class Entry:
    """A peer that takes part. first_step: seconds from nothing to its first train step; used: seconds of all steps."""

    peer: Peer
    first_step: float = 0.0
    used: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    last: dict[str, float] = field(default_factory=dict)

    def step(self, kind: str) -> float:
        """Take one step of a kind; its seconds."""
        start = time.perf_counter()
        self.peer.steps[kind]()
        self.last[kind] = time.perf_counter() - start
        self.used += self.last[kind]
        return self.last[kind]


def main() -> None:
    parser = command.Parser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="resnet50")
    parser.add_argument("--image_size", type=int, help="default: 64, of a CIFAR network 32")
    parser.add_argument("--batch_size", type=int, help="default: 32, of a CIFAR network 128")
    parser.add_argument("--rounds", type=int, default=5, help="0: compile alone")
    parser.add_argument("--peers", help=f"default: {MODELS['resnet50'][2]}; of a CIFAR network without keras")
    parser.add_argument(
        "--peer_seconds", type=float, default=60, help="no further round for a peer whose steps took so long"
    )
    parser.add_argument("--compiles", type=int, default=1, help="processes of ours and plain flax that compile")
    parser.add_argument("--out", default="", help="default: benchmarks/results/step_MODEL_SIZE_DEVICE.json")
    arguments = parser.parse_args()
    size, batch, names = MODELS[arguments.model]
    setting = Setting(arguments.model, arguments.image_size or size, arguments.batch_size or batch)
    chosen = (arguments.peers or names).split(",")
    if unknown := [name for name in chosen if name not in names.split(",")]:
        raise InputError(f"--peers={','.join(unknown)}: no peer of {setting.model}; those are {names}")
    figures: dict[str, Any] = {"compile_seconds": {}, "left_out": {}}
    entries = enter(setting, chosen, figures, steps=arguments.rounds > 0, compiles=arguments.compiles)
    measure(entries, arguments.rounds, arguments.peer_seconds)
    report(setting, arguments, figures, entries)


def enter(
    setting: Setting, names: list[str], figures: dict[str, Any], *, steps: bool, compiles: int
) -> dict[str, Entry]:
    """The peers that are installed, compiled and, with `steps`, warm; what is known then goes into `figures`."""
    entries: dict[str, Entry] = {}
    for name in names:
        start = time.perf_counter()
        try:
            peer = separate(name, setting)
        except ImportError as error:
            figures["left_out"][name] = f"{error.name} is not installed"
            print(f"{name}: left out, {error.name} is not installed (./run.sh setup bench)")
            continue
        if steps:
            entry = entries[name] = Entry(peer)
            entry.step("train")
            entry.first_step = time.perf_counter() - start
            for kind in KINDS:
                for _ in range(WARM - (kind == "train")):
                    if entry.last.get(kind, 0.0) < LONG:
                        entry.step(kind)
            print(f"{name}: first train step after {entry.first_step:.1f} s", flush=True)
        if peer.compile_seconds:
            # The others end where they are dropped.
            again = [separate(name, setting).compile_seconds for _ in range(compiles - 1)]
            figures["compile_seconds"][name] = medians([peer.compile_seconds, *again])
            taken = ", ".join(
                f"{kind} in {spent['wall']:.1f} s" for kind, spent in figures["compile_seconds"][name].items()
            )
            print(f"{name}: compiled {taken}", flush=True)
    return entries


def medians(found: Sequence[Mapping[str, Taken]]) -> dict[str, Taken]:
    """Of each kind of step and each clock, over processes."""
    return {
        kind: {clock: statistics.median(one[kind][clock] for one in found) for clock in clocks}
        for kind, clocks in found[0].items()
    }


def measure(entries: dict[str, Entry], rounds: int, most_seconds: float) -> None:
    """A timed step of each kind a round, of every peer that has not yet used `most_seconds`; of each at least one."""
    for number in range(rounds):
        for kind in KINDS:
            for entry in entries.values():
                if number and entry.used > most_seconds:
                    continue
                # Whoever ran before has filled the caches, and torch's threads spin on for a while.
                if entry.last[kind] < LONG:
                    entry.step(kind)
                else:
                    time.sleep(REST)
                entry.seconds[kind].append(entry.step(kind))


def report(setting: Setting, arguments: argparse.Namespace, figures: dict[str, Any], entries: dict[str, Entry]) -> None:
    """Print the table and write the record."""
    rates = {
        name: {kind: setting.batch_size / statistics.median(entry.seconds[kind]) for kind in KINDS}
        for name, entry in entries.items()
    }
    compiled = figures["compile_seconds"]
    print(f"\n{setting.model}, {setting.image_size} px, batch {setting.batch_size}, float32, medians")
    print(f"{'':16}{'train':>9}{'ours /':>8}{'eval':>9}{'ours /':>8}{'compile':>9}{'first':>8}   (images/s, ratio, s)")
    for name in [*compiled, *(name for name in rates if name not in compiled)]:
        cells = ""
        for kind in KINDS:
            rate, ours = (rates.get(who, {}).get(kind) for who in (name, "ours"))
            cells += f"{rate:9.1f}" if rate else " " * 9
            cells += f"{ours / rate:8.2f}" if ours and rate else " " * 8
        took = f"{compiled[name]['train']['wall']:9.1f}" if name in compiled else " " * 9
        first = f"{entries[name].first_step:8.1f}" if name in entries else ""
        print(f"{name:16}{cells}{took}{first}")
    record.write(
        "step",
        {
            "model": setting.model,
            "image_size": setting.image_size,
            "batch_size": setting.batch_size,
            "rounds": arguments.rounds,
            "compiles": arguments.compiles,
            "images_per_second": rates,
            **figures,
            "first_step_seconds": {name: entry.first_step for name, entry in entries.items()},
            "seconds": {name: entry.seconds for name, entry in entries.items()},
        },
        arguments.out or record.default_file(f"step_{setting.model}_{setting.image_size}"),
    )


if __name__ == "__main__":
    command.run(main)
