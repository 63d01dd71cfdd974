"""What each layer gives while a network runs, by name and in the order of computation."""

import contextlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax

from resnet.model.network import ResNet
from resnet.model.onednn_chain import closed

IMAGES, LOGITS = "images", "logits"


@contextlib.contextmanager
def recorded_outputs() -> Iterator[list[tuple[str, jax.Array]]]:
    """A list to which every layer that is applied inside the context adds (name, output), in the order of computation.

    Names are those of the parameters: 'conv1', …, 'layer1_0/bn2', a block's own 'layer1_0' after its layers. 'images'
    is what the network was given, 'logits' what it gives. Under jit the list is filled while the function is traced.
    Layers that oneDNN computes in one call with others are not there; with lax' convolution as `backend` all are.
    """
    found: list[tuple[str, jax.Array]] = []

    def note(method: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], context: Any) -> Any:
        network = isinstance(context.module, ResNet)
        call = context.method_name == "__call__"
        if call and network:
            found.append((IMAGES, arguments[0]))
        output = method(*arguments, **keywords)
        if call:
            name = LOGITS if network else "/".join(context.module.path)
            found.append((name, closed(output[0] if isinstance(output, tuple) else output)))
        return output

    with nn.intercept_methods(note):
        yield found
