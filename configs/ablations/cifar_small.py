"""Plain against residual, 20 and 56 layers, 3 seeds: the effect of He et al. 2015, Figure 6, in minutes on two cores.

    python -m resnet.study.ablation --config=configs/ablations/cifar_small.py --workdir=runs/cifar_small \
        --config.data.dir=PATH/cifar10

Result to expect: each plain network behind its residual twin (63.3 against 54.9 % error with 20 layers, 85.3 against
75.2 % with 56). The errors are those of very short training on small images (16 px, a quarter of the arithmetic), not
the paper's: both 56-layer networks are behind both of 20. docs/ablations.md has the table.
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
