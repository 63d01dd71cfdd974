"""Every recipe in configs/ is valid and takes a real training step; every key of the defaults is read by something."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from configs import default
from input_pipeline.contract import CONTRACTS
from resnet.train import loop, plan
from resnet.train.checkpoints import Meta, save_converted
from resnet.train.configuration import flatten, make_spec, validate
from resnet.train.optimizer import make_optimizer
from resnet.train.schedules import make_schedule
from resnet.train.writers import read_metrics
from tests.compiling import convolve_by_lax
from tests.networks import random_variables

CONFIGS = Path(default.__file__).parent
FILES = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem not in ("__init__", "default"))
# Words that a recipe's file takes behind a colon.
WORDS = dict.fromkeys(("caltech101", "flowers", "mri"), ("finetune", "probe", "scratch"))
WORDS["transfer"] = ("finetune", "probe")
TRANSFERS = tuple(WORDS)
WORDS["cifar10"] = ("paper", "short")
RECIPES = [each for name in FILES for each in (name, *(f"{name}:{word}" for word in WORDS.get(name, ())))]


def recipe(name: str) -> ConfigDict:
    """As --config=configs/NAME.py or configs/NAME.py:WORD makes it."""
    file, _, word = name.partition(":")
    return importlib.import_module(f"configs.{file}").get_config(*filter(None, [word]))


pytestmark = pytest.mark.usefixtures("bare")


@pytest.fixture(autouse=True)
def compiled_fast(monkeypatch) -> Iterator[None]:
    """lax' own convolution and the rbg generator: programs that take a quarter of the time to compile."""
    convolve_by_lax(monkeypatch)
    with jax.default_prng_impl("rbg"):
        yield


def test_the_recipes_are_found():
    assert {"caltech101", "cifar10", "cifar10_fast", "demo", "flowers", "folder", "imagenet", "mri", "transfer"} <= set(
        FILES
    )


def test_large_batches_have_the_published_rates():
    """0.1 for each 256 images and the rest of Goyal et al. 2017, Section 5.1; beyond 8,192 LARS."""
    for name, batch, optimizer, rate in (("imagenet", 1024, "sgd", 0.4), ("imagenet_8k", 8192, "sgd", 3.2)):
        config = recipe(name)
        assert (config.data.batch_size, config.optim.name, config.optim.lr) == (batch, optimizer, rate)
        assert rate == 0.1 * batch / 256
        assert config.optim.warmup_epochs == 5.0
        assert config.optim.step_epochs == (30.0, 60.0, 80.0)
        assert (config.optim.momentum, config.optim.nesterov, config.optim.weight_decay) == (0.9, True, 1e-4)
        assert config.model.zero_init_last_gamma
    config = recipe("imagenet_32k")
    assert (config.data.batch_size, config.optim.name, config.optim.warmup_epochs) == (32768, "lars", 14.0)
    # One device's rows at a time hold whole groups, however many devices: no rows travel.
    for name in ("imagenet_8k", "imagenet_32k"):
        assert recipe(name).data.batch_size % (256 * recipe(name).model.ghost_batch_size) == 0


def test_a3_is_the_procedure_of_timm_and_mmpretrain():
    """Wightman et al. 2021, A3, by the settings of both; LAMB's epsilon and clipping as timm has them."""
    config = recipe("imagenet_a3")
    data, optim = config.data, config.optim
    assert (data.image_size, data.eval_image_size, round(224 * data.resize_shorter)) == (160, 224, 235)
    assert (data.batch_size, config.run.epochs, optim.warmup_epochs, optim.schedule) == (2048, 100.0, 5.0, "cosine")
    assert (optim.name, optim.lr, optim.weight_decay, optim.epsilon, optim.clip_norm) == ("lamb", 8e-3, 0.02, 1e-6, 1.0)
    assert (optim.loss, optim.target_threshold, optim.label_smoothing) == ("sigmoid", 0.0, 0.0)
    assert (data.mixup, data.cutmix, data.flip, data.crop) == (0.1, 1.0, "horizontal", "random_resized")
    named = ("set", "ops", "magnitude", "noise", "probability")
    drawn = [data[f"randaugment_{name}"] for name in named]
    assert (data.auto_augment, drawn) == ("randaugment", ["timm", 2, 6.0, 0.5, 0.5])
    assert (data.erasing, data.brightness, data.hue, config.model.stochastic_depth) == (0.0, 0.0, 0.0, None)


@pytest.mark.parametrize("name", WORDS)
def test_a_recipe_without_a_word_is_that_of_its_first_word(name):
    assert recipe(name).to_dict() == recipe(f"{name}:{WORDS[name][0]}").to_dict()
    with pytest.raises(ValueError, match=f"'nonsense' is not one of {', '.join(WORDS[name])}$"):
        recipe(f"{name}:nonsense")


@pytest.mark.parametrize("name", TRANSFERS)
def test_each_word_of_a_transfer_is_its_mode(name):
    for word in WORDS[name]:
        assert recipe(f"{name}:{word}").transfer.mode == word
        assert f"{name}.py" in (CONFIGS / f"{name}.py").read_text()


def test_a_short_run_on_cifar_trains_on_all_images_and_chooses_nothing():
    config = recipe("cifar10:short")
    assert (config.data.val_fraction, config.run.steps, config.optim.schedule) == (0.0, 0, "cosine")
    assert (recipe("cifar10").run.steps, recipe("cifar10").optim.schedule) == (64_000, "step")


def test_the_papers_recipe_drops_where_the_paper_does():
    """He et al. 2015, Section 4.2: after 32k and 48k steps, of 45,000 training images."""
    config = recipe("cifar10")
    schedule = make_schedule(plan.schedule_settings(config), 45_000 / config.data.batch_size, config.run.steps)
    found = [float(schedule(step)) for step in (31_999, 32_000, 47_999, 48_000)]
    assert found == pytest.approx([0.1, 0.01, 0.01, 0.001])


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


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_is_a_short_delta_with_the_command_that_runs_it(name):
    text = (CONFIGS / f"{name}.py").read_text()
    assert f"--config=configs/{name}.py" in text
    assert "Result to expect:" in text
    assert len(text.splitlines()) < 60


def shrink(config: ConfigDict, data: Path, folder: Path) -> ConfigDict:
    """The recipe on sixteen drawn pixels and one block, for one step; weights, where it takes any, under `folder`."""
    config.model.stage_sizes = (1,)
    config.model.width = 8
    config.data.source = "folder"
    config.data.dir = str(data)
    config.data.exclude = ()
    config.data.val_fraction = 0.25
    config.data.image_size = 16
    config.data.eval_image_size = 16 if config.data.eval_image_size else 0
    config.data.batch_size = 4
    if config.model.ghost_batch_size:
        config.model.ghost_batch_size = 2
    config.data.eval_batch_size = 8
    config.data.threads = 1
    config.optim.warmup_epochs = 0.0
    config.run.epochs = default.run().epochs
    config.run.steps = 1
    config.run.log_every = 1
    if config.transfer.weights:
        spec = make_spec(config, 3)
        meta = Meta(spec, ("a", "b", "c"), CONTRACTS["torch"], image_size=16, resize_shorter=1.0)
        save_converted(folder / "weights", random_variables(spec), meta)
        config.transfer.weights = str(folder / "weights")
    return config


# Without its word a recipe is one of those with a word.
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in WORDS])
def test_a_recipe_takes_a_real_step(name, data, tmp_path, monkeypatch):
    # A probe's features are kept there.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert loop.train(shrink(recipe(name), data, tmp_path), tmp_path / "run") == 0
    lines = {line["kind"]: line for line in read_metrics(tmp_path / "run")}
    assert set(lines) == {"train", "val", "test"}
    assert lines["train"]["bad_steps"] == 0
    assert lines["train"]["gradient_norm"] > 0
    assert lines["test"]["count"] == 20


def test_every_key_is_read_by_a_run(data, tmp_path, monkeypatch):
    """Not by validate alone, which goes through all of them: by what acts on it.

    Reading by attribute is recorded; the model section is read by name, field by field (test_configuration).
    """
    config = shrink(recipe("cifar10"), data, tmp_path)
    assert config.optim.schedule == "step"  # only then are the step's keys read
    config.run.early_stopping = 5
    # The guard against bad steps looks at a step once others are under way.
    config.run.steps = 4
    sections = {id(config[name]): name for name in ("data", "optim", "transfer", "run")}
    read: set[str] = set()
    get = ConfigDict.__getattr__

    def record(self, name):
        if id(self) in sections:
            read.add(f"{sections[id(self)]}.{name}")
        return get(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(ConfigDict, "__getattr__", record)
        assert loop.train(config, tmp_path / "run") == 0
    keys = {key for key in flatten(default.get_config()) if not key.startswith("model.")}
    # Not read where there are steps.
    assert keys - read == {"run.epochs"}
