"""What a configuration means for a dataset: the network, the recipe, the crops, and what happens at which step."""

import dataclasses
import math

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from input_pipeline.augment import Augmentation
from input_pipeline.contract import Contract, contract_by_name
from input_pipeline.crops import Crop
from input_pipeline.errors import InputError
from input_pipeline.order import Order
from input_pipeline.sources import Source
from resnet.model.network import ResNet
from resnet.train.configuration import MOST_STEPS, check_validation, make_spec
from resnet.train.optimizer import OptimizerSettings, make_optimizer
from resnet.train.schedules import ScheduleSettings, make_schedule
from resnet.train.steps import Recipe, balanced_weights


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is fixed before the first step. Steps count from 0; `total_steps` of them make the run."""

    network: ResNet
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    recipe: Recipe
    contract: Contract
    order: Order
    train_crop: Crop
    eval_crop: Crop
    batch_size: int
    eval_batch_size: int
    steps_per_epoch: float
    total_steps: int
    eval_every: int
    checkpoint_every: int
    log_every: int
    feed: str

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps."""
        return step / self.steps_per_epoch


def make_plan(config: ConfigDict, source: Source) -> Plan:
    """Read the whole configuration against the data. Raises InputError or SpecError naming the key at fault."""
    train = source.splits["train"]
    batch_size = config.data.batch_size
    if batch_size > len(train):
        raise InputError(
            f"config.data.batch_size={batch_size} is larger than the training set of {len(train)} images; "
            f"take at most {len(train)}"
        )
    if "val" not in source.splits:
        check_validation(config)
    spec = make_spec(config, len(source.class_names))
    steps_per_epoch = len(train) / batch_size
    total_steps = config.run.steps or math.ceil(config.run.epochs * steps_per_epoch)
    if total_steps > MOST_STEPS:
        raise InputError(
            f"config.run.epochs={config.run.epochs} is {total_steps} steps; at most {MOST_STEPS} can be counted"
        )
    contract = contract_by_name(config.data.contract)
    schedule = make_schedule(schedule_settings(config), steps_per_epoch, total_steps)
    every = lambda epochs: max(1, round(epochs * steps_per_epoch))  # noqa: E731
    return Plan(
        network=ResNet(spec, dtype=jnp.dtype(config.run.dtype)),
        optimizer=make_optimizer(optimizer_settings(config), schedule),
        schedule=schedule,
        recipe=make_recipe(config, source, contract),
        contract=contract,
        order=Order(len(train), batch_size, config.run.seed),
        train_crop=make_crop(config, contract, config.data.crop),
        eval_crop=make_crop(config, contract, "none"),
        batch_size=batch_size,
        eval_batch_size=config.data.eval_batch_size or batch_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        eval_every=every(config.run.eval_every),
        checkpoint_every=every(config.run.checkpoint_every),
        log_every=config.run.log_every,
        # What 'auto' chooses; there is one feed so far.
        feed="stream" if config.data.feed == "auto" else config.data.feed,
    )


def make_crop(config: ConfigDict, contract: Contract, kind: str) -> Crop:
    """The crop of config.data, of the given kind; the contract says how evaluation resizes unless the key does."""
    data = config.data
    shorter = contract.resize_shorter if data.resize_shorter == -1 else data.resize_shorter
    return Crop(
        kind=kind,
        image_size=data.image_size,
        scale=tuple(data.crop_scale),
        ratio=tuple(data.crop_ratio),
        padding=data.crop_padding,
        resize_shorter=shorter,
        interpolation=contract.interpolation,
    )


def make_recipe(config: ConfigDict, source: Source, contract: Contract) -> Recipe:
    """What a train step does besides network and optimizer."""
    data, optim = config.data, config.optim
    weights: tuple[float, ...] = ()
    if data.class_weights == "balanced":
        weights = balanced_weights(source.splits["train"].labels, len(source.class_names))
    augmentation = Augmentation(
        flip=data.flip,
        brightness=data.brightness,
        contrast=data.contrast,
        saturation=data.saturation,
        hue=data.hue,
        erasing=data.erasing,
        mixup=data.mixup,
        cutmix=data.cutmix,
        label_smoothing=optim.label_smoothing,
    )
    return Recipe(
        seed=config.run.seed,
        contract=contract,
        augmentation=augmentation,
        class_weights=weights,
        accumulation=optim.accumulation,
        ema=optim.ema,
    )


def schedule_settings(config: ConfigDict) -> ScheduleSettings:
    optim = config.optim
    return ScheduleSettings(
        schedule=optim.schedule,
        lr=optim.lr,
        warmup_epochs=optim.warmup_epochs,
        step_epochs=tuple(optim.step_epochs) if optim.schedule == "step" else (),
        step_factor=optim.step_factor,
        power=optim.power,
        final_lr=optim.final_lr,
    )


def optimizer_settings(config: ConfigDict) -> OptimizerSettings:
    optim = config.optim
    return OptimizerSettings(
        name=optim.name,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        beta1=optim.beta1,
        beta2=optim.beta2,
        epsilon=optim.epsilon,
        weight_decay=optim.weight_decay,
        clip_norm=optim.clip_norm,
        trust_coefficient=optim.trust_coefficient,
    )
