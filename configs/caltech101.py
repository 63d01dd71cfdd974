"""Caltech-101 (101 classes, without the background folder) from ImageNet weights; caltech101.py:MODE.

    python train_main.py --config=configs/caltech101.py --workdir=runs/caltech101 --config.data.dir=PATH/caltech101
    python train_main.py --config=configs/caltech101.py:probe --workdir=runs/caltech101 \
        --config.data.source=tfds:caltech101 --config.data.exclude="('background_google',)"

Default: fine-tuned at 224 px. probe: a head on the features of one pass, minutes on a CPU. scratch: no weights,
128 px. The weights are downloaded on first use; to use your own file or folder: --config.transfer.weights=PATH.
The usual protocol of 30 training images per class, without validation images:
--config.data.per_class=30 --config.data.val_fraction=0.0 --config.run.best_metric=top1; the mean per class is printed
as balanced accuracy.

Result to expect: see the README's results table; rows not yet run say so.
"""

from ml_collections import ConfigDict

from configs import folder, transfer

WORDS = ("finetune", "probe", "scratch")


def get_config(mode: str = "finetune") -> ConfigDict:
    config = folder.get_config() if mode == "scratch" else transfer.get_config(mode, WORDS)
    config.data.exclude = ("BACKGROUND_Google",)
    config.run.best_metric = "balanced_accuracy"
    if mode == "scratch":
        config.data.image_size = 128
        config.data.mixup = 0.2
    return config
