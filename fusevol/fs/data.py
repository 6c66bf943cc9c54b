"""File content: inline bytes, and blocks."""

import errno

from fusevol.api.io import Buffer
from fusevol.errors import VolumeBusy
from fusevol.fs.blocks import FileBlocks
from fusevol.fs.clock import now
from fusevol.fs.database import Database
from fusevol.fs.inodes import Inode, InodeTable, fail
from fusevol.fs.layout import BLOCK, INLINE_BYTES, SIZE_MAX
from fusevol.log import LogVolume

__all__ = ["FileData"]

#: Bytes that are written without others being let in: what the kernel sends at most.
_AT_ONCE = 1 << 20
#: Blocks that may be set aside at once where nobody knows how many the store has room for: addresses do not come back.
_MOST_SET_ASIDE = 1 << 28
_TIMED_WITHIN = 60 * 10**9
_SHIFT = 12
_MASK = BLOCK - 1


class FileData(FileBlocks):
    """Writes and cuts files, besides reading them. Metadata changes come first and without an await, data after.

    What had to be waited for before that is for nothing where a restore took the tree away meanwhile: VolumeBusy.
    """

    def __init__(self, volume: LogVolume, database: Database, inodes: InodeTable) -> None:
        super().__init__(volume, database, inodes)
        #: What a restore replaces.
        self._live = volume.path.live

    # -- writing ----------------------------------------------------------------------------------

    def _check_still(self) -> None:
        """Raise VolumeBusy if the volume is another tree's by now: the same blocks are of other files there."""
        if self._volume.path.live is not self._live:
            raise VolumeBusy(f'volume "{self._volume.volume_id}" was restored before a change of it was through')

    async def write(self, inode: Inode, data: Buffer, offset: int, *, timed: bool = False) -> int:
        """Write bytes, growing the file as needed; return how many. Raises OSError(ENOSPC, EFBIG).

        To be called once the volume has let the writer through (`throttle`). timed: whoever writes sets the times,
        before or after this.
        """
        size = len(data)
        end = offset + size
        if end > SIZE_MAX:
            raise fail(errno.EFBIG)
        if not size:
            return 0
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
