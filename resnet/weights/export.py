"""Write a checkpoint's weights for torchvision and timm, or for Keras' applications.

    python -m resnet.weights.export --checkpoint=DIR --format=torchvision --out=FILE.safetensors (or FILE.pth)
    python -m resnet.weights.export --checkpoint=DIR --format=keras --out=FILE.h5 (or FILE.weights.h5)

The file loads there with strict=True (torch: model.load_state_dict) or model.load_weights (Keras), and converting it
back gives the same bits. A network that the other side would compute differently, or has no layers for, is an error.
torch is needed only for .pth.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from input_pipeline.contract import CONTRACTS, Contract
from input_pipeline.errors import InputError, printable
from input_pipeline.shell_words import shell_words
from input_pipeline.whole_files import beside
from resnet import command
from resnet.model.spec import ResNetSpec
from resnet.train.checkpoints import load
from resnet.weights import keras_writing, mapping, names, safetensors_files
from resnet.weights.faults import fault
from resnet.weights.names import Dialect
from resnet.weights.recognise import KERAS_EPSILON, differing_field, recognise

# Field -> what torchvision, timm and the CIFAR ResNets have; the shortcut goes by the stem.
TORCH_FIELDS: dict[str, tuple[object, ...]] = {
    "order": ("original",),
    "norm": ("batch",),
    "activation": ("relu",),
    "shortcut_transform": ("identity",),
    "stride_place": ("3x3",),
    "stride_block": ("first",),
    "norm_epsilon": (1e-5,),
    "conv_bias": (False,),
    "head_hidden": (0,),
}
# Stem -> whose networks have it, and with which shortcuts. D in the CIFAR ResNets' names would be read as their B.
TORCH_SHORTCUTS: dict[str, tuple[str, tuple[object, ...]]] = {
    "imagenet": ("torchvision's and timm's ResNets with stem='imagenet'", ("B", "D")),
    "deep": ("timm's ResNets with stem='deep'", ("B", "D")),
    "cifar": ("the CIFAR ResNets (stem='cifar')", ("A", "B")),
}
# Field -> what Keras' ResNet50, 101 and 152 have, and their V2. Where ours has no biases, zeros are written.
KERAS_FIELDS: dict[str, tuple[object, ...]] = {
    "block": ("bottleneck",),
    "order": ("original",),
    "norm": ("batch",),
    "activation": ("relu",),
    "stem": ("imagenet",),
    "shortcut": ("B",),
    "shortcut_transform": ("identity",),
    "stride_place": ("first_1x1",),
    "stride_block": ("first",),
    "norm_epsilon": (KERAS_EPSILON,),
    "groups": (1,),
    "base_width": (64,),
    "squeeze_excitation": (0,),
    "head_hidden": (0,),
}
# Keras' own V2 has at least two blocks in a stage; a single one would project and stride at once, which fits as well.
KERAS_V2_FIELDS: dict[str, tuple[object, ...]] = {
    **KERAS_FIELDS,
    "order": ("full_preactivation",),
    "stem_norm": (False,),
    "stride_place": ("3x3",),
    "stride_block": ("last",),
    "conv_bias": (False,),
}
KERAS_ENDINGS = (".h5", ".hdf5")
# By which timm and torch's users know the form, and by which it is chosen here; all else is torch's own.
SAFETENSORS_ENDING = ".safetensors"
# What convert takes from a contract's name alone.
CONTRACT_NUMBERS = ("name", "mean", "std", "scale", "channel_order")
# An ending by which readers expect a form that is not written here.
FOREIGN_ENDING = ".keras"


def main() -> int:
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "--checkpoint", required=True, help="a run's workdir (best checkpoint), a step's folder, or converted weights"
    )
    parser.add_argument(
        "--format", required=True, choices=("torchvision", "keras"), help="the library that will read it"
    )
    parser.add_argument("--out", required=True, help="file to write, which must not exist: .safetensors or .pth; .h5")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    count = export(arguments.checkpoint, arguments.format, out)
    print(f"{count} tensors in {arguments.format}'s names -> {printable(str(out))}")
    print(way_back(arguments.checkpoint, out))
    return 0


def classes_file(out: Path) -> Path:
    """Where the names of the classes lie beside an exported file."""
    return out.with_name(f"{out.name}.classes.txt")


def way_back(checkpoint: str | Path, out: Path) -> str:
    """What a file of weights cannot hold of this checkpoint, and, in the last line, the command that gives it back."""
    _, meta = load(checkpoint)
    told, lost = contract_words(meta.contract)
    words = [
        f"--source={out}",
        *told,
        f"--image_size={meta.image_size}",
        f"--resize_shorter={meta.resize_shorter!r}",
        *([f"--classes={classes_file(out)}"] if classes_file(out).exists() else []),
    ]
    if not classes_file(out).exists() and meta.progress.get("head") != "none":
        lost.append("the names of the classes, because one has a line break and cannot go into a file of lines")
    return "\n".join(
        [
            "The file holds tensors only; whatever reads it must prepare images as for this network. To convert it "
            "back:",
            *(f"(except for {printable(each)})" for each in lost),
            f"  ./run.sh python -m resnet.weights.convert {shell_words(words)} --out=DIR",
        ]
    )


def contract_words(contract: Contract) -> tuple[list[str], list[str]]:
    """The flags by which convert makes a contract, and in words what of it no flag does: numbers of no known contract.

    The crop, which has a flag of its own, is not looked at.
    """
    known = CONTRACTS.get(contract.name, CONTRACTS["torch"])
    flags = [f"--contract={known.name}"]
    if contract.interpolation != known.interpolation:
        flags.append(f"--interpolation={contract.interpolation}")
    pairs = [(name, getattr(contract, name), getattr(known, name)) for name in CONTRACT_NUMBERS]
    return flags, [
        f"its preprocessing's {name}: {own}, where --contract={known.name} has {other}"
        for name, own, other in pairs
        if own != other
    ]


def export(checkpoint: str | Path, form: str, out: Path) -> int:
    """Write `out`, beside it its `classes_file`, and return its number of tensors; `form`: 'torchvision' or 'keras'.

    Raises InputError that names the field in which the network is not one of theirs, or the file that cannot be
    written.
    """
    for file in (out, classes_file(out)):
        if file.exists():
            raise fault(file, "already exists; name another file or remove it")
    require_ending(out, form)
    variables, meta = load(checkpoint)
    spec, has_head = meta.spec, meta.progress.get("head") != "none"
    require_known(spec, form)
    if form == "keras":
        tensors = mapping.from_variables(variables, spec, keras_dialect(spec), has_head=has_head)
        tensors = keras_writing.with_biases(tensors, v2=spec.preactivated)
    else:
        tensors = mapping.from_variables(variables, spec, torch_dialect(spec), has_head=has_head)
    require_readable(spec, tensors, form)
    if form == "keras":
        layers = keras_writing.layer_order(spec, has_head=has_head)
        numbered = out.name.endswith(".weights.h5")
        write_file(out, lambda path: keras_writing.write(path, tensors, layers, numbered=numbered))
    else:
        write = safetensors_files.write if is_safetensors(out) else write_torch
        write_file(out, lambda path: write(path, with_counters(tensors)))
    # A folder's name may hold what ends a line; such names cannot come back from a file of lines.
    text = "".join(f"{name}\n" for name in meta.class_names)
    if has_head and text.splitlines() == list(meta.class_names):
        write_file(classes_file(out), lambda path: write_text(path, text))
    return len(tensors)


def require_ending(out: Path, form: str) -> None:
    """Raise InputError unless the file's ending is of a form that is written here, and torch is there for its own."""
    if form == "keras" and not out.name.endswith(KERAS_ENDINGS):
        raise InputError(
            f"--out={printable(str(out))}: Keras goes by the extension; name it .h5, or .weights.h5 for Keras 3 alone"
        )
    if form == "torchvision" and out.name.lower().endswith((*KERAS_ENDINGS, FOREIGN_ENDING)):
        raise InputError(
            f"--out={printable(str(out))}: --format=torchvision writes .safetensors and torch's own form; name it "
            ".safetensors or .pth, or give --format=keras for .h5"
        )
    if form == "torchvision" and not is_safetensors(out) and importlib.util.find_spec("torch") is None:
        raise InputError(
            f"--out={printable(str(out))}: torch's own form needs torch, which is not installed; name it .safetensors, "
            "which torch and timm read as well, or pip install torch"
        )


def is_safetensors(out: Path) -> bool:
    return out.name.lower().endswith(SAFETENSORS_ENDING)


def require_known(spec: ResNetSpec, form: str) -> None:
    """Raise InputError, naming the field, for a network that the readers of the format have not."""
    if form == "keras":
        v2 = spec.preactivated
        require(spec, KERAS_V2_FIELDS if v2 else KERAS_FIELDS, "Keras' V2 ResNets" if v2 else "Keras' ResNets")
        return
    require(spec, TORCH_FIELDS, "torchvision's and timm's ResNets")
    whose, shortcuts = TORCH_SHORTCUTS[spec.stem]
    require(spec, {"shortcut": shortcuts}, whose)


def require_readable(spec: ResNetSpec, tensors: Mapping[str, np.ndarray], form: str) -> None:
    """Raise InputError unless the network can be read off the tensors' names and shapes, as whoever converts must."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    found = recognise(shapes, f"a file of --format={form} for this checkpoint", keras=form == "keras")
    field = differing_field(spec, found.spec, has_head=found.has_head)
    if field:
        raise InputError(
            f"the checkpoint's network has {field}={getattr(spec, field)!r}, but a file has names and shapes alone; "
            f"by them it would be read as {field}={getattr(found.spec, field)!r}; --format={form} cannot hold it"
        )


def require(spec: ResNetSpec, fields: dict[str, tuple[object, ...]], whose: str) -> None:
    """Raise InputError, naming the field, unless the network is one that the other side computes as ours does."""
    for field, allowed in fields.items():
        value = getattr(spec, field)
        if value not in allowed:
            have = " or ".join(repr(choice) for choice in allowed)
            raise InputError(
                f"the checkpoint's network has {field}={value!r} where {whose} have {have}; they cannot have it"
            )


def torch_dialect(spec: ResNetSpec) -> Dialect:
    """Whose names to write: the CIFAR ResNets' for their stem, else torchvision's, with timm's layout of option D."""
    if spec.stem == "cifar":
        return names.CIFAR
    return names.TORCH_D if spec.shortcut == "D" else names.TORCH


def keras_dialect(spec: ResNetSpec) -> Dialect:
    return names.KERAS_V2 if spec.preactivated else names.KERAS


def with_counters(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors and the batch counters, int64 zeros behind each variance, that torch's strict loading asks for."""
    state: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        state[name] = array
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return state


def write_torch(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A state_dict by torch.save."""
    import torch

    # Opened here: given a path, torch writes the file's name, which is a random one for now, into the file.
    with path.open("wb") as file:
        torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, file)


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_file(out: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill `out`, which is there whole or not at all. Raises InputError where it cannot be written."""
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with beside(out) as part:
            write(part)
    except (OSError, RuntimeError) as error:
        raise fault(out, f"cannot be written ({printable(str(error)[:160])})") from error


if __name__ == "__main__":
    command.run(main)
