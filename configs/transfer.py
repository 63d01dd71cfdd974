"""Your own folder of images from ImageNet weights: fine-tuned (the default), or transfer.py:probe, only a head.

    python train_main.py --config=configs/transfer.py --workdir=runs/mine --config.data.dir=PATH
    python train_main.py --config=configs/transfer.py:probe --workdir=runs/probe --config.data.dir=PATH

The weights are downloaded on first use; to use your own file or folder: --config.transfer.weights=PATH.

Result to expect: depends on the folder. A probe takes one pass of the backbone, fine-tuning 20 epochs of training.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(mode: str = "finetune", words: tuple[str, ...] = ("finetune", "probe")) -> ConfigDict:
    """words: what a recipe that takes this one's for some of its words names where it is given another."""
    if mode not in ("finetune", "probe"):
        raise ValueError(f"{mode!r} is not one of {', '.join(words)}")
    config = default.get_config()
    config.transfer.mode = mode
    # The weights of torchvision's first recipe: those of the second score higher on ImageNet but, trained with strong
    # label smoothing, lend themselves less to a linear head (Kornblith et al. 2021, arXiv 2010.16402).
    config.transfer.weights = "torchvision:resnet50_v1"
    if mode == "probe":
        # Of 0.001, 0.003, 0.01 and 0.03 this had the lowest validation loss (0.75, 0.66, 0.72, 0.92), on the features
        # of 260 + 100 flower photographs at 160 px.
        config.optim.name = "adam"
        config.optim.lr = 0.003
        config.optim.weight_decay = 0.0
        config.run.epochs = 30.0
        # A checkpoint holds the whole network, and writing one takes longer than several epochs of a head.
        config.run.eval_every = config.run.checkpoint_every = 3.0
        return config
    config.data.batch_size = 32
    config.data.crop_scale = (0.35, 1.0)
    # The best on both datasets of a search, far ahead of SGD at 0.01 with ten times that for the head:
    # benchmarks/results/finetune_search_cpu2.json.
    config.optim.name = "adamw"
    config.optim.lr = 0.001
    config.optim.weight_decay = 0.05
    config.optim.warmup_epochs = 1.0
    config.optim.label_smoothing = 0.1
    config.run.epochs = 20.0
    return config
