"""Which blocks of a tree are mapped, in order and a leaf at a time."""

from collections.abc import AsyncIterator, Callable

import numpy as np
import trio

from fusevol.errors import CorruptData
from fusevol.log.extents import ExtentMap
from fusevol.log.format import FANOUT, FANOUT_BITS
from fusevol.log.readers import Readers

__all__ = ["Unreadable", "mapped_runs"]

#: Called with first block, number of blocks and the reason, for a part of the map that cannot be read.
Unreadable = Callable[[int, int, str], None]


async def mapped_runs(
    live: Callable[[], ExtentMap], readers: Readers, first: int, end: int, unreadable: Unreadable
) -> AsyncIterator[tuple[int, int]]:
    """Runs (block, count) of mapped blocks from `first` to before `end`, sorted; none crosses a leaf's border.

    live: gives the map, which a commit may replace meanwhile. Changes made meanwhile may or may not be seen.
    """
    inner_blocks = FANOUT << FANOUT_BITS
    for index in sorted(live().inner_indexes()):
        if (index + 1) * inner_blocks <= first or index * inner_blocks >= end:
            continue
        with readers.ticket():
            try:
                words = await live().inner_words(index)
            except CorruptData as error:
                unreadable(index * inner_blocks, inner_blocks, str(error))
                continue
        for slot in np.flatnonzero(words).tolist():
            leaf_index = (index << FANOUT_BITS) + slot
            start = leaf_index << FANOUT_BITS
            if start + FANOUT <= first or start >= end:
                continue
            with readers.ticket():
                try:
                    leaf = await live().leaf(leaf_index)
                except CorruptData as error:
                    unreadable(start, FANOUT, str(error))
                    continue
            used = np.flatnonzero(leaf.words)
            used = used[(used >= first - start) & (used < end - start)]
            if not len(used):
                continue
            breaks = np.flatnonzero(np.diff(used) != 1)
            firsts = [int(used[0]), *used[breaks + 1].tolist()]
            lasts = [*used[breaks].tolist(), int(used[-1])]
            for low, high in zip(firsts, lasts, strict=True):
                yield start + low, high - low + 1
            await trio.lowlevel.checkpoint()
