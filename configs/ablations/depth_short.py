"""Depth with and without shortcuts in 16 epochs: the effect of He et al. 2015, Figure 6, on two CPU cores.

    python -m resnet.study.ablation --config=configs/ablations/depth_short.py --workdir=runs/depth_short \
        --config.data.dir=PATH/cifar10

20 and 56 layers, residual and plain, on all of CIFAR-10 at its own size: 6,250 steps of 128 images in place of the
paper's 64,000, so the rate falls by a cosine and the decay is five times the paper's. Optimizer and length are the same
for all four. One seed ("--config.seeds=(0,)") takes an hour and a half.

Result to expect: a test error of 11.78 ± 0.11 % with 20 layers and 10.38 ± 0.35 % with 56; without
shortcuts 14.05 ± 0.14 % and 28.74 ± 3.37 % (three seeds each). docs/ablations.md has the table.
"""

from ml_collections import ConfigDict

from configs.ablations.study import paper_recipe, study


def get_config() -> ConfigDict:
    base = paper_recipe()
    base.optim.schedule = "cosine"
    base.optim.step_epochs = (30.0, 60.0, 90.0)
    base.optim.warmup_epochs = 1.0
    base.optim.weight_decay = 5e-4
    base.optim.nesterov = True
    base.run.steps = 0
    base.run.epochs = 16.0
    base.run.eval_every = 1.0
    base.run.checkpoint_every = 1.0
    variants = {
        f"{kind}{depth}": {"model": {"name": f"cifar_{kind}{depth}"}}
        for depth in (20, 56)
        for kind in ("resnet", "plain")
    }
    return study(base, variants, baseline="resnet20", seeds=(0, 1, 2))
