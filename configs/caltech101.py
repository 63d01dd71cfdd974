"""Caltech-101 (101 classes; the background folder is no class of the 101), ResNet-50 from scratch.

    python train_main.py --config=configs/caltech101.py --workdir=runs/caltech101 --config.data.dir=PATH/caltech101
    python train_main.py --config=configs/caltech101.py --workdir=runs/caltech101 --config.data.source=tfds:caltech101 \
        --config.data.exclude="('background_google',)"

Result to expect: see the README's results table; a row that nobody has run says so.
"""

from ml_collections import ConfigDict

from configs import folder


def get_config() -> ConfigDict:
    config = folder.get_config()
    config.data.image_size = 128
    config.data.exclude = ("BACKGROUND_Google",)
    config.data.mixup = 0.2
    config.run.best_metric = "balanced_accuracy"
    return config
