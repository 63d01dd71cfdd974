"""CIFAR-10 on a GPU in one call of under nine minutes: ResNet-20 beside torch, and the seconds to 94 %.

    python -m benchmarks.gpu_cifar --sheets=../shared/data/cifar10 [--seconds=520] [--out=FILE] [--parts=…]
    JAX_PLATFORMS=cpu python -m benchmarks.gpu_cifar --small --out=/tmp/small.json     # that it works, on any machine

1. Training of ResNet-20 (option B), batches of 128, images/s from images in memory to updates. Ours: `ours`, many steps
   a call, crops and flips on the device, the host sends indices; `ours_seeds`, eight seeds in one program. Peers:
   `torch_compiled` and `torch`, torch.compile or eager, channels_last, bfloat16 autocast, fed by a DataLoader whose
   workers pad, crop and flip; `torch_resident`, compiled, images on the GPU and crops in batches there: what is then
   left of the ratio is not the DataLoader's. Bar: ours at least 10 times torch with its DataLoader.
2. `fast`: configs/cifar10_fast.py, ten seeds one after the other in one compiled program: seconds of training (host's
   work included, evaluation and compilation apart) and test accuracy. `fast_NAME`: two seeds of what CANDIDATES (in
   benchmarks/gpu_cifar_parts.py) says instead; a second call chooses among them: --parts=fast_resnet18,fast_longer,…

Needs jax, flax, optax, orbax-checkpoint, ml_collections, Pillow and torch; no TensorFlow. CIFAR-10 is cut out of
mosaics (benchmarks/cifar_arrays.py); on a machine that only gets this checkout, name a folder inside it.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cifar_arrays import write_cifar
from benchmarks.part_processes import Part, run_all
from input_pipeline.errors import InputError

# What has a + between compiles at once; torch.compile's max-autotune takes minutes and all cores, so it is by itself.
PARTS = ("ours+torch+fast+ours_without_blocks+ours_in_graphs", "torch_compiled", "torch_resident", "ours_seeds")
# Seconds of one part at most.
LONGEST = 200
BAR = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheets", default="../shared/data/cifar10", help="folders of mosaics, separated by commas")
    parser.add_argument("--seconds", type=float, default=520, help="in all (default: 520)")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--longest", type=float, default=LONGEST, help=f"seconds of a part (default: {LONGEST})")
    parser.add_argument("--small", action="store_true", help="drawn images, tiny networks: whether it works")
    parser.add_argument("--drawn", action="store_true", help="as many images as CIFAR-10 has, drawn: speed alone")
    parser.add_argument("--out", default="", help="the JSON file (default: benchmarks/results/gpu_cifar_DEVICE.json)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "cifar10.npz"
        if arguments.small or arguments.drawn:
            write_drawn(arrays, *((50_000, 10_000) if arguments.drawn else (320, 80)))
        else:
            try:
                write_cifar(arguments.sheets.split(","), arrays)
            except InputError as error:
                parser.error(str(error))
        groups = [
            [Part({"part": name}, (name, str(arrays))) for name in group.split("+")]
            for group in arguments.parts.split(",")
        ]
        rows = run_all(
            "gpu_cifar", "benchmarks.gpu_cifar_parts", groups, seconds=arguments.seconds, longest=arguments.longest,
            out=arguments.out, small=arguments.small,
        )  # fmt: skip
    print(table(rows))


def write_drawn(file: Path, train: int, test: int) -> None:
    """Noise around a colour for each of ten classes, which anything learns: so many training and test images."""
    import numpy as np

    from input_pipeline.resident import Images, make_resident, write_arrays

    generator = np.random.default_rng(0)
    colours = generator.integers(40, 216, (10, 1, 1, 3))
    splits = {}
    for name, count in (("train", train), ("test", test)):
        labels = (np.arange(count) % 10).astype(np.int32)
        noise = generator.integers(-30, 31, (count, 32, 32, 3))
        splits[name] = Images((colours[labels] + noise).clip(0, 255).astype(np.uint8), labels)
    write_arrays(make_resident(tuple("abcdefghij"), splits), file)


def table(rows: list[dict[str, Any]]) -> str:
    """Rates with their ratios to ours, then what each recipe took and reached."""
    rates = {row["part"]: row["images_per_second"] for row in rows if "images_per_second" in row}
    lines = ["| part | images/s | ours is this many times as fast | compile s |", "| --- | --- | --- | --- |"]
    for row in rows:
        rate = row.get("images_per_second")
        if rate:
            ratio = f"{rates['ours'] / rate:.2f}" if "ours" in rates else ""
            lines.append(f"| {row['part']} | {rate:,.0f} | {ratio} | {row['compile_seconds']:.1f} |")
        elif "failed" in row:
            lines.append(f"| {row['part']} | {row['failed']} | | |")
    fastest = max((rates[name] for name in ("torch", "torch_compiled") if name in rates), default=0.0)
    if fastest and "ours" in rates:
        times = rates["ours"] / fastest
        lines.append(f"\nOurs over the better of torch and torch.compile with a DataLoader: {times:.1f} (bar: {BAR}).")
    lines += ["", "| recipe | seeds | seconds of training | test accuracy % | compile s |", "| --- " * 5 + "|"]
    for row in rows:
        if "accuracy_mean" in row:
            spread = f"{row['accuracy_mean']:.2f} ± {row['accuracy_std']:.2f}"
            took = f"{row['seconds_mean']:.2f} ± {row['seconds_std']:.2f}"
            lines.append(f"| {row['part']} | {row['seeds']} | {took} | {spread} | {row['compile_seconds']:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
