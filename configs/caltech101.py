"""Caltech-101 (101 classes; the background folder is no class of them) from ImageNet weights; caltech101.py:WORD.

    python train_main.py --config=configs/caltech101.py --workdir=runs/caltech101 --config.data.dir=PATH/caltech101
    python train_main.py --config=configs/caltech101.py:probe --workdir=runs/caltech101 \
        --config.data.source=tfds:caltech101 --config.data.exclude="('background_google',)"

Without a word: fine-tuned at 224 px. probe: a head on the features of one pass, minutes on a CPU. scratch: no weights,
128 px. The weights are fetched on first use; a file or folder of your own: --config.transfer.weights=PATH.
The usual protocol of 30 training images a class, without validation images:
--config.data.per_class=30 --config.data.val_fraction=0.0 --config.run.best_metric=top1; the mean per class is printed
as balanced accuracy.

Result to expect: see the README's results table; a row that nobody has run says so.
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
