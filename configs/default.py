"""Every key there is, with its default and its meaning. Recipes are short deltas on this file.

    python train_main.py --config=configs/folder.py --workdir=runs/mine --config.data.dir=PATH [--config.key=value ...]

A key that does not exist, or that is set without effect (config.optim.beta1 under SGD), is an error.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The defaults: ResNet-50 from scratch on a folder of images, SGD with warmup and cosine."""
    config = ConfigDict()
    config.model = model()
    config.data = data()
    config.optim = optim()
    config.transfer = transfer()
    config.run = run()
    return config.lock()


def model() -> ConfigDict:
    """config.model: a named variant (resnet/model/variants.py) and, where set, single fields of its ResNetSpec.

    Each field is explained in resnet/model/spec.py. None: the named variant's own value.
    """
    c = ConfigDict()
    # resnet18 … resnet152 (stride in the 3×3, as torchvision), resnet50_v1 … (as published), cifar_resnet20 … 110.
    c.name = "resnet50"
    c.block = placeholder(str)
    c.stage_sizes = placeholder(tuple)
    c.width = placeholder(int)
    c.base_width = placeholder(int)
    c.groups = placeholder(int)
    # Channels of the images; 3, because the feed gives RGB.
    c.in_channels = placeholder(int)
    # None: the data's number of classes. A different number is an error.
    c.num_classes = placeholder(int)
    c.stem = placeholder(str)
    c.stem_width = placeholder(int)
    c.stem_norm = placeholder(bool)
    c.stride_place = placeholder(str)
    c.stride_block = placeholder(str)
    c.shortcut = placeholder(str)
    c.shortcut_transform = placeholder(str)
    c.shortcut_scale = placeholder(float)
    c.gate_bias = placeholder(float)
    c.shortcut_dropout = placeholder(float)
    c.order = placeholder(str)
    c.norm = placeholder(str)
    c.norm_groups = placeholder(int)
    c.norm_momentum = placeholder(float)
    c.norm_epsilon = placeholder(float)
    c.ghost_batch_size = placeholder(int)
    c.activation = placeholder(str)
    c.conv_bias = placeholder(bool)
    c.bias_without_norm = placeholder(bool)
    c.squeeze_excitation = placeholder(int)
    c.zero_init_last_gamma = placeholder(bool)
    c.stochastic_depth = placeholder(float)
    c.dropout = placeholder(float)
    c.head_hidden = placeholder(int)
    return c


def data() -> ConfigDict:
    """config.data: what is fed, and everything that happens to an image before the network."""
    c = ConfigDict()
    # folder (DATA_DIR/CLASS/* or DATA_DIR/{train,val,test}/CLASS/*), demo (drawn on first use), tfds:NAME, or arrays (a
    # .npz file of decoded images at image_size, with its own splits; TensorFlow is not needed, docs/feeding.md).
    c.source = "folder"
    # The folder of images; for tfds its data_dir ('': tfds' default); for arrays the file.
    c.dir = ""
    # Class folders to leave out, such as ('BACKGROUND_Google',).
    c.exclude = ()
    # Share of the training images held out for validation if the data have no such split; best is chosen on it.
    c.val_fraction = 0.1
    # Share held out for testing if the data have no test split. A flag that sets one of these, or their seed, is an
    # error if the data already have that split; a recipe may set them for data of either kind.
    c.test_fraction = 0.2
    # Training images to keep of each class, validation included; the others become the test split if the data have
    # none. 0: all of them.
    c.per_class = 0
    # Cross-validation for data without a test split: divide the images into this many parts (0: none), stratified by
    # class. Part `fold`, from 0, is the test split; one run per fold tests every image once (summary: docs/report.md).
    c.folds = 0
    c.fold = 0
    # Seed of these splits, which do not depend on config.run.seed.
    c.split_seed = 0
    # For an unreadable image: fail (naming it, before training) or skip (it is counted and listed).
    c.on_error = "fail"
    # Whether the doctor checks a folder at the start (once per content, then cached): leaks, copies, imbalance. It uses
    # images that are read anyway; comparing a million takes most of an hour (docs/feeding.md).
    c.doctor = True
    # Leave out of validation and test the images that are also in an earlier split: byte for byte, and near copies
    # where the doctor looked. Otherwise accuracy is reported both with and without them.
    c.drop_leaks = False
    # Splits made here, per_class's included, keep all copies that the doctor found on the same side.
    c.keep_copies_together = False
    # Side in pixels of the square that the network sees.
    c.image_size = 224
    # The side in evaluation; 0: image_size. Random crops make objects look larger in training than in evaluation, so a
    # larger side is often better (Touvron et al. 2019, arXiv 1906.06423). It is stored in the checkpoint.
    c.eval_image_size = 0
    # Images per step over all devices.
    c.batch_size = 64
    # Images per evaluation step; 0: batch_size.
    c.eval_batch_size = 0
    # How training images reach the device. stream: decoded and cropped by tf.data on the host at every step. resident:
    # decoded once, kept on disk (under $XDG_CACHE_HOME) and on the device, cropped there; up to 8 GiB, one process.
    # Same examples, order and crops; some pixels differ by one level, and those of JPEG crops of at least 4 ×
    # image_size by 0.7 of 255 on average. auto: resident up to 2 GiB, but stream for random_resized crops on a CPU,
    # which decodes faster than it crops.
    c.feed = "auto"
    # In evaluation the shorter side is resized to image_size × this, then the centre is cropped; -1: the contract's
    # value; 0: the whole image is squashed to the square.
    c.resize_shorter = -1.0
    # How pixels become network inputs: torch, caffe, tf, raw (input_pipeline/contract.py). auto: that of the weights
    # in config.transfer, or torch without any. A contract other than the weights' is an error.
    c.contract = "auto"
    # balanced weighs each class by the inverse of its frequency; none does not. The loss of training lines is weighted
    # then, that of validation and test never is.
    c.class_weights = "none"
    # Host threads for decoding; 0: one per core.
    c.threads = 0
    c.update(augmentation())
    return c


def augmentation() -> ConfigDict:
    """More of config.data: how training images are augmented."""
    c = ConfigDict()
    # Training crop: random_resized (Szegedy et al. 2015), pad (zero-padded, then cropped: CIFAR), none (as in
    # evaluation).
    c.crop = "random_resized"
    # Share of the image's area that a random_resized crop covers: lowest, highest.
    c.crop_scale = (0.08, 1.0)
    # Its aspect ratio, width over height: lowest, highest.
    c.crop_ratio = (0.75, 1.3333333333333333)
    # Pixels added on each side by crop='pad'.
    c.crop_padding = 4
    # Mirror at random: horizontal, vertical, both, none. alternating: horizontally, at random per image in the first
    # epoch, then alternating from epoch to epoch (Jordan 2024, Section 3.6).
    c.flip = "horizontal"
    # Operations drawn for each image, after the flip and before colour jitter (docs/feeding.md): randaugment (Cubuk et
    # al. 2020, arXiv 1909.13719), trivialaugment (Müller & Hutter 2021, arXiv 2103.10158, wide ranges), none.
    c.auto_augment = "none"
    # RandAugment's operations and the scale of their magnitude: torchvision, 0 to 30; timm ('increasing'), 0 to 10.
    c.randaugment_set = "torchvision"
    # Operations per image, one after the other.
    c.randaugment_ops = 2
    # Their magnitude, on that scale.
    c.randaugment_magnitude = 9.0
    # Standard deviation of normal noise on it per operation, clipped to the scale (timm's mstd). 0: none.
    c.randaugment_noise = 0.0
    # Probability that each operation is applied (timm's is 0.5).
    c.randaugment_probability = 1.0
    # Colour jitter: each factor is drawn from [1-s, 1+s]; hue shifts by up to ±s turns (0 to 0.5). 0: off.
    c.brightness = 0.0
    c.contrast = 0.0
    c.saturation = 0.0
    c.hue = 0.0
    # Probability that a random rectangle is erased (Zhong et al. 2020).
    c.erasing = 0.0
    # Beta parameter of mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019); 0: off. With both set, each step uses
    # one. Each image is mixed with the previous one in its part of the batch (optim.accumulation), which needs at least
    # two.
    c.mixup = 0.0
    c.cutmix = 0.0
    return c


def optim() -> ConfigDict:
    """config.optim: the loss, the optimizer and its schedule. Weight decay never applies to norms and biases."""
    c = ConfigDict()
    # sgd, adam, adamw, lars, lamb (You et al. 2020), rmsprop.
    c.name = "sgd"
    # Peak learning rate.
    c.lr = 0.1
    # sgd, lars, rmsprop.
    c.momentum = 0.9
    # sgd, lars, rmsprop.
    c.nesterov = False
    # adam, adamw, lamb (beta2 also rmsprop: the share of the old squared gradient kept).
    c.beta1 = 0.9
    c.beta2 = 0.999
    # Added to the denominator: adam, adamw, lamb, rmsprop.
    c.epsilon = 1e-8
    # Trust coefficient: lars (You et al. 2017).
    c.trust_coefficient = 0.001
    # constant, step, cosine, polynomial; each after a linear warmup.
    c.schedule = "cosine"
    c.warmup_epochs = 0.0
    # schedule='step': the rate is multiplied by step_factor at each of these epochs. Those past the run's end are never
    # reached (if all are, a note at the start says so).
    c.step_epochs = (30.0, 60.0, 90.0)
    c.step_factor = 0.1
    # schedule='polynomial': the exponent on the remaining share of the run.
    c.power = 1.0
    # schedule='cosine' and 'polynomial': the final rate.
    c.final_lr = 0.0
    c.weight_decay = 1e-4
    # Maximum global norm of the gradient; 0: no clipping.
    c.clip_norm = 0.0
    # Parts into which a batch is split; their gradients are accumulated for one update.
    c.accumulation = 1
    # softmax: cross-entropy of one distribution over the classes. sigmoid: a binary cross-entropy per class, averaged
    # over the classes (Beyer et al. 2020; Wightman et al. 2021). Every reported loss, validation's too, is of this
    # kind; top-1 uses the greatest logit in both. Under sigmoid the probabilities that evaluation, predict and exports
    # give are independent per class and need not add up to 1.
    c.loss = "softmax"
    # Share of the target spread over all classes (Szegedy et al. 2016), under sigmoid too.
    c.label_smoothing = 0.0
    # loss='sigmoid', for images mixed by mixup or cutmix: classes with more than this share of the image have target 1,
    # the others 0. 0: both classes of a mixed image have target 1. -1: the shares themselves are the targets.
    c.target_threshold = -1.0
    # Decay of the exponential moving average of the weights, with which evaluation is then done; 0: none.
    c.ema = 0.0
    return c


def transfer() -> ConfigDict:
    """config.transfer: start from existing weights, and say which of them are trained. See docs/transfer.md."""
    c = ConfigDict()
    # scratch: a new network. finetune: train the weights. probe: run the backbone once per image and train a head.
    c.mode = "scratch"
    # A run's workdir, a step's folder, converted weights, a weights file (torch, safetensors, Keras), or a known name
    # (torchvision:resnet50_v2; `python -m resnet.weights.convert --source=list` lists them).
    c.weights = ""
    # linear, or mlp:UNITS for one with a hidden ReLU layer. '': as config.model.head_hidden says.
    c.head = ""
    # Batch norm's statistics. train: the batch's, wherever the norm itself is trained. frozen: the weights',
    # everywhere. recalibrate: re-estimated over the training images before the first step, then frozen. auto: frozen
    # for a probe, otherwise train.
    c.bn = "auto"
    # What is trained from which epoch on: ('layer4@2', 'layer3@5'), regular expressions searched for in the parameters'
    # paths (layer4_2/conv1/kernel). Everything else stays frozen, except for the head, which is always trained;
    # ('fc@0',): only the head. An entry that adds nothing is an error. (): everything is trained from the start.
    c.unfreeze = ()
    # Factors on the learning rate: ('^fc=10', 'layer[12]=0.1'), matched in the same way; the first match counts, else
    # 1. One that is the first match of no parameter that is ever trained is an error.
    c.lr_multipliers = ()
    # probe: views of each training image: one cropped as in evaluation, the others cropped and augmented as set in
    # config.data.
    c.views = 1
    return c


def run() -> ConfigDict:
    """config.run: length, evaluation, checkpoints, precision and devices."""
    c = ConfigDict()
    # Passes over the training images, rounded up to whole steps; may be a fraction.
    c.epochs = 90.0
    # If above 0, the length in steps, instead of epochs.
    c.steps = 0
    # Seed of initialisation, order, crops, augmentation and dropout.
    c.seed = 0
    # Activations and convolutions: float32 or bfloat16. Parameters, statistics, sums of the gradients of biases and
    # scales, logits and loss are float32. On NVIDIA GPUs since Ampere, JAX multiplies float32 in TF32, with 10 bits of
    # mantissa instead of 23, unless JAX_DEFAULT_MATMUL_PRECISION=highest is set in the environment.
    c.dtype = "float32"
    # What the backward pass computes again instead of keeping it, to save memory: none, block (the inside of each
    # block) or stage. Results do not change; docs/many-hosts.md has what it costs and saves. Not for a probe.
    c.remat = "none"
    # The most steps in one call of the device, for networks whose step is shorter than a call's overhead. A call ends
    # where a training line, an evaluation, a checkpoint or a stage is due, so the results are the same. Its batches are
    # on the device together; signals are handled after it. Always 1 in bfloat16 on a CPU (slow in loops).
    c.steps_per_call = 1
    # Epochs between evaluations on the validation split; may be a fraction.
    c.eval_every = 1.0
    # Evaluation, also by the evaluate command, averages the logits of each image and its mirror image.
    c.eval_flip = False
    # Steps between training lines in metrics.jsonl.
    c.log_every = 50
    # Trackers besides metrics.jsonl and TensorBoard: ('wandb',), ('mlflow',) or both (`./run.sh setup writers`).
    # Offline unless their own environment variables say otherwise; see docs/seeing.md.
    c.writers = ()
    # Steps that JAX' profiler traces into RUN/tensorboard, such as 100:105 for the five steps after step 100. '': none.
    c.profile = ""
    # Epochs between checkpoints; one is also written after each evaluation, and at the end.
    c.checkpoint_every = 1.0
    # Newest checkpoints to keep, besides the best one.
    c.keep = 2
    # What 'best' means on the validation split: top1, balanced_accuracy or loss.
    c.best_metric = "top1"
    # Evaluations without a new best after which the run ends; 0: never. A note at the start says if the run has too few
    # evaluations for that.
    c.early_stopping = 0
    # Devices as a grid: data=-1 (all of them, each with its share of the batch and the whole state), data=4,fsdp=2 or
    # fsdp=-1 (parameters, optimizer state and averages sharded over fsdp). Results do not depend on it.
    c.mesh = "data=-1"
    # Runs of several processes: seconds without a finished step, evaluation batch or save after which a process reports
    # it and exits, instead of waiting forever for a stuck peer (six times that during compilation); 0: never.
    c.hang_timeout = 300.0
    # Non-finite steps in a row (each skipped and counted) after which the run ends; 0: never.
    c.max_bad_steps = 10
    # Replay a run that ended in this way, from its last checkpoint to its first non-finite step, and show every layer's
    # output and gradient there. Nothing is logged or saved; a run can be started without it and replayed with it.
    c.debug = False
    return c
