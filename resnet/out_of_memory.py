"""What to tell of an error that says that memory ran out: on a device, where XLA refuses, or on the host."""

import sys

from input_pipeline.errors import printable

ADVICE = (
    "use smaller batches or images; a training step also needs less with --config.optim.accumulation above 1, "
    "--config.run.remat=block or --config.run.dtype=bfloat16, and --config.data.feed=stream leaves images on disk"
)
# The backbone's pass has a batch size of its own, and a probe is refused the keys that save memory in a backward pass.
ADVICE_OF_PROBE = "use smaller images, a smaller --config.data.eval_batch_size or --config.run.dtype=bfloat16"
ADVICE_ON_GPU = "; nvidia-smi shows how much of the GPU other programs hold, CUDA_VISIBLE_DEVICES selects another"
# absl's name of the status, with which the message begins, or which stands where an outer error quotes it.
_STATUS = "RESOURCE_EXHAUSTED"


def out_of_memory(error: BaseException, advice: str = ADVICE) -> str | None:
    """One line on what was refused and what helps (`advice`); None for any other error."""
    text = str(error)
    if isinstance(error, MemoryError):
        return f"out of memory ({printable(text)[:300] or 'on the host'}); {advice}"
    # By name: whoever asks may not have imported jax.
    if type(error).__name__ == "JaxRuntimeError" and _STATUS in text:
        # XLA's further lines are a table of allocations.
        said = text[text.index(_STATUS) :].removeprefix(f"{_STATUS}: ").strip().splitlines()[0]
        return f"out of memory ({printable(said)[:300]}); {advice}{ADVICE_ON_GPU if _on_gpu() else ''}"
    return None


def _on_gpu() -> bool:
    """Whether JAX, which has run out of memory by now, computes on one."""
    return bool(sys.modules["jax"].default_backend() == "gpu") if "jax" in sys.modules else False
