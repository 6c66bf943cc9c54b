"""The clock of file times."""

from time import clock_gettime_ns

__all__ = ["now"]

_CLOCK_REALTIME_COARSE = 5


def now() -> int:
    """Nanoseconds since 1970 by the clock that the kernel takes file times from.

    With a write-back cache the kernel sets the times of written files itself, by a clock that is up to 10 ms behind
    the exact one. Times by another clock would make what was made first look newer, and `make` build it again.
    """
    return clock_gettime_ns(_CLOCK_REALTIME_COARSE)
