"""What a shape-keeping shortcut does to its input: He et al. 2016, Table 1, ResNet-110, by the paper's recipe in full.

    python -m resnet.study.ablation --config=configs/ablations/shortcut_transforms.py --workdir=runs/transforms \
        --config.data.dir=PATH/cifar10

Result to expect: nothing beats the identity; the paper's errors (medians of 5) are next to ours in the table.
"""

from ml_collections import ConfigDict

from configs.ablations.study import WARMUP_110, Paper, Variants, paper_recipe, study

TABLE_1 = "He et al. 2016, Table 1"


def get_config() -> ConfigDict:
    base = paper_recipe("cifar_resnet110")
    base.optim.warmup_epochs = WARMUP_110
    variants: Variants = {
        "original": {"model": {"shortcut_transform": "identity"}},
        "scale": {"model": {"shortcut_transform": "scale", "shortcut_scale": 0.5}},
        "exclusive_gate": {"model": {"shortcut_transform": "exclusive_gate", "gate_bias": -6.0}},
        "shortcut_gate": {"model": {"shortcut_transform": "shortcut_gate", "gate_bias": -6.0}},
        "shortcut_gate_b0": {"model": {"shortcut_transform": "shortcut_gate", "gate_bias": 0.0}},
        "conv1x1": {"model": {"shortcut_transform": "conv1x1"}},
        "dropout": {"model": {"shortcut_transform": "dropout", "shortcut_dropout": 0.5}},
    }
    paper: Paper = {
        "original": (6.61, TABLE_1),
        "scale": (12.35, TABLE_1),
        "exclusive_gate": (8.70, TABLE_1),
        "shortcut_gate": (6.91, TABLE_1),
        "shortcut_gate_b0": (12.86, TABLE_1),
        "conv1x1": (12.22, TABLE_1),
        "dropout": ("fails", TABLE_1),
    }
    return study(base, variants, baseline="original", paper=paper)
