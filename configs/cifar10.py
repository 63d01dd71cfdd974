"""CIFAR-10 by the recipe of He et al. 2015, Section 4.2: ResNet-20, 64,000 steps of 128 images.

    python train_main.py --config=configs/cifar10.py --workdir=runs/cifar20 --config.data.dir=PATH/cifar10
    python train_main.py --config=configs/cifar10.py --workdir=runs/cifar56 --config.data.source=tfds:cifar10 \
        --config.model.name=cifar_resnet56
    python train_main.py --config=configs/cifar10.py:short --workdir=runs/cifar20_short --config.data.dir=PATH/cifar10

Default: the paper's recipe. short: 50 epochs of all 50,000 images instead of 182 of 45,000, half an hour on two CPU
cores: cosine, Nesterov, twice the rate, five times the decay. The last step's weights are tested; no checkpoint is
chosen.

Result to expect: 8.67 % error for ResNet-20 (one seed; the paper: 8.75 %); short: 8.73 and 8.94 % (two seeds).
Differences from the paper: see docs/ablations.md. Also, the checkpoint that is best on the validation images is tested,
not the last. (In the run that gave 8.67 % the rate dropped at steps 31,993 and 47,989.)
"""

from ml_collections import ConfigDict

from configs import default

WORDS = ("paper", "short")


def get_config(mode: str = "paper") -> ConfigDict:
    if mode not in WORDS:
        raise ValueError(f"{mode!r} is not one of {', '.join(WORDS)}")
    config = default.get_config()
    config.model.name = "cifar_resnet20"
    config.data.image_size = 32
    config.data.batch_size = 128
    config.data.eval_batch_size = 500
    config.data.crop = "pad"
    config.data.resize_shorter = 0.0
    config.run.eval_every = 5.0
    config.run.checkpoint_every = 5.0
    # The host then does half as much for a step, which an accelerator may have to wait for (docs/many-hosts.md).
    config.run.steps_per_call = 10
    if mode == "paper":
        config.optim.schedule = "step"
        # 32k and 48k of 64k steps of 128, out of the 45,000 images left after a tenth is held out for validation.
        config.optim.step_epochs = (32_000 * 128 / 45_000, 48_000 * 128 / 45_000)
        config.run.steps = 64_000
        return config
    config.data.val_fraction = 0.0
    config.optim.lr = 0.2
    config.optim.nesterov = True
    config.optim.weight_decay = 5e-4
    config.optim.warmup_epochs = 2.0
    config.run.epochs = 50.0
    return config
