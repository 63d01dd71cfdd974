"""Flowers (tf_flowers: five classes of photographs), ResNet-50 from scratch.

    python train_main.py --config=configs/flowers.py --workdir=runs/flowers --config.data.dir=PATH/flower_photos
    python train_main.py --config=configs/flowers.py --workdir=runs/flowers --config.data.source=tfds:tf_flowers

Result to expect: see the README's results table; a row that nobody has run says so.
"""

from ml_collections import ConfigDict

from configs import folder


def get_config() -> ConfigDict:
    config = folder.get_config()
    config.data.image_size = 160
    config.data.brightness = 0.2
    config.data.contrast = 0.2
    config.data.saturation = 0.2
    return config
