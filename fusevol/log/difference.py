"""What differs between two states of one volume: snapshots, or a snapshot and the live tree.

Rests on the rule of docs/format.md section 6, as `sharing` does: where both have the same node everything below it is
the same, so this takes as long as there are changes, whatever the size of the volume. Blocks are compared by their
checksums; none is read.
"""

from collections.abc import AsyncIterator

import numpy as np
import trio
from xxhash import xxh3_64_intdigest

from fusevol.log.extents import CHANGED
from fusevol.log.format import BLOCK, FANOUT, FANOUT_BITS
from fusevol.log.runs import split
from fusevol.log.snapview import SnapshotView
from fusevol.log.tree import Node, Words
from fusevol.log.volume import LogVolume

__all__ = ["ZERO_SUM", "changed_runs", "checksums"]

#: Checksum of a block of zeros, which a block that is not mapped reads as.
ZERO_SUM = xxh3_64_intdigest(bytes(BLOCK))


async def changed_runs(
    one: LogVolume | SnapshotView, other: LogVolume | SnapshotView, first: int, end: int
) -> AsyncIterator[tuple[int, int]]:
    """Runs (block, count) of blocks from `first` to before `end` that do not read the same, sorted.

    None crosses a leaf's border. Both are of the same volume, opened together. Raises CorruptData, BackendError.
    """
    inner_blocks = FANOUT << FANOUT_BITS
    for index in sorted(one.path.live.inner_indexes() | other.path.live.inner_indexes()):
        if (index + 1) * inner_blocks <= first or index * inner_blocks >= end:
            continue
        for leaf_index in await _differing_leaves(one, other, index):
            start = leaf_index << FANOUT_BITS
            if start + FANOUT <= first or start >= end:
                continue
            differ = np.flatnonzero(_sums(await _leaf(one, leaf_index)) != _sums(await _leaf(other, leaf_index)))
            differ = differ[(differ >= first - start) & (differ < end - start)]
            for run in np.split(differ, np.flatnonzero(np.diff(differ) != 1) + 1):
                if len(run):
                    yield start + int(run[0]), len(run)
            await trio.lowlevel.checkpoint()


async def _differing_leaves(one: LogVolume | SnapshotView, other: LogVolume | SnapshotView, index: int) -> list[int]:
    """The leaves below inner node `index` that are not the same node in both."""
    word = one.path.live.root_word(index)
    if word == other.path.live.root_word(index) and word != CHANGED:
        return []
    with one.path.readers.ticket(), other.path.readers.ticket():
        words = await one.path.live.inner_words(index)
        differ = (words != await other.path.live.inner_words(index)) | (words == CHANGED)
    return [(index << FANOUT_BITS) + slot for slot in np.flatnonzero(differ).tolist()]


async def checksums(source: LogVolume | SnapshotView, block: int, count: int) -> Words:
    """Checksums of consecutive blocks, those that are not mapped included. Raises CorruptData, BackendError."""
    parts = []
    for start, piece in split(block, count):
        leaf = await _leaf(source, start >> FANOUT_BITS)
        slot = start & (FANOUT - 1)
        parts.append(_sums(leaf)[slot : slot + piece])
    return np.concatenate(parts)


async def _leaf(source: LogVolume | SnapshotView, index: int) -> Node:
    with source.path.readers.ticket():
        return await source.path.live.leaf(index)


def _sums(leaf: Node) -> Words:
    sums: Words = np.where(leaf.words != 0, leaf.sums, np.uint64(ZERO_SUM))
    return sums
