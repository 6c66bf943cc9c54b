"""Having the kernel fetch what a sequential reader of a log will want next."""

import os

__all__ = ["ReadAhead"]

#: Reads that go on where the last one ended, or a little further, make the kernel fetch this much ahead. At once, and
#: not little by little: what lies together in a log was written together, and few that read two parts of it stop there.
_AHEAD = 8 << 20
_STEP = 1 << 20
_GAP = 256 << 10


class ReadAhead:
    """Where the last read of one log ended, and how far it is fetched. Threads may race: it is only advice."""

    def __init__(self) -> None:
        self._next = 0
        self._fetched = 0

    def note(self, fd: int, inner: int, offset: int, size: int) -> None:
        """A read of the log at `offset`, which is at `inner` in the file `fd`: fetch ahead if it goes on from another.

        What lies beyond the end of the file is of no use, and does no harm.
        """
        end = offset + size
        sequential, self._next = 0 <= offset - self._next <= _GAP, end
        if not sequential:
            self._fetched = end
            return
        start = max(self._fetched, end)
        if end + _AHEAD - start >= _STEP:
            self._fetched = end + _AHEAD
            os.posix_fadvise(fd, inner + start - offset, end + _AHEAD - start, os.POSIX_FADV_WILLNEED)
