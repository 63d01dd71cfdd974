"""Claim: fine-tuning here ends where torch ends from the same weights on the same images; a fault of ours would show.

    python -m benchmarks.finetune_torch --config=configs/mri.py --workdir=RUN --config.data.dir=PATH
                                        --config.transfer.weights=FILE.pth [--config.key=value ...] [--seeds=1]

For each seed first train_main.py runs with these very flags (in RUN/SEED, which must not exist), then torch in eager
mode: torchvision's network (benchmarks/torch_twin.py) with the file's arrays and a fresh head as torch draws it, the
batches that our stream feeds, flipped by coins of its own, the recipe's rate at every step, its optimizer from
torch.optim, the rates' multipliers and weight decay on kernels alone as parameter groups. Both are tested after the
last step, on all test images (ours by `evaluate` on the run's last checkpoint).

Taken are recipes of config.transfer.mode=finetune with sgd or adamw and no augmentation but crop, flip and smoothing.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from benchmarks import record
from configs.default import get_config as default_config
from input_pipeline import recipe
from input_pipeline.errors import InputError, printable
from resnet import command

ROOT = Path(__file__).resolve().parent.parent
# What torch's side knows nothing of: a recipe that sets one of these would compare two different trainings.
NOT_TAKEN = (
    "data.auto_augment", "data.brightness", "data.contrast", "data.saturation", "data.hue", "data.erasing",
    "data.mixup", "data.cutmix", "data.class_weights", "model.dropout", "model.stochastic_depth",
    "optim.accumulation", "optim.clip_norm", "optim.ema", "transfer.bn", "transfer.head", "transfer.unfreeze",
)  # fmt: skip


def main() -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    values = flags.FlagValues()
    recipe.define(values, sys.argv, "The recipe of a fine-tuning.")
    flags.DEFINE_string("workdir", None, "A new folder for our runs.", flag_values=values)
    flags.DEFINE_integer("seeds", 1, "Runs of each side, with config.run.seed = 0, 1, …", 1, flag_values=values)
    flags.DEFINE_string("out", "", "The JSON file.", flag_values=values)
    recipe.parse(values, sys.argv, __doc__ or "", known=recipe.flatten(default_config()))
    given = values.flag_values_dict()
    config, workdir = given["config"], Path(given["workdir"])
    check(config, workdir)
    words = [word for word in sys.argv[1:] if not re.match("--(workdir|seeds|out)(=|$)", word)]
    found: dict[str, list[dict[str, float]]] = {"ours": [], "torch": []}
    for seed in range(given["seeds"]):
        config.run.seed = seed
        found["ours"].append(ours(words, config, workdir / str(seed), seed))
        say("ours", seed, found["ours"][-1])
        found["torch"].append(torch_side(config))
        say("torch", seed, found["torch"][-1])
    record.write("finetune_torch", {"recipe": words_of(config), **found}, given["out"])
    return 0


def check(config: ConfigDict, workdir: Path) -> None:
    """Raise InputError for a recipe that torch's side would train otherwise, and for a folder that is there."""
    if workdir.exists():
        raise InputError(f"--workdir={printable(str(workdir))}: exists; name a new folder")
    if config.transfer.mode != "finetune" or not config.transfer.weights.endswith((".pth", ".pt")):
        raise InputError("config.transfer must be a finetune from torch's own file (config.transfer.weights=FILE.pth)")
    if config.optim.name not in ("sgd", "adamw"):
        raise InputError(f"config.optim.name={config.optim.name}: this comparison knows sgd and adamw")
    if config.data.flip not in ("none", "horizontal"):
        raise InputError(f"config.data.flip={config.data.flip}: this comparison knows none and horizontal")
    mine, usual = recipe.flatten(config), recipe.flatten(default_config())
    for key in NOT_TAKEN:
        if mine[key] != usual[key]:
            raise InputError(f"config.{key}={mine[key]}: torch's side of this comparison does not know it")


def words_of(config: ConfigDict) -> dict[str, Any]:
    """What the recipe changes of the defaults, but for places on this machine."""
    usual = recipe.flatten(default_config())
    changed = {key: value for key, value in recipe.flatten(config).items() if value != usual[key] and key != "run.seed"}
    return changed | {key: Path(changed[key]).name for key in ("data.dir", "transfer.weights") if key in changed}


def say(side: str, seed: int, result: dict[str, float]) -> None:
    print(
        f"{side:5}  seed {seed}  test top-1 {result['top1']:.2%} of {result['count']:,.0f}  loss {result['loss']:.4f}  "
        f"{result['seconds']:.0f} s",
        flush=True,
    )


def ours(words: list[str], config: ConfigDict, workdir: Path, seed: int) -> dict[str, float]:
    """Train, then test the last checkpoint, as a user would."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    train = ["train_main.py", *words, f"--workdir={workdir}", f"--config.run.seed={seed}"]
    subprocess.run([sys.executable, *train], cwd=ROOT, check=True)
    seconds = time.perf_counter() - start
    last = max((path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
    test = ["-m", "resnet.study.evaluate", f"--checkpoint={last}", f"--data={config.data.dir}", "--json"]
    done = subprocess.run([sys.executable, *test], cwd=ROOT, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)
    return {name: figures[name] for name in ("count", "top1", "loss")} | {"seconds": seconds}


def torch_side(config: ConfigDict) -> dict[str, float]:
    """The same training in torch; its figures on the test split."""
    import torch

    from benchmarks.torch_twin import TorchResNet
    from input_pipeline.configured import make_augmentation, open_data
    from input_pipeline.stream import train_batches
    from resnet.train.plan import make_plan

    source = open_data(config)
    plan = make_plan(config, source)
    torch.manual_seed(config.run.seed)
    spec = plan.network.spec
    layers = ("block", "stage_sizes", "width", "num_classes", "stem", "stride_place", "shortcut")
    network = TorchResNet(**{name: getattr(spec, name) for name in layers})
    arrays = torch.load(config.transfer.weights, map_location="cpu", weights_only=True)
    kept = {name: array for name, array in arrays.items() if not name.startswith("fc.")}
    missing = network.load_state_dict(kept, strict=False)
    assert (sorted(missing.missing_keys), missing.unexpected_keys) == (["fc.bias", "fc.weight"], [])
    network.to(memory_format=torch.channels_last)
    network.train()
    optimizer = torch_optimizer(network, config)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=make_augmentation(config).label_smoothing)
    batches = train_batches(source.splits["train"], plan.order, plan.train_crop, num_steps=plan.total_steps)
    start = time.perf_counter()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = float(plan.schedule(step)) * group["factor"]
        images = as_input(batch["image"], plan.contract)
        if config.data.flip == "horizontal":
            coins = torch.rand(len(images)) < 0.5
            images[coins] = images[coins].flip(3)
        optimizer.zero_grad()
        loss = criterion(network(images), torch.from_numpy(batch["label"]).long())
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"torch  step {step}/{plan.total_steps}  loss {loss.item():.4f}", flush=True)
    return tested(network.eval(), source, plan) | {"seconds": time.perf_counter() - start}


def torch_optimizer(network: Any, config: ConfigDict) -> Any:
    """config.optim in torch's own terms: a parameter group a rate and weight decay; 'factor' multiplies the rate."""
    import torch

    groups = []
    for name, parameter in network.named_parameters():
        # torch's names as ours: layer1.0.conv1.weight is layer1_0/conv1 for the patterns of lr_multipliers.
        path = re.sub(r"^(layer\d)\.(\d+)\.", r"\1_\2/", name).replace(".", "/")
        factors = [float(text.rpartition("=")[2]) for text in config.transfer.lr_multipliers
                   if re.search(text.rpartition("=")[0], path)]  # fmt: skip
        decay = config.optim.weight_decay if parameter.ndim > 1 else 0.0
        groups.append({"params": [parameter], "weight_decay": decay, "factor": factors[0] if factors else 1.0})
    if config.optim.name == "adamw":
        betas = (config.optim.beta1, config.optim.beta2)
        return torch.optim.AdamW(groups, lr=config.optim.lr, betas=betas, eps=config.optim.epsilon)
    momentum, nesterov = config.optim.momentum, config.optim.nesterov
    return torch.optim.SGD(groups, lr=config.optim.lr, momentum=momentum, nesterov=nesterov)


def as_input(images: np.ndarray, contract: Any) -> Any:
    """uint8[B, S, S, 3] as the weights expect it: float32[B, 3, S, S], channels last in memory."""
    import torch

    from input_pipeline.contract import normalise

    return torch.from_numpy(np.array(normalise(images, contract))).permute(0, 3, 1, 2)


def tested(network: Any, source: Any, plan: Any) -> dict[str, float]:
    """Top-1 and mean loss over the test split, cropped as the recipe's evaluation crops."""
    import torch

    from input_pipeline.stream import eval_batches

    right, loss, count = 0.0, 0.0, 0.0
    with torch.inference_mode():
        for batch in eval_batches(source.splits["test"], plan.eval_batch_size, plan.eval_crop):
            logits = network(as_input(batch["image"], plan.contract))
            labels, mask = torch.from_numpy(batch["label"]).long(), torch.from_numpy(batch["mask"])
            right += ((logits.argmax(1) == labels) * mask).sum().item()
            loss += (torch.nn.functional.cross_entropy(logits, labels, reduction="none") * mask).sum().item()
            count += mask.sum().item()
    return {"count": count, "top1": right / count, "loss": loss / count}


if __name__ == "__main__":
    command.run(main)
