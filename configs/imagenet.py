"""ImageNet by the recipe of Goyal et al. 2017: ResNet-50, batch 256 × n, lr 0.1 × n, 90 epochs in bfloat16.

    python train_main.py --config=configs/imagenet.py --workdir=runs/imagenet --config.data.source=tfds:imagenet2012
    python train_main.py --config=configs/imagenet.py --workdir=runs/imagenet --config.data.source=folder \
        --config.data.dir=PATH

Result to expect: 76.3 % top-1 is what the recipe is published with; not measured here (no ImageNet at hand).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.model.zero_init_last_gamma = True
    config.data.source = "tfds:imagenet2012"
    # tfds' set has no validation images (its own become the test split); of a folder that brings some nothing is taken.
    config.data.val_fraction = 0.01
    # A folder of train and val, as torchvision has it: all of train is trained on, the result is val's.
    config.data.test_fraction = 0.0
    config.data.batch_size = 1024
    config.data.brightness = 0.4
    config.data.contrast = 0.4
    config.data.saturation = 0.4
    config.optim.lr = 0.4
    config.optim.nesterov = True
    config.optim.schedule = "step"
    config.optim.warmup_epochs = 5.0
    config.optim.label_smoothing = 0.1
    config.run.dtype = "bfloat16"
    return config
