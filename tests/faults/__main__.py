"""python -m tests.faults --count=50 --seed=0: disrupts that many real runs and reports whether any result differs.

A line per injury: phase, moment, kind and damage, how the process ended, what was damaged, and whether its run came out
identical, bit for bit, to one that nothing happened to. Exit code 1 unless all did. On Linux with user namespaces
(unshare) everything lies on a small disk in memory, and full disks are among the injuries.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from resnet import command

MOUNTED = "FAULTS_MAY_MOUNT"
NAMESPACE = ["unshare", "--map-root-user", "--mount"]
DISK = "size=160m"
# A kill may be followed by damage to the files, so there are more of them.
KINDS = ("kill", "kill", "kill", "terminate", "interrupt", "interrupt_twice")


def main() -> int:
    parser = command.Parser(__doc__)
    parser.add_argument("--count", type=int, default=50, help="injuries (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and kinds (0)")
    arguments = parser.parse_args()
    # Before jax is imported. What is started takes over the CPU and the compilation cache of the tests.
    from tests import conftest  # noqa: F401

    if MOUNTED not in os.environ and may_mount():
        os.environ[MOUNTED] = "1"
        os.execvp(NAMESPACE[0], [*NAMESPACE, sys.executable, "-m", "tests.faults", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        if MOUNTED not in os.environ:
            print("No full disks among the injuries: no disk may be mounted here (unshare --map-root-user --mount).")
            return campaign(Path(folder), arguments.count, arguments.seed, KINDS)
        # Should this process be killed, the mount goes with its namespace.
        subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "none", folder], check=True)
        try:
            return campaign(Path(folder), arguments.count, arguments.seed, (*KINDS, "fill_disk"))
        finally:
            subprocess.run(["umount", "--lazy", folder], check=False)


def may_mount() -> bool:
    """Whether a namespace of our own can be had, in which a disk may be mounted."""
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def campaign(folder: Path, count: int, seed: int, kinds: tuple[str, ...]) -> int:
    """Injure, print, sum up; the exit code."""
    # Here, not above: it brings jax, and this process is first replaced by one in a namespace.
    from tests.faults.harness import Harness

    harness = Harness(folder, seed, kinds)
    identical, by_phase, by_kind = 0, Counter[str](), Counter[str]()
    with tqdm(total=count, unit="injury", disable=not sys.stderr.isatty()) as bar:
        for blow in harness.blows(count):
            bar.write("\n".join([blow.line(), *(f"    {fault}" for fault in blow.faults[1:])]))
            sys.stdout.flush()
            identical += blow.identical
            by_phase[blow.injury.phase] += 1
            by_kind[blow.injury.kind] += 1
            bar.update()
    print(", ".join(f"{times} in {phase}" for phase, times in by_phase.items()))
    print(", ".join(f"{times} {kind}" for kind, times in by_kind.items()))
    print(f"{identical} of {count} identical")
    return 0 if identical == count else 1


if __name__ == "__main__":
    command.run(main)
