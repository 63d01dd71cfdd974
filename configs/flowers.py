"""Flowers (tf_flowers: five classes of photographs) from ImageNet weights; flowers.py:MODE selects how.

    python train_main.py --config=configs/flowers.py --workdir=runs/flowers --config.data.dir=PATH/flower_photos
    python train_main.py --config=configs/flowers.py:probe --workdir=runs/flowers --config.data.source=tfds:tf_flowers

Default: fine-tuned at 224 px. probe: a head on the features of one pass, minutes on a CPU. scratch: no weights,
160 px. The weights are downloaded on first use; to use your own file or folder: --config.transfer.weights=PATH.

Result to expect: see the README's results table; rows not yet run say so.
"""

from ml_collections import ConfigDict

from configs import folder, transfer

WORDS = ("finetune", "probe", "scratch")


def get_config(mode: str = "finetune") -> ConfigDict:
    if mode != "scratch":
        return transfer.get_config(mode, WORDS)
    config = folder.get_config()
    config.data.image_size = 160
    config.data.brightness = 0.2
    config.data.contrast = 0.2
    config.data.saturation = 0.2
    return config
