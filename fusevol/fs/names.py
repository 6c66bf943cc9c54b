"""Directories: names, links, renames. All synchronous.

What changes is to be called within `Database.changing`: an operation is then in the transaction whole or not at all.
Inodes in memory change when all that may fail is through.
"""

import errno
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fusevol.fs.clock import now
from fusevol.fs.database import Database
from fusevol.fs.inodes import INODE_COLUMNS, Inode, InodeTable, fail
from fusevol.fs.layout import LINK_MAX, NAME_MAX

__all__ = ["RENAME_EXCHANGE", "RENAME_NOREPLACE", "RENAME_WHITEOUT", "Entry", "Names"]

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4


class Entry(NamedTuple):
    """A name in a directory; `cookie` is where a listing goes on after it."""

    name: bytes
    ino: int
    cookie: int


class Names:
    """Names of inodes. Who may do what is for the kernel to check (default_permissions)."""

    def __init__(self, database: Database, inodes: InodeTable) -> None:
        self._database = database
        self._inodes = inodes
        #: Greater than the cookie of any name there is.
        self.next_cookie = database.counter("next_cookie", 1)

    def find(self, parent: int, name: bytes) -> int | None:
        """The inode number a name stands for, or None. Raises OSError(ENAMETOOLONG)."""
        if len(name) > NAME_MAX:
            raise fail(errno.ENAMETOOLONG)
        row = self._database.one("SELECT ino FROM entry WHERE parent = ? AND name = ?", (parent, name))
        return int(row[0]) if row else None  # type: ignore[arg-type]

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode of a name. Raises OSError(ENOENT)."""
        ino = self.find(parent, name)
        if ino is None:
            raise fail(errno.ENOENT)
        return self._inodes.get(ino)

    def check_new(self, parent: Inode, name: bytes) -> None:
        """Raise OSError unless `name` can be made in `parent`: ENOENT (it is deleted), EEXIST, EINVAL."""
        if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
            raise fail(errno.EINVAL)
        if not parent.nlink:
            raise fail(errno.ENOENT)
        if self.find(parent.ino, name) is not None:
            raise fail(errno.EEXIST)

    def enter(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """Put a name, which `check_new` let pass, into a directory."""
        self._database.run(
            "INSERT INTO entry VALUES (?, ?, ?, ?, ?)",
            (parent.ino, name, inode.ino, inode.mode >> 12, self.next_cookie),
        )
        self.next_cookie += 1
        self._entered(parent, inode)

    def _entered(self, parent: Inode, inode: Inode) -> None:
        if inode.is_dir:
            parent.nlink += 1
            inode.parent = parent.ino
        self._touch(parent)

    def link(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """Another name for a file (link(2)). Raises OSError(EPERM, EMLINK, ENOENT, EEXIST)."""
        if inode.is_dir:
            raise fail(errno.EPERM)
        if inode.nlink >= LINK_MAX:
            raise fail(errno.EMLINK)
        if not inode.nlink:
            raise fail(errno.ENOENT)
        self.check_new(parent, name)
        self.enter(parent, name, inode)
        inode.nlink += 1
        self._change(inode)

    def unlink(self, parent: Inode, name: bytes) -> Inode:
        """Remove a name of a file; return the inode. Raises OSError(ENOENT, EISDIR)."""
        inode = self.lookup(parent.ino, name)
        if inode.is_dir:
            raise fail(errno.EISDIR)
        self._delete(parent, name)
        self._touch(parent)
        inode.nlink -= 1
        self._change(inode)
        return inode

    def rmdir(self, parent: Inode, name: bytes) -> Inode:
        """Remove an empty directory; return the inode. Raises OSError(ENOENT, ENOTDIR, ENOTEMPTY)."""
        inode = self.lookup(parent.ino, name)
        if not inode.is_dir:
            raise fail(errno.ENOTDIR)
        if not self.empty(inode.ino):
            raise fail(errno.ENOTEMPTY)
        self._delete(parent, name)
        self._touch(parent)
        parent.nlink -= 1
        inode.nlink = 0
        self._change(inode)
        return inode

    def rename(
        self, old: Inode, old_name: bytes, new: Inode, new_name: bytes, flags: int, leave: Callable[[], Inode] | None
    ) -> Inode | None:
        """rename(2), renameat2(2); return the inode that lost its name to this one, if any.

        leave: makes what is to be in the old place. A name that stands for something before and after it stays where it
        was in a listing: whoever reads the directory meanwhile comes across it once.

        Raises OSError as there: ENOENT, EEXIST, EINVAL (into itself, or a flag not known), ENOTDIR, EISDIR, ENOTEMPTY.
        """
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise fail(errno.EINVAL)
        inode = self.lookup(old.ino, old_name)
        ino = self.find(new.ino, new_name)
        target = None if ino is None else self._inodes.get(ino)
        if inode.is_dir:
            self._not_below(inode, new)
        if flags & RENAME_EXCHANGE:
            if target is None:
                raise fail(errno.ENOENT)
            if target.is_dir:
                self._not_below(target, old)
            self._exchange(old, old_name, inode, new, new_name, target)
            return None
        if target is not None:
            if flags & RENAME_NOREPLACE:
                raise fail(errno.EEXIST)
            if target is inode:
                return None
            self._replaceable(inode, target)
        elif not new.nlink:
            raise fail(errno.ENOENT)
        if leave is None:
            self._delete(old, old_name)
        else:
            self._point(old, old_name, leave())
        if target is None:
            self.enter(new, new_name, inode)
        else:
            self._point(new, new_name, inode)
            self._entered(new, inode)
        # All that may fail is through.
        if target is not None:
            new.nlink -= target.is_dir
            target.nlink = 0 if target.is_dir else target.nlink - 1
            self._change(target)
        old.nlink -= inode.is_dir
        self._touch(old)
        self._change(inode)
        return target

    def _replaceable(self, inode: Inode, target: Inode) -> None:
        if target.is_dir:
            if not inode.is_dir:
                raise fail(errno.EISDIR)
            if not self.empty(target.ino):
                raise fail(errno.ENOTEMPTY)
        elif inode.is_dir:
            raise fail(errno.ENOTDIR)

    def _exchange(self, old: Inode, old_name: bytes, inode: Inode, new: Inode, new_name: bytes, target: Inode) -> None:
        self._point(old, old_name, target)
        self._point(new, new_name, inode)
        for parent, child in ((old, target), (new, inode)):
            if child.is_dir:
                child.parent = parent.ino
        moved = inode.is_dir - target.is_dir
        old.nlink -= moved
        new.nlink += moved
        for parent in (old, new):
            self._touch(parent)
        for child in (inode, target):
            self._change(child)

    def _not_below(self, inode: Inode, directory: Inode) -> None:
        """Raise OSError(EINVAL) if `directory` is `inode` or below it."""
        while directory.ino != inode.ino:
            if directory.parent in (0, directory.ino):
                return
            directory = self._inodes.get(directory.parent)
        raise fail(errno.EINVAL)

    def empty(self, ino: int) -> bool:
        """Whether a directory has no entries."""
        return self._database.one("SELECT 1 FROM entry WHERE parent = ? LIMIT 1", (ino,)) is None

    def entries(self, ino: int, after: int, most: int) -> list[Entry]:
        """Up to `most` entries of a directory, in the order they were made, behind the cookie `after`."""
        rows = self._database.all(
            "SELECT name, ino, cookie FROM entry INDEXED BY listing WHERE parent = ? AND cookie > ?"
            " ORDER BY cookie LIMIT ?",
            (ino, after, most),
        )
        return [Entry(bytes(name), int(ino), int(cookie)) for name, ino, cookie in rows]  # type: ignore[arg-type]

    def listing(self, ino: int, after: int, before: int) -> Iterator[tuple[bytes, int, Inode]]:
        """Name, cookie and inode of a directory's entries between two cookies; read it without an await."""
        rows = self._database.each(
            f"SELECT e.name, e.cookie, e.ino, {INODE_COLUMNS} FROM entry AS e INDEXED BY listing"
            " LEFT JOIN inode AS i USING (ino) WHERE e.parent = ? AND e.cookie > ? AND e.cookie < ? ORDER BY e.cookie",
            (ino, after, before),
        )
        for name, cookie, number, *columns in rows:
            yield bytes(name), int(cookie), self._inodes.loaded(int(number), columns)  # type: ignore[arg-type]

    def write_back(self) -> None:
        """Write the counter into the transaction."""
        self._database.set_counter("next_cookie", self.next_cookie)

    def _point(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """Have a name that is there stand for something else."""
        self._database.run(
            "UPDATE entry SET ino = ?, kind = ? WHERE parent = ? AND name = ?",
            (inode.ino, inode.mode >> 12, parent.ino, name),
        )

    def _delete(self, parent: Inode, name: bytes) -> None:
        self._database.run("DELETE FROM entry WHERE parent = ? AND name = ?", (parent.ino, name))

    def _touch(self, directory: Inode) -> None:
        directory.mtime = directory.ctime = now()
        self._inodes.changed(directory)

    def _change(self, inode: Inode) -> None:
        inode.ctime = now()
        self._inodes.changed(inode)
