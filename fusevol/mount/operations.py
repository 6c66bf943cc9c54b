"""The pyfuse3 handlers of a mounted volume: from the kernel's requests to the filesystem and back.

Node ids: the live tree's inode numbers with the restore generation above them, so that handles from before a
restore are recognised (ESTALE); snapshots' and control files' ids lie in ranges of their own, see `nodes`.
File handles are node ids: a handle has no state. Those of directories have, see `Listing`.
"""

import errno
import os
import stat
from collections.abc import Sequence
from typing import cast

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields

from fusevol.api.io import Buffer
from fusevol.errors import FusevolError, errno_of
from fusevol.fs import Absent, Changes, Fetches, Filesystem, acl
from fusevol.fs.clock import now
from fusevol.fs.layout import BLOCK, NAME_MAX
from fusevol.fs.xattrs import hidden
from fusevol.mount.handling import change, handler
from fusevol.mount.naming import NameOperations
from fusevol.mount.nodes import READING
from fusevol.mount.privileges import drop_privileges, in_group
from fusevol.mount.throttle import Throttle

__all__ = ["VolumeOperations"]


class VolumeOperations(NameOperations):
    """Serves one volume. The docstrings of pyfuse3.Operations say what each handler is for."""

    supports_dot_lookup = True
    enable_writeback_cache = True
    enable_acl = True
    #: `create` and its like do, as default ACLs demand.
    applies_umask = True

    # -- helpers ----------------------------------------------------------------------------------

    def obey(self, throttle: Throttle) -> None:
        """Have reads and writes wait as `throttle` says. Where it bounds none of them, they do not even ask it."""
        self._throttle = throttle
        throttle.told = self._choose_handlers
        self._choose_handlers()

    def _choose_handlers(self) -> None:
        limits = self._throttle.limits
        for name, bounds, waiting in (
            ("read", (limits.read_iops, limits.read_bw_mbytes), self._waiting_read),
            ("write", (limits.write_iops, limits.write_bw_mbytes), self._waiting_write),
        ):
            # pyfuse3 looks them up for every request; what the object has comes before what its class has.
            self.__dict__.pop(name, None)
            if any(bounds):
                setattr(self, name, waiting)

    async def size_of(self, node: int) -> int:
        """How long the kernel takes a file to be. To be replaced where it may know better. Raises OSError."""
        raise OSError(errno.EROFS, "a snapshot")

    def _live(self, node: int, *, content: bool = False, attributes: bool = False) -> tuple[Filesystem, int]:
        """The live filesystem and the inode number, for a change that waits; of what, see `Filesystem.survey`.

        Raises OSError(EROFS, ESTALE), and Absent, as long as something is not at hand that the change needs.
        """
        filesystem, ino = self.nodes.live(node)
        if filesystem.distant:
            filesystem.hurried(lambda: filesystem.survey(ino, content=content, attributes=attributes))
        return filesystem, ino

    # -- attributes -------------------------------------------------------------------------------

    @handler
    async def getattr(self, node: int, ctx: RequestContext | None = None) -> EntryAttributes:
        if self.control.owns(node):
            return self.control.attributes(node)
        where, filesystem = self.nodes.find(node)
        return self._attributes(filesystem.hurried(filesystem.get, where.ino), where)

    @change
    async def setattr(
        self, node: int, attr: EntryAttributes, fields: SetattrFields, handle: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        if self.control.owns(node):
            # A shell's `>` truncates before it writes.
            return self.control.attributes(node)
        owner = fields.update_mode or fields.update_uid or fields.update_gid
        times = (fields.update_atime or fields.update_mtime) and not (fields.update_size or owner)
        filesystem, ino = self._live(node, content=fields.update_size, attributes=not times)
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime=attr.st_atime_ns if fields.update_atime else None,
            mtime=attr.st_mtime_ns if fields.update_mtime else None,
            ctime=attr.st_ctime_ns if fields.update_ctime else None,
        )
        if not any(change is not None for change in changes[:-1]):
            # Nothing asked for: the kernel says so before a write by somebody who may not keep these bits. With
            # ctime it is a chown(2) that changes nothing else, which is for the owner; and always where no write(2)
            # comes here.
            chown = fields.update_ctime or not stat.S_ISREG(filesystem.get(ino).mode)
            drop_privileges(filesystem, ino, ctx, chown=chown)
        elif ctx.uid and (fields.update_size or ((fields.update_uid or fields.update_gid) and not fields.update_mode)):
            drop_privileges(filesystem, ino, ctx)
        return self._reply(node, await filesystem.setattr(ino, changes))

    @handler
    async def getxattr(self, node: int, name: bytes, ctx: RequestContext) -> bytes:
        if self.control.owns(node):
            raise FUSEError(pyfuse3.ENOATTR)
        if self.nodes.is_root(node) and (value := await self.control.getxattr(name)) is not None:
            return value
        where, filesystem = self.nodes.find(node)
        return filesystem.hurried(filesystem.getxattr, where.ino, name)

    @handler
    async def setxattr(self, node: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        if self.nodes.is_root(node):
            try:
                if await self.control.setxattr(name, value, ctx.uid):
                    return
            except FusevolError as error:
                # Not to be called anew, whatever it has restored: a command is carried out once.
                self.report(f"setxattr of {node}: {error}")
                raise OSError(errno_of(error), str(error)) from error
        # Not the whole of it: commands given as attributes go on while changes wait, or wait for changes.
        async with self.changing():
            filesystem, ino = self.nodes.live(node)
            member = name != acl.ACCESS or in_group(filesystem.hurried(filesystem.get, ino).gid, ctx)
            filesystem.attempt(filesystem.setxattr, ino, name, value, 0, member)

    @handler
    async def listxattr(self, node: int, ctx: RequestContext) -> Sequence[bytes]:
        if self.control.owns(node):
            return []
        where, filesystem = self.nodes.find(node)
        names = filesystem.hurried(filesystem.listxattr, where.ino)
        return [name for name in names if not hidden(name, ctx.uid)]

    @change
    async def removexattr(self, node: int, name: bytes, ctx: RequestContext) -> None:
        filesystem, ino = self.nodes.live(node)
        filesystem.attempt(filesystem.removexattr, ino, name)

    @handler
    async def access(self, node: int, mode: int, ctx: RequestContext) -> bool:
        return True

    # -- content ----------------------------------------------------------------------------------

    @handler
    async def open(self, node: int, flags: int, ctx: RequestContext) -> FileInfo:
        if self.control.owns(node):
            return self.control.open(node, flags)
        if flags & os.O_TRUNC:
            async with self.changing():
                return await self._open(node, flags, ctx)
        return await self._open(node, flags, ctx)

    async def _open(self, node: int, flags: int, ctx: RequestContext) -> FileInfo:
        where, filesystem = self.nodes.find(node)
        if where.snapshot and flags & (os.O_ACCMODE | os.O_TRUNC):
            raise OSError(errno.EROFS, "a snapshot")
        if flags & os.O_TRUNC and isinstance(filesystem, Filesystem):
            self._live(node, content=True, attributes=True)
            filesystem.opened(where.ino)
            # The kernel leaves it to us (FUSE_ATOMIC_O_TRUNC), and takes for granted that the size is 0 then.
            try:
                if ctx.uid:
                    drop_privileges(filesystem, where.ino, ctx)
                await filesystem.setattr(where.ino, Changes(size=0, mtime=now()))
            except BaseException:
                filesystem.released(where.ino)
                raise
        else:
            filesystem.hurried(filesystem.get, where.ino)
            if isinstance(filesystem, Filesystem):
                filesystem.opened(where.ino)
        if isinstance(filesystem, Filesystem):
            if flags & os.O_ACCMODE == os.O_RDONLY:
                node |= READING
            else:
                self.writers[node] += 1
        return FileInfo(fh=node, keep_cache=True)

    @handler
    async def read(self, handle: int, offset: int, size: int) -> bytes:
        if self.control.owns(handle):
            return await self.control.read(handle, offset, size)
        where, filesystem = self.nodes.find(handle)
        filesystem.hurried(filesystem.located, where.ino)
        data = await filesystem.read(where.ino, size, offset)
        self.requests.counters.reads += 1
        self.requests.counters.read_bytes += len(data)
        return cast(bytes, data)  # pyfuse3 takes any buffer

    @change
    async def write(self, handle: int, offset: int, data: Buffer) -> int:
        if self.control.owns(handle):
            await self.control.write(handle, bytes(data))
            return len(data)
        filesystem, ino = self._live(handle, content=True, attributes=True)
        written = await filesystem.write(ino, data, offset, timed=True)
        self.requests.counters.writes += 1
        self.requests.counters.write_bytes += written
        return written

    # Before they count as changes, so that those who hold changes back need not wait for them.

    async def _waiting_read(self, handle: int, offset: int, size: int) -> bytes:
        if not self.control.owns(handle):
            with self.requests.waiting("read", handle):
                await self._throttle.read(size)
        return await VolumeOperations.read(self, handle, offset, size)

    async def _waiting_write(self, handle: int, offset: int, data: Buffer) -> int:
        if not self.control.owns(handle):
            with self.requests.waiting("write", handle):
                await self._throttle.write(len(data))
        return await VolumeOperations.write(self, handle, offset, data)

    async def flush(self, handle: int) -> None:
        # Once is enough: the kernel writes dirty pages at close by itself, and asks no more after this answer.
        raise FUSEError(errno.ENOSYS)

    async def fsyncdir(self, handle: int, datasync: bool) -> None:
        await self.fsync(self.listings[handle].node, datasync)

    @handler
    async def fsync(self, handle: int, datasync: bool) -> None:
        if not self.control.owns(handle):
            await self._sync(handle, datasync)

    async def _sync(self, node: int, datasync: bool) -> None:
        _, filesystem = self.nodes.find(node)
        if isinstance(filesystem, Filesystem):  # of a snapshot everything is durable
            await filesystem.sync(times=not datasync)

    @handler
    async def release(self, handle: int) -> None:
        if self.control.owns(handle):
            return
        try:
            where, filesystem = self.nodes.find(handle)
        except OSError:
            pass  # of a tree that a restore replaced
        else:
            if isinstance(filesystem, Filesystem):
                # Has what the file held go, or leaves that to `forget`.
                filesystem.attempt(filesystem.released, where.ino)
        # Last, since all of this may be called anew.
        if self.writers[handle] > 1:
            self.writers[handle] -= 1
        else:
            del self.writers[handle]  # or it was opened only to be read

    # Of these pyfuse3 knows nothing: see `extra`.

    @change
    async def fallocate(self, node: int, mode: int, offset: int, length: int) -> None:
        if self.control.owns(node):
            raise FUSEError(errno.EOPNOTSUPP)
        filesystem, ino = self._live(node, content=True, attributes=True)
        await filesystem.fallocate(ino, mode, offset, length, timed=True)

    @handler
    async def lseek(self, node: int, offset: int, whence: int) -> int:
        """SEEK_DATA or SEEK_HOLE; all else the kernel does by itself."""
        if self.control.owns(node):
            raise FUSEError(errno.ENXIO)
        where, filesystem = self.nodes.find(node)
        hole = whence == os.SEEK_HOLE
        if self.writers[node]:
            # The kernel may hold writes back, which are data. Nobody can write(2) until this is answered.
            try:
                size = await self.size_of(node)
            except OSError as error:
                # All is taken for data then, now and later: not wrong, and nobody but the kernel knows how much it is.
                self.report(f"holes are not looked for any more: {error}")
                raise FUSEError(errno.ENOSYS) from error
            if offset >= size:
                raise FUSEError(errno.ENXIO)
            return size if hole else offset
        filesystem.hurried(filesystem.located, where.ino)
        return filesystem.seek(where.ino, offset, hole=hole)

    # -- the whole --------------------------------------------------------------------------------

    async def forget(self, inodes: Sequence[tuple[int, int]]) -> None:
        for node, _ in inodes:
            if self.nodes.replacing is not None:
                await self.nodes.settled()
            try:
                self.nodes.forget(node)
            except Absent as absent:
                await self._forget(node, absent)

    async def _forget(self, node: int, absent: Absent) -> None:
        try:
            with Fetches() as fetches:
                while True:
                    await fetches.fetch(absent)
                    await self.nodes.settled()
                    try:
                        return self.nodes.forget(node)
                    except Absent as another:
                        absent = another
        except FusevolError as error:
            self.report(f"forget of {node}: {error}")  # the next mount does it

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        await self.nodes.settled()
        try:
            numbers = self.nodes.tree.statfs()
        except FusevolError as error:
            self.report(f"statfs: {error}")
            raise FUSEError(errno_of(error)) from error
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK
        data.f_blocks, data.f_bfree, data.f_bavail = numbers.blocks, numbers.free, numbers.free
        data.f_files, data.f_ffree, data.f_favail = numbers.files, numbers.files_free, numbers.files_free
        data.f_namemax = NAME_MAX
        return data
