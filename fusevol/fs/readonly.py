"""What can be asked of a filesystem without changing it: of the live one, and of a snapshot's."""

import errno
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple, TypeVar, TypeVarTuple

from fusevol.api.io import Buffer
from fusevol.errors import CorruptData, FusevolError, NotSupported
from fusevol.fs.content import FileReader
from fusevol.fs.database import Database, read_superblock
from fusevol.fs.inodes import Inode, InodeTable, fail
from fusevol.fs.layout import ROOT, TOTAL_BLOCKS, TOTAL_FILES
from fusevol.fs.names import Entry, Names
from fusevol.fs.vfs import Absent, Fetches
from fusevol.fs.xattrs import check_name
from fusevol.log import LogVolume, SnapshotView

__all__ = ["ReadOnlyFilesystem", "StatFs", "open_snapshot"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class StatFs(NamedTuple):
    """Blocks of 4 KiB, in all and free; files, in all and free."""

    blocks: int
    free: int
    files: int
    files_free: int


class ReadOnlyFilesystem:
    """A filesystem to be read. Inode numbers are the handles; `layout.ROOT` is the root."""

    def __init__(self, volume: LogVolume | SnapshotView, database: Database) -> None:
        self.volume: LogVolume | SnapshotView = volume
        self._database = database
        self._inodes = InodeTable(database)
        self._names = Names(database, self._inodes)
        self._data: FileReader = FileReader(volume, database)
        self._statfs: StatFs | None = None
        self.get = self._inodes.get
        #: For who can wait on a loop, and has this raise Absent where it would have to. For what changes nothing.
        self.hurried = database.hurried

    async def asked(self, ask: Callable[[*Ts], T], *args: *Ts) -> T:
        """What `ask` returns, which only reads; what is absent is fetched off the loop.

        For a tree that nobody takes away meanwhile. Raises as `ask` does, and as `Fetches.fetch`.
        """
        with Fetches() as fetches:
            while True:
                try:
                    return self.hurried(ask, *args)
                except Absent as absent:
                    await fetches.fetch(absent)

    def find(self, parent: int, name: bytes) -> Inode | None:
        """The inode of a name, or None. Raises OSError(ENAMETOOLONG)."""
        if name == b".":
            return self.get(parent)
        if name == b"..":
            return self.get(self.get(parent).parent or parent)
        ino = self._names.find(parent, name)
        return None if ino is None else self.get(ino)

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode of a name. Raises OSError(ENOENT, ENAMETOOLONG)."""
        inode = self.find(parent, name)
        if inode is None:
            raise fail(errno.ENOENT)
        return inode

    def _directory(self, ino: int) -> Inode:
        inode = self.get(ino)
        if not inode.is_dir:
            raise fail(errno.ENOTDIR)
        return inode

    def located(self, ino: int) -> Inode:
        """The inode, with where its content is at hand."""
        inode = self.get(ino)
        if stat.S_ISREG(inode.mode):
            self._data.extents(inode)
        return inode

    def readlink(self, ino: int) -> bytes:
        """Target of a symbolic link. Raises OSError(EINVAL)."""
        inode = self.get(ino)
        if not stat.S_ISLNK(inode.mode) or inode.data is None:
            raise fail(errno.EINVAL)
        return inode.data

    @property
    def next_cookie(self) -> int:
        """Greater than the cookie of any name that there is by now, and not than that of one that is still to come."""
        return self._names.next_cookie

    def listing(self, ino: int, after: int = 0, before: int | None = None) -> Iterator[tuple[bytes, int, Inode]]:
        """Name, cookie and inode of a directory's entries between two cookies, to be read without an await.

        Raises OSError(ENOTDIR).
        """
        return self._names.listing(self._directory(ino).ino, after, self.next_cookie if before is None else before)

    def entries(self, ino: int, after: int = 0, most: int = 1000) -> list[Entry]:
        """Entries of a directory behind a cookie. Raises OSError(ENOTDIR)."""
        return self._names.entries(self._directory(ino).ino, after, most)

    def _xattrs(self, inode: Inode) -> tuple[bytes, ...]:
        if inode.xattrs is None:
            rows = self._database.all("SELECT name FROM xattr WHERE ino = ?", (inode.ino,))
            inode.xattrs = tuple(bytes(row[0]) for row in rows)  # type: ignore[arg-type]
        return inode.xattrs

    def _xattr(self, inode: Inode, name: bytes) -> bytes | None:
        # Most files have none: the kernel asks for `security.capability` before it first writes to a file.
        if name not in self._xattrs(inode):
            return None
        row = self._database.one("SELECT value FROM xattr WHERE ino = ? AND name = ?", (inode.ino, name))
        return None if row is None else bytes(row[0])  # type: ignore[arg-type]

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """Value of an extended attribute. Raises OSError(ENODATA, EOPNOTSUPP, EINVAL)."""
        check_name(name)
        value = self._xattr(self.get(ino), name)
        if value is None:
            raise fail(errno.ENODATA)
        return value

    def listxattr(self, ino: int) -> list[bytes]:
        """Names of the extended attributes."""
        return list(self._xattrs(self.get(ino)))

    async def read(self, ino: int, size: int, offset: int) -> Buffer:
        """Bytes of a regular file. Raises CorruptData, BackendError."""
        return await self._data.read(self.get(ino), size, offset)

    def seek(self, ino: int, offset: int, *, hole: bool) -> int:
        """SEEK_DATA or SEEK_HOLE. Raises OSError(ENXIO)."""
        return self._data.next_data(self.get(ino), offset, hole=hole)

    def statfs(self) -> StatFs:
        """What statfs(2) says: of what cannot be written, that it is full."""
        if self._statfs is None:
            blocks, files = self._database.total("blocks", TOTAL_BLOCKS), self._database.total("files", TOTAL_FILES)
            self._statfs = StatFs(blocks, 0, files, 0)
        return self._statfs

    def close(self, why: FusevolError | None = None) -> None:
        """Close the database; what was not synced is dropped. Who asks all the same is told why, or VolumeBusy."""
        self._inodes.close()
        self._database.close(why)


async def open_snapshot(view: SnapshotView) -> ReadOnlyFilesystem:
    """The filesystem in a snapshot; to be closed by the caller. Raises CorruptData, NotSupported."""
    if not await read_superblock(view):
        if not view.record.mapped:
            raise NotSupported(
                f'snapshot "{view.record.name}" is empty: it was taken before the volume was mounted for the first time'
            )
        raise CorruptData(f'snapshot "{view.record.name}" holds no filesystem')
    filesystem = ReadOnlyFilesystem(view, Database(view, read_only=True))
    try:
        with suppress(CorruptData, OSError):  # who needs it is told
            await filesystem.asked(filesystem.get, ROOT)
    except BaseException:
        filesystem.close()
        raise
    return filesystem
