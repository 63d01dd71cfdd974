"""Reading through a hiccup of the disk or the network behind it: a few more tries, longer and longer apart."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
# What file servers, their networks and failing disks say in a bad minute. A file that is not there, or may not be read,
# is none of these: waiting would not help.
_NAMES = (
    "EIO EREMOTEIO ESTALE ETIMEDOUT EAGAIN EINTR EBUSY ENFILE EMFILE ENOMEM ENETDOWN ENETUNREACH ENETRESET ECONNRESET "
    "ECONNABORTED ECONNREFUSED ENOTCONN EHOSTDOWN EHOSTUNREACH"
)
# Not every system knows all of them.
TRANSIENT = frozenset(getattr(errno, name) for name in _NAMES.split() if hasattr(errno, name))
ATTEMPTS = 6
# Seconds before the second attempt, doubled each time: 9.3 in all.
FIRST_WAIT = 0.3


def is_transient(error: BaseException) -> bool:
    """Whether an error may pass by itself."""
    return isinstance(error, OSError) and error.errno in TRANSIENT


def patiently(read: Callable[[], Result]) -> Result:
    """`read()`, tried up to six times within about ten seconds while it raises what may pass (TRANSIENT).

    Raises what the last attempt raised, and any other error at once.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return read()
        except OSError as error:
            if not is_transient(error):
                raise
        time.sleep(FIRST_WAIT * 2**attempt)
    return read()
