"""How commands end: which faults become one line, which code follows, and what stays a fault of ours."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from input_pipeline.contract import CONTRACTS
from input_pipeline.errors import InputError
from resnet import command
from resnet.model.errors import SpecError
from resnet.model.spec import ResNetSpec
from resnet.train import checkpoints
from resnet.train.checkpoints import Meta
from tests import commands
from tests.networks import random_variables

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _what_the_tests_hear():
    """Ctrl-C's handler and the hook of errors that nobody can catch, both of which a command replaces."""
    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    yield
    signal.signal(signal.SIGINT, before[0])
    sys.unraisablehook = before[1]


def raising(error: BaseException):
    def main(*arguments: object) -> int:
        raise error

    return main


@pytest.fixture
def ended(capsys):
    """(exit code, standard error) of command.run on a `main`."""

    def run(main) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            command.run(main)
        return end.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a.jpg: empty file"), 2, "error: a.jpg: empty file\n"),
        (SpecError("groups=3 does not divide"), 2, "error: groups=3 does not divide\n"),
        (InputError("two\nlines \x1b[31m"), 2, "error: two\\nlines \\x1b[31m\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, code, line, ended):
    assert ended(raising(error)) == (code, line)


def test_a_full_disk_is_named_with_the_file(ended):
    code, line = ended(raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/metrics.jsonl")))
    assert code == 2
    assert line.startswith("error: runs/a/metrics.jsonl: No space left on device")


def test_a_path_that_is_too_long_is_named(ended):
    code, line = ended(lambda: Path("x" * 300).stat())
    assert code == 2
    assert line.startswith(f"error: {'x' * 300}: File name too long")


@pytest.mark.parametrize(
    ("take", "what"),
    [
        (lambda: jax.numpy.zeros(1 << 50, np.uint8), f"Out of memory allocating {1 << 50} bytes."),
        (lambda: np.zeros(1 << 50, np.uint8), "Unable to allocate 1.00 PiB for an array with shape"),
    ],
)
def test_memory_that_does_not_do_is_told_with_what_helps(take, what, ended):
    code, line = ended(take)
    assert code == 2
    assert line.startswith(f"error: out of memory ({what}")
    assert "smaller batches" in line
    assert len(line.splitlines()) == 1


def test_a_device_that_does_not_do_is_no_fault_of_the_checkpoint(tmp_path, monkeypatch, ended):
    spec = ResNetSpec(block="basic", stage_sizes=(1,), width=8, stem="cifar", num_classes=2)
    weights = tmp_path / "weights"
    checkpoints.save_converted(weights, random_variables(spec), Meta(spec, ("x", "y"), CONTRACTS["torch"], 8, 1.0))
    full = type("JaxRuntimeError", (RuntimeError,), {})("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "abstract_variables", raising(full))
        assert ended(lambda: checkpoints.load(weights))[1].startswith("error: out of memory (Out of memory while")
    absent = raising(RuntimeError("Unable to initialize backend 'cuda': no driver"))
    monkeypatch.setattr(checkpoints.jax, "local_devices", absent)
    assert ended(lambda: checkpoints.load(weights))[1].startswith("error: JAX cannot compute here")


def test_a_platform_that_is_not_there_is_named():
    """JAX asserts without a word where the one that JAX_PLATFORMS names is none of the machine's."""
    code = "import jax; from resnet import command; command.run(jax.devices)"
    done = commands.run_fresh(
        sys.executable, "-c", code, environment={"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "-1"}
    )
    assert done.code == 2
    assert done.err.startswith(("error: JAX_PLATFORMS=cuda names no device", "error: JAX cannot compute here"))


def test_memory_of_a_gpu_that_others_hold_is_told(monkeypatch, ended):
    error = type("JaxRuntimeError", (RuntimeError,), {})("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
    assert "nvidia-smi" not in ended(raising(error))[1]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "CUDA_VISIBLE_DEVICES" in ended(raising(error))[1]


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "Unable to initialize backend 'cuda': CUDA driver version is insufficient (set JAX_PLATFORMS='')\nmore",
            "error: JAX cannot compute here (Unable to initialize backend 'cuda': CUDA driver version is insufficient",
        ),
        (
            "FAILED_PRECONDITION: DNN library initialization failed. Look at the errors above for more details.",
            "error: the GPU cannot be used (FAILED_PRECONDITION: DNN library initialization failed.",
        ),
    ],
)
def test_a_device_that_cannot_be_used_is_told_with_what_helps(said, line, ended):
    code, told = ended(raising(RuntimeError(said)))
    assert code == 2
    assert told.startswith(line)
    assert "nvidia-smi" in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), ValueError("a bug"), OSError(errno.EBADF, "a bug"), AssertionError("a bug")]
)
def test_our_own_faults_keep_their_traceback(error):
    with pytest.raises(type(error), match="a bug"):
        command.run(raising(error))


@pytest.mark.parametrize(("value", "code"), [(None, 0), (0, 0), (143, 143)])
def test_the_code_of_main_is_the_exit_code(value, code, ended):
    assert ended(lambda: value) == (code, "")


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_seen_enough_is_no_error(lines):
    main = f"from resnet import command; command.run(lambda: print('x\\n' * {lines}))"
    process = subprocess.Popen(
        [sys.executable, "-c", main], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_ctrl_c_while_the_interpreter_ends_has_no_traceback():
    program = """
import atexit, os, signal, time
from resnet import command

def die():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)

atexit.register(die)
command.run(lambda: 0)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")


def test_what_was_printed_into_a_pipe_is_there_when_ctrl_c_ends_the_command():
    program = """
import os, signal
from resnet import command

def main():
    signal.signal(signal.SIGINT, command.leave_at_once)
    print("all that it had to say")
    os.kill(os.getpid(), signal.SIGINT)

command.run(main)
"""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=buffered, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (130, "all that it had to say\n")


LEFT_ALONE = """
import asyncio
import threading

import tensorstore

from resnet import command

class Broken:
    def __del__(self):
        raise RuntimeError("a fault of ours")

def main():
    loop = asyncio.new_event_loop()
    promise, future = tensorstore.Promise.new()
    loop.call_soon(lambda: asyncio.ensure_future(wait_for(future)))
    loop.run_until_complete(asyncio.sleep(0.1))
    loop.close()
    thread = threading.Thread(target=promise.set_result, args=(None,))
    thread.start()
    thread.join()
    Broken()
    print("done")

async def wait_for(future):
    await future

command.run(main)
"""


def test_a_thread_whose_event_loop_is_gone_says_nothing_and_other_faults_are_told():
    done = subprocess.run([sys.executable, "-c", LEFT_ALONE], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert "a fault of ours" in done.stderr
    assert "Event loop" not in done.stderr


def test_commands_have_tensorflow_without_keras():
    program = """
import sys
from resnet import command

def main():
    import tensorflow
    assert tensorflow.io.decode_jpeg
    print("keras" in sys.modules)

command.run(main)
"""
    unset = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=unset, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "False\n")


def test_streams_that_were_closed_lead_nowhere():
    """`>&-` gives Python None for the stream, and its number to the next file that is opened."""
    script = (
        "import os, sys\n"
        "from resnet import command\n"
        "def main():\n"
        "    print('lost'); print('lost', file=sys.stderr)\n"
        "    assert [os.readlink(f'/proc/self/fd/{n}') for n in range(3)] == [os.devnull] * 3\n"
        "    return 7\n"
        "command.run(main)\n"
    )
    done = subprocess.run(["sh", "-c", f'exec "{sys.executable}" -c "$0" <&- >&- 2>&-', script], cwd=ROOT, timeout=120)
    assert done.returncode == 7


def test_a_user_without_a_home_keeps_caches_where_nobody_else_writes(tmp_path, monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("tempfile.mkdtemp", lambda: "another")
    monkeypatch.setenv("HOME", "unset")
    for _ in range(2):
        command.have_a_home()
        assert os.environ["HOME"] == str(tmp_path / f"resnet-jax-{os.getuid()}")
    Path(os.environ["HOME"]).chmod(0o777)
    command.have_a_home()
    assert os.environ["HOME"] == "another"
