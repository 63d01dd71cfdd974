"""Depth with and without shortcuts: He et al. 2015, Table 6 and Figure 6, by the paper's recipe in full.

    python -m resnet.study.ablation --config=configs/ablations/depth_cifar.py --workdir=runs/depth \
        --config.data.dir=PATH/cifar10

Result to expect: the paper's errors are next to ours in the table; what was measured is in docs/ablations.md.
110 layers warm up linearly over 400 steps; the paper trains at 0.01 until the error is below 80 %, which takes about
400. docs/ablations.md has the other differences.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.ablations.study import WARMUP_110, paper_recipe, study

DEPTHS = (20, 32, 44, 56, 110)
TABLE_6 = "He et al. 2015, Table 6"
FIGURE_6 = "He et al. 2015, Figure 6 and Section 4.2"
PUBLISHED = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43}


def get_config() -> ConfigDict:
    variants: dict[str, dict[str, dict[str, Any]]] = {}
    paper: dict[str, tuple[float | str, str]] = {}
    for kind in ("resnet", "plain"):
        for depth in DEPTHS:
            variants[f"{kind}{depth}"] = {"model": {"name": f"cifar_{kind}{depth}"}}
            if depth == 110:
                variants[f"{kind}{depth}"]["optim"] = {"warmup_epochs": WARMUP_110}
    for depth, error in PUBLISHED.items():
        paper[f"resnet{depth}"] = (error, f"{TABLE_6} (best of 5: 6.61 ± 0.16)" if depth == 110 else TABLE_6)
    paper["plain56"] = ("above plain20", FIGURE_6)
    paper["plain110"] = ("above 60", FIGURE_6)
    return study(paper_recipe(), variants, baseline="resnet20", paper=paper)
