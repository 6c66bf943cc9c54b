"""SQLite's file and its journal, on the device: an apsw VFS.

Every page ends in a checksum of ours, over its bytes and its number: what the device returns is what was written to
that page, or it is not used. Locks are the caller's (`Disk.locked`): nobody else is there while SQLite is.
"""

import secrets
import struct

import apsw
from xxhash import xxh3_64_intdigest

from fusevol.backends.device.disk import BLOCK, Disk
from fusevol.backends.device.layout import Layout, Region
from fusevol.backends.systemcalls import translate
from fusevol.errors import BackendError, CorruptData, FusevolError
from fusevol.sqlitefile import SoleFile

__all__ = ["RESERVED", "TableVFS"]

#: Bytes at the end of each page that SQLite leaves to us.
RESERVED = 8
_SUM = struct.Struct("<Q")
_MAGIC = b"SQLite format 3\0"
#: Where page 1 has the number of changes, and that of pages: <https://sqlite.org/fileformat.html>.
_CHANGES_AT, _PAGES_AT = 24, 28
_BIG = struct.Struct(">I")


def _checksum(page: bytes | memoryview, number: int) -> bytes:
    return _SUM.pack(xxh3_64_intdigest(page[:-RESERVED], number))


class TableVFS(apsw.VFS):
    """error: what the last call that failed came upon; SQLite itself only says that there was something.

    empty: there need not be any tables yet. Else a file without its first bytes is a damaged one.
    """

    def __init__(self, disk: Disk, layout: Layout) -> None:
        self.name = f"fusevol-{secrets.token_hex(8)}"
        self.disk = disk
        self.layout = layout
        self.error: FusevolError | None = None
        self.empty = False
        super().__init__(self.name, base="", maxpathname=64)

    def erase(self) -> None:
        """Make both empty."""
        for region in (self.layout.journal, self.layout.tables):
            self.disk.write_table(bytes(BLOCK), region.offset)
        self.disk.sync()

    @property
    def changes(self) -> int:
        """A number that is another one after every change that anybody has made. Raises OSError."""
        return int.from_bytes(self.disk.read(4, self.layout.tables.offset + _CHANGES_AT), "big")

    def xOpen(self, name: object, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        flags[1] = flags[0]
        if flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            return _Table(self, self.layout.tables)  # type: ignore[return-value]  # apsw asks for the methods
        if flags[0] & apsw.SQLITE_OPEN_MAIN_JOURNAL:
            return _File(self, self.layout.journal)  # type: ignore[return-value]
        raise apsw.CantOpenError("there is no place for other files")

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802
        return pathname.endswith("-journal")

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        try:
            self.disk.write_table(bytes(BLOCK), self.layout.journal.offset)
            self.disk.sync()
        except OSError as error:
            raise self.failed(error, "written") from error

    def failed(self, error: OSError, what: str) -> apsw.Error:
        """What to raise; the tables could not be `what`."""
        if what == "written" and not self.disk.writable:
            # Nobody changes anything there: this is what SQLite does before it reads.
            self.error = BackendError(
                f"a change of the tables of {self.disk.path} was interrupted, and the device can only be read",
                hint="make it writable once (blockdev --setrw), and list what is on it: the change is undone then",
            )
        else:
            self.error = translate(error, f"the tables of {self.disk.path} could not be {what}")
        return apsw.IOError(str(error))

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return name


class _File(SoleFile):
    """The journal: as large as its region, whatever was written to it; it says itself how much of it counts."""

    def __init__(self, vfs: TableVFS, region: Region) -> None:
        self._vfs = vfs
        self._disk = vfs.disk
        self._region = region

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        count = min(amount, self._region.size - offset)
        try:
            return self._disk.read(count, self._region.offset + offset) if count > 0 else b""
        except OSError as error:
            raise self._vfs.failed(error, "read") from error

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if offset + len(data) > self._region.size:
            raise apsw.FullError("there is no more room for the tables")
        try:
            self._disk.write_table(data, self._region.offset + offset)
        except OSError as error:
            raise self._vfs.failed(error, "written") from error

    def xSync(self, flags: int) -> None:  # noqa: N802
        try:
            self._disk.sync()
        except OSError as error:
            raise self._vfs.failed(error, "written") from error

    def xFileSize(self) -> int:  # noqa: N802
        return self._region.size

    def xTruncate(self, size: int) -> None:  # noqa: N802
        """Nothing gets shorter; what is beyond an end is not looked at."""

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE


class _Table(_File):
    """The database."""

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        data = super().xRead(amount, offset)
        # Parts of page 1 are read before anything is known; all of it is, before it is used.
        if amount == BLOCK and data[-RESERVED:] != _checksum(data, offset // BLOCK):
            self._vfs.error = CorruptData(
                f"page {offset // BLOCK + 1} of the tables of {self._disk.path} is damaged",
                hint="restore the device from a copy",
            )
            raise apsw.IOError(str(self._vfs.error))
        return data

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        super().xWrite(bytes(data[:-RESERVED]) + _checksum(data, offset // BLOCK), offset)

    def xFileSize(self) -> int:  # noqa: N802
        head = super().xRead(100, 0)
        if head.startswith(_MAGIC):
            return int(_BIG.unpack_from(head, _PAGES_AT)[0]) * BLOCK
        # Of damaged tables SQLite is to read the first page, which it can have from the journal, or else not at all.
        return 0 if self._vfs.empty else self._region.size
