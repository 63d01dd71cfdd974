"""What a checkpoint says of itself: the JSON beside the arrays."""

import dataclasses
from typing import Any

from input_pipeline.contract import Contract
from input_pipeline.errors import InputError, printable
from resnet.model.errors import SpecError
from resnet.model.spec import ResNetSpec
from resnet.train import stored_meta
from resnet.train.losses import OUTPUTS

FORMAT = 1


class OtherCode(InputError):
    """A checkpoint of a network that this code does not know: whole, but not for this code."""


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself.

    spec: the network. class_names: one per output. contract: how pixels become inputs. image_size, resize_shorter: the
    evaluation crop. step: steps done. config: the flat configuration ({} for converted weights). progress: the loop's
    notes (best step and so on). fingerprint: the dataset's ('' for converted weights).
    """

    spec: ResNetSpec
    class_names: tuple[str, ...]
    contract: Contract
    image_size: int
    resize_shorter: float
    step: int = 0
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    progress: dict[str, Any] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""

    @property
    def loss(self) -> str:
        """The loss that it was trained with, one of losses.LOSSES; converted weights count as trained with softmax.

        So timm has it, whose weights of "ResNet strikes back" were trained with sigmoids: it gives their softmax.
        Raises InputError as `check_loss` does.
        """
        self.check_loss()
        return str(self.config.get("optim.loss", "softmax"))

    @property
    def outputs(self) -> str:
        """What its probabilities are by that loss: 'softmax', or 'sigmoid', each class' own. Raises as `loss` does."""
        return OUTPUTS[self.loss]

    def check_loss(self) -> None:
        """Raise InputError for a loss that this code does not know: what its logits mean is not known either."""
        kind = self.config.get("optim.loss", "softmax")
        if kind not in OUTPUTS:
            raise InputError(
                f"the checkpoint was trained with config.optim.loss={printable(str(kind)[:40])!r}, which "
                "resnet/train/losses.py does not know; use the code that trained it"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is the inverse."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"spec": dataclasses.asdict(self.spec), "contract": self.contract.to_json(), "format": FORMAT}
        return fields

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Meta":
        """The inverse of `to_json`. Raises OtherCode for a network with a field that ResNetSpec has not, InputError for
        another format and for anything that no `to_json` writes."""
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            raise InputError(
                "the checkpoint was written in another format than this version reads; use the version that wrote it"
            )
        fields = stored_meta.check({name: value for name, value in stored.items() if name != "format"})
        own = sorted(fields["spec"].keys() - {field.name for field in dataclasses.fields(ResNetSpec)})
        if own:
            named = ", ".join(printable(name[:80]) for name in own[:3])
            raise OtherCode(
                f"its network has {named}, which this code's ResNetSpec does not have; use the code that wrote it"
            )
        try:
            spec = ResNetSpec(**fields["spec"] | {"stage_sizes": tuple(fields["spec"]["stage_sizes"])})
        except (TypeError, SpecError) as error:  # TypeError: a field that it has not.
            raise stored_meta.fault(printable(str(error)[:200])) from error
        contract = Contract.from_json(fields["contract"])
        return cls(**fields | {"spec": spec, "contract": contract, "class_names": tuple(fields["class_names"])})


@dataclasses.dataclass
class Progress:
    """What the loop remembers between evaluations; it travels in every checkpoint."""

    best_step: int | None = None
    best_value: float | None = None
    evaluated_step: int = 0
    since_best: int = 0


def check_progress(stored: dict[str, Any], kind: type) -> None:
    """Raise InputError for notes of a checkpoint that the dataclass `kind`, whose fields they are, does not know."""
    for name in sorted(stored.keys() - {field.name for field in dataclasses.fields(kind)}):
        raise stored_meta.fault(f"progress.{printable(name[:80])} is unknown")
    for name, value in stored.items() if kind is Progress else ():
        if not (value is None or type(value) in (int, float)):
            raise stored_meta.fault(f"progress.{name} must be a number, not {type(value).__name__}")
