"""Where a run's figures come from: revision, versions, device, data, command."""

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from input_pipeline.shell_words import shell_words
from input_pipeline.sources import Source
from resnet.model import onednn_library

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-cpu", "tensorflow"),
    # Whose kernels they are decides the last digits on a GPU.
    *("jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)
# JAX' words for a precision of float32 products that lets a GPU take TF32.
_COARSE = (None, "default", "fastest", "high", "tensorfloat32", "TF32_TF32_F32")


def provenance(source: Source) -> dict[str, Any]:
    """What config.json does not say and a second try needs to know; plain JSON values."""
    return {
        "command": shell_words(arguments()),
        "revision": revision(),
        "python": platform.python_version(),
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        # Of the figures of one CPU it decides the speed and the last digits; several have no part in it.
        **({"convolutions": onednn_library.description()} if one_cpu() else {}),
        **({"float32_products": "TF32"} if tf32_products() else {}),
        "dataset": {
            "source": source.name,
            "fingerprint": source.fingerprint,
            "classes": len(source.class_names),
            "images": {name: len(split) for name, split in source.splits.items()},
            "skipped": [list(item) for item in source.skipped],
            "dropped": {name: dict(kinds) for name, kinds in source.dropped.items()},
        },
    }


def arguments() -> list[str]:
    """The words behind `python`, as they were given: of `python -m NAME …` sys.argv has NAME's file in their place."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.origin == sys.argv[0]:
        return ["-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    return sys.argv


def one_cpu() -> bool:
    """Whether this run's only device is a CPU, whose convolutions may be oneDNN's."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def tf32_products() -> bool:
    """Whether products and convolutions of float32 numbers are computed in TF32, with 10 bits of mantissa for 23.

    That is JAX' default on NVIDIA's GPUs from Ampere on (jax.lax.Precision), and what torch does for convolutions.
    """
    device = jax.local_devices()[0]
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if device.platform != "gpu" or precision not in _COARSE:
        return False
    generation = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return generation.isdigit() and int(generation) >= 8


def revision(*, but_for: Sequence[str] = ()) -> str | None:
    """The git revision of this code, with '+changes' where files differ from it; None outside a git checkout.

    but_for: paths in which a difference does not count.
    """
    root = Path(__file__).resolve().parent
    git = lambda *words: subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)  # noqa: E731
    try:
        head = git("rev-parse", "HEAD")
        if head.returncode:
            return None
        top = git("rev-parse", "--show-toplevel").stdout.strip()
        changed = git("status", "--porcelain", "--", top, *(f":(exclude){path}" for path in but_for)).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+changes" if changed else "")


def versions() -> dict[str, str]:
    """Package -> version, of those of PACKAGES that are installed."""
    return {name: version for name in PACKAGES if (version := installed(name))}


def installed(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
