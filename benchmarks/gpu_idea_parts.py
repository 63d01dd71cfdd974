"""The parts of benchmarks/gpu_ideas.py: `python -m benchmarks.gpu_idea_parts OUT.json PIECE BATCH STEPS [small]`."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_idea_blocks import chains, stems
from benchmarks.gpu_parts import drawn_variables, images_of, kept_kernels, of_jax, timed
from benchmarks.part_processes import wait_for_turn

BATCH = 256
# Name -> fields of IdeaNetwork; None for the network as it is, 'derived_norm' for an IdeaNetwork as it is.
PIECES: dict[str, dict[str, Any] | None] = {
    "reference": None,
    "dots": {"one_by_one": "dot"},
    "space_to_depth": {"norm": "two_pass", "stem": "space_to_depth"},
    "by_pixels": {"norm": "two_pass", "stem": "conv"},
    "xla_pool": {"norm": "two_pass", "stem": "conv", "pool": "xla"},
    "derived_norm": {},
    "two_pass": {"norm": "two_pass"},
    "dots_two_pass": {"one_by_one": "dot", "norm": "two_pass"},
    "ends_by_output": {"norm": "two_pass", "ends": "output"},
    "fused": {"one_by_one": "fused"},
    "all": {"one_by_one": "fused", "norm": "two_pass"},
}
# Side, inputs and outputs of ResNet-50's 1×1 convolutions at 224 px, of each kind the largest.
SHAPES = ((56, 64, 64), (56, 64, 256), (56, 256, 64), (28, 128, 512), (28, 512, 128), (14, 256, 1024), (7, 512, 2048))
TILES: tuple[Mapping[str, int], ...] = (
    {"rows": 128, "columns": 128, "depth": 32, "warps": 8, "stages": 3},
    {"rows": 128, "columns": 64, "depth": 64, "warps": 4, "stages": 3},
    {"rows": 64, "columns": 64, "depth": 64, "warps": 4, "stages": 4},
)


def main() -> None:
    out, name, batch, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    small = "small" in sys.argv[5:]
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    out.write_text(json.dumps(ALONE[name](small) if name in ALONE else train_step(name, batch, steps, small)))


def network_of(name: str, small: bool) -> Any:
    """The network of a piece: ResNet itself, or an IdeaNetwork (whose kernels are interpreted on a CPU)."""
    import jax
    import jax.numpy as jnp

    from benchmarks import gpu_idea_network as ideas
    from benchmarks.gpu_idea_kernels import Tiles
    from resnet.model.network import ResNet
    from resnet.model.spec import ResNetSpec
    from resnet.model.variants import variant

    spec = ResNetSpec(stage_sizes=(1, 1), width=16) if small else variant("resnet50").spec
    piece = PIECES[name]
    if piece is None:
        return ResNet(spec, dtype=jnp.bfloat16)
    tiles = Tiles(interpret=jax.default_backend() == "cpu")
    return ideas.IdeaNetwork(spec, dtype=jnp.bfloat16, tiles=tiles, **piece)


def train_step(name: str, batch: int, steps_per_call: int, small: bool) -> dict[str, Any]:
    """Images/s of the whole train step with a piece."""
    import jax
    import numpy as np

    from input_pipeline.augment import Augmentation
    from input_pipeline.contract import contract_by_name
    from resnet.train.optimizer import OptimizerSettings, make_optimizer
    from resnet.train.parallel import compiler_options
    from resnet.train.state import create_state
    from resnet.train.steps import Recipe, make_train_step, sum_names

    batch, steps_per_call = (4, min(steps_per_call, 2)) if small else (batch, steps_per_call)
    pixels, labels = images_of(batch, small)
    network = network_of(name, small)
    optimizer = make_optimizer(OptimizerSettings(), lambda step: 1e-3)
    step = make_train_step(network, optimizer, Recipe(0, contract_by_name("torch"), Augmentation()))
    variables = jax.device_put(drawn_variables(network.spec, pixels.shape[1]))
    state = create_state(variables, optimizer, ema=False, sum_names=sum_names(network.spec.num_classes))
    data = jax.device_put({"image": pixels, "label": labels, "mask": np.ones(batch, np.float32)})

    def several(state: Any, data: Any) -> Any:
        return jax.lax.scan(lambda carry, _: step(carry, data), state, None, length=steps_per_call)

    start = time.perf_counter()
    function = step if steps_per_call == 1 else several
    compiled = jax.jit(function, donate_argnums=0, compiler_options=compiler_options()).lower(state, data).compile()
    compile_seconds = time.perf_counter() - start
    holder: list[Any] = [state, None]

    def call() -> None:
        holder[0], holder[1] = compiled(holder[0], data)

    def finish() -> None:
        jax.block_until_ready(holder[1])

    found: dict[str, Any] = timed(call, finish, batch, steps_per_call)
    loss = float(np.ravel(holder[1]["loss"])[-1])
    text = compiled.as_text() or ""
    found["kernels"] = kept_kernels(compiled, call, finish, f"{name}_{batch}{'_flags' * ('XLA_FLAGS' in os.environ)}")
    counted = {kind: text.count(f"{kind}(") for kind in ("fusion", "custom-call", "convolution", "reduce")}
    return {**found, "compile_seconds": compile_seconds, "loss": loss, "operations": counted, **of_jax()}


def kernels(small: bool) -> dict[str, Any]:
    """The fused product beside XLA's norm, ReLU, product and sums, forward and backward, at ResNet-50's shapes."""
    import jax

    from benchmarks.gpu_idea_kernels import Tiles, product

    wait_for_turn()
    interpret = jax.default_backend() == "cpu"
    candidates: dict[str, Callable[..., Any]] = {"xla": unfused} | {
        f"fused_{number}": lambda *given, tiles=tiles: product(Tiles(**tiles, interpret=interpret), True, *given)
        for number, tiles in enumerate(TILES)
    }
    shapes = ((4, 16, 32),) if small else SHAPES
    rows = [one_shape(*shape, 4 if small else BATCH, candidates) for shape in shapes]
    return {"shapes": rows, "tiles": [dict(tiles) for tiles in TILES], **of_jax()}


def unfused(x: Any, scale: Any, shift: Any, w: Any) -> Any:
    """What gpu_idea_kernels.product computes, for XLA to fuse as it likes."""
    import jax
    import jax.numpy as jnp

    read = jnp.maximum(x.astype(jnp.float32) * scale + shift, 0).astype(x.dtype)
    y = jax.lax.dot(read, w, preferred_element_type=x.dtype)
    wide = y.astype(jnp.float32)
    return y, wide.sum(0), jnp.square(wide).sum(0)


def one_shape(
    side: int, inputs: int, outputs: int, batch: int, candidates: Mapping[str, Callable[..., Any]]
) -> dict[str, Any]:
    """Milliseconds of each candidate, values and gradients; words where it failed."""
    import jax
    import jax.numpy as jnp

    m, keys = side * side * batch, jax.random.split(jax.random.key(0), 3)
    x, dy = (jax.random.normal(keys[i], (m, n), jnp.bfloat16) for i, n in ((0, inputs), (1, outputs)))
    w = jax.random.normal(keys[2], (inputs, outputs), jnp.bfloat16) / inputs**0.5
    arguments = (x, jnp.ones(inputs), jnp.zeros(inputs), w)
    gradients = (dy, jnp.full(outputs, 1e-4), jnp.full(outputs, 1e-4))

    def both_ways(function: Callable[..., Any]) -> Callable[[], Any]:
        def run(arguments: Any, gradients: Any) -> Any:
            values, back = jax.vjp(function, *arguments)
            return values, back(gradients)

        compiled = jax.jit(run).lower(arguments, gradients).compile()
        return lambda: compiled(arguments, gradients)

    row: dict[str, Any] = {"side": side, "inputs": inputs, "outputs": outputs}
    expected = None
    for label, function in candidates.items():
        try:
            run = both_ways(function)
            found = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(run())]
            expected = expected or found
            row[label] = milliseconds(run)
            # bfloat16 in and out: a hundredth is rounding, a tenth an error.
            row[f"{label}_off"] = max(float(norm_of_difference(a, b)) for a, b in zip(found, expected, strict=True))
        except Exception as error:  # Any: a tile that does not fit the device is a finding, too.
            row[label] = f"{type(error).__name__}: {error}"[:200]
    return row


def milliseconds(run: Callable[[], Any]) -> float:
    """Of one call, the median over repetitions that are waited for at their end."""
    import jax

    last: list[Any] = [None]

    def call() -> None:
        last[0] = run()

    return timed(call, lambda: jax.block_until_ready(last[0]), 1)["step_milliseconds"]


def norm_of_difference(found: Any, expected: Any) -> Any:
    """|found - expected| / |expected|, Euclidean."""
    import jax.numpy as jnp

    return jnp.linalg.norm(found - expected) / jnp.maximum(jnp.linalg.norm(expected), 1e-30)


# What is timed by itself and not as a part of the whole step.
ALONE: dict[str, Callable[[bool], dict[str, Any]]] = {"kernels": kernels, "stems": stems, "chains": chains}


if __name__ == "__main__":
    main()
