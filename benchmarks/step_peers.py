"""Who takes part in benchmarks/step.py: ours, plain flax, torch (eager and compiled), Keras; each trains one network.

The peers are spared what ours does to its uint8 images inside the step, flips and normalisation: they get float32. Each
lives in a process of its own (`separate`), with the allocator as whoever uses it has it: ours as its commands set it
(resnet/allocation.py), which in one process for all slowed torch and Keras by 3 to 12 % (64 px, batch 32, 2026-11-25).
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Batch = Mapping[str, np.ndarray]
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 1e-4
# What a call of jit's ahead-of-time compilation took: {'wall': seconds, 'cpu': seconds of all threads}.
Taken = dict[str, float]


@dataclass(frozen=True)
class Setting:
    """A named network of resnet.model.variants and the size of its input."""

    model: str
    image_size: int
    batch_size: int

    @property
    def spec(self) -> Any:
        from resnet.model.variants import variant

        return variant(self.model).spec

    @property
    def layers(self) -> dict[str, Any]:
        """The network for the twins of benchmarks/torch_twin.py and linen_twin.py."""
        names = ("block", "stage_sizes", "width", "num_classes", "stem", "shortcut")
        return {name: getattr(self.spec, name) for name in names}

    def batch(self) -> Batch:
        """uint8 images and labels out of a generator, the same for every peer."""
        random = np.random.default_rng(0)
        return {
            "image": random.integers(0, 256, (self.batch_size, self.image_size, self.image_size, 3), np.uint8),
            "label": random.integers(0, self.spec.num_classes, self.batch_size, np.int32),
            "mask": np.ones(self.batch_size, np.float32),
            "index": np.arange(self.batch_size, dtype=np.int32),
        }


@dataclass(frozen=True)
class Peer:
    """steps: 'train' and 'eval', each waits for its end. compile_seconds: of each, where it is compiled beforehand."""

    steps: dict[str, Callable[[], None]]
    compile_seconds: dict[str, Taken] = field(default_factory=dict)


def compiled(function: Callable[..., Any], *inputs: Any, donate: tuple[int, ...] = ()) -> tuple[Any, Taken]:
    """(the program, seconds of lowering and compiling it, from nothing)."""
    import jax

    # The platform's own start is nobody's compilation.
    jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
    with nothing_cached():
        wall, cpu = time.perf_counter(), time.process_time()
        program = jax.jit(function, donate_argnums=donate).lower(*inputs).compile()
        return program, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


@contextlib.contextmanager
def nothing_cached() -> Iterator[None]:
    """Within it no compiled program comes from the disk or goes there."""
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    before = getattr(jax.config, "jax_enable_compilation_cache")  # noqa: B009
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        # JAX looks at the setting once and remembers.
        reset_cache()
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()


def ours(setting: Setting) -> Peer:
    import jax

    from input_pipeline.augment import Augmentation
    from input_pipeline.contract import contract_by_name
    from resnet.model.network import ResNet, initialise
    from resnet.train.optimizer import OptimizerSettings, make_optimizer
    from resnet.train.state import create_state
    from resnet.train.steps import Recipe, make_eval_step, make_train_step, sum_names

    contract, batch = contract_by_name("torch"), setting.batch()
    network = ResNet(setting.spec)
    optimizer = make_optimizer(OptimizerSettings(), lambda step: LEARNING_RATE)
    recipe = Recipe(0, contract, Augmentation(flip="horizontal"))
    variables = initialise(network, jax.random.key(0), setting.image_size)
    holder = [create_state(variables, optimizer, ema=False, sum_names=sum_names(setting.spec.num_classes))]
    train_step, train_taken = compiled(make_train_step(network, optimizer, recipe), holder[0], batch, donate=(0,))
    eval_step, eval_taken = compiled(make_eval_step(network, contract), holder[0].evaluated(), batch)

    def train() -> None:
        holder[0], pulse = train_step(holder[0], batch)
        jax.block_until_ready(pulse)

    def evaluate() -> None:
        jax.block_until_ready(eval_step(holder[0].evaluated(), batch))

    return Peer({"train": train, "eval": evaluate}, {"train": train_taken, "eval": eval_taken})


def plain_linen(setting: Setting) -> Peer:
    """A flax network, optax, one jitted step with its state donated: as flax' guides have it."""
    import jax
    import optax

    from benchmarks.linen_twin import LinenResNet

    network, batch = LinenResNet(**setting.layers), setting.batch()
    images, labels = jax.device_put((batch["image"].astype(np.float32) / 255, batch["label"]))
    optimizer = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(LEARNING_RATE, momentum=MOMENTUM))
    variables = jax.jit(lambda key: network.init(key, images[:1], True))(jax.random.key(0))
    params, statistics = variables["params"], variables["batch_stats"]

    def step(params: Any, statistics: Any, momentum: Any, images: Any, labels: Any) -> Any:
        def loss_of(params: Any) -> Any:
            logits, moved = network.apply(
                {"params": params, "batch_stats": statistics}, images, True, mutable=["batch_stats"]
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, moved["batch_stats"]

        (loss, statistics), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, momentum = optimizer.update(gradient, momentum, params)
        return optax.apply_updates(params, updates), statistics, momentum, loss

    def forward(params: Any, statistics: Any, images: Any) -> Any:
        return network.apply({"params": params, "batch_stats": statistics}, images, False)

    holder = [params, statistics, optimizer.init(params)]
    train_step, train_taken = compiled(step, *holder, images, labels, donate=(0, 1, 2))
    eval_step, eval_taken = compiled(forward, params, statistics, images)

    def train() -> None:
        *holder[:], loss = train_step(*holder, images, labels)
        jax.block_until_ready(loss)

    def evaluate() -> None:
        jax.block_until_ready(eval_step(*holder[:2], images))

    return Peer({"train": train, "eval": evaluate}, {"train": train_taken, "eval": eval_taken})


def torch_peer(*, compile_it: bool) -> Callable[[Setting], Peer]:
    """torch, channels_last, eager or under torch.compile."""

    def make(setting: Setting) -> Peer:
        import torch

        from benchmarks.torch_twin import TorchResNet

        torch.set_num_threads(os.cpu_count() or 1)
        batch, layers = setting.batch(), setting.layers
        network: Any = TorchResNet(layers.pop("block"), layers.pop("stage_sizes"), **layers)
        network.to(memory_format=torch.channels_last)
        images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).float() / 255
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(batch["label"]).long()
        optimizer = torch.optim.SGD(
            network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        forward = torch.compile(network) if compile_it else network

        def train() -> None:
            network.train()
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(forward(images), labels).backward()
            optimizer.step()

        def evaluate() -> None:
            network.eval()
            with torch.no_grad():
                forward(images)

        return Peer({"train": train, "eval": evaluate})

    return make


def keras_peer(setting: Setting) -> Peer:
    """keras.applications.ResNet50 on TensorFlow: compiled train_on_batch and predict_on_batch."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    shape, classes = (setting.image_size, setting.image_size, 3), setting.spec.num_classes
    network = keras.applications.ResNet50(weights=None, input_shape=shape, classes=classes)
    network.compile(keras.optimizers.SGD(LEARNING_RATE, MOMENTUM), keras.losses.SparseCategoricalCrossentropy())
    batch = setting.batch()
    images = batch["image"].astype(np.float32) / 255

    def train() -> None:
        network.train_on_batch(images, batch["label"])

    def evaluate() -> None:
        network.predict_on_batch(images)

    return Peer({"train": train, "eval": evaluate})


MAKERS: dict[str, Callable[[Setting], Peer]] = {
    "ours": ours,
    "linen": plain_linen,
    "torch": torch_peer(compile_it=False),
    "torch_compiled": torch_peer(compile_it=True),
    "keras": keras_peer,
}


def separate(name: str, setting: Setting) -> Peer:
    """A peer in a process of its own, which ends with this one.

    Raises ImportError, with the package's name, where it is not installed; RuntimeError, then or at a step, where the
    process has ended.
    """
    words = [sys.executable, "-m", "benchmarks.step_peers", name, json.dumps(asdict(setting))]
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen(words, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    asks, answers = process.stdin, process.stdout

    def answer() -> dict[str, Any]:
        if line := answers.readline():
            return dict(json.loads(line))
        raise RuntimeError(f"{name}: its process ended with exit code {process.wait()}; its words are above")

    def ask(kind: str) -> None:
        # Whoever has ended answers nothing, which says more than a broken pipe.
        with contextlib.suppress(BrokenPipeError):
            asks.write(f"{kind}\n")
            asks.flush()
        answer()

    first = answer()
    if missing := first.get("missing"):
        raise ImportError(f"{missing} is not installed", name=missing)
    return Peer({"train": lambda: ask("train"), "eval": lambda: ask("eval")}, first["compile_seconds"])


def serve(name: str, setting: Setting) -> None:
    """Take a step for each line that comes in, 'train' or 'eval', and answer with a line of JSON."""
    # What libraries print goes where errors go; the answers have the way out to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    if name == "ours":
        from resnet.allocation import keep_freed_memory

        keep_freed_memory()
    try:
        peer = MAKERS[name](setting)
    except ImportError as error:
        answer(missing=error.name)
        return
    answer(compile_seconds=peer.compile_seconds)
    for line in sys.stdin:
        peer.steps[line.strip()]()
        answer()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(sys.argv[1], Setting(**json.loads(sys.argv[2])))
