"""Standard error held back while a library starts that talks below Python, and given out after all if it fails."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def muted_errors() -> Iterator[None]:
    """Hold back what this process writes to standard error, by whatever language; told only where the body raises.

    TensorFlow's two lines about oneDNN go with no setting but TF_ENABLE_ONEDNN_OPTS=0, and that makes decoding slower:
    639 images per processor second instead of 742 (flower_photos to 224 px, benchmarks/decoding.py). Where descriptor 2
    is closed nothing is done.
    """
    try:
        original = os.dup(2)
    except OSError:
        yield
        return
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(original, 2)
            held.seek(0)
            os.write(2, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
