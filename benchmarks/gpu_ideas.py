"""Ideas for ResNet-50's train step on a GPU, each beside the step as it is, in calls of under nine minutes.

    python -m benchmarks.gpu_ideas [--group=pieces|flags|lengths] [--seconds=520] [--out=FILE] [--parts=reference,…]
    JAX_PLATFORMS=cpu python -m benchmarks.gpu_ideas --small --out=/tmp/small.json    # that it works, on any machine

benchmarks/gpu_notes.md says what each is, what it is predicted to gain and, once measured, what it did. Each part is a
process of its own; of parts with a + between them all compile at once, and measure one after the other. `pieces`:
other ways to convolve and to normalise (benchmarks/gpu_idea_network.py), which compute the same function
(tests/benchmarks/test_gpu_ideas.py), and, timed alone, `kernels` (the fused product beside XLA's at the shapes of
ResNet-50's 1×1 convolutions), `stems` and `chains` (benchmarks/gpu_idea_blocks.py). `flags`: XLA's, in the environment.
`lengths`: batches, and steps in one call. The whole step is benchmarks/gpu_parts.py's: uint8 images on the device,
bfloat16, SGD; rates are medians.
"""

import argparse
import os
from typing import Any

from benchmarks import gpu_idea_bytes as moved
from benchmarks.gpu_cifar_parts import IN_GRAPHS
from benchmarks.gpu_idea_parts import ALONE, BATCH, PIECES
from benchmarks.part_processes import Part, run_all

# Seconds of one part at most.
LONGEST = 200
# Name -> XLA_FLAGS; a flag that this jaxlib does not know ends its part, which says so.
FLAGS: dict[str, str] = {
    "autotune_0": "--xla_gpu_autotune_level=0",
    "exhaustive_tiling": "--xla_gpu_exhaustive_tiling_search=true",
    "no_command_buffers": "--xla_gpu_enable_command_buffer=",
    # Convolutions and loops too; only with kernels timed in the same process (benchmarks/gpu_notes.md).
    "convolutions_in_graphs": f"--xla_gpu_enable_command_buffer={IN_GRAPHS}",
    "latency_hiding": "--xla_gpu_enable_latency_hiding_scheduler=true",
    "convolution_fusions": "--xla_gpu_experimental_enable_conv_fusion=true",
    "same_shape_fusions": "--xla_gpu_experimental_enable_same_shape_multi_output_fusion=true",
    "tuned_fusions": "--xla_gpu_experimental_enable_fusion_autotuner=true",
    "cudnn_fusions": "--xla_gpu_cudnn_gemm_fusion_level=2",
    "no_triton_products": "--xla_gpu_enable_triton_gemm=false",
}
# Name -> (images, steps a call).
LENGTHS = {
    "batch_128": (128, 1),
    "batch_384": (384, 1),
    "batch_512": (512, 1),
    "scan_10": (256, 10),
    "scan_50": (256, 50),
}
GROUPS: dict[str, tuple[str, ...]] = {
    # In order of worth: what comes late is what a short lease loses.
    "pieces": (
        "reference",
        "ends_by_output",
        "two_pass",
        "chains",
        "stems",
        "by_pixels",
        "space_to_depth",
        "dots",
        "derived_norm",
        "fused",
        "all",
        "kernels",
        "xla_pool",
    ),
    "flags": ("reference", *FLAGS, "dots_two_pass"),
    "lengths": ("reference", *LENGTHS),
}
# Bytes that the step is predicted to move, where the idea is about bytes.
PREDICTED = {
    "reference": moved.ELEMENTWISE,
    "dots": moved.PROLOGUES,
    "fused": moved.PRODUCTS,
    "all": moved.PRODUCTS,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=tuple(GROUPS), default="pieces")
    parser.add_argument("--parts", default="", help="instead of a group's")
    parser.add_argument("--seconds", type=float, default=520, help="in all (default: 520)")
    parser.add_argument("--longest", type=float, default=LONGEST, help=f"seconds of a part (default: {LONGEST})")
    parser.add_argument("--small", action="store_true", help="a tiny network: whether it works, not how fast")
    parser.add_argument("--out", default="", help="the JSON file (default: in benchmarks/results)")
    arguments = parser.parse_args()
    names = arguments.parts.split(",") if arguments.parts else GROUPS[arguments.group]
    groups = [[part_of(name) for name in group.split("+")] for group in names]
    rows = run_all(
        f"gpu_ideas_{arguments.group}", "benchmarks.gpu_idea_parts", groups,
        seconds=arguments.seconds, longest=arguments.longest, out=arguments.out, small=arguments.small,
    )  # fmt: skip
    print(table(rows))


def part_of(name: str) -> Part:
    """A part by its name in PIECES, ALONE, FLAGS or LENGTHS."""
    batch, steps = LENGTHS.get(name, (BATCH, 1))
    piece = name if name in PIECES or name in ALONE else "reference"
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAGS[name]}".strip()} if name in FLAGS else {}
    return Part({"part": name, "batch_size": batch}, (piece, str(batch), str(steps)), flags)


def table(rows: list[dict[str, Any]]) -> str:
    """Each part beside the reference, with what its bytes predict: their ratio, at equal bandwidth."""
    whole = {row["part"]: row for row in rows if "images_per_second" in row}
    reference = whole.get("reference")
    lines = [
        "| part | batch | images/s | of reference | predicted | ms/step | peak GB | compile s |",
        "| --- " * 8 + "|",
    ]
    for row in rows:
        if "shapes" in row:
            continue
        if "images_per_second" not in row:
            lines.append(f"| {row['part']} | {row['batch_size']} | {row.get('failed', '')} | | | | | |")
            continue
        ratio = f"{row['images_per_second'] / reference['images_per_second']:.3f}" if reference else ""
        expected = f"{predicted_ratio(row['part']):.3f}" if row["part"] in PREDICTED else ""
        lines.append(
            f"| {row['part']} | {row['batch_size']} | {row['images_per_second']:,.0f} | {ratio} | {expected} | "
            f"{row['step_milliseconds']:.2f} | {row['peak_bytes'] / 1e9:.1f} | {row['compile_seconds']:.1f} |"
        )
    lines += [told(shape) for row in rows for shape in row.get("shapes", ())]
    return "\n".join(lines)


def predicted_ratio(name: str) -> float:
    """Images/s over the reference's, were bytes all that counts and XLA fused what is elementwise and no more."""
    return moved.step_bytes(BATCH, PREDICTED["reference"]) / moved.step_bytes(BATCH, PREDICTED[name])


def told(shape: dict[str, Any]) -> str:
    """The milliseconds of one shape of the part 'kernels', in a line."""
    return ", ".join(
        f"{key} {value:.3f} ms" if type(value) is float else f"{key} {value}" for key, value in shape.items()
    )


if __name__ == "__main__":
    main()
