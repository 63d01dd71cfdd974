"""Which designs the faster ways of computing a network are proven for; any other goes layer by layer, as it is written.

Three of them assume what stands between a network's layers: the end of a branch computed at once (`Block`), several
layers in one call of oneDNN (links), batch norms folded into convolutions (folding). A field of ResNetSpec, or a value
of one, that they do not know they would leave out without a word: an ablation of it would compare a network with
itself. So a design of one's own is computed right from the start, and fast once its field or value is listed here.
"""

import dataclasses
import functools

from resnet.model.spec import ResNetSpec

# Field -> the values that are proven.
VALUES: dict[str, tuple[str, ...]] = {
    "block": ("basic", "bottleneck"),
    "stem": ("imagenet", "cifar", "deep"),
    "stride_place": ("3x3", "first_1x1"),
    "stride_block": ("first", "last"),
    "shortcut": ("none", "A", "B", "C", "D"),
    "shortcut_transform": ("identity", "scale", "exclusive_gate", "shortcut_gate", "conv1x1", "dropout"),
    "order": (
        "original",
        "bn_after_addition",
        "relu_before_addition",
        "relu_only_preactivation",
        "full_preactivation",
    ),
    "norm": ("batch", "group", "none"),
}
# Fields all of whose values are proven.
FIELDS = (
    *("stage_sizes", "width", "base_width", "groups", "in_channels", "num_classes", "stem_norm", "shortcut_scale"),
    *("gate_bias", "shortcut_dropout", "norm_groups", "norm_momentum", "norm_epsilon", "ghost_batch_size"),
    # A function of each value by itself, and ReLU alone is computed with what is before it.
    "activation",
    *("conv_bias", "bias_without_norm", "squeeze_excitation", "zero_init_last_gamma", "stochastic_depth", "dropout"),
    "head_hidden",
    "stem_width",
)


@functools.cache
def is_proven(spec: ResNetSpec) -> bool:
    """Whether every field of the spec is at its default, or named above with its value."""
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if value != field.default and field.name not in FIELDS and value not in VALUES.get(field.name, ()):
            return False
    return True
