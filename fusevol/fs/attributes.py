"""Changing what is known of a file besides its name and content: mode, owner, size, times, extended attributes."""

import errno
import stat
from contextlib import suppress

from fusevol.errors import CorruptData
from fusevol.fs import acl
from fusevol.fs.arguments import Changes
from fusevol.fs.clock import now
from fusevol.fs.data import FileData
from fusevol.fs.database import Database
from fusevol.fs.inodes import Inode, Pinned, fail
from fusevol.fs.layout import XATTR_MAX
from fusevol.fs.readonly import ReadOnlyFilesystem
from fusevol.fs.xattrs import CAPABILITY, check_name
from fusevol.log import LogVolume

__all__ = ["Attributes"]

XATTR_CREATE = 1
XATTR_REPLACE = 2
_LAST_TIME = (1 << 63) - 1


class Attributes(ReadOnlyFilesystem):
    """A filesystem whose files' attributes may be changed; with `Filesystem`, all the rest."""

    def __init__(self, volume: LogVolume, database: Database) -> None:
        super().__init__(volume, database)
        self.volume: LogVolume = volume
        self._data: FileData = FileData(volume, database, self._inodes)

    async def setattr(self, ino: int, changes: Changes) -> Inode:
        """Change attributes. Raises OSError(EFBIG, EINVAL, EISDIR)."""
        inode = self.get(ino)
        if changes.size is not None and changes.size != inode.size:
            if inode.is_dir:
                raise fail(errno.EISDIR)
            if not stat.S_ISREG(inode.mode):
                raise fail(errno.EINVAL)
            self._drop_capability(inode)
            with Pinned(inode):
                await self._data.truncate(inode, changes.size)
        elif changes.size is not None and stat.S_ISREG(inode.mode):
            with suppress(CorruptData):  # as it is, it is no longer than it is to be
                self._data.trim(inode)
        if changes.mode is not None:
            if access := self._xattr(inode, acl.ACCESS):
                with self._database.changing():
                    self._set_xattr(inode, acl.ACCESS, acl.with_mode(acl.parse(access), changes.mode))
            inode.mode = inode.kind | (changes.mode & 0o7777)
        if changes.mode is None and (changes.uid, changes.gid) != (None, None):
            self.drop_privileges(ino)
        if changes.uid is not None:
            inode.uid = changes.uid
        if changes.gid is not None:
            inode.gid = changes.gid
        if changes.atime is not None:
            inode.atime = _storable(changes.atime)
        if changes.mtime is not None:
            inode.mtime = _storable(changes.mtime)
        inode.ctime = now() if changes.ctime is None else _storable(changes.ctime)
        if (changes.mode, changes.uid, changes.gid, changes.size) == (None, None, None, None):
            self._inodes.touched(inode)
        else:
            self._inodes.changed(inode)
        return inode

    def _set_xattr(self, inode: Inode, name: bytes, value: bytes) -> None:
        names = self._xattrs(inode)
        self._database.run("INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", (inode.ino, name, value))
        if name not in names:
            inode.xattrs = (*names, name)

    def _drop_xattr(self, inode: Inode, name: bytes) -> None:
        names = self._xattrs(inode)
        if name in names:
            with self._database.changing():
                self._database.run("DELETE FROM xattr WHERE ino = ? AND name = ?", (inode.ino, name))
            inode.xattrs = tuple(other for other in names if other != name)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0, member: bool = True) -> None:
        """Set an extended attribute (setxattr(2)); an access ACL sets the mode, too.

        member: whether who does it is in the file's group; else an access ACL takes the set-group-id bit away.

        Raises OSError(EEXIST, ENODATA, ERANGE, E2BIG, EOPNOTSUPP, EINVAL).
        """
        check_name(name)
        if len(value) > XATTR_MAX:
            raise fail(errno.E2BIG)
        inode = self.get(ino)
        there = name in self._xattrs(inode)
        if flags & XATTR_CREATE and there:
            raise fail(errno.EEXIST)
        if flags & XATTR_REPLACE and not there:
            raise fail(errno.ENODATA)
        mode, plain = inode.mode, False
        if name in (acl.ACCESS, acl.DEFAULT):
            permissions, plain = acl.mode_of(acl.parse(value))
            if name == acl.ACCESS:
                mode = (mode & (~0o777 if member else ~0o2777)) | permissions
            elif not inode.is_dir:
                raise fail(errno.EACCES)
        if plain and name == acl.ACCESS:
            self._drop_xattr(inode, name)
        else:
            with self._database.changing():
                self._set_xattr(inode, name, value)
        inode.mode = mode
        inode.ctime = now()
        self._inodes.changed(inode)

    def removexattr(self, ino: int, name: bytes) -> None:
        """Remove an extended attribute; an ACL need not be there. Raises OSError(ENODATA, EOPNOTSUPP, EINVAL)."""
        check_name(name)
        inode = self.get(ino)
        if name not in self._xattrs(inode):
            if name in (acl.ACCESS, acl.DEFAULT):
                return
            raise fail(errno.ENODATA)
        self._drop_xattr(inode, name)
        inode.ctime = now()
        self._inodes.changed(inode)

    def drop_privileges(self, ino: int, *, member: bool = True) -> None:
        """Take away what a file must not keep when somebody unprivileged changes it.

        member: whether they are in the file's group; else a set-group-id bit without the right to execute goes as well.
        """
        inode = self.get(ino)
        if not inode.is_dir:
            self._drop_capability(inode)
            inode.mode &= ~stat.S_ISUID
            if inode.mode & stat.S_IXGRP or not member:
                inode.mode &= ~stat.S_ISGID
        inode.ctime = now()
        self._inodes.changed(inode)

    def _drop_capability(self, inode: Inode) -> None:
        """A change of a file's content or owner ends its capabilities (capabilities(7)), whoever makes it."""
        self._drop_xattr(inode, CAPABILITY)


def _storable(time: int) -> int:
    """The nearest time that can be stored: the years 1677 to 2262."""
    return min(max(time, -_LAST_TIME), _LAST_TIME)
