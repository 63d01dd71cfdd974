"""Batch norm folded into the convolution before it: the same function with fewer operations, for evaluation alone.

In evaluation a batch norm is an affine map of each channel by its running statistics (Ioffe and Szegedy 2015, Algorithm
2, step 11): y = γ·(x - μ)/√(σ² + ε) + β. Where x is what a convolution gives, with nothing in between, that is a
convolution again, with kernel·s and bias (b - μ)·s + β, where s = γ/√(σ² + ε) stands for each output channel.

Where that holds, by the spec's order: behind every convolution of the stem, the branches and the projections in the
original order and with the ReLU before the addition; behind all but a branch's last with the norm after the addition;
in ReLU-only pre-activation behind those of the stem and the branches; in full pre-activation behind the stem's and all
but a branch's last. What comes behind an addition stays, and so does group norm, whose statistics are of the image.
Of a design that folding is not proven for (proven.py) everything stays.
"""

import re
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from resnet.model.blocks import norm_behind
from resnet.model.network import ResNet
from resnet.model.proven import is_proven
from resnet.model.spec import ResNetSpec

Variables = dict[str, Any]

_STEM = re.compile(r"conv(1|1_\d)")
_BRANCH = re.compile(r"(?P<block>layer\d+_\d+)/conv(?P<number>\d)")
_PROJECTION = re.compile(r"(?P<block>layer\d+_\d+)/downsample_conv")


def fold(network: ResNet, variables: Variables) -> tuple[ResNet, Variables]:
    """(network, variables) that give the logits and features of these in evaluation, up to rounding.

    variables: {'params', 'batch_stats'} of `network`, as arrays; they stay as they are. The result has each layer under
    its name; a convolution with a norm folded into it has a 'bias', and that norm has no variables any more. What can
    not be folded is as it was. Computed in float64, kept in float32. The network refuses to train.
    """
    params, statistics = flatten_dict(variables["params"], sep="/"), flatten_dict(variables["batch_stats"], sep="/")
    pairs = folded_norms(network.spec, variables)
    for layer, norm in pairs.items():
        mean, var = (np.asarray(statistics.pop(f"{norm}/{name}"), np.float64) for name in ("mean", "var"))
        scale, shift = (np.asarray(params.pop(f"{norm}/{name}"), np.float64) for name in ("scale", "bias"))
        factor = scale / np.sqrt(var + network.spec.norm_epsilon)
        bias = np.asarray(params.get(f"{layer}/bias", 0.0), np.float64)
        params[f"{layer}/kernel"] = (np.asarray(params[f"{layer}/kernel"], np.float64) * factor).astype(np.float32)
        params[f"{layer}/bias"] = ((bias - mean) * factor + shift).astype(np.float32)
    folded = {"params": unflatten_dict(params, sep="/"), "batch_stats": unflatten_dict(statistics, sep="/")}
    return network.clone(folded=network.folded | frozenset(pairs.values())), folded


def folded_norms(spec: ResNetSpec, variables: Variables) -> dict[str, str]:
    """{convolution: the batch norm directly behind it}, by their names ('layer1_0/conv1').

    Nothing for other norms, nor for a design that folding is not proven for.
    """
    if spec.norm != "batch" or not is_proven(spec):
        return {}
    statistics = {name.rpartition("/")[0] for name in flatten_dict(variables["batch_stats"], sep="/")}
    layers = [name.rpartition("/")[0] for name in flatten_dict(variables["params"], sep="/") if name.endswith("kernel")]
    pairs = {layer: norm for layer in layers if (norm := _norm_behind(spec, layer))}
    return {layer: norm for layer, norm in pairs.items() if norm in statistics}


def _norm_behind(spec: ResNetSpec, layer: str) -> str | None:
    """The name of the norm that the network applies to what `layer` gives, before anything else; None for no norm."""
    if found := _STEM.fullmatch(layer):
        return f"bn{found[1]}"
    if found := _BRANCH.fullmatch(layer):
        number = int(found["number"])
        norm = norm_behind(spec, number, last=number == (3 if spec.block == "bottleneck" else 2))
        return norm and f"{found['block']}/{norm}"
    if (found := _PROJECTION.fullmatch(layer)) and not spec.preactivated:
        return f"{found['block']}/downsample_bn"
    return None
