"""Images decoded per processor second by the feed's decoder, with TensorFlow's oneDNN and without it.

    python -m benchmarks.decoding DATA_DIR [--images=400] [--rounds=3]

Each measurement is a process of its own, since TensorFlow reads the setting once; the two take turns.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path


def measure(data_dir: str, images: int) -> float:
    """Images per processor second: read, decoded, cropped and resized to 224 as a training feed does, one thread."""
    import numpy as np

    from input_pipeline.crops import Crop
    from input_pipeline.order import Order
    from input_pipeline.sources import open_source
    from input_pipeline.stream import train_batches

    split = open_source("folder", data_dir, val_fraction=0.0, test_fraction=0.0, progress=False).splits["train"]
    chosen = split.take(np.linspace(0, len(split) - 1, min(images, len(split))).astype(int))
    batch = 20
    feed = train_batches(chosen, Order(len(chosen), batch, 0), Crop("random_resized", 224), threads=1)
    next(feed)
    start, steps = time.process_time(), len(chosen) // batch
    for _ in range(steps):
        next(feed)
    return steps * batch / (time.process_time() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data_dir")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(measure(options.data_dir, options.images))
        return 0
    rates: dict[str, list[float]] = {"1": [], "0": []}
    words = [sys.executable, "-m", "benchmarks.decoding", "--child", f"--images={options.images}", options.data_dir]
    for _ in range(options.rounds):
        for setting, found in rates.items():
            environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": setting}
            root = Path(__file__).resolve().parent.parent
            done = subprocess.run(words, env=environment, cwd=root, capture_output=True, text=True, check=True)
            found.append(float(done.stdout.split()[-1]))
    for setting, found in rates.items():
        each = ", ".join(f"{rate:.0f}" for rate in found)
        print(f"TF_ENABLE_ONEDNN_OPTS={setting}: best {max(found):.0f} images per processor second ({each})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
