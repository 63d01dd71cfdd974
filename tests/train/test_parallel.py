"""How the mesh's text is read, and which leaves are divided."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from input_pipeline.errors import InputError
from resnet.train import parallel


@pytest.mark.parametrize(
    ("text", "devices", "shape"),
    [
        ("data=-1", 8, (8, 1)),
        ("data=8", 8, (8, 1)),
        ("fsdp=-1", 8, (1, 8)),
        ("data=4,fsdp=2", 8, (4, 2)),
        (" fsdp=2 , data=-1 ", 8, (4, 2)),
        ("data=-1", 1, (1, 1)),
    ],
)
def test_a_mesh_is_read(text, devices, shape):
    assert tuple(parallel.mesh_shape(text, devices).values()) == shape


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must look like"),
        ("model=2", "must look like"),
        ("data=0", "must look like"),
        ("data=-2", "must look like"),
        ("data=2,data=4", "must look like"),
        ("data=-1,fsdp=-1", "only one axis"),
        ("data=3", "does not fill the 8 devices"),
        ("data=-1,fsdp=3", "does not fill the 8 devices"),
        ("data=-1,fsdp=16", "does not fill the 8 devices"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        parallel.mesh_shape(text, 8)


def test_large_leaves_are_divided_along_their_longest_axis_that_divides():
    mesh = AbstractMesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))
    shapes = {
        "kernel": (3, 3, 64, 128),
        "square": (1, 1, 64, 64),
        "odd": (3, 3, 65, 129),
        "scale": (2048,),
        "head": (2048, 10),
    }
    tree = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    specs = {name: place.spec for name, place in parallel.state_shardings(mesh, tree).items()}
    assert specs == {
        "kernel": PartitionSpec(None, None, None, "fsdp"),
        "square": PartitionSpec(None, None, None, "fsdp"),
        "odd": PartitionSpec(),
        "scale": PartitionSpec(),
        "head": PartitionSpec("fsdp", None),
    }


def test_every_part_of_an_accumulated_batch_must_divide():
    mesh = parallel.make_mesh()
    parallel.check_batch_size("config.data.batch_size", 8, mesh, 4)
    with pytest.raises(InputError, match="use a multiple of 3"):
        parallel.check_batch_size("config.data.batch_size", 8, mesh, 3)
