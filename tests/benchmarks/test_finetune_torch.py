"""The same fine-tuning in torch: it takes the recipes that it can repeat, and repeats their rates and weight decay."""

import math

import pytest

from benchmarks import finetune_torch
from configs import transfer
from input_pipeline.errors import InputError
from tests.tiny import tiny_config, tiny_data


def recipe(tmp_path):
    config = transfer.get_config()
    config.transfer.weights = str(tmp_path / "weights.pth")
    return config


def test_recipes_that_torchs_side_would_train_otherwise_are_refused(tmp_path):
    workdir = tmp_path / "runs"
    finetune_torch.check(recipe(tmp_path), workdir)
    for key, value in (("data.mixup", 0.2), ("optim.ema", 0.99), ("transfer.unfreeze", ("layer4@2",))):
        config = recipe(tmp_path)
        part, name = key.split(".")
        config[part][name] = value
        with pytest.raises(InputError, match=f"config.{key}"):
            finetune_torch.check(config, workdir)
    with pytest.raises(InputError, match="name a new folder"):
        finetune_torch.check(recipe(tmp_path), tmp_path)


def test_torch_trains_the_recipe_from_the_files_arrays(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_twin import TorchResNet

    config = tiny_config(tiny_data(tmp_path))
    config.transfer.mode, config.transfer.weights = "finetune", str(tmp_path / "weights.pth")
    config.transfer.lr_multipliers = ("^fc=10", "layer1_0/conv1=0.5")
    config.model.name, config.model.width, config.optim.weight_decay = "resnet18", 8, 0.01
    network = TorchResNet("basic", (1, 1), width=8)
    torch.save(network.state_dict(), config.transfer.weights)
    groups = finetune_torch.torch_optimizer(network, config).param_groups
    found = {
        name: (group["factor"], group["weight_decay"])
        for (name, _), group in zip(network.named_parameters(), groups, strict=True)
    }
    assert found["fc.weight"] == (10, 0.01)
    assert found["fc.bias"] == (10, 0)
    assert found["layer1.0.conv1.weight"] == (0.5, 0.01)
    assert found["layer2.0.downsample.0.weight"] == (1, 0.01)
    assert found["bn1.weight"] == (1, 0)
    result = finetune_torch.torch_side(config)
    assert result["count"] == len(list((tmp_path / "data" / "test").rglob("*.*")))
    assert math.isfinite(result["loss"])
    assert 0 <= result["top1"] <= 1
