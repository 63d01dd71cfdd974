"""Write a trained network for other programs: uint8 images in, probabilities out, any batch size.

    python -m resnet.study.export --checkpoint=DIR --format=stablehlo|savedmodel|onnx --out=DIR

The preprocessing is inside, batch norms are folded into the convolutions. Next to the program is metadata.json: how to
resize and crop before it, class names, preprocessing contract, network, and the hash of the weights. What was written
is loaded back in its own runtime and compared before the folder gets its name. docs/export.md shows how to load each.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from input_pipeline.errors import InputError, printable
from resnet import command

if TYPE_CHECKING:
    from resnet.study.export_program import Program
    from resnet.study.inference import Model

METADATA = "metadata.json"
# Format -> (what writes it, what reads it back, the setup that installs them).
FORMATS: dict[str, tuple[str, str, str]] = {
    "stablehlo": ("jax", "jax", ""),
    "savedmodel": ("tensorflow", "tensorflow", ""),
    "onnx": ("onnx", "onnxruntime", " export"),
}
# Of a probability; what the exported program may differ by from ours.
TOLERANCE = 1e-4
# Protocol buffers and flatbuffers end here, and with them ONNX and StableHLO in one file.
LARGEST_FILE = 2**31 - 2**24


def main() -> int:
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "--checkpoint", required=True, help="a run's workdir (best checkpoint), a step's folder, or converted weights"
    )
    parser.add_argument("--format", required=True, choices=tuple(FORMATS), help="the runtime that will run it")
    parser.add_argument("--out", required=True, help="folder to write, which must not exist")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    check(arguments.checkpoint, arguments.format, out)
    # Here, not above: it takes seconds to import, and a slip in the flags is told at once.
    from resnet.study.inference import load_model

    about = export(load_model(arguments.checkpoint), arguments.format, out)
    side = about["input"]["shape"][1]
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{arguments.format}: uint8[batch, {side}, {side}, 3] -> float32[batch, {len(about['class_names'])}]")
    print(f"Preprocess: {about['crop']['do']}")
    checked = about["checked"]
    if checked:
        print(f"Loaded back by {checked['by']}: probabilities differ from ours by {checked['difference']:.1e} at most")
    else:
        print("Not loaded back: onnxruntime is not installed (./run.sh setup export)")
    print(f"{size / 1e6:.1f} MB in {printable(str(out))}; {METADATA} has the details")
    return 0


def check(checkpoint: str, form: str, out: Path) -> None:
    """Raise InputError for what can be told from the flags alone."""
    command.check_checkpoint(checkpoint)
    if out.exists() or out.is_symlink():
        raise InputError(f"--out={printable(str(out))}: already exists; name another folder or remove it")
    writer, _, setup = FORMATS[form]
    if not installed(writer):
        raise InputError(f"--format={form} needs {writer}, which is not installed: ./run.sh setup{setup}")


def installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # A name that stands in sys.modules without a module behind it.
        return False


def export(model: Model, form: str, out: Path) -> dict[str, Any]:
    """Write the folder `out` whole or not at all; what stands in its metadata.json. `form`: a key of FORMATS.

    Raises InputError for a network that cannot be exported, or what the disk refuses, and RuntimeError where the
    exported program, loaded back, does not give this one's probabilities.
    """
    from resnet.study.export_program import make_program

    program = make_program(model, source_of(model))
    size = sum(leaf.nbytes for leaf in leaves(program.variables))
    if size > LARGEST_FILE and form != "savedmodel":
        raise InputError(
            f"--format={form} holds at most 2 GB in its one file and the weights take {size / 1e9:.1f}; use savedmodel"
        )
    format_module = importlib.import_module(f"resnet.study.export_{form}")

    def write(folder: Path) -> dict[str, Any]:
        format_module.write(program, folder)
        about = {"format": form, **program.describe(), "checked": compare(program, form, format_module.load, folder)}
        about["versions"] = {name: version(name) for name in ("jax", "jaxlib", *set(FORMATS[form][:2]) - {"jax"})}
        (folder / METADATA).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return about

    return write_folder(out, write)


def source_of(model: Model) -> dict[str, Any]:
    """Which weights these are, by hash."""
    from resnet.train.pretrained import digest_of

    meta = model.meta
    return {
        "weights_sha256": digest_of(model.variables),
        "step": meta.step,
        "dataset_fingerprint": meta.fingerprint,
        **({"converted_from_sha256": found} if (found := meta.progress.get("source_sha256")) else {}),
    }


def leaves(variables: Any) -> list[np.ndarray]:
    import jax

    return list(jax.tree.leaves(variables))


def compare(
    program: Program, form: str, load: Callable[[Path], Callable[[np.ndarray], np.ndarray]], folder: Path
) -> dict[str, Any] | None:
    """Load the export back and ask it and ours about two drawn images; None where its runtime is not installed."""
    import jax

    runtime = FORMATS[form][1]
    if not installed(runtime):
        return None
    shape = (2, program.image_size, program.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = jax.device_get(jax.jit(program.function)(program.variables, images))
    difference = float(np.abs(load(folder)(images) - expected).max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"{runtime} gives probabilities that differ by {difference:.2g}; nothing was written")
    return {"by": f"{runtime} {version(runtime)}", "images": len(images), "difference": difference}


def version(package: str) -> str:
    """Of an installed package; tensorflow may come as tensorflow-cpu."""
    for name in (package, f"{package}-cpu", f"{package}-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def write_folder(out: Path, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Have `write` fill a temporary folder beside `out`, push it to the disk and rename it; what `write` gave."""
    # Here, not above: it imports jax.
    from resnet.train import integrity

    out = out.absolute()
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        # A folder in it, because mkdtemp's own may be read by its owner alone.
        (temporary / "whole").mkdir()
        about = write(temporary / "whole")
        integrity.seal(temporary / "whole")
        (temporary / "whole").rename(out)
        integrity.sync_folder(out.parent)
        return about
    except OSError as error:
        reason = printable((error.strerror or str(error))[:200])
        raise InputError(f"--out={printable(str(out))}: cannot be written ({reason})") from error
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    command.run(main)
