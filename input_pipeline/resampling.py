"""The operation that resizes images, made of resample.c; where it cannot be made, `missing` says why.

`decode.resize` calls it, and where it is missing computes the same image by TensorFlow's own operations, which takes
longer: 447×447 to 224×224 pixels in 2.0 ms, not 0.2, of one core.
"""

import functools
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

from native.library import compiled, reason

# Set to 0, images are resized by TensorFlow's own operations.
SWITCH = "RESNET_RESAMPLE"
_SOURCES = ("resample.c", "resample_interface.h")
# Products and sums contracted into one rounding would give other bits. A symbol that TensorFlow lacks is to be missed
# when the library is loaded, not when it is called.
# Nobody waits for signals of floating-point operations; where somebody could, no loop with a comparison is vectorised.
_OPTIONS = ("-ffp-contract=off", "-fno-trapping-math", "-lm", "-Wl,-z,now")
# TensorFlow would register a second library's operation, and fail.
_loading = threading.Lock()


def resized(tf: Any, image: Any, height: Any, width: Any, interpolation: str, box: Any = None) -> Any:
    """uint8[height, width, 3] of uint8[H, W, 3], antialiased, rounded. To be called only where nothing is missing.

    box: what of the image is resized, as for `decode.resize`.
    Raises tf.errors.InvalidArgumentError for another shape, for sizes below 1 and for a box that is not in the image.
    """
    operation, _ = _outcome(tf)
    box = tf.zeros([0]) if box is None else box
    image = operation(image=image, box=box, size=tf.stack([height, width]), bicubic=interpolation == "bicubic")
    return tf.ensure_shape(image, (None, None, 3))


def missing(tf: Any) -> str:
    """What this machine lacks for the operation, in one line; empty where it can be called.

    The first call loads, and if need be compiles it; the others only repeat its answer.
    """
    with _loading:
        return _outcome(tf)[1]


@functools.cache
def _outcome(tf: Any) -> tuple[Any, str]:
    if os.environ.get(SWITCH) == "0":
        return None, f"{SWITCH}=0 is set"
    try:
        return _load(tf).resnet_resize, ""
    except (tf.errors.OpError, OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        return None, reason(error)


def _load(tf: Any) -> Any:
    try:
        return tf.load_op_library(str(_compiled()))
    except tf.errors.OpError:
        # What was kept is damaged.
        _compiled().unlink(missing_ok=True)
        return tf.load_op_library(str(_compiled()))


def _compiled() -> Path:
    return compiled("resample", [Path(__file__).with_name(name) for name in _SOURCES], options=_OPTIONS)
