"""Exports against the checkpoint that they come from, on real photographs: the same class, and how far apart.

    python -m benchmarks.export_agreement --checkpoint=DIR --images=FOLDER [--limit=200] EXPORT...

Claim: each export, in its own runtime, gives the class of the unfolded network on every image, and probabilities within
1e-4. EXPORT: folders that resnet.study.export wrote. Images need no labels; with --limit they are taken evenly from the
sorted list of files.
"""

import importlib
import json
from pathlib import Path

import jax
import numpy as np

from benchmarks.pretrained_agreement import batches
from resnet import command
from resnet.study.inference import answer, load_model

SIZES = (1, 3, 16)


def main() -> None:
    parser = command.Parser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="what was exported")
    parser.add_argument("--images", required=True, help="folder of images, searched through")
    parser.add_argument("--limit", type=int, default=200, help="images to take, evenly (default: 200)")
    parser.add_argument("exports", nargs="+", metavar="EXPORT", help="folders that resnet.study.export wrote")
    arguments = parser.parse_args()
    model = load_model(arguments.checkpoint)
    images = np.concatenate(list(batches(model, Path(arguments.images), arguments.limit)))
    unfolded = jax.jit(answer(model.network, model.meta.contract))
    # By tens, for memory.
    parts = np.array_split(images, max(1, len(images) // 10))
    expected = np.concatenate([np.asarray(unfolded(model.variables, part)) for part in parts])
    ask = {"predict": model.probabilities}
    for name in arguments.exports:
        form = json.loads((Path(name) / "metadata.json").read_text())["format"]
        ask[form] = importlib.import_module(f"resnet.study.export_{form}").load(Path(name))
    for name, function in ask.items():
        found: list[np.ndarray] = []
        start = 0
        # Batches of several sizes, in turn.
        while start < len(images):
            size = SIZES[len(found) % len(SIZES)]
            found.append(function(images[start : start + size]))
            start += size
        probabilities = np.concatenate(found)
        same = int((probabilities.argmax(1) == expected.argmax(1)).sum())
        error = float(np.abs(probabilities - expected).max())
        print(json.dumps({"by": name, "images": len(images), "same_top1": same, "largest_difference": error}))


if __name__ == "__main__":
    command.run(main)
