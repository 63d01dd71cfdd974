"""Names of the classes that published weights answer with: ImageNet's thousand and CIFAR-10's ten.

imagenet_classes.txt holds one line a class in the order of torchvision, timm and Keras: the WordNet id, by which the
order sorts, and the first word of that WordNet entry (two are told apart as torchvision does: 'crane bird', 'maillot
tank suit').
"""

from pathlib import Path

from input_pipeline.errors import printable
from resnet.model.spec import ResNetSpec
from resnet.weights.faults import fault

IMAGENET_FILE = Path(__file__).with_name("imagenet_classes.txt")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Stands for the classes of weights that come without a classifying layer.
NO_HEAD = ("(no head)",)


def imagenet() -> tuple[tuple[str, str], ...]:
    """(WordNet id, name) of each of the 1,000 classes in the order of the outputs."""
    lines = IMAGENET_FILE.read_text(encoding="utf-8").splitlines()
    return tuple((line[:9], line[10:]) for line in lines)


def default_names(spec: ResNetSpec) -> tuple[str, ...]:
    """Names by the number of outputs: ImageNet's for 1,000, CIFAR-10's for ten behind a CIFAR stem, else 'class 0' …"""
    if spec.num_classes == 1000:
        return tuple(name for _, name in imagenet())
    if spec.num_classes == len(CIFAR10) and spec.stem == "cifar":
        return CIFAR10
    return tuple(f"class {index}" for index in range(spec.num_classes))


def read_names(path: Path, count: int) -> tuple[str, ...]:
    """Names from a text file, one a line in the order of the outputs.

    Raises InputError unless there are `count` different ones.
    """
    if path.exists() and not path.is_file():
        raise fault(path, "is not a regular file; give a text file of names, one per line")
    try:
        found = tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise fault(path, f"cannot be read as text ({printable(str(error))})") from error
    if len(found) != count:
        raise fault(path, f"has {len(found)} lines and the network {count} outputs; give one name per line")
    repeated = next((name for index, name in enumerate(found) if name in found[:index] or not name.strip()), None)
    if repeated is not None:
        raise fault(path, f"the name {printable(repeated)!r} is empty or occurs twice")
    return found
