"""Free space: address ranges that nothing refers to, on their way back to the backend.

Giving space back costs a call for each range (a punched hole in a file takes a tenth of a millisecond and
splits an extent), and neighbours of a dead block tend to die soon. So ranges are kept and joined until
there are more than a bounded slack, then the longest go first.
"""

from collections.abc import Iterable

import numpy as np

from fusevol.errors import CorruptData
from fusevol.log.format import FREE_ENTRY
from fusevol.log.tree import Words

__all__ = ["FreeList", "runs_of"]


def runs_of(addresses: Words) -> Words:
    """Distinct addresses as sorted runs: an array of (start, count) rows."""
    if not len(addresses):
        return np.zeros((0, 2), np.uint64)
    ordered = np.sort(addresses)
    starts = np.flatnonzero(np.concatenate(([True], np.diff(ordered) != 1)))
    counts = np.diff(np.append(starts, len(ordered)))
    return np.column_stack((ordered[starts], counts.astype(np.uint64)))


class FreeList:
    """Sorted, disjoint runs of blocks, as rows of (address, count)."""

    def __init__(self, runs: Words | None = None) -> None:
        self.runs = np.zeros((0, 2), np.uint64) if runs is None else runs

    @property
    def blocks(self) -> int:
        """Number of blocks in all."""
        return int(self.runs[:, 1].sum())

    def plus(self, more: Iterable[Words]) -> "FreeList":
        """This list and these runs, joined where they touch. Raises CorruptData if a block is freed twice."""
        parts = [part for part in (self.runs, *more) if len(part)]
        if not parts:
            return FreeList()
        runs = np.concatenate(parts)
        runs = runs[np.argsort(runs[:, 0], kind="stable")]
        ends = runs[:, 0] + runs[:, 1]
        if np.any(ends[:-1] > runs[1:, 0]):
            at = int(runs[1:, 0][np.argmax(ends[:-1] > runs[1:, 0])])
            raise CorruptData(f"the block at {at:#x} is freed twice; nothing was given back")
        first = np.concatenate(([True], ends[:-1] != runs[1:, 0]))
        last = np.concatenate((first[1:], [True]))
        return FreeList(np.column_stack((runs[first, 0], ends[last] - runs[first, 0])))

    def longest(self, keep: int) -> list[tuple[int, int]]:
        """The longest runs, by address, without which at most `keep` blocks remain."""
        surplus = self.blocks - keep
        if surplus <= 0:
            return []
        order = np.argsort(self.runs[:, 1], kind="stable")[::-1]
        enough = int(np.searchsorted(np.cumsum(self.runs[order, 1]), surplus)) + 1
        chosen = np.sort(order[:enough])
        return [(int(start), int(count)) for start, count in self.runs[chosen]]

    def remove(self, runs: list[tuple[int, int]]) -> None:
        """Take out runs that were given back; what was joined to them meanwhile stays."""
        gone = np.array(runs, np.uint64).reshape(-1, 2)
        # What stays begins where a run does, or where something that goes ends; and ends at the next such place.
        starts = np.sort(np.concatenate((self.runs[:, 0], gone.sum(axis=1))))
        ends = np.sort(np.concatenate((self.runs.sum(axis=1), gone[:, 0])))
        self.runs = np.column_stack((starts, ends - starts))[ends > starts]

    def to_bytes(self) -> bytes:
        """The stored form."""
        return np.ascontiguousarray(self.runs).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "FreeList":
        """Read the stored form."""
        if len(data) % FREE_ENTRY.size:
            raise CorruptData(f"the free list has {len(data)} bytes, which is no whole number of entries")
        return cls(np.frombuffer(data, np.uint64).reshape(-1, 2).copy())
