"""Plain against residual, 20 and 56 layers, 3 seeds: the effect of He et al. 2015, Figure 6, in minutes on two cores.

    python -m resnet.study.ablation --config=configs/ablations/cifar_small.py --workdir=runs/cifar_small \
        --config.data.dir=PATH/cifar10

Result to expect: plain-56 well behind plain-20, ResNet-56 not; the errors themselves are those of very short training
on small images (16 px, a quarter of the arithmetic), not the paper's. What was measured stands in docs/ablations.md.
"""

from ml_collections import ConfigDict

from configs.ablations.study import paper_recipe, study


def get_config() -> ConfigDict:
    base = paper_recipe()
    base.data.image_size = 16
    base.data.crop_padding = 2
    base.data.batch_size = 64
    base.optim.schedule = "cosine"
    base.optim.step_epochs = (30.0, 60.0, 90.0)
    base.run.steps = 600
    base.run.eval_every = 0.256
    base.run.checkpoint_every = 0.256
    base.run.log_every = 20
    variants = {
        f"{kind}{depth}": {"model": {"name": f"cifar_{kind}{depth}"}}
        for kind in ("resnet", "plain")
        for depth in (20, 56)
    }
    return study(base, variants, baseline="resnet20", seeds=(0, 1, 2))
