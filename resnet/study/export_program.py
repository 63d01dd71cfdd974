"""What an export holds: the preprocessing, the network with its norms folded, the probabilities, as one function."""

import dataclasses
from typing import Any

import jax
import numpy as np

from input_pipeline.contract import Contract
from resnet.model.network import ResNet
from resnet.study.inference import Answer, Model, answer, crop_values
from resnet.train.state import Variables

# Names of the one input and the one output, where a format has names.
INPUT, OUTPUT = "images", "probabilities"
# By Meta.outputs.
MEANINGS = {
    "softmax": "softmax: the probability of each class",
    "sigmoid": "sigmoid: the probability of each class by itself, so that they need not add up to 1",
}


@dataclasses.dataclass(frozen=True)
class Program:
    """uint8[B, S, S, 3] (RGB, cropped) -> float32[B, C] of a model, and what its users have to know."""

    network: ResNet
    variables: Variables
    contract: Contract
    loss: str
    image_size: int
    class_names: tuple[str, ...]
    description: dict[str, Any]

    @property
    def function(self) -> Answer:
        """(variables, images) -> probabilities."""
        return answer(self.network, self.contract, self.loss)

    def with_backend(self, backend: Any) -> "Program":
        """The same with another convolution."""
        return dataclasses.replace(self, network=self.network.clone(backend=backend))

    def input_shape(self) -> jax.ShapeDtypeStruct:
        """Of the images, with a symbolic batch."""
        (batch,) = jax.export.symbolic_shape("batch")
        return jax.ShapeDtypeStruct((batch, self.image_size, self.image_size, 3), np.uint8)

    def describe(self) -> dict[str, Any]:
        """JSON values: what goes in and how it is cropped, what comes out, the classes, where it comes from."""
        return self.description


def make_program(model: Model, source: dict[str, Any]) -> Program:
    """The program of a model; `source` says which checkpoint it is."""
    network, variables = model.folded
    return Program(
        network=network,
        variables=variables,
        contract=model.meta.contract,
        loss=model.meta.loss,
        image_size=model.crop.image_size,
        class_names=model.meta.class_names,
        description=describe(model, source),
    )


def describe(model: Model, source: dict[str, Any]) -> dict[str, Any]:
    """What stands in metadata.json, but for the format's own words."""
    meta, side = model.meta, model.crop.image_size
    return {
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "shape": ["batch", side, side, 3],
            "layout": "NHWC",
            "channels": "RGB, 0 to 255; the program normalises",
        },
        "crop": crop_values(model.crop),
        "output": {
            "name": OUTPUT,
            "dtype": "float32",
            "shape": ["batch", len(meta.class_names)],
            "meaning": f"{MEANINGS[meta.outputs]}, in the order of class_names",
        },
        "class_names": list(meta.class_names),
        "contract": meta.contract.to_json(),
        "network": dataclasses.asdict(meta.spec),
        "source": source,
    }
