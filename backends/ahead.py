"""Zeros ahead of small writes: where they are, and where it is worth while to have more.

A program that syncs again and again makes small writes that follow each other. To overwrite blocks that a file has
takes about two thirds of the time of appending to it, for which ext4 has to commit its journal; so zeros are appended
in larger pieces, and written over.
"""

import threading

__all__ = ["AHEAD_BYTES", "SMALL_BYTES", "Ahead"]

#: How much is prepared at a time.
AHEAD_BYTES = 1 << 20
#: Writes up to this size are small: they are made durable at once, so that a flush after a single one has nothing left
#: to do. The thread that it would run in takes as long to wake up as the disk takes to write.
SMALL_BYTES = 64 << 10
_STREAK = 4


class Ahead:
    """The zeros ahead of one log. Threads may race, but for what holds `writing`.

    writing: held while zeros are written, and by every write that is not `within` them until it is `note`d: zeros must
    not come over what was written behind them.
    """

    def __init__(self, *, worthwhile: bool) -> None:
        self.writing = threading.Lock()
        self.worthwhile = worthwhile
        self._guard = threading.Lock()
        self._start = self._end = 0
        self._highest = 0
        self._small_end = 0
        self._streak = 0

    @property
    def unused(self) -> tuple[int, int]:
        """From where to where there are zeros."""
        with self._guard:
            return (self._start, self._end) if self._start < self._end else (0, 0)

    def within(self, offset: int, size: int) -> bool:
        """Whether a write is small and overwrites nothing but zeros."""
        return size <= SMALL_BYTES and self._start <= offset and offset + size <= self._end

    def note(self, offset: int, size: int) -> bool:
        """A write begins. Return whether zeros should be written behind it: there are none, nor is anything else."""
        with self._guard:
            end = offset + size
            small = size <= SMALL_BYTES
            self._streak = self._streak + 1 if small and offset == self._small_end else 0
            self._small_end = end
            self._highest = max(self._highest, end)
            self._start = max(self._start, end)
            exhausted = self._start >= self._end
            return self.worthwhile and exhausted and self._streak >= _STREAK and end == self._highest

    def prepared(self, start: int, end: int) -> None:
        """There are zeros now."""
        with self._guard:
            self._start, self._end = start, end

    def forget(self) -> None:
        """There are none any more."""
        self.prepared(0, 0)
