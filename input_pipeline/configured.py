"""What config.data says, put together: the dataset, the crops, the augmentation. Training and the preview share it."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline.augment import Augmentation
from input_pipeline.contract import Contract
from input_pipeline.crops import Crop
from input_pipeline.resident import ResidentData, read_arrays
from input_pipeline.sources import ARRAYS, Source, check_place, open_source


def open_data(config: ConfigDict, *, leading: bool = True) -> Source:
    """The dataset that config.data names, looked over once. leading: as for `open_source`.

    A file of arrays has the splits that it has: nothing is held out, left out or looked over.
    Raises InputError for what the user can mend.
    """
    data = config.data
    if data.source == ARRAYS:
        return open_arrays(config).as_source(ARRAYS)
    return open_source(
        data.source,
        data.dir,
        val_fraction=data.val_fraction,
        test_fraction=data.test_fraction,
        per_class=data.per_class,
        folds=data.folds,
        fold=data.fold,
        split_seed=data.split_seed,
        on_error=data.on_error,
        exclude=tuple(data.exclude),
        doctor=data.doctor,
        drop_leaks=data.drop_leaks,
        keep_copies_together=data.keep_copies_together,
        leading=leading,
    )


def open_arrays(config: ConfigDict) -> ResidentData:
    """The dataset in the file of arrays that config.data names. Raises InputError as `read_arrays` does."""
    check_place(ARRAYS, config.data.dir)
    return read_arrays(Path(config.data.dir), config.data.image_size)


def make_crop(config: ConfigDict, contract: Contract, kind: str, resize_shorter: float) -> Crop:
    """The crop of config.data, of the given kind. resize_shorter: for evaluation, where the key leaves it open (-1).

    Arrays are at the network's size: where the key leaves it open, nothing is resized.
    """
    data = config.data
    resize_shorter = 1.0 if data.source == ARRAYS else resize_shorter
    return Crop(
        kind=kind,
        image_size=data.image_size,
        scale=tuple(data.crop_scale),
        ratio=tuple(data.crop_ratio),
        padding=data.crop_padding,
        resize_shorter=resize_shorter if data.resize_shorter == -1 else data.resize_shorter,
        interpolation=contract.interpolation,
    )


def make_augmentation(config: ConfigDict) -> Augmentation:
    """What happens to training images behind the crop. Raises InputError for a value outside its range."""
    data = config.data
    # By name, so that a new kind is a field there and a key in configs/default.py; smoothing belongs to the loss.
    kinds = {field.name: getattr(data, field.name) for field in dataclasses.fields(Augmentation) if field.name in data}
    return Augmentation(**kinds, label_smoothing=config.optim.label_smoothing)
