"""A part of benchmarks/gpu.py: ResNet-50's training fed by the resident feed, from step numbers to updates."""

import os
import time
from typing import Any

import numpy as np

# Images on the device, of the sizes that photographs of 500 pixels have once halved.
IMAGES, SHORTEST, LONGEST = 3000, 224, 320
STEPS, WARM_STEPS, REPETITIONS = 20, 10, 5


def resident(batch: int, small: bool) -> dict[str, Any]:
    """Images/s of the train step with random-resized crops and flips on the device; two of the host's cores feed it.

    As `train_main.py` does with config.data.feed='resident', but for the loading: the pixels are drawn.
    """
    import jax
    import jax.numpy as jnp

    from benchmarks.gpu_parts import drawn_variables, of_jax
    from benchmarks.part_processes import wait_for_turn
    from input_pipeline.augment import Augmentation
    from input_pipeline.contract import contract_by_name
    from resnet.model.network import ResNet
    from resnet.model.variants import variant
    from resnet.train import parallel
    from resnet.train.optimizer import OptimizerSettings, make_optimizer
    from resnet.train.state import create_state
    from resnet.train.steps import Recipe, make_train_step, sum_names

    feed, kept = drawn_feed(batch, small)
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    network = ResNet(variant("resnet18" if small else "resnet50").spec, dtype=jnp.bfloat16)
    optimizer = make_optimizer(OptimizerSettings(), lambda step: 1e-3)
    recipe = Recipe(0, contract_by_name("torch"), Augmentation(flip="horizontal"))
    variables = drawn_variables(network.spec, feed.crop.image_size)
    state = create_state(variables, optimizer, ema=False, sum_names=sum_names(network.spec.num_classes))
    state, kept = jax.device_put((state, kept), parallel.replicated(mesh))
    step = parallel.compile_train_step(feed.step_on_rows(make_train_step(network, optimizer, recipe)), mesh)
    batches = parallel.put_batches((feed.rows(number) for number in range(10**6)), mesh)

    start = time.perf_counter()
    state, pulse = step(state, next(batches), kept)
    jax.block_until_ready(pulse)
    compile_seconds = time.perf_counter() - start
    wait_for_turn()
    # After the compiler's threads are gone.
    cores = sorted(os.sched_getaffinity(0))[:2]
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cores)
    for _ in range(WARM_STEPS):
        state, pulse = step(state, next(batches), kept)
    jax.block_until_ready(pulse)
    seconds = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        for _ in range(2 if small else STEPS):
            previous = pulse
            state, pulse = step(state, next(batches), kept)
            # As a run: two calls under way, no more.
            jax.block_until_ready(previous)
        jax.block_until_ready(pulse)
        seconds.append((time.perf_counter() - start) / (2 if small else STEPS))
    median = sorted(seconds)[len(seconds) // 2]
    return {
        "images_per_second": batch / median,
        "step_milliseconds": 1e3 * median,
        "slowest_milliseconds": 1e3 * max(seconds),
        "fastest_milliseconds": 1e3 * min(seconds),
        "compile_seconds": compile_seconds,
        "host_cores": len(cores),
        "canvas": list(kept["images"].shape),
        **of_jax(),
    }


def drawn_feed(batch: int, small: bool) -> tuple[Any, dict[str, np.ndarray]]:
    """A resident feed of drawn images of many sizes, and what it keeps on the device."""
    from input_pipeline.canvas import lay_out
    from input_pipeline.crops import Crop
    from input_pipeline.order import Order
    from input_pipeline.resident import MOST_BYTES
    from input_pipeline.sources import Split
    from resnet.train.feeding import Resident

    count, side = (40, 32) if small else (IMAGES, 224)
    random = np.random.default_rng(0)
    short, long = (SHORTEST, LONGEST) if not small else (32, 48)
    sizes = random.integers(short, long + 1, (count, 2)).astype(np.int32)
    layout = lay_out(sizes, side, MOST_BYTES)
    assert layout is not None
    labels = random.integers(0, 1000, count, np.int32)
    split = Split(
        name="train", labels=labels, ids=tuple(map(str, range(count))), sizes=sizes,
        orientations=np.ones(count, np.int8), paths=None, contents=np.zeros(count, "S32"), read=lambda i: b"",
    )  # fmt: skip
    feed = Resident(split, Order(count, batch), Crop("random_resized", side), layout)
    pixels = random.integers(0, 256, (count, layout.height, layout.width, 3), np.uint8)
    return feed, {"images": pixels, "labels": labels, "turned": layout.turned}
