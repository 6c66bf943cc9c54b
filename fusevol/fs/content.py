"""Reading file content: inline bytes and extents."""

import errno
from bisect import bisect_right
from collections.abc import Iterator

from fusevol.api.io import Buffer
from fusevol.errors import VolumeBusy
from fusevol.fs.database import Database
from fusevol.fs.inodes import Extent, Inode, fail
from fusevol.fs.layout import BLOCK
from fusevol.log import LogVolume, SnapshotView

__all__ = ["FileReader"]

_SHIFT = 12
_MASK = BLOCK - 1


class FileReader:
    """Reads files of a live volume or of a snapshot."""

    def __init__(self, volume: LogVolume | SnapshotView, database: Database) -> None:
        self._volume: LogVolume | SnapshotView = volume
        self._database = database

    def extents(self, inode: Inode) -> list[Extent]:
        """The extents of a file, sorted; loaded when first asked for."""
        if inode.extents is None and inode.data is not None:
            inode.extents = []  # all of it is in the inode
        if inode.extents is None:
            # What was loaded before something was `Absent` stays: a file in very many pieces would never be through.
            # It stays true, too, since who changes extents has them all.
            found = inode.loading = inode.loading or []
            after = found[-1][0] if found else -1
            for block, address, count in self._database.each(
                "SELECT block, address, count FROM extent WHERE ino = ? AND block > ? ORDER BY block",
                (inode.ino, after),
            ):
                found.append((int(block), int(address), int(count)))  # type: ignore[arg-type]
            inode.extents, inode.loading = found, None
        return inode.extents

    def pieces(self, inode: Inode, block: int, count: int) -> Iterator[tuple[int, int, int]]:
        """The range as (block, address, count), address 0 for holes."""
        extents = self.extents(inode)
        end = block + count
        at = max(0, bisect_right(extents, block, key=lambda extent: extent[0]) - 1)
        while block < end and at < len(extents):
            start, address, length = extents[at]
            at += 1
            if start + length <= block:
                continue
            if start > block:
                hole = min(start, end) - block
                yield block, 0, hole
                block += hole
                if block >= end:
                    return
            size = min(start + length, end) - block
            yield block, address + block - start, size
            block += size
        if block < end:
            yield block, 0, end - block

    async def read(self, inode: Inode, size: int, offset: int) -> Buffer:
        """Bytes of the file; fewer only at its end. Raises VolumeBusy if a restore takes the tree away meanwhile."""
        size = min(size, inode.size - offset)
        if size <= 0:
            return b""
        if inode.data is not None:
            return inode.data[offset : offset + size].ljust(size, b"\0")
        first = offset >> _SHIFT
        count = ((offset + size + _MASK) >> _SHIFT) - first
        parts: list[Buffer] = []
        live = self._volume.path.live
        for _, address, length in list(self.pieces(inode, first, count)):
            if self._volume.path.live is not live:
                # These blocks may be other files' by now.
                raise VolumeBusy("the volume was restored before a read was through")
            if address:
                parts.append(await self._volume.read(length << _SHIFT, address << _SHIFT))
            else:
                parts.append(bytes(length << _SHIFT))
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        start = offset & _MASK
        return data if not start and len(data) == size else memoryview(data)[start : start + size]

    def next_data(self, inode: Inode, offset: int, *, hole: bool) -> int:
        """SEEK_DATA, SEEK_HOLE (lseek(2)). Raises OSError(ENXIO)."""
        if offset >= inode.size or offset < 0:
            raise fail(errno.ENXIO)
        if inode.data is not None:
            return inode.size if hole else offset
        first = offset >> _SHIFT
        for block, address, _ in self.pieces(inode, first, ((inode.size + _MASK) >> _SHIFT) - first):
            if bool(address) != hole:
                return max(offset, block << _SHIFT)
        if hole:
            return inode.size
        raise fail(errno.ENXIO)
