"""train_main.py under a clock that jumps by ten years, back and forth, every few times somebody looks at it."""

import itertools
import runpy
import time

TEN_YEARS = 10 * 365 * 24 * 3600
EVERY = 7


def patch() -> None:
    honest, honest_ns, looks = time.time, time.time_ns, itertools.count()
    jump = lambda: (next(looks) // EVERY % 3 - 1) * TEN_YEARS  # noqa: E731
    time.time = lambda: honest() + jump()
    time.time_ns = lambda: honest_ns() + jump() * 10**9


if __name__ == "__main__":
    patch()
    runpy.run_path("train_main.py", run_name="__main__")
