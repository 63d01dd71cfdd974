"""torchvision's bottleneck ResNet (v1.5) in Keras, under the layer names of keras.applications: a peer in benchmarks.

keras.applications' own ResNet50 strides in the first 1×1 and normalises with another epsilon, so ImageNet weights of
torchvision give other features there; here they give the same.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

STAGES = (3, 4, 6, 3)


def backbone(image_size: int) -> Any:
    """keras.Model: float32[B, S, S, 3], normalised by the weights' contract -> pooled features float32[B, 2048]."""
    import keras

    images = keras.Input((image_size, image_size, 3))
    x = convolution(images, 64, 7, 2, "conv1", "conv1_conv", "conv1_bn")
    x = keras.layers.ZeroPadding2D(1)(keras.layers.ReLU()(x))
    x = keras.layers.MaxPooling2D(3, 2)(x)
    for stage, blocks in enumerate(STAGES):
        for index in range(blocks):
            stride = 2 if stage > 0 and index == 0 else 1
            x = block(x, 64 * 2**stage, stride, f"conv{stage + 2}_block{index + 1}", projects=index == 0)
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))


def block(x: Any, planes: int, stride: int, name: str, *, projects: bool) -> Any:
    """A bottleneck that strides in its 3×3."""
    import keras

    shortcut = x
    if projects:
        shortcut = convolution(x, 4 * planes, 1, stride, f"{name}_0", f"{name}_0_conv", f"{name}_0_bn")
    for number, (filters, kernel, step) in enumerate(
        ((planes, 1, 1), (planes, 3, stride), (4 * planes, 1, 1)), start=1
    ):
        part = f"{name}_{number}"
        x = convolution(x, filters, kernel, step, part, f"{part}_conv", f"{part}_bn")
        if number < 3:
            x = keras.layers.ReLU()(x)
    return keras.layers.ReLU()(keras.layers.Add()([shortcut, x]))


def convolution(x: Any, filters: int, kernel: int, stride: int, pad: str, name: str, norm: str) -> Any:
    """Convolution with torch's padding, and batch norm with torch's epsilon."""
    import keras

    if kernel > 1:
        x = keras.layers.ZeroPadding2D(kernel // 2, name=f"{pad}_pad")(x)
    x = keras.layers.Conv2D(filters, kernel, stride, use_bias=False, name=name)(x)
    return keras.layers.BatchNormalization(epsilon=1e-5, name=norm)(x)


def load(network: Any, tensors: Mapping[str, np.ndarray]) -> None:
    """Give every layer its arrays, named as `resnet.weights.names.KERAS` has them."""
    leaves = {2: ("kernel",), 4: ("gamma", "beta", "moving_mean", "moving_variance")}
    for layer in network.layers:
        if layer.weights:
            kind = 2 if len(layer.weights) == 1 else 4
            layer.set_weights([tensors[f"{layer.name}/{leaf}"] for leaf in leaves[kind]])
