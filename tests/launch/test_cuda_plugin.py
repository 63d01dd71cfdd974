"""run.sh installs the JAX plugin that a GPU's driver can run, when the driver comes, and once."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def executable(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def driver(folder: Path, version: str, capability: str) -> None:
    """An nvidia-smi that says so; '' for a question that it does not know."""
    answers = {"driver_version": version, "compute_cap": capability, "name": "NVIDIA X1"}
    cases = " ".join(f"*={what}) echo {says};;" for what, says in answers.items() if says)
    executable(folder / "nvidia-smi", f'case "$1" in {cases} *) exit 2;; esac')


@pytest.fixture
def setup(tmp_path):
    """Runs `run.sh setup` over an environment that is there; gives what uv was asked to install."""
    for name in ("run.sh", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    executable(tmp_path / ".venv/bin/python", "exit 0")
    executable(tmp_path / ".venv/bin/uv", f'for word; do echo "$word"; done >> {tmp_path}/asked')
    (tmp_path / "bin").mkdir()

    def run() -> list[str]:
        (tmp_path / "asked").write_text("")
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        subprocess.run(["bash", tmp_path / "run.sh", "setup"], env=environment, check=True, capture_output=True)
        return [line for line in (tmp_path / "asked").read_text().splitlines() if line.startswith("jax[")]

    return run


@pytest.mark.parametrize(
    ("version", "capability", "plugin"),
    [
        ("580.95.05", "9.0", "cuda13"),
        ("550.54.14", "9.0", "cuda12"),
        ("580.95.05", "7.0", "cuda12"),
        ("470.82", "", "cuda12"),
        ("590.1", "", "cuda13"),
    ],
)
def test_the_plugin_is_one_that_the_driver_can_run(setup, tmp_path, version, capability, plugin):
    driver(tmp_path / "bin", version, capability)
    (asked,) = setup()
    assert asked.startswith(f"jax[{plugin}]>=")


def test_a_plugin_that_cannot_be_installed_ends_no_job(setup, tmp_path):
    """As on a node without a network; the next command tries again."""
    driver(tmp_path / "bin", "580.1", "8.0")
    uv, refusal = tmp_path / ".venv/bin/uv", "echo 'error: failed\n  Caused by: no route to host' >&2; exit 2"
    whole = uv.read_text()
    executable(uv, f'case "$*" in *"jax["*) {refusal};; esac')
    result = subprocess.run(
        ["bash", tmp_path / "run.sh", "python", "-c", ""],
        env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
        text=True,
    )
    told = "warning: JAX' plugin cannot be installed here, so JAX runs on the CPU"
    assert result.stderr == f"{told} (Caused by: no route to host)\n"
    uv.write_text(whole)
    assert len(setup()) == 1


def test_a_driver_that_comes_later_is_seen_and_one_that_is_silent_is_none(setup, tmp_path):
    executable(tmp_path / "bin" / "nvidia-smi", "echo no devices were found; exit 6")
    assert setup() == []
    driver(tmp_path / "bin", "580.1", "8.0")
    assert len(setup()) == 1
    assert setup() == []
