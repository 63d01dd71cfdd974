"""Every recipe in configs/ is valid and takes a real training step; every key of the defaults is read by something."""

import functools
import importlib
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from configs import default
from resnet.model.network import ResNet
from resnet.train import loop, plan
from resnet.train.configuration import flatten, make_spec, validate
from resnet.train.optimizer import make_optimizer
from resnet.train.schedules import make_schedule
from resnet.train.writers import read_metrics
from tests.tiny import tiny_data

CONFIGS = Path(default.__file__).parent
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem not in ("__init__", "default"))


def recipe(name: str) -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("configs"))


@pytest.fixture(autouse=True)
def compiled_fast(monkeypatch) -> Iterator[None]:
    """lax' own convolution and the rbg generator: programs that take a quarter of the time to compile."""
    monkeypatch.setattr(plan, "ResNet", functools.partial(ResNet, backend=jax.lax.conv_general_dilated))
    with jax.default_prng_impl("rbg"):
        yield


def test_the_recipes_are_found():
    assert {"caltech101", "cifar10", "demo", "flowers", "folder", "imagenet", "mri"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid_as_it_stands(name):
    """Its network, its optimizer and its schedule over 10,000 images, as written."""
    config = recipe(name)
    validate(config)
    spec = make_spec(config, 10)
    assert spec.num_classes == 10
    steps_per_epoch = 10_000 / config.data.batch_size
    total_steps = config.run.steps or round(config.run.epochs * steps_per_epoch)
    schedule = make_schedule(plan.schedule_settings(config), steps_per_epoch, total_steps)
    make_optimizer(plan.optimizer_settings(config), schedule)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_short_delta_with_the_command_that_runs_it(name):
    text = (CONFIGS / f"{name}.py").read_text()
    assert f"--config=configs/{name}.py" in text
    assert "Result to expect:" in text
    assert len(text.splitlines()) < 60


def shrink(config: ConfigDict, data: Path) -> ConfigDict:
    """The recipe on sixteen drawn pixels and one block, for one step."""
    config.model.stage_sizes = (1,)
    config.model.width = 8
    config.data.source = "folder"
    config.data.dir = str(data)
    config.data.exclude = ()
    config.data.val_fraction = 0.25
    config.data.image_size = 16
    config.data.batch_size = 4
    config.data.eval_batch_size = 8
    config.data.threads = 1
    config.optim.warmup_epochs = 0.0
    config.run.epochs = default.run().epochs
    config.run.steps = 1
    config.run.log_every = 1
    return config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_a_real_step(name, data, tmp_path):
    assert loop.train(shrink(recipe(name), data), tmp_path / "run") == 0
    lines = {line["kind"]: line for line in read_metrics(tmp_path / "run")}
    assert set(lines) == {"train", "val", "test"}
    assert lines["train"]["bad_steps"] == 0
    assert lines["train"]["gradient_norm"] > 0
    assert lines["test"]["count"] == 20


def test_every_key_is_read_by_a_run(data, tmp_path, monkeypatch):
    """Not by validate alone, which goes through all of them: by what acts on it.

    Reading by attribute is recorded; the model section is read by name, field by field (test_configuration).
    """
    config = shrink(recipe("cifar10"), data)
    assert config.optim.schedule == "step"  # only then are the step's keys read
    config.run.early_stopping = 5
    # The guard against bad steps looks at a step once others are under way.
    config.run.steps = 4
    sections = {id(config[name]): name for name in ("data", "optim", "run")}
    read: set[str] = set()
    get = ConfigDict.__getattr__

    def record(self, name):
        if id(self) in sections:
            read.add(f"{sections[id(self)]}.{name}")
        return get(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(ConfigDict, "__getattr__", record)
        assert loop.train(config, tmp_path / "run") == 0
    keys = {key for key, _ in flatten(default.get_config()) if not key.startswith("model.")}
    # Not read where there are steps.
    assert keys - read == {"run.epochs"}
