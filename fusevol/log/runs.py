"""Reading logical blocks through a map: runs of them, waiting and not waiting."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import trio

from fusevol.api.io import Buffer
from fusevol.log.format import BLOCK_SHIFT, FANOUT, FANOUT_BITS
from fusevol.log.reader import BlockReader
from fusevol.log.tree import Node

__all__ = ["Marks", "Run", "fetch", "fetch_nowait", "runs_in", "runs_of_marks", "split"]

#: One for each block of a leaf.
Marks = npt.NDArray[np.bool_]


#: Runs that are fetched at the same time for one read.
_PARALLEL = 16

Pending = Callable[[int, int], memoryview | None]


@dataclass(frozen=True, slots=True)
class Run:
    """Logical blocks whose data are next to each other; address 0 for a hole."""

    block: int
    count: int
    address: int
    sums: list[int]


def runs_in(leaf: Node, block: int, count: int) -> list[Run]:
    """The runs of `count` blocks from `block`, all within this leaf."""
    at = block & (FANOUT - 1)
    if count == 1:
        return [Run(block, 1, leaf.w[at], [leaf.s[at]])]
    words, sums = leaf.w[at : at + count].tolist(), leaf.s[at : at + count].tolist()
    # Without numpy, which takes longer to begin than this takes for what is mostly asked for: one run, or a few blocks.
    first = words[0]
    if first and words == list(range(first, first + count)):
        return [Run(block, count, first, sums)]
    starts = [i for i, (one, two) in enumerate(pairwise(words), 1) if two - one != 1 and (one or two)]
    return [Run(block + low, high - low, words[low], sums[low:high]) for low, high in pairwise([0, *starts, count])]


def split(block: int, count: int) -> list[tuple[int, int]]:
    """A range of blocks cut at leaf boundaries."""
    pieces = []
    while count:
        piece = min(count, FANOUT - (block & (FANOUT - 1)))
        pieces.append((block, piece))
        block, count = block + piece, count - piece
    return pieces


def runs_of_marks(marks: Marks) -> Iterator[tuple[int, int]]:
    """The runs (first, count) of marks that are set."""
    found = np.flatnonzero(marks)
    for run in np.split(found, np.flatnonzero(np.diff(found) != 1) + 1):
        if len(run):
            yield int(run[0]), len(run)


def fetch_nowait(
    leaf_nowait: Callable[[int], Node | None], reader: BlockReader, pending: Pending, block: int, count: int
) -> Buffer | None:
    """The bytes of `count` blocks from `block`, or None where they would have to be waited for."""
    parts: list[Buffer] = []
    for start, piece in split(block, count):
        leaf = leaf_nowait(start >> FANOUT_BITS)
        if leaf is None:
            return None
        for run in runs_in(leaf, start, piece):
            part = _at_hand(run, pending)
            if part is None:
                part = reader.blocks_nowait(run.address, run.sums)
                if part is None:
                    return None
            parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def fetch(runs: list[Run], reader: BlockReader, pending: Pending) -> Buffer:
    """The bytes of these runs, in order. Raises CorruptData, BackendError."""
    parts: list[Buffer | None] = [_at_hand(run, pending) for run in runs]
    waiting = [i for i, part in enumerate(parts) if part is None]
    if len(waiting) == 1:
        run = runs[waiting[0]]
        parts[waiting[0]] = await reader.blocks(run.address, run.sums, run.block)
    elif waiting:
        errors: list[Exception] = []
        limit = trio.CapacityLimiter(_PARALLEL)

        async def one(i: int) -> None:
            async with limit:
                try:
                    parts[i] = await reader.blocks(runs[i].address, runs[i].sums, runs[i].block)
                except Exception as error:  # noqa: BLE001  # handed on below, without the nursery's group around it
                    errors.append(error)
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for i in waiting:
                nursery.start_soon(one, i)
        if errors:
            raise errors[0]
    found = [part for part in parts if part is not None]
    return found[0] if len(found) == 1 else b"".join(found)


def _at_hand(run: Run, pending: Pending) -> Buffer | None:
    if not run.address:
        return bytes(run.count << BLOCK_SHIFT)
    view = pending(run.address, run.count)
    return None if view is None else bytes(view)
