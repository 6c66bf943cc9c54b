"""The handlers of a mounted volume that are about names: finding, making, moving, listing and removing them."""

import errno
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, RequestContext

from fusevol.fs import Absent, Caller, ReadOnlyFilesystem
from fusevol.fs.inodes import Inode
from fusevol.fs.layout import BLOCK
from fusevol.mount.handling import Handling, change, handler
from fusevol.mount.nodes import CONTROL_NAME, Node

__all__ = ["NameOperations"]

#: The kernel may keep what it knows for this long (seconds): nobody else changes the volume.
_CACHE_SECONDS = 86400.0
#: `.` and `..` come first in a listing, and move the positions of all that follows.
_DOTS = 2


@dataclass(slots=True)
class Listing:
    """An open directory. before: where its listing ends, which what is made or renamed meanwhile does not prolong."""

    node: int
    before: int = 0


class NameOperations(Handling):
    """Serves the names in one volume. The docstrings of pyfuse3.Operations say what each handler is for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: By the handles of open directories.
        self.listings: dict[int, Listing] = {}
        self._last_listing = 0
        #: How many handles there are of a node that it may be written through: the kernel holds back no other writes.
        self.writers: Counter[int] = Counter()

    def _attributes(self, inode: Inode, where: Node) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = where.number(inode.ino)
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = _CACHE_SECONDS
        entry.st_mode = inode.mode
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid
        entry.st_gid = inode.gid
        entry.st_rdev = inode.rdev
        entry.st_size = inode.size
        entry.st_blksize = BLOCK
        entry.st_blocks = inode.blocks * 8 if inode.data is None else -(-inode.size // 512)
        entry.st_atime_ns = inode.atime
        entry.st_mtime_ns = inode.mtime
        entry.st_ctime_ns = inode.ctime
        entry.st_birthtime_ns = inode.btime
        return entry

    def _reply(self, node: int, inode: Inode) -> EntryAttributes:
        return self._attributes(inode, self.nodes.split(node))

    # -- names ------------------------------------------------------------------------------------

    @handler
    async def lookup(self, parent: int, name: bytes, ctx: RequestContext | None = None) -> EntryAttributes:
        if self.control.owns(parent) or (name == CONTROL_NAME and self.nodes.is_root(parent) and self.control.enabled):
            return await self.control.lookup(parent, name)
        where, filesystem = self.nodes.find(parent)
        inode = filesystem.hurried(filesystem.find, where.ino, name)
        return _missing() if inode is None else self._attributes(inode, where)

    @change
    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        filesystem, ino = self.nodes.live(parent)
        return self._reply(parent, filesystem.attempt(filesystem.create, ino, name, mode, _caller(ctx), rdev))

    @change
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        self._check_name(parent, name)
        filesystem, ino = self.nodes.live(parent)
        mode = stat.S_IFDIR | (mode & 0o7777)
        return self._reply(parent, filesystem.attempt(filesystem.create, ino, name, mode, _caller(ctx)))

    @change
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self._check_name(parent, name)
        filesystem, ino = self.nodes.live(parent)
        inode = filesystem.attempt(filesystem.create, ino, name, stat.S_IFREG | (mode & 0o7777), _caller(ctx))
        filesystem.opened(inode.ino)
        entry = self._reply(parent, inode)
        self.writers[entry.st_ino] += 1
        return FileInfo(fh=entry.st_ino, keep_cache=True), entry

    @change
    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        self._check_name(parent, name)
        filesystem, ino = self.nodes.live(parent)
        return self._reply(parent, filesystem.attempt(filesystem.symlink, ino, name, target, _caller(ctx)))

    @change
    async def link(self, node: int, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        self._check_name(parent, name)
        filesystem, ino = self.nodes.live(node)
        return self._reply(node, filesystem.attempt(filesystem.link, ino, self.nodes.live(parent)[1], name))

    @change
    async def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        filesystem, ino = self.nodes.live(parent)
        filesystem.attempt(filesystem.unlink, ino, name)

    @change
    async def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        filesystem, ino = self.nodes.live(parent)
        filesystem.attempt(filesystem.rmdir, ino, name)

    @change
    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: RequestContext
    ) -> None:
        self._check_name(new_parent, new_name)
        filesystem, ino = self.nodes.live(parent)
        new_ino = self.nodes.live(new_parent)[1]
        filesystem.attempt(filesystem.rename, ino, name, new_ino, new_name, flags, _caller(ctx))

    def _check_name(self, parent: int, name: bytes) -> None:
        """The control directory's name in the root is taken. Raises OSError(EEXIST)."""
        if name == CONTROL_NAME and self.nodes.is_root(parent) and self.control.enabled:
            raise OSError(errno.EEXIST, "taken")

    @handler
    async def readlink(self, node: int, ctx: RequestContext) -> bytes:
        where, filesystem = self.nodes.find(node)
        return filesystem.hurried(filesystem.readlink, where.ino)

    # -- directories ------------------------------------------------------------------------------

    @handler
    async def opendir(self, node: int, ctx: RequestContext) -> int:
        if not self.control.owns(node):
            self.nodes.find(node)
        self._last_listing += 1
        self.listings[self._last_listing] = Listing(node)
        return self._last_listing

    async def readdir(self, handle: int, after: int, token: pyfuse3.ReaddirToken) -> None:
        listing = self.listings[handle]
        await self._readdir(listing.node, listing, after, token)

    @handler
    async def _readdir(self, node: int, listing: Listing, after: int, token: pyfuse3.ReaddirToken) -> None:
        if self.control.owns(node):
            await self.control.readdir(node, after, token)
            return
        where, filesystem = self.nodes.find(node)
        if not after or not listing.before:
            listing.before = filesystem.next_cookie
        filesystem.hurried(self._list, filesystem, where, after, listing.before, token)

    def _list(
        self, filesystem: ReadOnlyFilesystem, where: Node, after: int, before: int, token: pyfuse3.ReaddirToken
    ) -> None:
        replied = 0
        try:
            for name, inode, position in self._entries(filesystem, where, after, before):
                if not pyfuse3.readdir_reply(token, name, self._attributes(inode, where), position):
                    return
                replied += 1
        except Absent:
            # The kernel asks for what comes after these.
            if not replied:
                raise

    @staticmethod
    def _entries(
        filesystem: ReadOnlyFilesystem, where: Node, after: int, before: int
    ) -> Iterator[tuple[bytes, Inode, int]]:
        """Name, inode, and position from which a listing goes on. To `.` and `..` the kernel takes no reference."""
        if after < _DOTS:
            here = filesystem.get(where.ino)
            above = filesystem.get(here.parent or where.ino)
            yield from ((b".", here, 1), (b"..", above, 2))[after:]
        for name, cookie, inode in filesystem.listing(where.ino, max(0, after - _DOTS), before):
            yield name, inode, cookie + _DOTS

    async def releasedir(self, handle: int) -> None:
        del self.listings[handle]


def _missing() -> EntryAttributes:
    """A negative entry, which the kernel may keep."""
    entry = EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = _CACHE_SECONDS
    return entry


def _caller(ctx: Any) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.umask)
