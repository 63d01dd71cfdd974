"""ResNet-50 on small images, one change at a time: place of the stride, zero gamma, stem, squeeze-and-excitation.

    python -m resnet.study.ablation --config=configs/ablations/bottleneck.py --workdir=runs/bottleneck \
        --config.data.dir=PATH/cifar10

Result to expect: the small stem ahead of the two that reduce resolution. These are not published for CIFAR-10, so the
papers' column is empty.
"""

from ml_collections import ConfigDict

from configs.ablations.study import Variants, paper_recipe, study


def get_config() -> ConfigDict:
    base = paper_recipe("resnet50")
    base.model.stem = "cifar"
    variants: Variants = {
        "baseline": {"model": {"stem": "cifar"}},
        "stride_first_1x1": {"model": {"stride_place": "first_1x1"}},
        "zero_gamma": {"model": {"zero_init_last_gamma": True}},
        "stem_imagenet": {"model": {"stem": "imagenet"}},
        "stem_deep": {"model": {"stem": "deep"}},
        "squeeze_excitation": {"model": {"squeeze_excitation": 16}},
        "shortcut_d": {"model": {"shortcut": "D"}},
    }
    return study(base, variants, baseline="baseline", seeds=(0, 1, 2))
