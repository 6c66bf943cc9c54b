"""Inodes in memory, and their rows.

An inode is loaded once, changed in memory, and written back at the commit. Those that are clean and were
not used for long are forgotten.
"""

import errno
import stat
from itertools import islice
from typing import cast

from fusevol.errors import FusevolError
from fusevol.fs.clock import now
from fusevol.fs.database import Database, Value
from fusevol.fs.layout import TOTAL_FILES
from fusevol.fs.vfs import Absent

__all__ = ["INODE_COLUMNS", "Extent", "Inode", "InodeTable", "Pinned", "fail"]

#: Block of the file, logical block of the volume, number of blocks.
Extent = tuple[int, int, int]

#: The columns of a row, in the order of `Inode`'s arguments, for a table called `i`.
INODE_COLUMNS = ", ".join(
    f"i.{column}"
    for column in [
        "ino",
        "mode",
        "nlink",
        "uid",
        "gid",
        "rdev",
        "size",
        "blocks",
        "atime",
        "mtime",
        "ctime",
        "btime",
        "parent",
        "data",
    ]
)
_SELECT = f"SELECT {INODE_COLUMNS} FROM inode AS i"
#: Of rows without content, about a page; of those with content in them two and more fit in one.
_MOST_AHEAD = 32


def fail(code: int) -> OSError:
    """The error that a system call is to return."""
    return OSError(code, errno.errorcode.get(code, str(code)))


class Inode:
    """A file; the columns of its row, and what belongs to it in memory only.

    extents: sorted by block; None while not loaded. loading: the first of them, while not all are. xattrs: names of its
    extended attributes; None while not loaded. opens: open handles. reserved: logical blocks set aside for it to grow
    into, as (address, count).
    """

    __slots__ = (
        "atime",
        "blocks",
        "btime",
        "ctime",
        "data",
        "extents",
        "gid",
        "ino",
        "loading",
        "mode",
        "mtime",
        "nlink",
        "opens",
        "parent",
        "rdev",
        "reserved",
        "size",
        "uid",
        "xattrs",
    )

    def __init__(
        self, ino: int, mode: int, nlink: int, uid: int, gid: int, rdev: int, size: int, blocks: int, atime: int,
        mtime: int, ctime: int, btime: int, parent: int, data: bytes | None,
    ) -> None:  # fmt: skip
        self.ino = ino
        self.mode = mode
        self.nlink = nlink
        self.uid = uid
        self.gid = gid
        self.rdev = rdev
        self.size = size
        self.blocks = blocks
        self.atime = atime
        self.mtime = mtime
        self.ctime = ctime
        self.btime = btime
        self.parent = parent
        self.data = data
        self.extents: list[Extent] | None = None
        self.loading: list[Extent] | None = None
        self.opens = 0
        self.xattrs: tuple[bytes, ...] | None = None
        self.reserved: tuple[int, int] = (0, 0)

    @property
    def kind(self) -> int:
        """S_IFMT bits of the mode."""
        return stat.S_IFMT(self.mode)

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    def row(self) -> tuple[int | bytes | None, ...]:
        """The columns, in order."""
        return (
            self.ino, self.mode, self.nlink, self.uid, self.gid, self.rdev, self.size, self.blocks, self.atime,
            self.mtime, self.ctime, self.btime, self.parent, self.data,
        )  # fmt: skip


class Pinned:
    """Counted as open, so that it stays in memory, and nobody loads a second one, while who changes it waits."""

    __slots__ = ("_inode",)

    def __init__(self, inode: Inode) -> None:
        self._inode = inode

    def __enter__(self) -> None:
        self._inode.opens += 1

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._inode.opens -= 1


class InodeTable:
    """All inodes, through a cache of `limit` clean ones."""

    def __init__(self, database: Database, limit: int = 20_000) -> None:
        self._database = database
        self._limit = limit
        self._cache: dict[int, Inode] = {}
        self._dirty: dict[int, Inode] = {}
        #: Whether more than times of the dirty ones has changed.
        self.due = False
        self._next = database.counter("next_ino", 2)
        self._seen_end = False
        self._expected, self._ahead = 0, 1
        #: How many there are.
        self.count = database.total("files", TOTAL_FILES)

    def get(self, ino: int) -> Inode:
        """The inode. Raises OSError(ESTALE) if there is none."""
        inode = self._cache.get(ino)
        return self._load(ino) if inode is None else inode

    def _load(self, ino: int) -> Inode:
        """Files are often looked at in the order they were made: who goes on like that has the next ones loaded too."""
        ahead = self._ahead = min(2 * self._ahead, _MOST_AHEAD) if 0 <= ino - self._expected <= _MOST_AHEAD else 1
        self._expected = ino
        if ahead > 1:
            self._load_ahead(ino, ahead)
        inode = self._cache.get(ino)
        if inode is None:
            found = self._database.one(f"{_SELECT} WHERE ino = ?", (ino,))
            if found is None:
                raise fail(errno.ESTALE)
            inode = self._remember(Inode(*found))  # type: ignore[arg-type]
        return inode

    def _load_ahead(self, ino: int, count: int) -> None:
        cache = self._cache
        try:
            for row in self._database.each(f"{_SELECT} WHERE ino >= ? LIMIT ?", (ino, count)):
                self._expected = number = cast(int, row[0])
                if number not in cache:
                    cache[number] = Inode(*row)  # type: ignore[arg-type]
        except FusevolError as error:
            if isinstance(error, Absent) and ino not in cache:
                raise
            # Damaged, or not at hand, may be another's row: who wants that one is told.
        self._keep_within()

    def loaded(self, ino: int, columns: list[Value]) -> Inode:
        """The inode, made from its row unless it is in memory. Raises OSError(ESTALE) for a row that is not there."""
        inode = self._cache.get(ino)
        if inode is None:
            if columns[0] is None:
                raise fail(errno.ESTALE)
            inode = self._remember(Inode(*columns))  # type: ignore[arg-type]
        return inode

    def _remember(self, inode: Inode) -> Inode:
        self._cache[inode.ino] = inode
        self._keep_within()
        return inode

    def _keep_within(self) -> None:
        if len(self._cache) > self._limit + len(self._dirty):
            self._evict()

    def known(self, ino: int) -> Inode | None:
        """The inode if it is in memory: those without a name always are."""
        return self._cache.get(ino)

    def make(self, mode: int, uid: int, gid: int, *, rdev: int = 0, data: bytes | None = None) -> Inode:
        """A new inode with one link (a directory: two), to be entered somewhere and then to be added."""
        if not self._seen_end:
            # Where the rows will go; were it damaged, no commit would go through any more.
            for table in ("inode", "extent"):
                self._database.one(f"SELECT max(ino) FROM {table}")
            self._seen_end = True
        born = now()
        nlink = 2 if stat.S_ISDIR(mode) else 1
        size = len(data) if data else 0
        inode = Inode(self._next, mode, nlink, uid, gid, rdev, size, 0, born, born, born, born, 0, data)
        self._next += 1
        inode.extents = []
        inode.xattrs = ()
        return inode

    def add(self, inode: Inode) -> None:
        """Take in an inode that was made."""
        self.count += 1
        self.changed(inode)

    def changed(self, inode: Inode) -> None:
        """Have the inode written back at the next commit."""
        self.touched(inode)
        self.due = True

    def touched(self, inode: Inode) -> None:
        """As `changed`, where only its times have changed."""
        self._cache[inode.ino] = inode
        self._dirty[inode.ino] = inode

    def drop(self, inode: Inode) -> None:
        """Forget an inode whose row was deleted."""
        self._cache.pop(inode.ino, None)
        self._dirty.pop(inode.ino, None)
        self.count -= 1

    def close(self) -> None:
        """Forget all of them: who still asks is told by the database that it is closed."""
        self._cache, self._dirty = {}, {}

    @property
    def dirty(self) -> bool:
        """Whether any inodes wait for a commit."""
        return bool(self._dirty)

    def write_back(self) -> None:
        """Write all changed rows into the open transaction; they count as changed until `written`."""
        if self._dirty:
            marks = ", ".join("?" * 14)
            rows = (self._dirty[ino].row() for ino in sorted(self._dirty))
            self._database.many(f"INSERT OR REPLACE INTO inode VALUES ({marks})", rows)
        self._database.set_counter("next_ino", self._next)
        self._database.set_counter("files", self.count)

    def written(self) -> None:
        """What was written back stays so."""
        self._dirty = {}
        self.due = False
        if len(self._cache) > self._limit:
            self._evict()

    def _evict(self) -> None:
        """Forget the oldest of the clean ones, down to three quarters of the limit."""
        surplus = len(self._cache) - self._limit * 3 // 4
        for ino, inode in list(islice(self._cache.items(), surplus)):
            if ino not in self._dirty and not inode.opens and inode.nlink:
                del self._cache[ino]
