"""The parts of benchmarks/gpu.py: `python -m benchmarks.gpu_parts OUT.json NAME BATCH [small]`."""

import gzip
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_kernels import KEEP, kernels_of
from benchmarks.gpu_resident import resident
from benchmarks.part_processes import wait_for_turn

CLASSES = 1000
REPETITIONS, STEPS = 7, 10
# Of torch.compile: the one that tries most.
LONGEST_MODE = "max-autotune"
Call = Callable[[], Any]


def main() -> None:
    out, name, batch, small = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), "small" in sys.argv[4:]
    # Else JAX takes most of the memory at once and its peak says nothing.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    found = PARTS[name](min(batch, 4) if small else batch, small)
    out.write_text(json.dumps(found))


def timed(call: Call, finish: Call, batch: int, steps_per_call: int = 1) -> dict[str, float]:
    """Images/s and ms a step of `call`, repeated without waiting; `finish` waits for the last."""
    wait_for_turn()
    for _ in range(3):
        call()
    finish()
    seconds = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        for _ in range(STEPS):
            call()
        finish()
        seconds.append((time.perf_counter() - start) / STEPS / steps_per_call)
    median = statistics.median(seconds)
    return {
        "images_per_second": batch / median,
        "step_milliseconds": 1e3 * median,
        "slowest_milliseconds": 1e3 * max(seconds),
        "fastest_milliseconds": 1e3 * min(seconds),
    }


def images_of(batch: int, small: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    side = 32 if small else 224
    return random.integers(0, 256, (batch, side, side, 3), np.uint8), random.integers(0, CLASSES, batch, np.int32)


def drawn_variables(spec: Any, image_size: int) -> Any:
    """Variables as `initialise` would draw them (He et al. 2015, eq. 14), on the host: there is nothing to compile."""
    import jax

    from resnet.model.network import ResNet, initialise

    shapes = jax.eval_shape(lambda key: initialise(ResNet(spec), key, image_size), jax.random.key(0))
    generator = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        kind = path[-1].key
        if kind == "kernel":
            outputs = np.prod(leaf.shape[:-2], dtype=int) * leaf.shape[-1]
            return (generator.normal(size=leaf.shape) * (2 / outputs) ** 0.5).astype(np.float32)
        return (np.ones if kind in ("scale", "var") else np.zeros)(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def ours(batch: int, small: bool, *, steps_per_call: int = 1) -> dict[str, Any]:
    """Our own train step; steps_per_call: so many in one compiled loop."""
    import jax
    import jax.numpy as jnp

    from input_pipeline.augment import Augmentation
    from input_pipeline.contract import contract_by_name
    from resnet.model.network import ResNet
    from resnet.model.variants import variant
    from resnet.train.optimizer import OptimizerSettings, make_optimizer
    from resnet.train.parallel import compiler_options
    from resnet.train.state import create_state
    from resnet.train.steps import Recipe, make_train_step, sum_names

    pixels, labels = images_of(batch, small)
    network = ResNet(variant("resnet18" if small else "resnet50").spec, dtype=jnp.bfloat16)
    optimizer = make_optimizer(OptimizerSettings(), lambda step: 1e-3)
    recipe = Recipe(0, contract_by_name("torch"), Augmentation(flip="none"))
    variables = jax.device_put(drawn_variables(network.spec, pixels.shape[1]))
    state = create_state(variables, optimizer, ema=False, sum_names=sum_names(CLASSES))
    data = jax.device_put({"image": pixels, "label": labels, "mask": np.ones(batch, np.float32)})
    step = make_train_step(network, optimizer, recipe)

    def several(state: Any, data: Any) -> Any:
        return jax.lax.scan(lambda carry, _: step(carry, data), state, None, length=steps_per_call)

    holder: list[Any] = [state, None]
    start = time.perf_counter()
    function = step if steps_per_call == 1 else several
    compiled = jax.jit(function, donate_argnums=0, compiler_options=compiler_options()).lower(state, data).compile()
    compile_seconds = time.perf_counter() - start

    def call() -> None:
        holder[0], holder[1] = compiled(holder[0], data)

    finish = lambda: jax.block_until_ready(holder[1])  # noqa: E731
    found = timed(call, finish, batch, steps_per_call)
    kept = {"kernels": kept_kernels(compiled, call, finish, f"ours_{batch}")} if steps_per_call == 1 else {}
    return {**found, "compile_seconds": compile_seconds, **of_jax(), **kept}


def of_jax() -> dict[str, Any]:
    """Peak memory, the device and the version, as JAX tells them."""
    import jax

    device = jax.devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    return {"peak_bytes": peak, "device": device.device_kind, "versions": {"jax": jax.__version__}}


def ours_eval(batch: int, small: bool) -> dict[str, Any]:
    """Our own inference: uint8 images -> logits, batch norms folded into the convolutions, weights kept in bfloat16."""
    import jax
    import jax.numpy as jnp

    from input_pipeline.augment import prepare
    from input_pipeline.contract import contract_by_name
    from resnet.model.folding import fold
    from resnet.model.network import ResNet, evaluate
    from resnet.model.spec import HEAD
    from resnet.model.variants import variant
    from resnet.study.inference import ready

    pixels, _ = images_of(batch, small)
    network = ResNet(variant("resnet18" if small else "resnet50").spec, dtype=jnp.bfloat16)
    network, folded = fold(network, drawn_variables(network.spec, pixels.shape[1]))
    # As the convolutions take them; the head stays float32.
    halved = {
        name: part if name in HEAD else jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), part)
        for name, part in folded["params"].items()
    }
    variables, images = {"params": halved, "batch_stats": folded["batch_stats"]}, jax.device_put(pixels)
    contract = contract_by_name("torch")
    start = time.perf_counter()
    ask = ready(lambda variables, images: evaluate(network, variables, prepare(images, contract)), variables)
    jax.block_until_ready(ask(images))
    compile_seconds = time.perf_counter() - start
    last: list[Any] = [None]

    def call() -> None:
        last[0] = ask(images)

    found = timed(call, lambda: jax.block_until_ready(last[0]), batch)
    kept = {"kernels": kept_kernels(None, call, lambda: jax.block_until_ready(last[0]), f"eval_{batch}")}
    return {**found, "compile_seconds": compile_seconds, **of_jax(), **kept}


def kept_kernels(compiled: Any, call: Call, finish: Call, name: str, calls: int = 3) -> dict[str, Any]:
    """The kernels of some calls, where the environment says under KEEP that they and the program are wanted."""
    if not (keep := os.environ.get(KEEP)):
        return {}
    if compiled is not None:
        Path(f"{keep}/{name}.hlo.gz").write_bytes(gzip.compress((compiled.as_text() or "").encode()))
    return kernels_of(call, finish, calls, f"{keep}/{name}.trace.json.gz")


def torch_network(small: bool, library: str) -> Any:
    """torchvision's ResNet-50 as our twin of it, or timm's own."""
    if library == "timm":
        import timm

        return timm.create_model("resnet18" if small else "resnet50")
    from benchmarks.torch_twin import TorchResNet

    return TorchResNet("basic", (2, 2, 2, 2)) if small else TorchResNet()


def torch_peer(
    batch: int, small: bool, *, train: bool = True, mode: str = "", library: str = "torchvision"
) -> dict[str, Any]:
    """ResNet-50 in torch: channels_last, bfloat16 autocast, fused SGD; mode: of torch.compile, '' for eager.

    Not training: batch norms folded, all of the network in bfloat16, which no autocast then has to cast.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    pixels, numbers = images_of(batch, small)
    network: Any = torch_network(small, library).train(train)
    if not train:
        from benchmarks.inference import fold_torch

        fold_torch(network)
        network = network.to(torch.bfloat16)
    network = network.to(device, memory_format=torch.channels_last)
    images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
    labels = torch.from_numpy(numbers).long().to(device)
    mean = torch.tensor([123.675, 116.28, 103.53], device=device).view(1, 3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375], device=device).view(1, 3, 1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=device == "cuda")

    def forward(pixels: Any) -> Any:
        normalised = ((pixels.float() - mean) / std).contiguous(memory_format=torch.channels_last)
        if not train:
            return network(normalised.to(torch.bfloat16)).float()
        with torch.autocast(device, dtype=torch.bfloat16):
            return network(normalised)

    run = torch.compile(forward, mode=mode) if mode else forward

    def call() -> None:
        if train:
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(run(images).float(), labels).backward()
            optimizer.step()
        else:
            with torch.inference_mode():
                run(images)

    finish: Call = torch.cuda.synchronize if device == "cuda" else lambda: None
    start = time.perf_counter()
    call()
    finish()
    compile_seconds = time.perf_counter() - start
    found = timed(call, finish, batch)
    return {**found, "compile_seconds": compile_seconds, **of_torch()}


def of_torch() -> dict[str, Any]:
    """Peak memory, the device and the version, as torch tells them."""
    import torch

    there = torch.cuda.is_available()
    return {
        "peak_bytes": torch.cuda.max_memory_allocated() if there else 0,
        "device": torch.cuda.get_device_name() if there else "cpu",
        "versions": {"torch": torch.__version__},
    }


def ceilings(batch: int, small: bool) -> dict[str, Any]:
    """What the device can: bytes read and written per second by a large copy, FLOPs of a large bfloat16 product."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    finish: Call = torch.cuda.synchronize if device == "cuda" else lambda: None
    side, size = (256, 1 << 22) if small else (8192, 1 << 32)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    copy = timed(lambda: target.copy_(source), finish, 1)
    product = timed(lambda: left @ right, finish, 1)
    return {
        "copy_bytes_per_second": 2 * size / (copy["step_milliseconds"] / 1e3),
        "matrix_flops_per_second": 2 * side**3 / (product["step_milliseconds"] / 1e3),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


PARTS: dict[str, Callable[[int, bool], dict[str, Any]]] = {
    "ceilings": ceilings,
    "ours": ours,
    "ours_scan": lambda batch, small: ours(batch, small, steps_per_call=2 if small else 10),
    "ours_resident": resident,
    "ours_eval": ours_eval,
    "torch": torch_peer,
    "torch_compiled": lambda batch, small: torch_peer(batch, small, mode=LONGEST_MODE),
    # Compiled in a minute, without kernels of its own timed against cuDNN's; CUDA graphs as above.
    "torch_graphs": lambda batch, small: torch_peer(batch, small, mode="reduce-overhead"),
    "timm": lambda batch, small: torch_peer(batch, small, library="timm"),
    "timm_compiled": lambda batch, small: torch_peer(batch, small, mode=LONGEST_MODE, library="timm"),
    "torch_eval": lambda batch, small: torch_peer(batch, small, train=False),
    "torch_compiled_eval": lambda batch, small: torch_peer(batch, small, train=False, mode=LONGEST_MODE),
    "torch_graphs_eval": lambda batch, small: torch_peer(batch, small, train=False, mode="reduce-overhead"),
}


if __name__ == "__main__":
    main()
