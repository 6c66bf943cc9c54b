"""Which blocks files have: handed out, let go, and written back.

Addresses are handed out by bumping a counter and never used again, so what a file lets go can be discarded
without asking who else uses it. Small files are packed next to each other; a file that keeps growing sets
aside a run of addresses as long as itself, so that its extents stay few (addresses cost nothing).
"""

import errno
from bisect import bisect_left, bisect_right
from contextlib import suppress

from fusevol.errors import CorruptData
from fusevol.fs.content import FileReader
from fusevol.fs.database import Database
from fusevol.fs.inodes import Extent, Inode, InodeTable, fail
from fusevol.fs.layout import BLOCK
from fusevol.fs.quota import Quota
from fusevol.log import LogVolume
from fusevol.log.format import LOGICAL_BLOCKS

__all__ = ["FileBlocks"]

_RESERVE_FROM = 256
_RESERVE_MOST = 16384
_SHIFT = 12
_MASK = BLOCK - 1


class FileBlocks(FileReader):
    """Maps blocks of files to addresses, and has the database know. Nothing here waits, but to give blocks back.

    quota: what all files may hold, and do.
    """

    def __init__(self, volume: LogVolume, database: Database, inodes: InodeTable) -> None:
        super().__init__(volume, database)
        self._volume: LogVolume = volume
        self._inodes = inodes
        self._next = database.counter("next_block", 0)
        self.quota = Quota(database)
        #: Files with changed extents, and the blocks that these begin at, or began at.
        self._touched: dict[int, tuple[Inode, set[int]]] = {}
        self._freed: list[tuple[int, int]] = []

    # -- handed out, and let go -------------------------------------------------------------------

    def _allocate(self, inode: Inode, block: int, count: int) -> int:
        """Map a hole to fresh addresses, and return the first. Raises OSError(ENOSPC) over the quota."""
        address = self._take(inode, count)
        self._map(inode, block, address, count)
        return address

    def _take(self, inode: Inode, count: int) -> int:
        """Fresh addresses, to be mapped or given up. Raises OSError(ENOSPC) over the quota."""
        if not self.quota.allows(count):
            raise fail(errno.ENOSPC)
        address, room = inode.reserved
        if room < count:
            size = inode.size >> _SHIFT
            room = count if size < _RESERVE_FROM else max(count, min(size, _RESERVE_MOST))
            if self._next + room > LOGICAL_BLOCKS:
                raise fail(errno.ENOSPC)
            address, self._next = self._next, self._next + room
        inode.reserved = (address + count, room - count)
        return address

    def _map(self, inode: Inode, block: int, address: int, count: int) -> None:
        extents = self.extents(inode)
        at = bisect_right(extents, block, key=lambda extent: extent[0])
        if at and extents[at - 1][0] + extents[at - 1][2] == block and sum(extents[at - 1][1:]) == address:
            first, start, length = extents[at - 1]
            extents[at - 1] = (first, start, length + count)
            block = first
        else:
            extents.insert(at, (block, address, count))
        self.quota.used += count
        inode.blocks += count
        self._remapped(inode).add(block)

    def _map_all(self, inode: Inode, holes: list[tuple[int, int]]) -> None:
        """Map holes, (block, count) in order, to fresh addresses. Raises OSError(ENOSPC) over the quota."""
        if len(holes) == 1:
            self._allocate(inode, *holes[0])
            return
        count = sum(count for _, count in holes)
        address, added = self._take(inode, count), list[Extent]()
        for block, size in holes:
            added.append((block, address, size))
            address += size
        inode.extents = sorted([*self.extents(inode), *added])
        self.quota.used += count
        inode.blocks += count
        self._remapped(inode).update(block for block, _ in holes)

    def _unmap(self, inode: Inode, first: int, end: int | None) -> None:
        """Let go of the file's blocks from `first` to before `end` (None: to its end)."""
        extents = self.extents(inode)
        start = bisect_right(extents, first, key=lambda extent: extent[0])
        if start and extents[start - 1][0] + extents[start - 1][2] > first:
            start -= 1
        stop = len(extents) if end is None else bisect_left(extents, end, key=lambda extent: extent[0])
        kept: list[Extent] = []
        touched = self._remapped(inode)
        for block, address, count in extents[start:stop]:
            last = block + count
            low, high = max(block, first), last if end is None else min(last, end)
            if low >= high:
                kept.append((block, address, count))
                continue
            touched.update((block, high))
            self._freed.append((address + low - block, high - low))
            self.quota.used -= high - low
            inode.blocks -= high - low
            if block < low:
                kept.append((block, address, low - block))
            if high < last:
                kept.append((high, address + high - block, last - high))
        extents[start:stop] = kept

    def _remapped(self, inode: Inode) -> set[int]:
        """Have extents and number of blocks written back, even if the operation fails later on.

        Returns the set to which the blocks are to be added that changed extents begin at, or began at.
        """
        self._inodes.changed(inode)
        return self._touched.setdefault(inode.ino, (inode, set()))[1]

    def trim(self, inode: Inode) -> None:
        """Let go of what is set aside for a file beyond its end."""
        extents, end = self.extents(inode), (inode.size + _MASK) >> _SHIFT
        if extents and extents[-1][0] + extents[-1][2] > end:
            self._unmap(inode, end, None)
            inode.reserved = (0, 0)

    def held(self, inode: Inode) -> bool:
        """Whether there is anything of the file's that `delete` and `drop` are to take away."""
        return bool(self.extents(inode)) or inode.ino in self._touched

    def delete(self, inode: Inode) -> None:
        """Delete what the database has of a file's blocks; to be followed by `drop`, which cannot fail then."""
        if self.held(inode):
            self._database.run("DELETE FROM extent WHERE ino = ?", (inode.ino,))

    def drop(self, inode: Inode) -> None:
        """Let go of all blocks of a file that goes."""
        if self.extents(inode):
            self._unmap(inode, 0, None)
        self._touched.pop(inode.ino, None)
        inode.extents = []

    # -- commit -----------------------------------------------------------------------------------

    def write_back(self) -> None:
        """Write changed extents, counters and the discards to come into the transaction; see `written`."""
        many = self._database.many
        gone: list[tuple[int, int]] = []
        there: list[tuple[int, int, int, int]] = []
        for ino in sorted(self._touched):
            inode, blocks = self._touched[ino]
            extents = self.extents(inode)
            # No more than what changed: a file that is written all over may have very many.
            for block in sorted(blocks):
                extent = _beginning_at(extents, block)
                if extent is None:
                    gone.append((ino, block))
                else:
                    there.append((ino, *extent))
        if gone:
            many("DELETE FROM extent WHERE ino = ? AND block = ?", gone)
        if there:
            many("INSERT OR REPLACE INTO extent VALUES (?, ?, ?, ?)", there)
        self._freed = _joined(self._freed)
        if self._freed:
            many("INSERT OR REPLACE INTO discard VALUES (?, ?)", self._freed)
        self._database.set_counter("next_block", self._next)
        self._database.set_counter("size", self.quota.limit << _SHIFT)
        self._database.set_counter("blocks", self.quota.used)

    def written(self) -> list[tuple[int, int]]:
        """What was written back stays so; returns the discards to come."""
        freed, self._freed, self._touched = self._freed, [], {}
        return freed

    async def discard(self, freed: list[tuple[int, int]]) -> None:
        """Give blocks back, now that the commit which says that nobody has them is durable; takes them off the list.

        Where that meets with damage they are left to the next mount: nobody has them, but they take room.
        """
        while freed:
            address, count = freed[-1]
            with suppress(CorruptData):
                await self._volume.discard(count << _SHIFT, address << _SHIFT)
                with self._database.changing():
                    self._database.run("DELETE FROM discard WHERE address = ?", (address,))
            freed.pop()

    async def recover(self) -> None:
        """Give back what an earlier mount did not get to.

        That is: discards that were still to come, and blocks at addresses that were handed out, but not in any commit
        that lasted. They are handed out again, and a file that is given one must find nothing there.
        """
        with suppress(CorruptData):
            rows = self._database.all("SELECT address, count FROM discard")
            await self.discard([(int(a), int(c)) for a, c in rows])  # type: ignore[arg-type]
        stale = [run async for run in self._volume.mapped(self._next, LOGICAL_BLOCKS, self._skip)]
        for address, count in stale:
            await self._volume.discard(count << _SHIFT, address << _SHIFT)

    def _skip(self, block: int, count: int, _: str) -> None:
        """Hand out nothing up to the end of a range of which it cannot be said what is there."""
        self._next = max(self._next, block + count)


def _beginning_at(extents: list[Extent], block: int) -> Extent | None:
    at = bisect_left(extents, block, key=lambda extent: extent[0])
    return extents[at] if at < len(extents) and extents[at][0] == block else None


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs sorted, and made one where they touch: files deleted together mostly were written together."""
    joined: list[tuple[int, int]] = []
    for address, count in sorted(runs):
        if joined and sum(joined[-1]) == address:
            joined[-1] = (joined[-1][0], joined[-1][1] + count)
        else:
            joined.append((address, count))
    return joined
