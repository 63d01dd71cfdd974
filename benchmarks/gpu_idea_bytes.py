"""The bytes that a training step of ResNet-50 moves, layer by layer, by what is fused into its convolutions.

Activations in bfloat16; parameters, statistics and the image batch itself are left out (below 1 %). What a kernel reads
or writes is counted once; nothing stays in a cache from one kernel to the next.
"""

import dataclasses
from collections.abc import Callable

from resnet.model.spec import block_stride
from resnet.model.variants import variant

# bfloat16.
WIDTH = 2


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution and the norm behind it; inputs and outputs are numbers an image, channels those of the inputs."""

    name: str
    kernel: int
    channels: int
    inputs: int
    outputs: int


@dataclasses.dataclass(frozen=True)
class Fusion:
    """What happens inside convolutions, by layer; elsewhere each is a kernel of its own.

    elementwise: norm, ReLU and addition are one kernel forward, and ReLU's mask is taken in the kernels of the norm's
    gradient. For a layer, prologue: it normalises what it reads, which nobody has to write then; epilogue: it sums up
    its own output for the norm behind it; and the same on the way back: the norm behind is differentiated as its
    gradient is read, by either of its two gradient products, and the sums of the norm before it are taken, with the
    mask, from what it writes. scaled: a backward prologue finds its gradient multiplied by γ/σ, which a kernel before
    had to write.
    """

    elementwise: bool = True
    prologue: Callable[[Layer], bool] = lambda layer: False
    epilogue: Callable[[Layer], bool] = lambda layer: False
    backward_prologue: Callable[[Layer], bool] = lambda layer: False
    backward_epilogue: Callable[[Layer], bool] = lambda layer: False
    scaled: bool = False


def _always(layer: Layer) -> bool:
    return True


def _one_by_one(layer: Layer) -> bool:
    return layer.kernel == 1


NOTHING = Fusion(elementwise=False)
ELEMENTWISE = Fusion()
EVERYTHING = Fusion(True, _always, _always, _always, _always)
# benchmarks/gpu_idea_kernels.py: the same for 1×1 convolutions alone.
PRODUCTS = Fusion(True, _one_by_one, _one_by_one, _one_by_one, _one_by_one, scaled=True)
# What XLA may do of it by itself where 1×1 convolutions are products.
PROLOGUES = Fusion(True, _one_by_one)


def layers(image_size: int = 224) -> tuple[Layer, list[list[Layer]]]:
    """(the stem's convolution, those of each block of ResNet-50: conv1, conv2, conv3, perhaps the shortcut's)."""
    spec = variant("resnet50").spec
    side, channels = image_size // 2, spec.stem_channels
    stem, blocks = Layer("conv1", 7, 3, image_size**2 * 3, side**2 * channels), []
    side //= 2
    for stage, count in enumerate(spec.stage_sizes):
        for index in range(count):
            planes, out = spec.width * 2**stage, side // block_stride(spec, stage, index)
            name, wide = f"layer{stage + 1}_{index}", planes * spec.expansion
            block = [
                Layer(f"{name}/conv1", 1, channels, side**2 * channels, side**2 * planes),
                Layer(f"{name}/conv2", 3, planes, side**2 * planes, out**2 * planes),
                Layer(f"{name}/conv3", 1, planes, out**2 * planes, out**2 * wide),
            ]
            if channels != wide:
                # Its stride leaves out three pixels of four, but they are read in the same lines of memory.
                block.append(Layer(f"{name}/downsample_conv", 1, channels, side**2 * channels, out**2 * wide))
            blocks.append(block)
            side, channels = out, wide
    return stem, blocks


def step_bytes(batch: int, fusion: Fusion, image_size: int = 224) -> float:
    """Bytes of one training step of `batch` images."""
    stem, blocks = layers(image_size)
    pooled = blocks[0][0].inputs
    # Max-pool forward reads and writes; backward it reads gradient and input and writes the input's gradient.
    numbers = stem.outputs + pooled + (2 * stem.outputs + pooled)
    # The stem's input needs no gradient; the pool could normalise what it reads, and sum up what it writes backward.
    numbers += _of_layer(stem, fusion, reads_raw=fusion.prologue(stem), sums_taken=fusion.backward_epilogue(stem))
    numbers -= _input_gradient(stem, fusion)
    for block in blocks:
        numbers += _of_block(block, fusion)
    return float(numbers * WIDTH * batch)


def _of_block(block: list[Layer], fusion: Fusion) -> int:
    conv1, conv2, conv3, *shortcut = block
    numbers = 0
    for layer, reader in ((conv1, conv2), (conv2, conv3)):
        numbers += _of_layer(
            layer, fusion, reads_raw=fusion.prologue(reader), sums_taken=fusion.backward_epilogue(reader)
        )
    # The block's output is written in any case: normalised branch plus shortcut, read by two.
    end = conv3.outputs
    in_epilogue = fusion.backward_epilogue(conv3)
    numbers += _of_layer(conv3, fusion, reads_raw=False, sums_taken=in_epilogue, relu=False)
    for layer in shortcut:
        numbers += _of_layer(layer, fusion, reads_raw=fusion.epilogue(layer), sums_taken=in_epilogue, relu=False)
    if not fusion.elementwise:
        # Addition and ReLU forward; ReLU and the sum of two gradients on the way back.
        return numbers + 3 * end + 2 * end + 3 * end + 3 * end
    # Forward the shortcut is read beside the branch. Backward mask and sum of gradients are a kernel of three passes,
    # or what the shortcut brings is read in an epilogue.
    return numbers + end + (end if in_epilogue else 3 * end)


def _of_layer(layer: Layer, fusion: Fusion, *, reads_raw: bool, sums_taken: bool, relu: bool = True) -> int:
    """Numbers an image of a convolution and its norm, forward and backward.

    reads_raw: whether who reads the norm normalises for itself; sums_taken: whether the gradient's sums come from an
    epilogue. relu: whether a ReLU of its own is behind the norm.
    """
    out = layer.outputs
    forward = layer.inputs + out + (0 if fusion.epilogue(layer) else out) + (0 if reads_raw else 2 * out)
    backward = (0 if sums_taken else 2 * out) + (0 if fusion.backward_prologue(layer) else 3 * out)
    if relu and not fusion.elementwise:
        forward, backward = forward + 2 * out, backward + 3 * out
    reads = 2 * out if fusion.backward_prologue(layer) else out
    reads += out if fusion.scaled and fusion.backward_prologue(layer) else 0
    return forward + backward + _input_gradient(layer, fusion) + reads + layer.inputs


def _input_gradient(layer: Layer, fusion: Fusion) -> int:
    reads = 2 * layer.outputs if fusion.backward_prologue(layer) else layer.outputs
    # An epilogue looks at what the layer had read, for mask and sums.
    return reads + layer.inputs * (2 if fusion.backward_epilogue(layer) else 1)
