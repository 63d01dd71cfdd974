"""K seeds of one variant at once against the same seeds one after another: wall time, and whether the figures agree.

    ./run.sh python -m benchmarks.seeds_at_once --out=DIR --only=resnet20 [--seeds=0,1,2] [--config=FILE] [FLAGS...]

Both ways are commands of their own, from nothing: imports, data, compilation (each way has an empty cache of compiled
programs), training, evaluation. FLAGS go to both, such as --config.data.dir=PATH --config.run.steps=200. Writes
DIR/seeds_at_once.json; results that count are copied to benchmarks/results/ by hand.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", required=True, help="the variant")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--config", default="configs/ablations/cifar_small.py")
    arguments, flags = parser.parse_known_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    variant, out = arguments.only, arguments.out.absolute()

    def train(name: str, chosen: list[int], cache: str) -> tuple[float, dict[str, Any]]:
        """(wall seconds of the whole command, the variant's record)."""
        command = [sys.executable, "-m", "resnet.study.ablation", f"--config={arguments.config}"]
        command += [f"--workdir={out / name}", f"--only={variant}", f"--config.baseline={variant}", *flags]
        command += [f"--config.seeds=({','.join(map(str, chosen))},)"]
        start = time.perf_counter()
        subprocess.run(command, check=True, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(out / cache)})
        seconds = time.perf_counter() - start
        return seconds, json.loads((out / name / "variants" / f"{variant}.json").read_text())

    together_seconds, together = train("together", seeds, "cache_together")
    each = [train(f"seed_{seed}", [seed], "cache_alone") for seed in seeds]
    result = compare(together_seconds, together, each, seeds)
    result |= {"variant": variant, "config": arguments.config}
    print(json.dumps(result, indent=1))
    record.write("seeds_at_once", result, out / "seeds_at_once.json", device=together["device"])


def compare(
    together_seconds: float, together: dict[str, Any], each: list[tuple[float, dict[str, Any]]], seeds: list[int]
) -> dict[str, Any]:
    """Wall times, their ratio, training speed, and the last figures of each seed both ways."""
    last = lambda record, quantity: record["curves"][quantity][-1]  # noqa: E731
    alone_top1 = [last(record, "test_top1")[0] for _, record in each]
    alone_loss = [last(record, "test_loss")[0] for _, record in each]
    alone_seconds = sum(seconds for seconds, _ in each)
    return {
        "seeds": seeds,
        "together_by": together["together"],
        "together_wall_seconds": together_seconds,
        "alone_wall_seconds": alone_seconds,
        "wall_ratio": alone_seconds / together_seconds,
        "together_images_per_second": together["curves"]["images"] / together["curves"]["seconds"],
        "alone_images_per_second": [record["curves"]["images"] / record["curves"]["seconds"] for _, record in each],
        "together_top1": last(together, "test_top1"),
        "alone_top1": alone_top1,
        "same_to_the_last_bit": [last(together, "test_top1"), last(together, "test_loss")] == [alone_top1, alone_loss],
    }


if __name__ == "__main__":
    main()
