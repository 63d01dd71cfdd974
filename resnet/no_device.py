"""What to tell of an error that says that JAX cannot use the device it was to use."""

import os
import traceback

from input_pipeline.errors import printable

# How JAX begins, of a platform that JAX_PLATFORMS names and of a plugin that is installed (jax 0.10.2).
_REFUSED = "Unable to initialize backend"
ADVICE = (
    "nvidia-smi shows whether an NVIDIA GPU and its driver are there (jax[cuda13] needs driver 580 or newer, "
    "jax[cuda12] 525); JAX_PLATFORMS=cpu runs on the CPU"
)
# XLA's words where cuDNN gets no memory beside another program's (jax-ml/jax#15361).
_NO_CUDNN = "DNN library initialization failed"
ADVICE_ON_CUDNN = (
    "usually another program holds the GPU's memory: nvidia-smi shows which, CUDA_VISIBLE_DEVICES chooses another GPU"
)


def _is_of_backends(error: BaseException) -> bool:
    """Whether it was raised where JAX chooses a backend, which asserts without a word that one is left."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and frames[-1][0].f_code.co_filename.endswith("xla_bridge.py")


def no_device(error: BaseException) -> str | None:
    """One line on what JAX or XLA found and what helps; None for any other error."""
    said = str(error).strip()
    if isinstance(error, AssertionError) and not said and _is_of_backends(error):
        return (
            f"JAX_PLATFORMS={printable(os.environ.get('JAX_PLATFORMS', ''))} names no device of this machine; {ADVICE}"
        )
    if not isinstance(error, RuntimeError):
        return None
    first = printable(said.splitlines()[0])[:400] if said else ""
    if said.startswith(_REFUSED):
        return f"JAX cannot compute here ({first}); {ADVICE}"
    if _NO_CUDNN in said:
        return f"the GPU cannot be used ({first}); {ADVICE_ON_CUDNN}"
    return None
