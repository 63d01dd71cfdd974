"""What a shortcut does where shapes change: options A, B, C, D and none (He et al. 2015, Sections 3.3 and 4.1).

    python -m resnet.study.ablation --config=configs/ablations/shortcuts.py --workdir=runs/shortcuts \
        --config.data.dir=PATH/cifar10

Result to expect: small differences between A, B and C, a large one to none. The paper compares them on ImageNet with 34
layers; its errors are next to ours only to compare the order.
"""

from ml_collections import ConfigDict

from configs.ablations.study import Paper, paper_recipe, study

TABLE_3 = "He et al. 2015, Table 3: 34 layers on ImageNet, 10-crop top-1"


def get_config() -> ConfigDict:
    variants = {option: {"model": {"shortcut": option}} for option in ("A", "B", "C", "D", "none")}
    paper: Paper = {
        "A": (25.03, TABLE_3),
        "B": (24.52, TABLE_3),
        "C": (24.19, TABLE_3),
        "none": (28.54, TABLE_3),
    }
    return study(paper_recipe("cifar_resnet56"), variants, baseline="A", paper=paper)
