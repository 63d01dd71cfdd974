"""What an ablation's recipe adds to a run's: variants, seeds and baseline.

    python -m resnet.study.ablation --config=configs/ablations/NAME.py --workdir=DIR [--config.key=value ...]

The base is an ordinary configuration (configs/default.py explains its keys); docs/ablations.md explains the command.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import cifar10

# Variant -> {'model': {field: value}, 'optim': {key: value}}; variant -> (published error or words, where).
Variants = Mapping[str, Mapping[str, Mapping[str, Any]]]
Paper = Mapping[str, tuple[float | str, str]]
# CIFAR-10's 50,000 training images in batches of 128.
STEPS_PER_EPOCH = 50_000 / 128
# A warm-up of 400 iterations: He et al. 2015, Section 4.2, for ResNet-110; He et al. 2016, appendix, for all networks.
WARMUP_110 = 400 / STEPS_PER_EPOCH


def study(
    base: ConfigDict,
    variants: Variants,
    *,
    baseline: str,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    paper: Paper | None = None,
) -> ConfigDict:
    """The base recipe with the four keys of an ablation.

    variants: name -> {'model': {field: value}, 'optim': {key: value}}, what it has different from the base.
    baseline: the variant that the others are compared with, seed by seed. seeds: of initialisation, order, crops,
    augmentation and dropout; each variant is trained with all of them. paper: variant -> (published error in per cent,
    or what else is published of it, where it stands), for a column beside ours.
    """
    with base.unlocked():
        base.seeds = tuple(seeds)
        base.baseline = baseline
        # In the order given; depths and options should not be sorted by name.
        base.variants = ordered(variants)
        base.paper = ordered({name: {"error": error, "source": at} for name, (error, at) in (paper or {}).items()})
    return base.lock()


def ordered(mapping: Mapping[str, Any]) -> ConfigDict:
    """A ConfigDict, mappings inside it too, that keeps the order of its keys."""
    result = ConfigDict(sort_keys=False)
    for key, value in mapping.items():
        result[key] = ordered(value) if isinstance(value, Mapping) else value
    return result


def paper_recipe(model: str = "cifar_resnet20") -> ConfigDict:
    """CIFAR-10 by He et al. 2015, Section 4.2, in full: 64,000 steps of 128 on all 50,000 images, 0.1, 0.01, 0.001.

    As configs/cifar10.py, but that no validation split is held out: an ablation chooses nothing by it.
    """
    config = cifar10.get_config()
    config.model.name = model
    config.data.val_fraction = 0.0
    # 32k and 48k of 64k steps.
    config.optim.step_epochs = (32_000 / STEPS_PER_EPOCH, 48_000 / STEPS_PER_EPOCH)
    config.run.log_every = 100
    # The command has --steps_per_dispatch.
    config.run.steps_per_call = 1
    return config
