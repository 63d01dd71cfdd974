"""The run that is injured: small, with everything on that has a state. FAULTS_DATA names its images."""

import os
from pathlib import Path

from ml_collections import ConfigDict

from tests.tiny import tiny_config


def get_config() -> ConfigDict:
    config = tiny_config(Path(os.environ["FAULTS_DATA"]))
    # So wide that on a CPU oneDNN's convolutions and its products of matrices both take part.
    config.model.width = 32
    config.optim.ema = 0.9
    config.optim.accumulation = 2
    config.model.dropout = 0.2
    config.data.mixup = 0.4
    config.run.steps = 8
    return config
