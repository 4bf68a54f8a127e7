"""The clock by which a process measures how long something takes."""

from __future__ import annotations

import functools
import time


def steady_time() -> float:
    """Return the seconds since the epoch; where the system's clock is set meanwhile, it goes on.

    Two of these differ by the time between them. Times in files are those of the system.
    """
    return _start() + time.monotonic()


@functools.cache
def _start() -> float:
    return time.time() - time.monotonic()
