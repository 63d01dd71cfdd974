"""Which variants of an ablation are one and the same run, however each says it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.errors import InputError
from resnet.model.proven import is_proven
from resnet.model.spec import ResNetSpec, block_stride
from resnet.model.variants import variant
from resnet.train.configuration import Flat, flatten, make_spec

# What of a spec acts on single blocks, and on some of them not at all.
BY_BLOCK = ("shortcut", "shortcut_transform", "shortcut_scale", "gate_bias", "shortcut_dropout", "stride_place")


def check_alike(configs: Mapping[str, ConfigDict]) -> None:
    """Raise InputError where two variants, by their names, are one and the same or their names differ in case alone."""
    seen: dict[str, str] = {}
    for name in configs:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            # Their files would clash.
            raise InputError(f"variants {other} and {name}: names must differ in more than case")
    # A field left to the named network and the same field written out are one network: specs are compared, not keys.
    # The data, which are not open yet, have as many classes as any variant says.
    classes = next((count for config in configs.values() if (count := config.model.num_classes)), 2)
    runs = {name: run_of(config, classes) for name, config in configs.items()}
    for index, name in enumerate(runs):
        for other in list(runs)[:index]:
            if runs[name] == runs[other]:
                raise InputError(
                    f"variants {other} and {name} are the same run; {advice(configs[other], configs[name])}"
                )


def advice(one: ConfigDict, other: ConfigDict) -> str:
    """What to do about two configurations of one run; named, where they are of two networks that a key makes one."""
    specs = [dataclasses.asdict(variant(config.model.name).spec) for config in (one, other)]
    # The data say how many classes there are.
    differing = [field for field in specs[0] if specs[0][field] != specs[1][field] and field != "num_classes"]
    if not differing or any(config.model[field] is None for config in (one, other) for field in differing):
        return "remove one of them"
    settings = ", ".join(f"config.model.{field}={one.model[field]!r}" for field in differing)
    return (
        f"{settings} overrides everything in which {one.model.name} and {other.model.name} differ; omit that key, or "
        f"set it for one of them: --config.variants.NAME.model.{differing[0]}"
    )


def run_of(config: ConfigDict, classes: int) -> tuple[dict[str, Any], Flat]:
    """What a variant trains: the network, for so many classes where it leaves them open, and all keys but model's."""
    spec = make_spec(config, config.model.num_classes or classes)
    return network_of(spec), {key: value for key, value in flat_config(config).items() if not key.startswith("model.")}


def network_of(spec: ResNetSpec) -> dict[str, Any]:
    """The spec's fields, with what those of BY_BLOCK do to each block in place of them: equal for equal networks.

    In one stage of basic blocks no shortcut changes shapes, so that options A, B and D are one; where all blocks change
    them, as bottlenecks alone in their stages do, nothing is left for a transform. What a design that is not proven
    does to a block is not known here: such specs are told apart by their fields.
    """
    fields = dataclasses.asdict(spec)
    if not is_proven(spec):
        return fields
    own = {name: fields.pop(name) for name in BY_BLOCK}
    blocks, channels = [], spec.stem_channels
    for stage, size in enumerate(spec.stage_sizes):
        for index in range(size):
            stride, changes = block_stride(spec, stage, index), channels != spec.width * 2**stage * spec.expansion
            channels = spec.width * 2**stage * spec.expansion
            blocks.append((own["stride_place"] if stride > 1 else "", *shortcut_of(spec, stride, changes)))
    return {**fields, "blocks": blocks}


def shortcut_of(spec: ResNetSpec, stride: int, changes_channels: bool) -> tuple[Any, ...]:
    """What the shortcut of a block does, as `Block` decides it: to the map's shape, then at the same shape."""
    if spec.shortcut == "none":
        return ("none",)
    changes_shape = changes_channels or stride > 1
    projects = changes_channels or spec.shortcut == "C" or spec.shortcut_transform == "conv1x1"
    if spec.shortcut == "A" and changes_shape and projects:
        return ("pad", stride, changes_channels)
    reduced = "pool" if spec.shortcut == "D" and stride > 1 else "leave out"
    if changes_shape or spec.shortcut_transform in ("identity", "conv1x1"):
        return (projects, stride, reduced)
    setting = {
        "scale": spec.shortcut_scale,
        "exclusive_gate": spec.gate_bias,
        "shortcut_gate": spec.gate_bias,
        "dropout": spec.shortcut_dropout,
    }[spec.shortcut_transform]
    return (projects, stride, reduced, spec.shortcut_transform, setting)


def flat_config(config: ConfigDict) -> Flat:
    """{'data.batch_size': 64, …} with lists for tuples, as JSON gives them back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in flatten(config).items()}
