"""Parameters, statistics and multiply-adds as arithmetic over a spec, from the papers, without sight of a network."""

from resnet.model.spec import ResNetSpec, block_width


class Ledger:
    """Parameters, statistics and multiply-adds of one row, layer by layer."""

    def __init__(self, spec: ResNetSpec) -> None:
        self.spec, self.parameters, self.statistics, self.multiply_adds = spec, 0, 0, 0

    def conv(
        self, size: int, kernel: int, sources: int, targets: int, stride: int = 1, groups: int = 1, bias=False
    ) -> int:
        biased = bias or self.spec.conv_bias or self.spec.norm == "none"
        size = (size + 2 * (kernel // 2) - kernel) // stride + 1
        weights = kernel * kernel * (sources // groups) * targets
        self.parameters += weights + targets * biased
        self.multiply_adds += size * size * weights
        return size

    def norm(self, channels: int) -> None:
        self.parameters += 2 * channels * (self.spec.norm != "none")
        self.statistics += 2 * channels * (self.spec.norm == "batch")

    def dense(self, sources: int, targets: int) -> None:
        self.parameters += sources * targets + targets
        self.multiply_adds += sources * targets


def arithmetic(spec: ResNetSpec, size: int) -> list[Ledger]:
    """Stem, stages, head."""
    rows = [Ledger(spec)]
    full = spec.stem_width or spec.width
    half = full // 2
    stems = {
        "imagenet": [(7, spec.in_channels, full, 2)],
        "cifar": [(3, spec.in_channels, full, 1)],
        "deep": [(3, spec.in_channels, half, 2), (3, half, half, 1), (3, half, full, 1)],
    }
    for kernel, sources, targets, stride in stems[spec.stem][:-1]:
        size = rows[0].conv(size, kernel, sources, targets, stride)
        rows[0].norm(targets)
    kernel, sources, targets, stride = stems[spec.stem][-1]
    size = rows[0].conv(size, kernel, sources, targets, stride, bias=spec.bias_without_norm and not spec.stem_norm)
    if spec.stem_norm:
        rows[0].norm(targets)
    if spec.stem != "cifar":
        size = (size + 2 - 3) // 2 + 1
    channels = full
    for stage, blocks in enumerate(spec.stage_sizes):
        rows.append(Ledger(spec))
        for index in range(blocks):
            halves = index == 0 and stage > 0
            if spec.stride_block == "last":
                halves = index == blocks - 1 and stage < len(spec.stage_sizes) - 1
            first = stage == index == 0 and spec.stem_norm
            size, channels = block(rows[-1], size, channels, stage, 2 if halves else 1, first=first)
    rows.append(Ledger(spec))
    if spec.order == "full_preactivation":
        rows[-1].norm(channels)
    rows[-1].dense(channels, spec.num_classes)
    return rows


def block(row: Ledger, size: int, channels: int, stage: int, stride: int, first: bool) -> tuple[int, int]:
    spec = row.spec
    planes, inner = spec.width * 2**stage, block_width(spec, stage)
    out = planes * (4 if spec.block == "bottleneck" else 1)
    keeps_shape = stride == 1 and channels == out
    early = stride if spec.stride_place == "first_1x1" else 1
    if spec.block == "bottleneck":
        layers = [
            (1, channels, inner, early, 1),
            (3, inner, inner, stride // early, spec.groups),
            (1, inner, out, 1, 1),
        ]
    else:
        layers = [(3, channels, out, stride, 1), (3, out, out, 1, 1)]
    if spec.order == "full_preactivation" and not first:
        row.norm(channels)
    after = size
    for kernel, sources, targets, step, groups in layers[:-1]:
        after = row.conv(after, kernel, sources, targets, step, groups)
        row.norm(targets)
    kernel, sources, targets, step, groups = layers[-1]
    after = row.conv(after, kernel, sources, targets, step, groups, bias=spec.bias_without_norm)
    row.norm(targets)
    if spec.order == "full_preactivation":
        # The last convolution has no norm behind it. (After an addition it has one, as wide.)
        row.parameters -= 2 * out * (spec.norm != "none")
        row.statistics -= 2 * out * (spec.norm == "batch")
    if spec.squeeze_excitation:
        squeezed = max(out // spec.squeeze_excitation, 1)
        row.dense(out, squeezed)
        row.dense(squeezed, out)
    row.parameters += spec.norm == "none"
    everywhere = spec.shortcut == "C" or spec.shortcut_transform == "conv1x1"
    # A block that strides and keeps its channels leaves pixels out; option A does no more anywhere.
    padded = spec.shortcut == "A" and not keeps_shape
    if spec.shortcut != "none" and not padded and (everywhere or channels != out):
        row.conv(after, 1, channels, out, bias=spec.bias_without_norm)
        if spec.order not in ("relu_only_preactivation", "full_preactivation"):
            row.norm(out)
    if keeps_shape and spec.shortcut_transform in ("exclusive_gate", "shortcut_gate"):
        row.conv(after, 1, out, out, bias=True)
    return after, out
