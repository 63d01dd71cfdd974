"""The order of norm, activation and addition: He et al. 2016, Table 2, ResNet-110, by the paper's recipe in full.

    python -m resnet.study.ablation --config=configs/ablations/orders.py --workdir=runs/orders \
        --config.data.dir=PATH/cifar10

Result to expect: full pre-activation ahead; the paper's errors (medians of 5) are next to ours in the table.
"""

from ml_collections import ConfigDict

from configs.ablations.study import WARMUP_110, Paper, paper_recipe, study

TABLE_2 = "He et al. 2016, Table 2"
PUBLISHED = {
    "original": 6.61,
    "bn_after_addition": 8.17,
    "relu_before_addition": 7.84,
    "relu_only_preactivation": 6.71,
    "full_preactivation": 6.37,
}


def get_config() -> ConfigDict:
    base = paper_recipe("cifar_resnet110")
    base.optim.warmup_epochs = WARMUP_110
    variants = {order: {"model": {"order": order}} for order in PUBLISHED}
    paper: Paper = {order: (error, TABLE_2) for order, error in PUBLISHED.items()}
    return study(base, variants, baseline="original", paper=paper)
