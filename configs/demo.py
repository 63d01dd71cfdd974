"""ResNet-50 from scratch on drawn flowers, on a CPU, in minutes: what `./run.sh` runs.

    python train_main.py --config=configs/demo.py --workdir=runs/demo

Result to expect: see the README's results table (over 90 % test top-1 in under 4 minutes on 2 cores).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    # Blocks that start as identities learn from the first step on; the run has few steps.
    config.model.zero_init_last_gamma = True
    config.data.source = "demo"
    # 48 px show as much of the flowers as 64, and allow half as many steps again in the same time.
    config.data.image_size = 48
    config.data.batch_size = 32
    config.data.crop_scale = (0.7, 1.0)
    config.data.resize_shorter = 1.0
    config.optim.lr = 0.1
    config.optim.nesterov = True
    config.optim.warmup_epochs = 1.0
    config.run.epochs = 12.0
    config.run.eval_every = 4.0
    config.run.checkpoint_every = 4.0
    config.run.log_every = 5
    return config
