"""Wrong flags of a training, for tests/test_bad_input.py: each by a name that the page of refusals shows."""

# Flags after --config and --workdir, and what the line must name.
FLAGS = {
    "unknown_key": (["--config.optim.learning_rate=0.1"], ["--config.optim.learning_rate", "configs/default.py"]),
    "key_elsewhere": (["--config.optim.batch_size=8"], ["config.optim.batch_size", "mean --config.data.batch_size"]),
    "unknown_section": (["--config.data.crop.kind=pad"], ["config.data.crop.kind"]),
    "a_section": (["--config.data=3"], ["--config.data"]),
    "word_for_a_number": (["--config.data.batch_size=many"], ["config.data.batch_size", "many"]),
    "fraction_for_a_number": (["--config.data.batch_size=1e3"], ["config.data.batch_size", "1e3"]),
    "word_for_a_pair": (["--config.data.crop_scale=wide"], ["config.data.crop_scale", "wide"]),
    "three_for_a_pair": (["--config.data.crop_scale=(0.1,0.5,1)"], ["config.data.crop_scale", "0.5"]),
    "none_for_a_number": (["--config.optim.lr=None"], ["config.optim.lr", "None"]),
    "none_for_a_word": (["--config.data.crop=None"], ["config.data.crop", "None"]),
    "unknown_choice": (["--config.data.crop=wild"], ["config.data.crop", "wild", "random_resized"]),
    "out_of_range": (["--config.run.steps=-1"], ["config.run.steps", "-1"]),
    "nan": (["--config.optim.lr=nan"], ["lr", "nan"]),
    "unknown_model": (["--config.model.name=resnet51"], ["resnet51", "resnet50"]),
    "unknown_schedule": (["--config.optim.schedule=linear"], ["schedule", "linear", "cosine"]),
    "unknown_contract": (["--config.data.contract=pytorch"], ["contract", "pytorch", "torch"]),
    "unknown_source": (["--config.data.source=url"], ["config.data.source", "url"]),
    "read_by_nothing": (["--config.optim.beta1=0.8"], ["config.optim.beta1", "adam"]),
    "split_of_their_own": (
        ["--config.data.test_fraction=0.5"],
        ["config.data.test_fraction=0.5", "a test split of their"],
    ),
    "folds_of_a_test_split": (
        ["--config.data.folds=5"],
        ["config.data.folds=5", "a test split of their own", "omit the key"],
    ),
    "multiplier_of_nothing": (
        ["--config.transfer.lr_multipliers=('layer=0.1','layer2=10')"],
        ["config.transfer.lr_multipliers", "'layer2=10'", "an earlier pattern"],
    ),
    "mixed_with_itself": (
        ["--config.data.mixup=0.4", "--config.optim.accumulation=8"],
        ["config.data.mixup=0.4", "config.data.batch_size=8", "config.optim.accumulation=8"],
    ),
    "batch_too_large": (["--config.data.batch_size=1000"], ["config.data.batch_size=1000", "30 images"]),
    "image_too_small": (["--config.data.image_size=1"], ["image_size 1", "at least 2"]),
    "classes_disagree": (["--config.model.num_classes=7"], ["config.model.num_classes=7", "5 classes"]),
    "unknown_flag": (["--learning_rate=0.1"], ["learning_rate"]),
    "stray_argument": (["runs/flowers"], ["runs/flowers"]),
}
