"""A run's network asked as `predict` asks it, on images that need no decoder: `… WORKDIR ARRAYS.npz`; JSON out."""

import json
import sys
from pathlib import Path

import numpy as np

from input_pipeline.resident import read_arrays
from resnet import command

IMAGES, HEAT_MAPS = 256, 8


def main() -> None:
    from resnet.study.gradcam import heat_maps
    from resnet.study.inference import load_model
    from resnet.train.predictions import read_predictions

    workdir, arrays = Path(sys.argv[1]), Path(sys.argv[2])
    model = load_model(workdir)
    images = read_arrays(arrays, model.crop.image_size).splits["test"].images[:IMAGES]
    told = model.probabilities(images)
    kept = read_predictions(workdir)
    assert kept is not None
    maps = heat_maps(model, images[:HEAT_MAPS], told[:HEAT_MAPS].argmax(axis=1))
    found = {
        "most_apart": float(np.abs(told - kept.probabilities[: len(images)]).max()),
        "same_class": float((told.argmax(axis=1) == kept.probabilities[: len(images)].argmax(axis=1)).mean()),
        "heat_maps": bool(np.isfinite(maps).all()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    command.run(main)
