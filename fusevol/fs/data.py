"""File content: inline bytes, extents, and where new blocks come from.

Addresses are handed out by bumping a counter and never used again, so what a file lets go can be discarded
without asking who else uses it. Small files are packed next to each other; a file that keeps growing sets
aside a run of addresses as long as itself, so that its extents stay few (addresses cost nothing).
"""

import errno
from bisect import bisect_left, bisect_right
from contextlib import suppress

from fusevol.api.io import Buffer
from fusevol.errors import CorruptData, VolumeBusy
from fusevol.fs.clock import now
from fusevol.fs.content import FileReader
from fusevol.fs.database import Database
from fusevol.fs.inodes import Extent, Inode, InodeTable, fail
from fusevol.fs.layout import BLOCK, INLINE_BYTES, SIZE_MAX
from fusevol.fs.quota import Quota
from fusevol.log import LogVolume
from fusevol.log.format import LOGICAL_BLOCKS

__all__ = ["FileData"]

_RESERVE_FROM = 256
_RESERVE_MOST = 16384
#: Bytes that are written without others being let in: what the kernel sends at most.
_AT_ONCE = 1 << 20
#: Blocks that may be set aside at once where nobody knows how many the store has room for: addresses do not come back.
_MOST_SET_ASIDE = 1 << 28
_TIMED_WITHIN = 60 * 10**9
_SHIFT = 12
_MASK = BLOCK - 1


class FileData(FileReader):
    """Writes and cuts files, besides reading them. Metadata changes come first and without an await, data after.

    What had to be waited for before that is for nothing where a restore took the tree away meanwhile: VolumeBusy.

    quota: what all files may hold, and do.
    """

    def __init__(self, volume: LogVolume, database: Database, inodes: InodeTable) -> None:
        super().__init__(volume, database)
        self._volume: LogVolume = volume
        self._inodes = inodes
        #: What a restore replaces.
        self._live = volume.path.live
        self._next = database.counter("next_block", 0)
        self.quota = Quota(database)
        #: Files with changed extents, and the blocks that these begin at, or began at.
        self._touched: dict[int, tuple[Inode, set[int]]] = {}
        self._freed: list[tuple[int, int]] = []

    # -- extents ----------------------------------------------------------------------------------

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

    # -- writing ----------------------------------------------------------------------------------

    def _check_still(self) -> None:
        """Raise VolumeBusy if the volume is another tree's by now: the same blocks are of other files there."""
        if self._volume.path.live is not self._live:
            raise VolumeBusy(f'volume "{self._volume.volume_id}" was restored before a change of it was through')

    async def write(self, inode: Inode, data: Buffer, offset: int, *, timed: bool = False) -> int:
        """Write bytes, growing the file as needed; return how many. Raises OSError(ENOSPC, EFBIG).

        timed: whoever writes sets the times, before or after this.
        """
        size = len(data)
        end = offset + size
        if end > SIZE_MAX:
            raise fail(errno.EFBIG)
        if not size:
            return 0
        # Waiting first makes it likely that all that follows happens at once: no other write comes in between.
        await self._volume.throttle()
        self._check_still()
        if self._write_inline(inode, data, offset, end, timed):
            return size
        await self._outgrow(inode)
        view = memoryview(data).cast("B")
        first, last = offset >> _SHIFT, (end + _MASK) >> _SHIFT
        pieces: list[tuple[int, int, int]] = []
        fresh: set[int] = set()
        for block, address, count in list(self.pieces(inode, first, last - first)):
            if not address:
                address = self._allocate(inode, block, count)
                fresh.update((block, block + count - 1))
            pieces.append((block, address, count))
        self._grown(inode, end, timed)
        # Whether nobody else was let in yet, who may have written to what is new as well.
        alone = size <= _AT_ONCE
        for block, address, count in pieces:
            low = max(offset, block << _SHIFT)
            high = min(end, (block + count) << _SHIFT)
            part: Buffer = view[low - offset : high - offset]
            at = (address << _SHIFT) + low - (block << _SHIFT)
            if alone:
                # A block that is new holds nothing, so its rest is zeros and need not be read.
                whole, start = part, at
                if low & _MASK and block in fresh:
                    whole, start = bytes(low & _MASK) + bytes(part), at - (low & _MASK)
                if high & _MASK and (high >> _SHIFT) in fresh:
                    whole = bytes(whole) + bytes(-high & _MASK)
                if self._volume.write_nowait(whole, start):
                    continue
                alone = False
            await self._volume.write(part, at)
        return size

    def _write_inline(self, inode: Inode, data: Buffer, offset: int, end: int, timed: bool) -> bool:
        if max(end, inode.size) > INLINE_BYTES or self.extents(inode):
            return False
        self.quota.grown(max(0, end - inode.size))
        old = (inode.data or b"").ljust(inode.size, b"\0")
        if offset > len(old):
            old = old.ljust(offset, b"\0")
        inode.data = old[:offset] + bytes(data) + old[end:]
        self._inodes.changed(inode)
        self._grown(inode, end, timed)
        return True

    async def _outgrow(self, inode: Inode) -> None:
        """Move inline content to a block of its own; until it is there, it stays where it was."""
        while (data := inode.data) and any(data):
            address = self._take(inode, 1)
            padded = data.ljust(BLOCK, b"\0")
            with self._volume.blocking():
                done = self._volume.write_nowait(padded, address << _SHIFT)
            if not done:
                await self._volume.write(padded, address << _SHIFT)
                self._check_still()
            if inode.data is data:
                self._map(inode, 0, address, 1)
                break
            # It was changed meanwhile, or moved by somebody else.
            self._freed.append((address, 1))
            self._inodes.changed(inode)
        if inode.data is not None:
            inode.data = None
            self._inodes.changed(inode)

    def _grown(self, inode: Inode, end: int, timed: bool) -> None:
        self._modified(inode, timed)
        if end > inode.size:
            inode.size = end
            self._inodes.changed(inode)

    def _modified(self, inode: Inode, timed: bool) -> None:
        """The content is another. timed: whoever changed it sets the times, before or after this."""
        time = now()
        # The kernel's write-back sends the time of the last write(2) before some of the data, which is then no news.
        # Were the kernel to be lost before it sends any, the file would still look changed, give or take a minute.
        if not timed or time - inode.mtime > _TIMED_WITHIN:
            inode.mtime = inode.ctime = time
            self._inodes.touched(inode)

    # -- size -------------------------------------------------------------------------------------

    async def truncate(self, inode: Inode, size: int, *, timed: bool = False) -> None:
        """Set a file's size; what is cut off is zeros if it grows again. timed: as for `write`.

        Raises OSError(EFBIG).
        """
        if size > SIZE_MAX:
            raise fail(errno.EFBIG)
        if size < inode.size and size & _MASK:
            # So that it need not be waited for where nobody may be let in between.
            await self.read(inode, 1, size)
            self._check_still()
        if size < inode.size:
            if inode.data is not None:
                inode.data = inode.data[:size]
            else:
                # First what can fail: then the file is as it was.
                await self._zero(inode, size, (size + _MASK) & ~_MASK)
                self._check_still()
                self._unmap(inode, (size + _MASK) >> _SHIFT, None)
        elif inode.data is not None and (size > INLINE_BYTES or self.quota.crowded):
            await self._outgrow(inode)
        elif inode.data is not None:
            self.quota.grown(size - inode.size)
            inode.data = inode.data.ljust(size, b"\0")
        inode.size = size
        inode.reserved = (0, 0)
        self._modified(inode, timed)
        self._inodes.changed(inode)

    async def _zero(self, inode: Inode, offset: int, end: int) -> None:
        """Zero bytes within one block, if it is mapped; without an await unless the volume is being restored."""
        if offset >= end:
            return
        for _, address, _ in list(self.pieces(inode, offset >> _SHIFT, 1)):
            if not address:
                continue
            at, low, high = address << _SHIFT, offset & _MASK, (end - 1 & _MASK) + 1
            with self._volume.blocking():
                old = self._volume.read_nowait(BLOCK, at)
                if old is not None:
                    new = bytes(old[:low]) + bytes(high - low) + bytes(old[high:])
                    if self._volume.write_nowait(new, at):
                        continue
            await self._volume.write(bytes(high - low), at + low)

    async def punch(self, inode: Inode, offset: int, length: int, *, keep_blocks: bool, timed: bool = False) -> None:
        """Make a range read as zeros, giving its whole blocks back, or taking others for them (ZERO_RANGE).

        timed: as for `write`. Raises as `preallocate` for the latter; then nothing has changed.
        """
        end = offset + length
        if keep_blocks and end > SIZE_MAX:
            raise fail(errno.EFBIG)
        for edge in offset, end:
            if edge & _MASK and inode.data is None:
                # As `truncate` does: so that what is left of a block need not be waited for later.
                await self.read(inode, 1, edge)
                self._check_still()
        if keep_blocks:
            holes, blocks = self._holes(inode, offset, end)
            self._check_room(sum(count for _, count in holes), blocks)
        if inode.data is not None:
            data = inode.data.ljust(inode.size, b"\0")
            stop = min(end, len(data))
            if offset < stop:
                inode.data = data[:offset] + bytes(stop - offset) + data[stop:]
        else:
            first, last = (offset + _MASK) >> _SHIFT, end >> _SHIFT
            if first > last:
                await self._zero(inode, offset, end)
            else:
                await self._zero(inode, offset, first << _SHIFT)
                await self._zero(inode, last << _SHIFT, end)
            self._check_still()
            if first < last:
                self._unmap(inode, first, last)
        self._modified(inode, timed)
        self._inodes.changed(inode)
        if keep_blocks:
            await self.preallocate(inode, offset, length, timed=timed)

    async def preallocate(self, inode: Inode, offset: int, length: int, *, timed: bool = False) -> None:
        """Take quota for a range, so that writing there cannot fail for want of it; all of it, or none.

        timed: as for `write`. Raises OSError(EFBIG, ENOSPC), the latter also where the store has no room for it now.
        """
        if offset + length > SIZE_MAX:
            raise fail(errno.EFBIG)
        await self._outgrow(inode)
        holes, _ = self._holes(inode, offset, offset + length)
        needed = sum(count for _, count in holes)
        self._check_room(needed, needed)
        if holes:
            self._map_all(inode, holes)
        self._modified(inode, timed)
        self._inodes.changed(inode)

    def _holes(self, inode: Inode, offset: int, end: int) -> tuple[list[tuple[int, int]], int]:
        """The holes in a range as (block, count), and how many blocks it has in all."""
        first, last = offset >> _SHIFT, (end + _MASK) >> _SHIFT
        pieces = self.pieces(inode, first, last - first)
        return [(block, count) for block, address, count in pieces if not address], last - first

    def _check_room(self, mapped: int, stored: int) -> None:
        """Raise OSError(ENOSPC) unless so many more blocks may be mapped, and the store has room for so many."""
        capacity = self._volume.room.capacity()
        room = _MOST_SET_ASIDE if capacity is None else capacity.free >> _SHIFT
        if not self.quota.allows(mapped) or stored > room:
            raise fail(errno.ENOSPC)

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
