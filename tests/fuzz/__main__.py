"""Feed damaged files to every reader: no crash, no hang, no memory blown up, nothing raised but the clean errors.

    python -m tests.fuzz [--count=10000] [--target=images] [--seed=0] [--keep=DIR]

Each target runs in a process of its own, with a bound on its memory and on each input's processor time; where an input
ends the process, that is a finding, and another process goes on behind it. Exit code 1 where there are findings; they
are named by number, and --keep writes the files.
"""

import argparse
import json
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.inputs import Inputs
from tests.fuzz.targets import SELF_TEST, TARGETS

# Processor seconds an input; a sound one takes hundredths, the first one the imports of TensorFlow or torch.
SECONDS, FIRST_SECONDS = 5.0, 120.0
# Wall-clock seconds an input: only what waits for something that never comes takes them.
WALL = 600
# Bytes that a process may ask for beyond what it has after its first input.
MEMORY = 2 << 30


def child(target: str, seed: int, first: int, count: int, journal: Path, seconds: float) -> None:
    """Take inputs first .. count - 1; `journal` says at any time which one is under way, and what the others did."""
    with tempfile.TemporaryDirectory() as scratch, journal.open("ab") as record:
        folder = Path(scratch)
        inputs = Inputs(target, folder)
        take = (TARGETS | SELF_TEST)[target].take
        signal.setitimer(signal.ITIMER_PROF, FIRST_SECONDS)
        take(inputs.seeds[0], folder)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for i in range(first, count):
            content = inputs.numbered(seed, i)
            # The default action of both ends the process, also inside a library that never returns to Python.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            signal.alarm(WALL)
            record.write(struct.pack("<q", i))
            record.flush()
            try:
                verdict = b"s" if take(content, folder) else b"r"
                text = b""
            except BaseException as error:
                verdict, text = b"f", f"{type(error).__name__}: {error}".splitlines()[0][:300].encode()
            record.write(verdict + struct.pack("<h", len(text)) + text)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def read_journal(journal: Path) -> tuple[list[tuple[int, str, str]], int | None]:
    """([(number, 's' sound | 'r' refused | 'f' finding, text)], number of the input under way at the end or None)."""
    data, at, done = journal.read_bytes(), 0, []
    while at < len(data):
        (number,) = struct.unpack_from("<q", data, at)
        at += 8
        if at >= len(data):
            return done, number
        verdict, (length,) = chr(data[at]), struct.unpack_from("<h", data, at + 1)
        done.append((number, verdict, data[at + 3 : at + 3 + length].decode(errors="replace")))
        at += 3 + length
    return done, None


def fuzz(target: str, seed: int, count: int, seconds: float = SECONDS) -> list[tuple[int, str, str]]:
    """The verdict on each of `count` inputs, each of which may take so many seconds of processor time."""
    verdicts: list[tuple[int, str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        first = 0
        while first < count:
            journal = Path(folder) / f"{first}.journal"
            journal.touch()
            words = [sys.executable, "-m", "tests.fuzz", "--child", target, seed, first, count, journal, seconds]
            ended = subprocess.run([str(word) for word in words], stderr=subprocess.PIPE, check=False)
            done, under_way = read_journal(journal)
            verdicts += done
            if under_way is None and ended.returncode:
                raise RuntimeError(
                    f"{target}: the process ended with {ended.returncode}: {ended.stderr.decode()[-2000:]}"
                )
            if under_way is not None:
                cause = "too long" if ended.returncode in (-signal.SIGPROF, -signal.SIGALRM) else "a crash"
                verdicts.append((under_way, "f", f"{cause} (exit code {ended.returncode})"))
                first = under_way + 1
            else:
                first = count
    return verdicts


def report(target: str, verdicts: list[tuple[int, str, str]], seconds: float) -> str:
    kinds = [kind for _, kind, _ in verdicts]
    sound, refused, findings = (kinds.count(kind) for kind in "srf")
    return (
        f"{target:10} {len(verdicts):,} inputs in {seconds:.0f} s: {refused:,} refused, {sound:,} taken for sound, "
        f"{findings:,} findings"
    )


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        target, seed, first, count, journal, seconds = sys.argv[2:8]
        child(target, int(seed), int(first), int(count), Path(journal), float(seconds))
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="inputs a target (default: 10,000)")
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", metavar="DIR", help="write the inputs of findings here")
    options = parser.parse_args()
    found = False
    for target in options.target or TARGETS:
        start = time.monotonic()
        verdicts = fuzz(target, options.seed, options.count)
        print(report(target, verdicts, time.monotonic() - start), flush=True)
        findings = [(number, text) for number, kind, text in verdicts if kind == "f"]
        found |= bool(findings)
        for number, text in findings[:20]:
            print(f"  number {number}: {json.dumps(text)}")
        if options.keep and findings:
            with tempfile.TemporaryDirectory() as scratch:
                inputs = Inputs(target, Path(scratch))
                Path(options.keep).mkdir(parents=True, exist_ok=True)
                for number, _ in findings:
                    content = inputs.numbered(options.seed, number)
                    (Path(options.keep) / f"{target}-{options.seed}-{number}").write_bytes(content)
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
