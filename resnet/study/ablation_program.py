"""One variant, all seeds, many steps: the compiled program of an ablation.

Everything has a leading axis of seeds. Each seed has its own initialisation, order, crops, flips and dropout, and does
what an ordinary run with that `config.run.seed` does: the same step (resnet/train/steps.py) on the same batches.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.augment import prepare
from input_pipeline.resident import cut
from resnet.model.network import initialise
from resnet.train.metrics import eval_sums
from resnet.train.parallel import compiler_options
from resnet.train.plan import Plan
from resnet.train.state import TrainState, Variables, create_state
from resnet.train.steps import logits_of, make_keyed_step, sum_names

Rows = dict[str, jax.Array]
SUMS = ("count", "loss", "top1")


def vmapped(function: Callable[..., Any], own: Any) -> Any:
    return jax.vmap(function)(*own)


def unrolled(function: Callable[..., Any], own: Any) -> Any:
    count = len(jax.tree.leaves(own)[0])
    results = [function(*jax.tree.map(lambda leaf, seed=seed: leaf[seed], own)) for seed in range(count)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def mapped(function: Callable[..., Any], own: Any) -> Any:
    return jax.lax.map(lambda one: function(*one), own)


# How one program does a thing for all seeds: function, arguments with an axis of seeds -> results with it.
TOGETHER: dict[str, Callable[[Callable[..., Any], Any], Any]] = {
    "vmap": vmapped,
    "unrolled": unrolled,
    "map": mapped,
    # A program for one seed, called for each in turn at every step (see `compile_for_all`).
    "turns": unrolled,
}


def default_together(platform: str) -> str:
    """How seeds go together on a platform ('cpu', 'gpu', …).

    On a CPU one seed fills the cores. A step of CIFAR ResNet-20 for 3 seeds, batch 128, 2 cores, in CPU seconds: 1.09
    in turns, 1.04 unrolled, 1.07 under lax.map, 2.82 under vmap (its convolutions become grouped ones). In turns it is
    compiled once, not once a seed, and is bit for bit what a run alone does.
    """
    return "turns" if platform == "cpu" else "vmap"


def default_steps_per_dispatch(platform: str) -> int:
    """How many steps one dispatch does at most on a platform ('cpu', 'gpu', …).

    A CPU's steps are long beside a dispatch (CIFAR ResNet-20: 225 ms alone, 221 in a loop), and news comes after each.
    """
    return 1 if platform == "cpu" else 200


def seed_keys(seeds: tuple[int, ...]) -> jax.Array:
    """jax.random.key(seed) of each seed, as ordinary runs have it: key[K]."""
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def first_states(plan: Plan, seeds: tuple[int, ...], image_size: int) -> TrainState:
    """The states before step 0, each that of an ordinary run with its seed; one compilation, K calls."""
    names = sum_names(plan.network.spec.num_classes)

    @jax.jit
    def create(key: jax.Array) -> TrainState:
        variables = initialise(plan.network, key, image_size)
        return create_state(variables, plan.stages[0].optimizer, ema=plan.recipe.ema > 0, sum_names=names)

    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[create(key) for key in seed_keys(seeds)])


def make_advance(plan: Plan, together: str, *, loop: bool) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Many steps of all seeds: (state, (keys, rows), (images, labels, count)) -> (state, news). For `compile_for_all`.

    The first two have an axis of seeds, the third is shared: images uint8[N, S, S, 3] and labels int32[N], the training
    set. rows: `step_rows` of each seed, 'index' int32[K, T, B] and 'offset' int32[K, T, B, 2]; the first `count` of the
    T steps are done, so that one program serves dispatches of any length up to T. Without `loop`, T and count are 1.
    news: the state's 'sums' (of its metrics since they were last reset) and 'bad_steps' int32[K], the longest row of
    non-finite steps that each seed went through.
    """
    step = make_keyed_step(plan.network, plan.stages[0].optimizer, plan.recipe)
    for_all = TOGETHER[together]
    padding = plan.train_crop.padding if plan.train_crop.kind == "pad" else 0

    def one_step(
        state: TrainState, keys: jax.Array, images: jax.Array, labels: jax.Array, row: Rows
    ) -> tuple[TrainState, jax.Array]:
        def one_seed(own: TrainState, key: jax.Array, index: jax.Array, offset: jax.Array) -> tuple[TrainState, Any]:
            batch = {"image": cut(images, index, offset, padding), "label": labels[index]}
            batch |= {"mask": jnp.ones(index.shape, jnp.float32), "index": index}
            return step(own, batch, key)

        state, pulse = for_all(one_seed, (state, keys, row["index"], row["offset"]))
        return state, pulse["bad_steps"]

    def advance(
        state: TrainState, own: tuple[jax.Array, Rows], shared: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        (keys, rows), (images, labels, count) = own, shared

        def body(number: jax.Array, carry: tuple[TrainState, jax.Array]) -> tuple[TrainState, jax.Array]:
            state, worst = carry
            row = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, 1, keepdims=False), rows)
            state, bad_steps = one_step(state, keys, images, labels, row)
            return state, jnp.maximum(worst, bad_steps)

        if loop:
            state, worst = jax.lax.fori_loop(0, count, body, (state, jnp.zeros_like(state.bad_steps)))
        else:
            state, worst = one_step(state, keys, images, labels, jax.tree.map(lambda leaf: leaf[:, 0], rows))
        return state, {"sums": state.sums, "bad_steps": worst}

    return advance


def compile_for_all(
    function: Callable[..., Any], together: str, given: Any, own: Any, shared: Any
) -> Callable[[Any, Any, Any], Any]:
    """Compile function(given, own, shared) for these shapes; given and own have an axis of seeds.

    The buffers of `given` are given up. In turns it is compiled for an axis of one, and called for each seed.
    """
    program = jax.jit(function, donate_argnums=0, compiler_options=compiler_options())
    if together != "turns":
        return program.lower(given, own, shared).compile()
    seeds = len(jax.tree.leaves((given, own))[0])
    split = jax.jit(lambda tree: [jax.tree.map(lambda leaf, k=k: leaf[k : k + 1], tree) for k in range(seeds)])
    join = jax.jit(lambda trees: jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees))
    one = program.lower(*split((given, own))[0], shared).compile()
    return lambda given, own, shared: join([one(*part, shared) for part in split((given, own))])


def make_evaluation(plan: Plan, together: str) -> Callable[[tuple[()], Variables, Rows], dict[str, jax.Array]]:
    """((), variables of all seeds, one batch for all) -> masked sums SUMS, float32[K]. For `compile_for_all`."""
    network = plan.network

    def evaluation(nothing: tuple[()], variables: Variables, batch: Rows) -> dict[str, jax.Array]:
        images = prepare(batch["image"], plan.contract)

        def one_seed(own: Variables) -> dict[str, jax.Array]:
            logits = logits_of(network, own, images, flip=plan.eval_flip)
            sums = eval_sums(logits, batch["label"], batch["mask"], network.spec.num_classes, plan.recipe.loss.kind)
            return {name: sums[name] for name in SUMS}

        return TOGETHER[together](one_seed, (variables,))

    return evaluation


def add_up(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Totals over batches in float64, {'top1': share[K], 'loss': mean[K]}."""
    totals = {name: np.sum([part[name].astype(np.float64) for part in parts], axis=0) for name in SUMS}
    return {name: totals[name] / totals["count"] for name in ("top1", "loss")}
