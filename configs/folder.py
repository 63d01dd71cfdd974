"""Your own folder of images: DATA_DIR/CLASS/*.jpg, or DATA_DIR/{train,val,test}/CLASS/*.jpg.

    python train_main.py --config=configs/folder.py --workdir=runs/mine --config.data.dir=PATH

Result to expect: depends on the folder. SGD, cosine and mild augmentation are a starting point for 1,000 to 100,000
images.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.crop_scale = (0.35, 1.0)
    config.optim.nesterov = True
    config.optim.warmup_epochs = 2.0
    config.optim.label_smoothing = 0.1
    config.run.epochs = 60.0
    return config
