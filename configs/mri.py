"""Brain tumour MRI (Kaggle, M. Nickparvar; 4 classes, folders Training and Testing); mri.py:MODE selects how.

    python train_main.py --config=configs/mri.py --workdir=runs/mri --config.data.dir=PATH/brain_mri
    python train_main.py --config=configs/mri.py:probe --workdir=runs/mri_probe --config.data.dir=PATH/brain_mri
    python train_main.py --config=configs/mri.py:scratch --workdir=runs/mri18 --config.data.dir=PATH/brain_mri \
        --config.model.name=resnet18

Default: ImageNet weights, fine-tuned at 224 px. probe: a head on the features of one pass. scratch: no weights,
96 px. The weights are downloaded on first use; to use your own file or folder: --config.transfer.weights=PATH.

Result to expect: see the README's results table. Test accuracy is given twice: on all test images, and without those
that are byte-identical to a training image (216 of 1,311 in the public set).
"""

from ml_collections import ConfigDict

from configs import default, transfer

WORDS = ("finetune", "probe", "scratch")


def get_config(mode: str = "finetune") -> ConfigDict:
    config = from_scratch() if mode == "scratch" else transfer.get_config(mode, WORDS)
    # A scan fills its frame: evaluation uses the whole image, and crops stay large.
    config.data.resize_shorter = 1.0
    if mode != "probe":
        config.data.crop_scale = (0.6, 1.0)
    return config


def from_scratch() -> ConfigDict:
    config = default.get_config()
    # A short run from scratch: blocks that start as identities learn from the first step on.
    config.model.zero_init_last_gamma = True
    config.data.image_size = 96
    config.data.batch_size = 32
    # ResNet-50: 96.4 % of the clean test images after 15 epochs of this; 85.6 % after 6 of SGD (0.04, Nesterov).
    config.optim.name = "adamw"
    config.optim.lr = 0.001
    config.optim.weight_decay = 0.05
    config.optim.warmup_epochs = 0.5
    config.run.epochs = 15.0
    return config
