"""What differs between two states of one volume: snapshots, or a snapshot and the live tree.

Rests on the rule of docs/format.md section 6, as `sharing` does: where both have the same node everything below it is
the same, so this takes as long as there are changes, whatever the size of the volume. No block is read: they are
compared by their checksums, or where that is not enough by their addresses.
"""

from collections.abc import AsyncIterator

import numpy as np
import trio
from xxhash import xxh3_64_intdigest

from fusevol.log.extents import CHANGED
from fusevol.log.format import BLOCK, FANOUT, FANOUT_BITS
from fusevol.log.runs import Marks, runs_of_marks, split
from fusevol.log.snapview import SnapshotView
from fusevol.log.tree import EMPTY, Node, Words
from fusevol.log.volume import LogVolume

__all__ = ["ZERO_SUM", "Side", "changed_runs", "checksums", "leaf_of", "rewritten", "rewritten_leaves"]

#: A state of a volume.
Side = LogVolume | SnapshotView

#: Checksum of a block of zeros, which a block that is not mapped reads as.
ZERO_SUM = xxh3_64_intdigest(bytes(BLOCK))


async def changed_runs(one: Side, other: Side, first: int, end: int) -> AsyncIterator[tuple[int, int]]:
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
            differ = _sums(await leaf_of(one, leaf_index)) != _sums(await leaf_of(other, leaf_index))
            differ[: max(0, first - start)] = False
            differ[max(0, end - start) :] = False
            for at, count in runs_of_marks(differ):
                yield start + at, count
            await trio.lowlevel.checkpoint()


async def rewritten_leaves(one: Side | None, other: Side) -> list[int]:
    """The leaves in which something was written or discarded between two states of one volume, sorted.

    one: None for the state before anything was written. Raises CorruptData, BackendError.
    """
    indexes = other.path.live.inner_indexes()
    if one:
        indexes |= one.path.live.inner_indexes()
    found: list[int] = []
    for index in sorted(indexes):
        if one:
            found += await _differing_leaves(one, other, index)
        else:
            with other.path.readers.ticket():
                words = await other.path.live.inner_words(index)
            found += [(index << FANOUT_BITS) + slot for slot in np.flatnonzero(words).tolist()]
    return found


async def rewritten(one: Side | None, other: Side, leaf: int) -> Marks:
    """Which blocks of a leaf were written or discarded between two states of one volume; one: as `rewritten_leaves`.

    Exact: it goes by the addresses of blocks, which are never given twice, and not by what they hold.
    """
    before = await leaf_of(one, leaf) if one else EMPTY
    differ: Marks = before.words != (await leaf_of(other, leaf)).words
    return differ


async def _differing_leaves(one: Side, other: Side, index: int) -> list[int]:
    """The leaves below inner node `index` that are not the same node in both."""
    word = one.path.live.root_word(index)
    if word == other.path.live.root_word(index) and word != CHANGED:
        return []
    with one.path.readers.ticket(), other.path.readers.ticket():
        words = await one.path.live.inner_words(index)
        differ = (words != await other.path.live.inner_words(index)) | (words == CHANGED)
    return [(index << FANOUT_BITS) + slot for slot in np.flatnonzero(differ).tolist()]


async def checksums(source: Side, block: int, count: int) -> Words:
    """Checksums of consecutive blocks, those that are not mapped included. Raises CorruptData, BackendError."""
    parts = []
    for start, piece in split(block, count):
        leaf = await leaf_of(source, start >> FANOUT_BITS)
        slot = start & (FANOUT - 1)
        parts.append(_sums(leaf)[slot : slot + piece])
    return np.concatenate(parts)


async def leaf_of(source: Side, index: int) -> Node:
    """A leaf of the map of a state, to be read only. Raises CorruptData, BackendError."""
    with source.path.readers.ticket():
        return await source.path.live.leaf(index)


def _sums(leaf: Node) -> Words:
    sums: Words = np.where(leaf.words != 0, leaf.sums, np.uint64(ZERO_SUM))
    return sums
