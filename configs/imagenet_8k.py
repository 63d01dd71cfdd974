"""ImageNet at batch 8,192 by the linear scaling rule: ResNet-50, SGD, lr 0.1 × 8192/256 = 3.2, 90 epochs.

    python train_main.py --config=configs/imagenet_8k.py --workdir=/shared/runs/imagenet_8k \
        --config.data.source=folder --config.data.dir=PATH
    sbatch --nodes=32 launch/slurm.sbatch --config=configs/imagenet_8k.py --workdir=/shared/runs/imagenet_8k

Goyal et al. 2017 (arXiv 1706.02677): the rate grows with the batch and is warmed up over 5 epochs (Section 2.2; theirs
from 0.1, ours from one step's share), then falls to a tenth at 30, 60 and 80 epochs; Nesterov momentum 0.9, weight
decay 1e-4 but not on norms and biases, the last norm of each block starts at zero (Section 5.1), and batch norm is over
32 images, one worker's share, whatever the batch (Section 2.3): here a group of rows, whatever the hardware. Bfloat16
is ours.

Batch = devices × images a device × config.optim.accumulation: 32 images on each of 256 devices; on 8 devices,
--config.optim.accumulation=4 takes 256 images a device at a time. The groups, gradient and statistics are the same.

Result to expect: 76.26 % top-1 is what the paper has for this batch (Table 1); not measured here (no ImageNet at hand).
"""

from ml_collections import ConfigDict

from configs import imagenet

BATCH_SIZE = 8192


def get_config() -> ConfigDict:
    config = imagenet.get_config()
    config.model.ghost_batch_size = 32
    config.data.batch_size = BATCH_SIZE
    config.data.brightness = config.data.contrast = config.data.saturation = 0.0
    config.optim.lr = 0.1 * BATCH_SIZE / 256
    config.optim.label_smoothing = 0.0
    return config
