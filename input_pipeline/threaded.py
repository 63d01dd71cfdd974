"""The same work for many examples, in threads, with the results in order."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Result = TypeVar("Result")

# Futures alive at once: enough to keep every thread busy, few enough that a set of millions costs no memory.
_WAITING = 256


def in_order(pool: ThreadPoolExecutor, work: Callable[[int], Result], count: int) -> Iterator[Result]:
    """work(0), work(1) …, work(count - 1): computed in the pool's threads, yielded in order; raises what the first
    failure raised."""
    indices = iter(range(count))
    waiting = deque(pool.submit(work, i) for i in islice(indices, _WAITING))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(work, i) for i in islice(indices, 1))
