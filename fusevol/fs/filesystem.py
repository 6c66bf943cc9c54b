"""Filesystem: a POSIX filesystem in a volume.

Metadata operations are synchronous and change memory and the open transaction only; `sync` makes all of
it durable at once, with the data, as one barrier of the volume. Errors of system calls are OSErrors with
the errno that Linux gives; failures of the store are FusevolErrors.
"""

import errno
import logging
import stat
from contextlib import suppress

from fusevol.api.io import Buffer
from fusevol.errors import CorruptData, FusevolError
from fusevol.fs import acl
from fusevol.fs.arguments import Caller
from fusevol.fs.clock import now
from fusevol.fs.committing import Committing
from fusevol.fs.inodes import Inode, Pinned, fail
from fusevol.fs.layout import BLOCK, INLINE_BYTES, ROOT, SYMLINK_MAX
from fusevol.fs.names import RENAME_EXCHANGE, RENAME_WHITEOUT
from fusevol.fs.quota import ROW_BYTES
from fusevol.fs.readonly import StatFs
from fusevol.fs.vfs import Absent

__all__ = ["Filesystem"]

log = logging.getLogger(__name__)
_ROOT = Caller(0, 0)


class Filesystem(Committing):
    """An open filesystem that may be written to."""

    def survey(self, ino: int, *, content: bool = False, attributes: bool = False) -> None:
        """Look at what a change of a file will look at: of its content, or of what extended attributes go with."""
        inode = self.located(ino) if content else self.get(ino)
        if content and inode.data is not None:
            self._database.one("SELECT max(block) FROM extent WHERE ino = ?", (ino,))  # where it goes as it grows
        if attributes:
            self._xattrs(inode)

    # -- names ------------------------------------------------------------------------------------

    def create(self, parent: int, name: bytes, mode: int, caller: Caller, rdev: int = 0) -> Inode:
        """A new file, directory, FIFO, socket or device, as `mode` says. The set-group-id bit is inherited.

        Raises OSError(EEXIST, ENOENT, EINVAL, ENAMETOOLONG), NoSpace where the store is all but full.
        """
        self._names.check_new(self._directory(parent), name)
        self._may_grow()
        directory = self._directory(parent)
        with self._database.changing():
            inode = self._made(directory, mode, caller, rdev)
            self._names.enter(directory, name, inode)
        self._inodes.add(inode)
        return inode

    def _made(self, directory: Inode, mode: int, caller: Caller, rdev: int = 0) -> Inode:
        """A new inode, and what it inherits from its directory; to be entered there, and added."""
        if directory.mode & stat.S_ISGID and stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
        default = self._xattr(directory, acl.DEFAULT)
        access = None
        if default is None:
            mode &= ~caller.umask
        else:
            mode, access = acl.inherit(acl.parse(default), mode)
        data = b"" if stat.S_ISREG(mode) else None
        self._data.quota.grown(ROW_BYTES)
        inode = self._inodes.make(mode, caller.uid, _group(directory, caller), rdev=rdev, data=data)
        if access is not None:
            self._set_xattr(inode, acl.ACCESS, access)
        if default is not None and inode.is_dir:
            self._set_xattr(inode, acl.DEFAULT, default)
        return inode

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Inode:
        """A symbolic link. Raises OSError(ENAMETOOLONG) for a target over 4,095 bytes, and as `create` does."""
        if len(target) > SYMLINK_MAX:
            raise fail(errno.ENAMETOOLONG)
        self._names.check_new(self._directory(parent), name)
        self._may_grow()
        directory = self._directory(parent)
        self._data.quota.grown(ROW_BYTES + len(target))
        inode = self._inodes.make(stat.S_IFLNK | 0o777, caller.uid, _group(directory, caller), data=target)
        with self._database.changing():
            self._names.enter(directory, name, inode)
        self._inodes.add(inode)
        return inode

    def _may_grow(self) -> None:
        """Raise NoSpace, OSError(ENOSPC) where nothing is to be added. It may commit: before any inode is at hand."""
        if shortage := self.volume.room.shortage():
            raise shortage
        quota = self._data.quota
        if quota.doubtful() and self.volume.path.gate is None:
            self._commit()
        if quota.crowded:
            raise fail(errno.ENOSPC)

    async def _make_room(self) -> None:
        """The store is all but full: have given back what was deleted. Raises NoSpace if that is too little."""
        await self.sync()
        if shortage := self.volume.room.shortage():
            raise shortage

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        """Another name for a file. Raises OSError as link(2)."""
        self._may_grow()
        self._data.quota.grown(ROW_BYTES + len(name))
        inode = self.get(ino)
        with self._database.changing():
            self._names.link(self._directory(parent), name, inode)
        return inode

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name; the file goes with its last one, or with its last open handle. Raises OSError as unlink(2)."""
        self._data.quota.shrank()
        with self._database.changing():
            inode = self._names.unlink(self._directory(parent), name)
        self._reap(inode)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory. Raises OSError as rmdir(2)."""
        self._data.quota.shrank()
        with self._database.changing():
            self._names.rmdir(self._directory(parent), name)

    def rename(
        self, old: int, old_name: bytes, new: int, new_name: bytes, flags: int = 0, caller: Caller = _ROOT
    ) -> None:
        """Rename; flags as in renameat2(2), where `caller` becomes the owner of a whiteout. Raises OSError as there."""
        whiteout = flags & RENAME_WHITEOUT
        if whiteout and flags & RENAME_EXCHANGE:
            raise fail(errno.EINVAL)
        if whiteout:
            self._may_grow()
        directory = self._directory(old)
        left: list[Inode] = []

        def leave() -> Inode:
            # What overlayfs leaves in place of a name that its lower layer has: the device 0:0.
            left.append(self._made(directory, stat.S_IFCHR, caller))
            return left[0]

        target, flags, leaves = self._directory(new), flags & ~RENAME_WHITEOUT, leave if whiteout else None
        with self._database.changing():
            replaced = self._names.rename(directory, old_name, target, new_name, flags, leaves)
        for inode in left:
            self._inodes.add(inode)
        if replaced is not None:
            self._reap(replaced)

    # -- life and death ---------------------------------------------------------------------------

    def opened(self, ino: int) -> None:
        """Count an open handle: the file stays while there are any."""
        self.get(ino).opens += 1

    def released(self, ino: int) -> None:
        """Count a handle that was closed."""
        inode = self.get(ino)
        inode.opens -= 1
        self._reap(inode)

    def forget(self, ino: int) -> None:
        """The kernel does not know the inode any more; if it has no name, it goes."""
        inode = self._inodes.known(ino)
        if inode is not None and not inode.nlink and not inode.opens:
            self._remove(inode)

    # What was deleted is gone for whoever did that, even if what it held cannot be given back: the next mount does it.

    def _reap(self, inode: Inode) -> None:
        """Give back what a nameless file that nobody has open held; the inode itself stays until `forget`."""
        if not inode.nlink and not inode.opens and stat.S_ISREG(inode.mode):
            try:
                if self._data.held(inode):
                    with self._database.changing():
                        self._data.delete(inode)
            except Absent:
                return  # `forget` comes soon
            except FusevolError as error:
                log.warning("what the deleted file %d held is left to the next mount: %s", inode.ino, error)
                return
            self._data.drop(inode)
            inode.size, inode.data = 0, None
            self._inodes.changed(inode)

    def _remove(self, inode: Inode) -> None:
        self._data.quota.shrank()
        try:
            with self._database.changing():
                self._data.delete(inode)
                if inode.xattrs != ():
                    self._database.run("DELETE FROM xattr WHERE ino = ?", (inode.ino,))
                self._database.run("DELETE FROM inode WHERE ino = ?", (inode.ino,))
        except Absent:
            raise
        except FusevolError as error:
            log.warning("the deleted file %d is left to the next mount: %s", inode.ino, error)
            return
        self._data.drop(inode)
        self._inodes.drop(inode)

    # -- content ----------------------------------------------------------------------------------

    async def write(self, ino: int, data: Buffer, offset: int, *, timed: bool = False) -> int:
        """Write to a regular file, which loses its capabilities. Its set-user-id bits are for `drop_privileges`.

        timed: whoever writes sets the times itself with `setattr`, as the kernel does with a write-back cache.

        Raises OSError(ENOSPC, EFBIG), BackendError, Fenced.
        """
        inode = self.get(ino)
        with Pinned(inode):
            quota = self._data.quota
            if quota.doubtful(-(-len(data) // BLOCK) + 1):
                await self.sync()
            # Waiting first makes it likely that all that follows happens at once: no other write comes in between. And
            # many may have waited, with room for each of them when it came.
            await self.volume.throttle()
            while self.volume.room.shortage():
                await self._make_room()
                await self.volume.throttle()
            if inode.data is not None and quota.crowded and inode.size < offset + len(data) <= INLINE_BYTES:
                raise fail(errno.ENOSPC)
            self._drop_capability(inode)
            return await self._data.write(inode, data, offset, timed=timed)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0, member: bool = True) -> None:
        """See Attributes. Raises OSError(ENOSPC), NoSpace too, but for ACLs: who may do what can always be said."""
        if name not in (acl.ACCESS, acl.DEFAULT):
            self._may_grow()
            self._data.quota.grown(ROW_BYTES + len(value))
        super().setxattr(ino, name, value, flags, member)

    async def fallocate(self, ino: int, mode: int, offset: int, length: int, *, timed: bool = False) -> None:
        """fallocate(2): plain, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE. What takes space takes all of it or none.

        timed: as for `write`. Raises OSError(EOPNOTSUPP, EFBIG, ENOSPC), BackendError, Fenced.
        """
        keep_size, punch, zero = mode & 1, mode & 2, mode & 16
        if mode & ~19 or (punch and zero):
            raise fail(errno.EOPNOTSUPP)
        inode = self.get(ino)
        with Pinned(inode):
            if not punch:
                if self.volume.room.shortage():
                    await self._make_room()
                if self._data.quota.doubtful(-(-length // BLOCK) + 1):
                    await self.sync()
            self._drop_capability(inode)
            if punch or zero:
                await self._data.punch(inode, offset, length, keep_blocks=bool(zero), timed=timed)
            else:
                await self._data.preallocate(inode, offset, length, timed=timed)
            if not keep_size and not punch and offset + length > inode.size:
                await self._data.truncate(inode, offset + length, timed=timed)

    # -- the whole --------------------------------------------------------------------------------

    @property
    def used_size(self) -> int:
        """Bytes of file data that are mapped."""
        return self._data.quota.used * BLOCK

    @property
    def size(self) -> int:
        """The quota in bytes; 0 for none."""
        return self._data.quota.limit * BLOCK

    def resize(self, size: int) -> None:
        """Set the quota, in bytes rounded up to blocks; 0 for none. Durable with the next `sync`."""
        self._data.quota.limit = -(-size // BLOCK)
        self._database.have_committed()

    def statfs(self) -> StatFs:
        """What statfs(2) says: of the quota, and of the store where that is known and has less left."""
        capacity = self.volume.room.capacity()
        blocks, free = self._data.quota.space(None if capacity is None else capacity.free // BLOCK)
        return StatFs(blocks, free, self._inodes.count + free, free)

    def format(self) -> None:
        """Make the root directory."""
        born = now()
        root = Inode(ROOT, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 0, 0, born, born, born, born, ROOT, None)
        self._inodes.changed(root)
        self._unborn = True

    async def recover(self) -> None:
        """Finish what an earlier mount left: files deleted while open, discards that were still to come."""
        with suppress(CorruptData):
            for (ino,) in self._database.all("SELECT ino FROM inode WHERE nlink = 0"):
                self._remove(self.get(int(ino)))  # type: ignore[arg-type]
        await self._data.recover()


def _group(directory: Inode, caller: Caller) -> int:
    return directory.gid if directory.mode & stat.S_ISGID else caller.gid
