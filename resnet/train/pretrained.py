"""Weights that a run starts from: read from wherever they are, held against the run's network and preprocessing."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from input_pipeline.contract import Contract, contract_by_name
from input_pipeline.errors import InputError, printable
from resnet.model.spec import ResNetSpec
from resnet.train.checkpoints import Meta, load
from resnet.train.freezing import is_head
from resnet.train.state import Variables
from resnet.weights import convert, zoo
from resnet.weights.recognise import TRAINING_FIELDS, describe, name_of

# Fields of a spec that may differ between the weights and the run: the head, and what acts in training only.
FREE = ("num_classes", "head_hidden", *TRAINING_FIELDS)
# What makes two contracts different inputs; the crop and its interpolation always are the weights'.
NUMBERS = ("mean", "std", "scale", "channel_order")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights ready for the run's network.

    source: as config.transfer.weights has it. variables: {'params', 'batch_stats'} of float32 NumPy arrays, without
    the head where the run needs another. spec: of the weights. contract, image_size, resize_shorter: what they expect.
    digest: sha256 (hex) over all the variables. head: what becomes of the head, in words.
    """

    source: str
    variables: Variables
    spec: ResNetSpec
    contract: Contract
    image_size: int
    resize_shorter: float
    digest: str
    head: str

    def describe(self) -> str:
        """One line for the start of a run."""
        return (
            f"{printable(self.source)}: {name_of(self.spec) or describe(self.spec)}, contract "
            f"{printable(self.contract.name)} ({self.contract.interpolation}), {self.image_size} px; {self.head}"
        )


def load_pretrained(config: ConfigDict, spec: ResNetSpec, class_names: tuple[str, ...]) -> Pretrained:
    """The weights of config.transfer.weights for a network of `spec` on these classes.

    The head is kept where the weights answer with the very same classes through a head of the same shape, else left
    out. Raises InputError, naming both sides, where network or preprocessing disagree, and for what cannot be read.
    """
    source = config.transfer.weights
    variables, meta, free = read(source)
    check_spec(source, meta.spec, spec, free)
    check_contract(config, source, meta.contract)
    same = meta.class_names == class_names and meta.spec.head_hidden == spec.head_hidden
    params = flatten_dict(variables["params"], sep="/")
    digest = digest_of(variables)
    if same:
        head = "its head kept (the same classes)"
    else:
        params = {name: leaf for name, leaf in params.items() if not is_head(name)}
        # Keras' files without include_top have none.
        absent = meta.progress.get("head") == "none"
        was = (
            "without a head, a fresh one" if absent else f"its head ({len(meta.class_names):,} outputs) replaced by one"
        )
        head = f"{was} of {spec.num_classes:,}"
    return Pretrained(
        source=source,
        variables={**variables, "params": unflatten_dict(params, sep="/")},
        spec=meta.spec,
        contract=meta.contract,
        image_size=meta.image_size,
        resize_shorter=meta.resize_shorter,
        digest=digest,
        head=head,
    )


def read(source: str) -> tuple[Variables, Meta, tuple[str, ...]]:
    """(NumPy variables, meta, fields of the spec that the source does not tell) of a folder, a file or a known name."""
    try:
        known = zoo.find(source)
        if known is None and Path(source).is_dir():
            variables, meta = load(source)
            return flat_map(variables), meta, ()
        if known is None and not Path(source).is_file():
            raise InputError(
                f"config.transfer.weights={printable(source)}: no such folder, file or known name; "
                f"known are {', '.join(zoo.ENTRIES)}"
            )
        converted = convert.convert(source)
    except InputError as error:
        raise InputError(str(error).replace("--source=", "config.transfer.weights=")) from error
    # torch's shapes fit both places of the stride; who names the network v1 knows what the file is.
    free = ("stride_place",) if known is None and converted.recognised.dialect.torch_layout else ()
    return flat_map(converted.variables), converted.meta, free


def flat_map(variables: Variables) -> Variables:
    """The same tree of NumPy arrays: what the run donates to its steps must not be what somebody else holds."""
    flat = flatten_dict(variables, sep="/")
    return {"params": {}, "batch_stats": {}} | unflatten_dict({k: np.asarray(v) for k, v in flat.items()}, sep="/")


def check_spec(source: str, found: ResNetSpec, wanted: ResNetSpec, free: tuple[str, ...]) -> None:
    """Raise InputError unless the weights' network is the run's in all that is not free to differ."""
    off = [
        field.name
        for field in dataclasses.fields(ResNetSpec)
        if field.name not in (*FREE, *free) and getattr(found, field.name) != getattr(wanted, field.name)
    ]
    if not off:
        return
    differences = ", ".join(f"{name} {getattr(found, name)!r} against {getattr(wanted, name)!r}" for name in off)
    mine, theirs = name_of(wanted) or describe(wanted), name_of(found) or describe(found)
    advice = f"set --config.model.name={theirs}" if name_of(found) else "set config.model to match the weights"
    raise InputError(
        f"config.transfer.weights={printable(source)} holds {theirs}, config.model describes {mine}: {differences}; "
        f"{advice}, or use other weights"
    )


def check_contract(config: ConfigDict, source: str, contract: Contract) -> None:
    """Raise InputError where config.data.contract asks for other numbers than the weights were trained on."""
    name = config.data.contract
    if name == "auto":
        return
    asked = contract_by_name(name)
    if any(getattr(asked, field) != getattr(contract, field) for field in NUMBERS):
        raise InputError(
            f"config.data.contract={printable(name)!r}, but the weights {printable(source)} were trained through the "
            f"contract {contract.name!r}; omit the key to follow the weights"
        )


def digest_of(variables: Variables) -> str:
    """sha256 (hex) over names, shapes and bytes of all the arrays."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten_dict(variables, sep="/").items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name}\0{array.shape}\0{array.dtype}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def adopt(fresh: Variables, pretrained: Any) -> Variables:
    """`fresh` variables with every leaf that `pretrained` ({'params', 'batch_stats'}, or {}) has in its place."""
    flat = flatten_dict(fresh, sep="/", keep_empty_nodes=True)
    for name, leaf in flatten_dict(pretrained, sep="/").items():
        if flat[name].shape != leaf.shape:
            raise AssertionError(f"{name}: {leaf.shape} cannot take the place of {flat[name].shape}")
        flat[name] = jnp.asarray(leaf)
    return unflatten_dict(flat, sep="/")
