"""Scrub: reading all that a volume holds, and saying what does not match its checksum."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import trio

from fusevol.errors import CorruptData
from fusevol.log.format import ADDRESS_MASK, BLOCK_SHIFT, FANOUT, FANOUT_BITS
from fusevol.log.reader import BlockReader, first_mismatch
from fusevol.log.sharing import View
from fusevol.log.tree import Words

__all__ = ["Damage", "Progress", "ScrubReport", "scrub_chunk"]

_READ_BLOCKS = 256

#: Called now and then with the number of blocks verified so far.
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that cannot be read as it was written.

    block, count: the logical blocks concerned. address: where the damaged bytes are. space: the volume id
    of the space that holds them. holders: who has them: "live", and snapshots by name. reason: in words.
    """

    block: int
    count: int
    address: int
    space: str
    holders: tuple[str, ...]
    reason: str


@dataclass(slots=True)
class ScrubReport:
    """What a scrub found: distinct data blocks verified, map leaves visited, and all damage."""

    blocks: int = 0
    leaves: int = 0
    damage: list[Damage] = field(default_factory=list)


async def scrub_chunk(
    index: int, trees: Sequence[tuple[str, View]], reader: BlockReader, report: ScrubReport, stored_below: int
) -> None:
    """Verify everything below inner node `index` (4 GiB) of these trees, each distinct block once.

    stored_below: blocks from this address on are still in memory. The caller sees to it that nothing that
    the trees refer to is given back meanwhile.
    """
    parts: list[Words] = []
    for number, (name, tree) in enumerate(trees):
        try:
            words = await tree.inner_words(index)
        except CorruptData as error:
            whole = FANOUT << FANOUT_BITS
            report.damage.append(Damage(index * whole, whole, 0, reader.volume_id, (name,), str(error)))
            continue
        for slot in np.flatnonzero(words).tolist():
            leaf_index = (index << FANOUT_BITS) + slot
            try:
                leaf = await tree.leaf(leaf_index)
            except CorruptData as error:
                first = leaf_index << FANOUT_BITS
                report.damage.append(Damage(first, FANOUT, 0, reader.volume_id, (name,), str(error)))
                continue
            report.leaves += 1
            used = np.flatnonzero(leaf.words)
            addresses = leaf.words[used] & np.uint64(ADDRESS_MASK)
            blocks = used.astype(np.uint64) + np.uint64(leaf_index << FANOUT_BITS)
            holder = np.full(len(used), number, np.uint64)
            part = np.column_stack((addresses, leaf.sums[used], blocks, holder))
            parts.append(part[addresses < np.uint64(stored_below)])
    rows = np.concatenate(parts) if parts else np.zeros((0, 4), np.uint64)
    if not len(rows):
        # A leaf can be there with nothing in it: all of it was discarded.
        return
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    distinct = rows[np.concatenate(([True], np.diff(rows[:, 0]) != 0))]
    breaks = np.flatnonzero(np.diff(distinct[:, 0]) != 1) + 1
    for run in np.split(distinct, breaks):
        for at in range(0, len(run), _READ_BLOCKS):
            piece = run[at : at + _READ_BLOCKS]
            await _verify(piece, rows, [name for name, _ in trees], reader, report)
            report.blocks += len(piece)


async def _verify(piece: Words, rows: Words, names: list[str], reader: BlockReader, report: ScrubReport) -> None:
    address, sums = int(piece[0, 0]), piece[:, 1].tolist()
    try:
        await reader.blocks(address, sums, int(piece[0, 2]))
    except CorruptData:
        # Which ones: each by itself.
        for start, checksum, block, _ in piece.tolist():
            space = reader.space(start)
            data = await reader.backend.read_stored(space, 1 << BLOCK_SHIFT, start << BLOCK_SHIFT)
            if first_mismatch(data, [checksum]) is None:
                continue
            holders = rows[rows[:, 0] == np.uint64(start), 3].tolist()
            reason = "is missing" if len(data) < 1 << BLOCK_SHIFT else "does not match its checksum"
            report.damage.append(Damage(block, 1, start, space, tuple(names[i] for i in holders), reason))
    await trio.lowlevel.checkpoint()
