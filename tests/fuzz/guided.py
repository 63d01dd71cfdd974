"""The same targets under atheris, which looks for inputs that reach new lines of Python; needs `pip install atheris`.

    python -m tests.fuzz.guided TARGET [-runs=10000] [libFuzzer's flags]

It ends at the first finding and writes the input to crash-HASH. Sound files are the corpus it starts from.
"""

import importlib
import sys
import tempfile
from pathlib import Path


def main() -> None:
    try:
        import atheris
    except ImportError:
        sys.exit("error: atheris is not installed: pip install atheris (Linux, Python 3.11 to 3.13)")
    with atheris.instrument_imports(include=["input_pipeline", "resnet"]):
        importlib.import_module("input_pipeline.doctor")
        importlib.import_module("resnet.weights.convert")
    from tests.fuzz.targets import TARGETS

    if sys.argv[1:2] == [] or sys.argv[1] not in TARGETS:
        sys.exit(f"error: name a target: {', '.join(TARGETS)}")
    target = TARGETS[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory() as scratch:
        folder, corpus = Path(scratch), Path(scratch) / "corpus"
        corpus.mkdir()
        for number, content in enumerate(target.seeds(folder)):
            (corpus / str(number)).write_bytes(content)

        def take(content: bytes) -> None:
            target.take(content, folder)

        atheris.Setup([*sys.argv, str(corpus)], take)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
