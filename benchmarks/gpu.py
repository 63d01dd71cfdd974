"""Every comparison on a GPU in one call of under nine minutes: ours, torch eager, torch.compile; no TensorFlow needed.

    python -m benchmarks.gpu [--seconds=520] [--out=FILE] [--parts=ours:256,torch_compiled:256,…]
    JAX_PLATFORMS=cpu python -m benchmarks.gpu --small --out=/tmp/small.json      # that it works, on any machine

Each part is a process of its own (benchmarks/gpu_parts.py), so that none finds the other's memory taken; it writes what
it found at once, and a part that fails or runs out of time leaves a row that says so. The full train step: uint8 images
on the device, normalised there, ResNet-50 (v1.5, 1,000 classes) in bfloat16 with float32 parameters, cross-entropy, SGD
with momentum 0.9 and weight decay. Rates are medians over repetitions of ten steps that are not waited for in between.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import record

# In order of worth: what comes late is what a short lease loses. NAME:BATCH.
PARTS = (
    "ceilings:0",
    "ours:256",
    "torch_compiled:256",
    "torch:256",
    "ours:512",
    "ours_scan:256",
    "ours:128",
    "ours_eval:256",
    "torch_compiled_eval:256",
    "ours_eval:1",
    "torch_compiled_eval:1",
)
# Seconds of one part at most; torch's max-autotune compiles for minutes.
LONGEST = 200
# Training FLOPs of one image at 224 px, multiply-adds counted as two (../shared/FACTS.md and resnet.model.counting).
TRAINING_FLOPS = 24.3e9
# Bytes that a step moves per image at 224 px in bfloat16 when elementwise work is fused but BN's statistics are not,
# and when they are fused into the convolutions too: 91.6 and 61.4 GB for 256 images, counted layer by layer.
FUSED_BYTES, BEST_BYTES = 91.6e9 / 256, 61.4e9 / 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=520, help="in all (default: 520)")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--small", action="store_true", help="a tiny network and batch: whether it works, not how fast")
    parser.add_argument("--out", default="", help="the JSON file (default: benchmarks/results/gpu_DEVICE.json)")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    rows = []
    for part in arguments.parts.split(","):
        name, _, batch = part.partition(":")
        left = deadline - time.monotonic()
        row = (
            run_part(name, int(batch), arguments.small, min(LONGEST, left)) if left > 15 else {"failed": "no time left"}
        )
        rows.append({"part": name, "batch_size": int(batch), **row})
        print(json.dumps(rows[-1])[:300], flush=True)
        save(arguments.out, rows, arguments.small)
    print(table(rows))


def run_part(name: str, batch: int, small: bool, seconds: float) -> dict[str, Any]:
    """What one part wrote, with 'failed' where it did not come to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu_parts",
            name,
            str(batch),
            str(out),
            *(["small"] if small else []),
        ]
        start = time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
            lines = done.stderr.strip().splitlines()
            failed = {} if done.returncode == 0 else {"failed": (lines or [f"exit code {done.returncode}"])[-1][:300]}
        except subprocess.TimeoutExpired:
            failed = {"failed": f"stopped after {seconds:.0f} s"}
        found = json.loads(out.read_text()) if out.exists() else {}
        return {**found, **failed, "wall_seconds": time.monotonic() - start}


def save(out: str, rows: list[dict[str, Any]], small: bool) -> None:
    """Write what is known so far: a call that is cut off leaves it."""
    device = next((row["device"] for row in rows if "device" in row), "unknown")
    name = re.sub(r"[^a-z0-9]+", "_", f"gpu_{device}".lower())
    record.write("gpu", {"small": small, "rows": rows}, out or record.RESULTS / f"{name}.json", device=device)


def bounds(ceilings: Mapping[str, float]) -> dict[str, float]:
    """images/s of the train step that the device's measured ceilings allow: by arithmetic, and by bytes (see above)."""
    copy = ceilings["copy_bytes_per_second"]
    return {
        "arithmetic": ceilings["matrix_flops_per_second"] / TRAINING_FLOPS,
        "bytes, elementwise work fused": copy / FUSED_BYTES,
        "bytes, statistics fused too": copy / BEST_BYTES,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line a part, with the share of the two bounds that follow from the measured ceilings."""
    ceilings = next((row for row in rows if row["part"] == "ceilings" and "copy_bytes_per_second" in row), None)
    lines = [
        "| part | batch | images/s | ms/step | compile s | peak GB | MFU | of the fused bound | of the best bound |",
        "| --- " * 9 + "|",
    ]
    for row in rows:
        if row["part"] == "ceilings":
            continue
        if "images_per_second" not in row:
            lines.append(f"| {row['part']} | {row['batch_size']} | {row.get('failed', '')} |" + " |" * 6)
            continue
        rate = row["images_per_second"]
        shares = [""] * 3
        if ceilings and "eval" not in row["part"]:
            shares = [f"{rate / bound:.1%}" for bound in bounds(ceilings).values()]
        lines.append(
            f"| {row['part']} | {row['batch_size']} | {rate:,.0f} | {row['step_milliseconds']:.2f} | "
            f"{row['compile_seconds']:.1f} | {row.get('peak_bytes', 0) / 1e9:.1f} | {' | '.join(shares)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
