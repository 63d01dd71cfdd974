"""What a configuration means for a dataset: the network, the recipe, the crops, and what happens at which step."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from input_pipeline import configured
from input_pipeline.configured import make_augmentation
from input_pipeline.contract import Contract, contract_by_name
from input_pipeline.crops import Crop
from input_pipeline.errors import InputError
from input_pipeline.order import Order
from input_pipeline.sources import Source
from resnet.model.network import ResNet
from resnet.train.configuration import make_spec, steps_of
from resnet.train.feeding import Resident, choose_feed
from resnet.train.freezing import Stage, make_stages
from resnet.train.losses import Loss, balanced_weights
from resnet.train.optimizer import OptimizerSettings
from resnet.train.pretrained import Pretrained, load_pretrained
from resnet.train.profiling import check_span
from resnet.train.schedules import ScheduleSettings, make_schedule
from resnet.train.steps import Recipe
from resnet.train.transfer import Transfer, read_transfer
from resnet.train.unread_keys import check_blocks, check_validation


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is fixed before the first step. Steps count from 0; `total_steps` of them make the run."""

    network: ResNet
    # What learns from which step on; a run that freezes nothing has one stage.
    stages: tuple[Stage, ...]
    transfer: Transfer
    # What the network starts from, or None.
    pretrained: Pretrained | None
    schedule: optax.Schedule
    recipe: Recipe
    contract: Contract
    order: Order
    train_crop: Crop
    eval_crop: Crop
    batch_size: int
    eval_batch_size: int
    # Whether evaluation takes the mean of the logits of an image and its mirror.
    eval_flip: bool
    steps_per_epoch: float
    total_steps: int
    eval_every: int
    checkpoint_every: int
    log_every: int
    # None: images are streamed.
    resident: Resident | None

    @property
    def seen_crop(self) -> Crop:
        """How training images are cut: a probe that sees each once sees it as evaluation does."""
        once = self.transfer.mode == "probe" and self.transfer.views == 1
        return self.eval_crop if once else self.train_crop

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps."""
        return step / self.steps_per_epoch

    def stage(self, step: int) -> Stage:
        """The stage that step number `step` (from 0) belongs to."""
        return next(stage for stage in reversed(self.stages) if stage.start <= step)


def make_plan(config: ConfigDict, source: Source) -> Plan:
    """Read the whole configuration against the data. Raises InputError or SpecError naming the key at fault."""
    train = source.splits["train"]
    batch_size = _batch_size(config, len(train))
    if "val" not in source.splits:
        check_validation(config)
    spec = make_spec(config, len(source.class_names))
    steps_per_epoch = len(train) / batch_size
    steps = config.run.steps or steps_of(config.run.epochs, len(train), batch_size)
    check_span(config.run.profile, steps)
    transfer = read_transfer(config)
    network = ResNet(spec, dtype=jnp.dtype(config.run.dtype), remat=config.run.remat)
    schedule = make_schedule(schedule_settings(config), steps_per_epoch, steps)
    stages = make_stages(transfer, network, optimizer_settings(config), schedule, steps_per_epoch)
    _check_stages(config, transfer, stages, steps_per_epoch, steps)
    contract, pretrained = own_contract(config), None
    if transfer.mode != "scratch":
        pretrained = load_pretrained(config, spec, source.class_names)
        contract = pretrained.contract
    every = lambda epochs: max(1, round(epochs * steps_per_epoch))  # noqa: E731
    order = Order(len(train), batch_size, config.run.seed)
    train_crop = make_crop(config, contract, pretrained, config.data.crop)
    return Plan(
        network=network,
        stages=stages,
        transfer=transfer,
        pretrained=pretrained,
        schedule=schedule,
        recipe=make_recipe(config, source, contract),
        contract=contract,
        order=order,
        train_crop=train_crop,
        eval_crop=make_eval_crop(config, contract, pretrained),
        batch_size=batch_size,
        eval_batch_size=config.data.eval_batch_size or batch_size,
        eval_flip=config.run.eval_flip,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps,
        eval_every=every(config.run.eval_every),
        checkpoint_every=every(config.run.checkpoint_every),
        log_every=config.run.log_every,
        resident=choose_feed(
            "stream" if transfer.mode == "probe" else config.data.feed,
            train,
            order,
            train_crop,
            processes=jax.process_count(),
            epochs=steps / steps_per_epoch,
            platform=jax.default_backend(),
        ),
    )


def _batch_size(config: ConfigDict, images: int) -> int:
    batch_size: int = config.data.batch_size
    if batch_size > images:
        raise InputError(
            f"config.data.batch_size={batch_size} is larger than the training set of {images} images; use at most "
            f"{images}"
        )
    return batch_size


def _check_stages(
    config: ConfigDict, transfer: Transfer, stages: tuple[Stage, ...], steps_per_epoch: float, total_steps: int
) -> None:
    """Raise InputError for a stage behind the run's end, and for a key that no stage reads."""
    if stages[-1].start >= total_steps:
        raise InputError(
            f"config.transfer.unfreeze: {transfer.unfreeze_text} extends past the run's "
            f"{total_steps / steps_per_epoch:g} epochs; its last part would have no effect"
        )
    check_blocks(config, stages[-1].learning)


def own_contract(config: ConfigDict) -> Contract:
    """config.data.contract, of a run without weights to follow: there 'auto' is torch's."""
    return contract_by_name("torch" if config.data.contract == "auto" else config.data.contract)


def make_crop(config: ConfigDict, contract: Contract, pretrained: Pretrained | None, kind: str) -> Crop:
    """The crop of config.data, of the given kind. How evaluation resizes is the weights', or the contract's, to say,
    unless the key does."""
    shorter = pretrained.resize_shorter if pretrained else contract.resize_shorter
    return configured.make_crop(config, contract, kind, shorter)


def make_eval_crop(config: ConfigDict, contract: Contract, pretrained: Pretrained | None) -> Crop:
    """Evaluation's: of config.data.eval_image_size, where that is given."""
    crop = make_crop(config, contract, pretrained, "none")
    return dataclasses.replace(crop, image_size=config.data.eval_image_size or crop.image_size)


def make_recipe(config: ConfigDict, source: Source, contract: Contract) -> Recipe:
    """What a train step does besides network and optimizer."""
    data, optim = config.data, config.optim
    weights: tuple[float, ...] = ()
    if data.class_weights == "balanced":
        weights = balanced_weights(source.splits["train"].labels, len(source.class_names))
    augmentation, smoothing = make_augmentation(config), 0.0
    if optim.loss == "sigmoid":
        # Its smoothing comes behind its threshold, which looks at the shares themselves.
        augmentation, smoothing = dataclasses.replace(augmentation, label_smoothing=0.0), optim.label_smoothing
    return Recipe(
        seed=config.run.seed,
        contract=contract,
        augmentation=augmentation,
        loss=Loss(optim.loss, smoothing, optim.target_threshold),
        class_weights=weights,
        accumulation=optim.accumulation,
        ema=optim.ema,
        num_examples=len(source.splits["train"]),
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
