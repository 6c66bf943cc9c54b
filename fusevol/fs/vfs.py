"""SQLite's file, inside the volume: an apsw VFS over a range of its logical space.

Pages are the volume's blocks. SQLite writes them only in a commit: the journal is in memory and its page
cache never spills. They are put by then, and handed to the log by `write_out`: all of them, or none yet.

SQLite cannot wait on a loop. Who has one to wait on asks in a hurry: what is not at hand is then `Absent`, to be
fetched off the loop, and asked for again.
"""

import secrets
from collections import Counter
from types import TracebackType

import apsw
import numpy as np

from fusevol.errors import BackendError, CorruptData, FusevolError
from fusevol.fs.freepages import FREE_COUNT_AT, PAGE_COUNT_AT, free_leaves, number
from fusevol.fs.layout import BLOCK, DATABASE
from fusevol.log import LogVolume, SnapshotView
from fusevol.sqlitefile import SoleFile

__all__ = ["Absent", "Fetches", "VolumeVFS"]

#: So many free pages keep their blocks, or an eighth of those in use if that is more: they will be used again.
_KEPT = 1024
_KEPT_SHIFT = 3
#: With one commit the blocks of so many runs of pages are given back. It does not wait, and others wait for it.
_RUNS = 2048


class Absent(FusevolError):
    """A part of the metadata is not at hand, and was asked for in a hurry: have it fetched, then ask again."""

    def __init__(self, vfs: "VolumeVFS", size: int, offset: int) -> None:
        super().__init__(f"{size} bytes at {offset} of the metadata are not at hand")
        self.vfs = vfs
        self.size = size
        self.offset = offset


class Fetches:
    """What one request has fetched. As long as it lasts, what is gone once more is waited for: it comes to an end."""

    def __init__(self) -> None:
        self._done: list[tuple[VolumeVFS, int]] = []

    async def fetch(self, absent: Absent) -> None:
        """Have it at hand; other requests go on meanwhile. Raises CorruptData, BackendError."""
        vfs, offset = absent.vfs, absent.offset
        await vfs.volume.read(absent.size, DATABASE + offset)
        vfs.fetched[offset] += 1
        self._done.append((vfs, offset))

    def __enter__(self) -> "Fetches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for vfs, offset in self._done:
            vfs.fetched[offset] -= 1
            if not vfs.fetched[offset]:
                del vfs.fetched[offset]


class VolumeVFS(apsw.VFS):
    """One database file in one volume (or in a snapshot, for reading).

    error: what the last failed call of the volume raised; SQLite itself only reports an I/O error. hurried: what is not
    at hand is not waited for, but for what is `fetched`: offsets, and for how many requests that are being served.
    committed: pages of commits by their offsets, that are still to be handed to the log. pages: how many are in use, as
    of the last commit; free: how many are not.
    """

    def __init__(self, volume: LogVolume | SnapshotView) -> None:
        self.name = f"fusevol-{secrets.token_hex(8)}"
        self.volume = volume
        self.error: FusevolError | None = None
        self.hurried = False
        self.fetched: Counter[int] = Counter()
        self.committed: dict[int, bytes] = {}
        self.pages = self.free = 0
        #: How many of the free pages are known to have no block.
        self._bare = 0
        super().__init__(self.name, base="", maxpathname=64)

    def xOpen(self, name: object, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        if not flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            raise apsw.CantOpenError("only the database itself is in the volume")
        flags[1] = flags[0]
        return _File(self)  # type: ignore[return-value]  # apsw asks for the methods, not for the class

    def write_out(self, *others: tuple[bytes, int]) -> None:
        """Hand what was committed to the log, and others as (bytes, offset). No barrier may come before."""
        if not isinstance(self.volume, LogVolume):
            raise BackendError("the metadata of a snapshot was to be written")
        parts = [(data, DATABASE + offset) for offset, data in sorted(self.committed.items())]
        parts += others
        if not parts:
            return
        with self.volume.blocking():
            if not self.volume.write_all_nowait(parts):
                raise CorruptData("the metadata cannot be written: the map is damaged", hint="check the volume")
        self.committed = {}

    def give_back(self, *, all_of_it: bool = False) -> bool:
        """Give back the blocks of free pages, where these are many; whether to come again soon. All is written out.

        all_of_it: of the few as well. To be called right before a barrier, with no await between: as of that barrier
        what is free now is so. What is not at hand, or cannot be read, is given back another time.
        """
        self._bare = min(self._bare, self.free)
        kept = 0 if all_of_it else max(_KEPT, self.pages >> _KEPT_SHIFT)
        volume = self.volume
        if self.free - self._bare <= kept or self.committed or not isinstance(volume, LogVolume):
            return False
        try:
            with volume.keeping() if volume.traits.remote else volume.blocking():
                leaves = free_leaves(self._page)
                if leaves is None:
                    return False
                runs, done = volume.discard_nowait(leaves + np.uint64(DATABASE // BLOCK - 1), _RUNS)
        except FusevolError:
            # No commit needs what cannot be read here. Whoever does is told.
            return False
        if done:
            self._bare = self.free
        return runs > 0 and not done

    def _page(self, page: int) -> bytes | None:
        data = self.volume.read_nowait(BLOCK, DATABASE + (page - 1) * BLOCK)
        return None if data is None else bytes(data)

    def note(self, head: bytes) -> None:
        """Know how many pages there are, and are free, by the first one."""
        self.free = number(head, FREE_COUNT_AT)
        self.pages = number(head, PAGE_COUNT_AT) - self.free

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802
        return False

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        raise apsw.IOError("nothing to delete")

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return name


class _File(SoleFile):
    """The open file. Its size is what SQLite made of it since the open, at first what page 1 says."""

    def __init__(self, vfs: VolumeVFS) -> None:
        self._vfs = vfs
        head = self.xRead(100, 0)
        self._size = number(head, PAGE_COUNT_AT) * BLOCK
        vfs.note(head)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        vfs, volume = self._vfs, self._vfs.volume
        if vfs.committed and (page := vfs.committed.get(offset - offset % BLOCK)) is not None:
            return page[offset % BLOCK :][:amount]
        try:
            hurried = vfs.hurried and offset not in vfs.fetched
            with volume.keeping() if hurried else volume.blocking():
                data = volume.read_nowait(amount, DATABASE + offset)
            if data is None and hurried:
                raise Absent(vfs, amount, offset)
            if data is None:
                raise CorruptData(f"{amount} bytes at {offset} of the metadata are damaged", hint="check the volume")
        except FusevolError as error:
            vfs.error = error
            # After an I/O error SQLite rolls the whole transaction back, even for a read; and after one that says
            # that the database is corrupt, it refuses every later write. This one only fails the statement.
            raise apsw.ProtocolError(str(error)) from error
        return bytes(data)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._vfs.committed[offset] = bytes(data)
        if not offset:
            self._vfs.note(data)
        self._size = max(self._size, offset + len(data))

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self._size = size

    def xFileSize(self) -> int:  # noqa: N802
        return self._size

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return apsw.SQLITE_IOCAP_ATOMIC4K | apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE

    def xSync(self, flags: int) -> None:  # noqa: N802
        """The volume's barrier follows the commit."""
