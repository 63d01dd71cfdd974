"""ResNet-50 on a GPU in one call of under nine minutes: ours, torch eager, torch.compile, timm; no TensorFlow needed.

    python -m benchmarks.gpu [--seconds=520] [--out=FILE] [--parts=ours:256+torch:256,torch_compiled:256,…]
    JAX_PLATFORMS=cpu python -m benchmarks.gpu --small --out=/tmp/small.json      # that it works, on any machine

Each part is a process of its own (benchmarks/gpu_parts.py), so that none finds the other's memory taken; it writes what
it found at once, and a part that fails or runs out of time leaves a row that says so. `ours_resident` is the step that
is fed step numbers and crops on the device (benchmarks/gpu_resident.py). The full train step: uint8 images on the
device, normalised there, ResNet-50 (v1.5, 1,000 classes) in bfloat16 with float32 parameters, cross-entropy, SGD
with momentum 0.9 and weight decay. Inference: uint8 images to logits, batch norms folded into the convolutions, weights
in bfloat16, on either side. torch, torch_graphs (torch.compile(reduce-overhead)) and torch_compiled (max-autotune)
train torchvision's network (benchmarks/torch_twin.py), timm its own. Rates are medians over repetitions of ten steps
that are not waited for in between.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from benchmarks.part_processes import Part, run_all

# In order of worth: what comes late is what a short lease loses. NAME:BATCH; what has a + between compiles at once.
PARTS = (
    # By themselves: what compiles beside others may choose slower kernels, because it times them. The first four took
    # 168 s on an H200.
    "ours:256",
    "ceilings:0+torch:256",
    "torch_graphs:256",
    "ours_eval:256+ours_eval:1+torch_graphs_eval:256+torch_graphs_eval:1",
    "ours:512+ours_resident:256",
    # max-autotune compiles for minutes, on all cores.
    "torch_compiled:256",
    "torch_compiled_eval:256+torch_compiled_eval:1+timm:256+ours_scan:256+ours:128",
)
# Seconds of one part at most, to compile and to measure.
LONGEST = 280
# Training FLOPs of one image at 224 px, multiply-adds counted as two (24,299,077,632 by resnet.model.counting).
TRAINING_FLOPS = 24.3e9
# Bytes that a step moves per image at 224 px in bfloat16 when elementwise work is fused but BN's statistics are not,
# and when they are fused into the convolutions too: 91.6 and 61.4 GB for 256 images, counted layer by layer.
FUSED_BYTES, BEST_BYTES = 91.6e9 / 256, 61.4e9 / 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=520, help="in all (default: 520)")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--longest", type=float, default=LONGEST, help=f"seconds of a part (default: {LONGEST})")
    parser.add_argument("--small", action="store_true", help="a tiny network and batch: whether it works, not how fast")
    parser.add_argument("--out", default="", help="the JSON file (default: benchmarks/results/gpu_DEVICE.json)")
    arguments = parser.parse_args()
    groups = [[part_of(*part.split(":")) for part in group.split("+")] for group in arguments.parts.split(",")]
    rows = run_all(
        "gpu", "benchmarks.gpu_parts", groups, seconds=arguments.seconds, longest=arguments.longest, out=arguments.out,
        small=arguments.small,
    )  # fmt: skip
    print(table(rows))


def part_of(name: str, batch: str) -> Part:
    return Part({"part": name, "batch_size": int(batch)}, (name, batch))


def bounds(ceilings: Mapping[str, float]) -> dict[str, float]:
    """images/s of the train step that the device's measured ceilings allow: by arithmetic, and by bytes (see above)."""
    copy = ceilings["copy_bytes_per_second"]
    return {
        "arithmetic": ceilings["matrix_flops_per_second"] / TRAINING_FLOPS,
        "bytes, elementwise work fused": copy / FUSED_BYTES,
        "bytes, statistics fused too": copy / BEST_BYTES,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line a part, with the share of the bounds that follow from the measured ceilings.

    That of arithmetic is no model FLOPs utilisation (MFU), which is over the maker's peak (resnet/study/report_speed).
    """
    ceilings = next((row for row in rows if row["part"] == "ceilings" and "copy_bytes_per_second" in row), None)
    lines = [
        "| part | batch | images/s | ms/step | compile s | peak GB | of the arithmetic bound | of the fused bound "
        "| of the best bound |",
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
