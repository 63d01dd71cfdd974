"""What config.transfer says: which weights, which parts learn from which epoch on, how fast, and with which statistics.

Read and checked here without jax, so that a slip is told at once; freezing.py and pretrained.py act on it.
"""

import dataclasses
import re

from ml_collections import ConfigDict

from input_pipeline.errors import InputError, printable

MODES = ("scratch", "probe", "finetune")
NORM_MODES = ("auto", "train", "frozen", "recalibrate")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """config.transfer, read.

    weights: what the backbone starts from, '' for none. mode: one of MODES. norms: 'train' (batch statistics wherever
    the norm's parameters learn), 'frozen' (the weights' statistics everywhere) or 'recalibrate' (re-estimated over the
    training images before the first step, then frozen). unfreeze: (pattern, epoch) in ascending order of the epoch;
    () for everything from the start. multipliers: (pattern, factor on the learning rate), the first match counts.
    views: of each training image, for mode 'probe'.
    """

    weights: str
    mode: str
    norms: str
    unfreeze: tuple[tuple[re.Pattern[str], float], ...]
    multipliers: tuple[tuple[re.Pattern[str], float], ...]
    views: int

    @property
    def unfreeze_text(self) -> str:
        """`unfreeze` as it is written."""
        return printable(repr(tuple(f"{pattern.pattern}@{epoch:g}" for pattern, epoch in self.unfreeze)))


def read_transfer(config: ConfigDict) -> Transfer:
    """config.transfer with its patterns compiled. Raises InputError naming the key that says nothing sensible."""
    transfer = config.transfer
    mode, norms = transfer.mode, transfer.bn
    if norms == "auto":
        norms = "frozen" if mode == "probe" else "train"
    if mode == "probe" and norms == "train":
        # The statistics would move under a backbone that learns nothing: training 99 %, validation 40 %.
        raise InputError(
            "config.transfer.bn='train' with config.transfer.mode='probe' would change the statistics of a frozen "
            "backbone; use frozen or recalibrate"
        )
    if mode != "scratch" and not transfer.weights:
        raise InputError(
            f"config.transfer.mode={mode!r} needs config.transfer.weights: a run's workdir, converted weights, a "
            "weights file or a known name such as torchvision:resnet50_v2"
        )
    unfreeze = [pair("unfreeze", text, "@", 0.0) for text in transfer.unfreeze]
    for text, (_, epoch) in zip(transfer.unfreeze, unfreeze, strict=True):
        if epoch < 0:
            raise fault("unfreeze", text, "the epoch must not be negative")
    multipliers = [pair("lr_multipliers", text, "=", None) for text in transfer.lr_multipliers]
    for text, (_, factor) in zip(transfer.lr_multipliers, multipliers, strict=True):
        if factor <= 0:
            raise fault("lr_multipliers", text, "the factor must be above 0; config.transfer.unfreeze leaves parts out")
    return Transfer(
        weights=transfer.weights,
        mode=mode,
        norms=norms,
        unfreeze=tuple(sorted(unfreeze, key=lambda stage: stage[1])),
        multipliers=tuple(multipliers),
        views=transfer.views,
    )


def pair(key: str, text: str, mark: str, default: float | None) -> tuple[re.Pattern[str], float]:
    """'layer4@2' -> (pattern, 2.0). `default` stands where there is no mark; None: the mark is needed."""
    pattern, found, number = text.rpartition(mark)
    if not found:
        pattern, number = text, "" if default is None else str(default)
    try:
        value = float(number)
        if not abs(value) < float("inf"):
            raise ValueError
    except ValueError as error:
        example = "'layer4@2.5'" if mark == "@" else "'^fc=10'"
        raise fault(key, text, f"it must end in {mark} and a number, such as {example}") from error
    try:
        return re.compile(pattern), value
    except re.error as error:
        raise fault(key, text, f"not a regular expression ({error})") from error


def head_units(config: ConfigDict) -> int | None:
    """Hidden units that config.transfer.head asks for; None where it leaves that to config.model.head_hidden."""
    head = config.transfer.head
    if not head:
        return None
    kind, colon, units = head.partition(":")
    if head == "linear":
        return 0
    if kind == "mlp" and colon and units.isascii() and units.isdigit() and 0 < int(units) <= 1 << 20:
        return int(units)
    raise InputError(f"config.transfer.head={printable(head)!r} must be linear or mlp:UNITS, such as mlp:512")


def fault(key: str, text: str, rule: str) -> InputError:
    return InputError(f"config.transfer.{key}: {printable(text)!r}: {rule}")
