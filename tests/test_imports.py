"""The house rules that code can break by itself: who imports whom, how long things are, what an import may do."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("configs", "input_pipeline", "native", "resnet", "benchmarks")
FILES = sorted([ROOT / "train_main.py", *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 350, 75
# The only files that may name TensorFlow, and inside functions alone: those that read and decode images, and the export
# to TensorFlow's own format, which nothing but TensorFlow can write.
TENSORFLOW = {
    "tensorflow": ("input_pipeline/stream.py", "input_pipeline/sources.py", "resnet/study/export_savedmodel.py"),
    "tensorflow_datasets": ("input_pipeline/tfds_source.py",),
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


COMMANDS = [
    path
    for path in FILES
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8") and not name_of(path).startswith("benchmarks/")
]
# What a user's process must not do on its own: talk to anybody. Names are resolved by socket.getaddrinfo.
NO_NETWORK = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError(f"an import reached for the network: {args}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
"""


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether importing the file imports it) for every import in a file; those for types alone left out.

    `from a import b` gives a and a.b: b may be a module.
    """

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, at_import
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            yield node.module or "", at_import
            for alias in node.names:
                yield f"{node.module}.{alias.name}", at_import
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_import and not inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize(
    ("room", "strangers"),
    [
        ("input_pipeline", ["resnet", "benchmarks", "tests"]),
        ("resnet/model", ["resnet.weights", "resnet.train", "resnet.study", "input_pipeline", "configs", "benchmarks"]),
        ("resnet/train", ["resnet.study", "benchmarks"]),
        ("resnet/weights", ["resnet.study", "benchmarks"]),
        ("resnet", ["benchmarks", "tests", "train_main"]),
        ("native", ["resnet", "input_pipeline", "configs", "benchmarks", "jax"]),
        ("configs", ["resnet", "input_pipeline", "jax"]),
    ],
)
def test_rooms_import_only_what_they_may(room, strangers):
    broken = [
        f"{name_of(path)} imports {module}"
        for path in FILES
        if name_of(path).startswith(f"{room}/")
        for module, _ in imports(path)
        if within(module, *strangers)
    ]
    assert not broken


@pytest.mark.parametrize("package", TENSORFLOW)
def test_tensorflow_is_imported_in_its_files_alone_and_only_when_used(package):
    broken = [
        f"{name_of(path)} imports {module}"
        for path in FILES
        if not name_of(path).startswith("benchmarks/")
        for module, at_import in imports(path)
        if within(module, package) and (at_import or name_of(path) not in TENSORFLOW[package])
    ]
    assert not broken


def test_flax_linen_is_known_to_the_model_alone():
    broken = [
        name_of(path)
        for path in FILES
        if not name_of(path).startswith(("resnet/model/", "benchmarks/"))
        for module, _ in imports(path)
        if within(module, "flax.linen", "flax.nnx")
    ]
    assert not broken


def test_init_files_hold_no_code():
    for path in [*FILES, *TESTS]:
        if path.name == "__init__.py":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            allowed = (ast.Import, ast.ImportFrom)
            assert all(
                isinstance(node, allowed) or isinstance(getattr(node, "value", None), ast.Constant) for node in body
            )


def test_no_drawer_for_everything():
    assert not [
        name_of(path) for path in [*FILES, *TESTS] if path.stem in ("utils", "util", "helpers", "misc", "common")
    ]


def test_files_and_functions_are_short():
    long = []
    for path in [*FILES, *TESTS]:
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > LONGEST_FILE:
            long.append(f"{name_of(path)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    long.append(f"{name_of(path)}: {node.name} has {length} lines")
    assert not long


def test_nobody_writes_paths_of_one_machine():
    machine = re.compile(r"(?<![\w.])/(?:home|root|Users|work)/\w")
    assert not [name_of(path) for path in FILES if machine.search(path.read_text(encoding="utf-8"))]


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ
    )


def test_importing_everything_brings_no_tensorflow_no_network_and_no_setting():
    modules = [module_of(path) for path in FILES if not name_of(path).startswith("benchmarks/")]
    done = python(
        f"""{NO_NETWORK}
import importlib, os, sys, threading
import jax
before = dict(os.environ), sys.path[:], dict(jax.config.values), threading.active_count()
for name in {modules!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Optional requirements: torch for .pth files and comparisons, gradio for the demo page, onnx for exports.
        if error.name not in ("torch", "gradio", "onnx"):
            raise
assert "tensorflow" not in sys.modules and "tensorflow_datasets" not in sys.modules, "TensorFlow was imported"
after = dict(os.environ), sys.path[:], dict(jax.config.values), threading.active_count()
# Orbax registers a setting of its own; none that stood before may change.
changed = [key for key, value in before[2].items() if after[2][key] != value]
assert not changed, f"imports changed jax' settings {{changed}}"
# Those that steer a numerical library: a checksum library that tensorboardX brings sets one for itself.
steering = ("JAX", "XLA", "TF_", "CUDA", "NCCL", "OMP", "MKL", "KERAS", "PYTHON")
changed = [key for key in after[0] if key.startswith(steering) and before[0].get(key) != after[0][key]]
assert not changed, f"imports changed the environment: {{changed}}"
assert not jax._src.xla_bridge._backends, "an import started a backend"
"""
    )
    assert done.returncode == 0, done.stderr


def test_the_model_and_the_augmentation_work_without_tensorflow():
    done = python(
        f"""{NO_NETWORK}
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
import jax, numpy as np
from input_pipeline.augment import prepare
from input_pipeline.contract import contract_by_name
from input_pipeline.order import Order
from resnet.model.network import ResNet, initialise
from resnet.model.spec import ResNetSpec
spec = ResNetSpec(block="basic", stage_sizes=(1,), width=8, stem="cifar", num_classes=3)
network = ResNet(spec)
variables = initialise(network, jax.random.key(0), 8)
images = prepare(np.zeros((2, 8, 8, 3), np.uint8), contract_by_name("torch"))
assert network.apply(variables, images, train=False).shape == (2, 3)
assert Order(5, 2, 0).indices(7).shape == (2,)
"""
    )
    assert done.returncode == 0, done.stderr


def test_a_slip_in_the_flags_is_told_before_anything_heavy_is_imported():
    done = python(
        """
import os, runpy, sys
heavy = ("jax", "optax", "tensorflow", "orbax", "flax", "matplotlib", "tensorboardX", "torch")
for arguments in (
    ["train_main.py", "--config=configs/demo.py", "--workdir=runs/x", "--config.optim.lrr=1"],
    ["train_main.py", "--config=configs/demo.py", "--workdir=runs/x", "--config.data.crop=wild"],
    ["train_main.py", "--config=configs/demo.py", "--workdir=runs/x", "--config.data.image_size=8"],
    ["train_main.py", "--config=configs/demo.py", "--workdir=train_main.py"],
    ["resnet.study.evaluate", "--checkpoint=absent", "--data=absent"],
    ["resnet.study.predict", "--checkpoint=absent", "absent.jpg"],
    ["resnet.study.export", "--checkpoint=absent", "--format=onnx", "--out=absent"],
):
    if os.fork() == 0:
        sys.argv, code = arguments, 0
        try:
            (runpy.run_path if arguments[0].endswith(".py") else runpy.run_module)(arguments[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
        there = [name for name in heavy if name in sys.modules]
        print(arguments, code, there)
        sys.stdout.flush()
        os._exit(0 if code == 2 and not there else 1)
    assert os.wait()[1] == 0, arguments
"""
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("error: ") == 7


@pytest.mark.parametrize("command", COMMANDS, ids=name_of)
def test_help_of_every_command(command):
    """Its usage on standard output, nothing else anywhere, code 0."""
    from tests.commands import run

    target = name_of(command) if command.name == "train_main.py" else module_of(command)
    result = run(target, "--help")
    assert result.code == 0, result
    assert result.err == ""
    assert "usage" in result.out.lower() or "--" in result.out
