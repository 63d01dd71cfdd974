"""ResNet-50 on the drawn flowers, from nothing, on a CPU, in minutes: what `./run.sh` runs.

    python train_main.py --config=configs/demo.py --workdir=runs/demo

Result to expect: see the README's results table (over 90 % test top-1 in under 4 minutes on 2 cores).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.source = "demo"
    config.data.image_size = 64
    config.data.batch_size = 32
    config.data.crop_scale = (0.5, 1.0)
    config.optim.lr = 0.03
    config.optim.nesterov = True
    config.optim.warmup_epochs = 1.0
    config.run.epochs = 8.0
    config.run.eval_every = 2.0
    config.run.checkpoint_every = 2.0
    config.run.log_every = 5
    return config
