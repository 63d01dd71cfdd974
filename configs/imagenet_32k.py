"""ImageNet at batch 32,768 with LARS: ResNet-50, lr 32, 14 epochs of warmup, then (1 - t)², 90 epochs in all.

    python train_main.py --config=configs/imagenet_32k.py --workdir=/shared/runs/imagenet_32k \
        --config.data.source=folder --config.data.dir=PATH
    sbatch --nodes=128 launch/slurm.sbatch --config=configs/imagenet_32k.py --workdir=/shared/runs/imagenet_32k

Beyond batch 8,192 the linear rule alone (0.1 × 32768/256 = 12.8 under SGD, configs/imagenet_8k.py) loses accuracy
(Goyal et al. 2017, Figure 1). LARS (You et al. 2017, arXiv 1708.03888, Algorithm 1) gives each layer a rate of its own
in proportion to |w| / (|g| + β |w|). Peak rate, warmup, power 2, trust coefficient 0.001, weight decay 1e-4 and label
smoothing 0.1 are those of Google's TPU implementation (tensorflow/tpu, lars_util.py, and its MLPerf runs) for 32,768.
Batch norm over groups of 32 images is Goyal et al.'s; theirs is over groups of devices.

Batch = devices × images a device × config.optim.accumulation: on 64 devices, --config.optim.accumulation=4 takes 128
images a device at a time.

Result to expect: 76.3 % top-1 is what that implementation was published with; not measured here (no ImageNet at hand).
"""

from ml_collections import ConfigDict

from configs import default, imagenet_8k


def get_config() -> ConfigDict:
    config = imagenet_8k.get_config()
    config.data.batch_size = 32768
    config.optim.name = "lars"
    config.optim.lr = 32.0
    config.optim.nesterov = default.optim().nesterov
    config.optim.schedule = "polynomial"
    config.optim.step_epochs = default.optim().step_epochs
    config.optim.power = 2.0
    config.optim.warmup_epochs = 14.0
    config.optim.label_smoothing = 0.1
    return config
