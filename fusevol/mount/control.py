"""The control directory `.fusevol` in a mount's root, and the extended attributes on the root.

Files to write to are commands; a command that fails fails the write(2), with the errno that says why.
Files to read are numbers or JSON. `snapshots/NAME` is that snapshot's tree, read-only.
"""

import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo

from fusevol.fs.layout import BLOCK, ROOT
from fusevol.mount.nodes import CONTROL_NODE, Node
from fusevol.mount.quiesce import parse_seconds
from fusevol.mount.served import Served, snapshot_record
from fusevol.mount.steering import Steering

__all__ = ["Control", "NoControl"]

_PREFIX = b"user.fusevol."
_SNAPSHOTS = CONTROL_NODE + 1
_FIRST_FILE = CONTROL_NODE + 2
_MAX_COMMAND = 64 * 1024

Read = Callable[[], Awaitable[Any]]
Write = Callable[[str], Awaitable[object]]


class Control:
    """The control files of one mount. mode: "rw", "ro" (nothing to write to) or "off" (no directory)."""

    def __init__(self, served: Served, steering: Steering, mode: str = "rw", uid: int = 0, gid: int = 0) -> None:
        self._served = served
        self._steering = steering
        self._mode = mode
        self._owner = (uid, gid)
        self._now = time.time_ns()
        self._contents: dict[int, bytes] = {}
        self.enabled = mode != "off"
        files: dict[bytes, tuple[Read | None, Write | None]] = {
            b"snapshot": (self._last_snapshot, self._snapshot),
            b"restore": (self._last_restore, self._restore),
            b"delete-snapshot": (None, served.delete_snapshot),
            b"flush": (self._durability, self._flush),
            b"quiesce": (self._quiesced, self._quiesce),
            b"unquiesce": (self._quiesced, self._unquiesce),
            b"reclaim": (self._reclaimable, self._reclaim),
            b"size": (self._size, self._resize),
            b"settings": (self._settings, self._reload),
            b"used_size": (served.used_size, None),
            b"active_requests": (self._active_count, None),
            b"requests": (self._active, None),
            b"stats": (served.stats, None),
            b"status": (self._status, None),
            b"volume": (self._volume, None),
        }
        self._files = {name: _FIRST_FILE + number for number, name in enumerate(files)}
        self._calls = {_FIRST_FILE + number: calls for number, calls in enumerate(files.values())}

    # -- the tree ---------------------------------------------------------------------------------

    def owns(self, node: int) -> bool:
        """Whether a node id is one of these."""
        return node >= CONTROL_NODE

    def attributes(self, node: int) -> EntryAttributes:
        """Attributes of a control file or directory."""
        entry = EntryAttributes()
        entry.st_ino = node
        entry.st_uid, entry.st_gid = self._owner
        entry.st_blksize = BLOCK
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._now
        if node in (CONTROL_NODE, _SNAPSHOTS):
            entry.st_mode, entry.st_nlink = stat.S_IFDIR | 0o755, 2
            return entry
        if node not in self._calls:
            raise OSError(errno.ESTALE, "no control file")
        read, write = self._calls[node]
        writable = write is not None and self._mode == "rw"
        entry.st_mode = stat.S_IFREG | (0o444 if read else 0) | (0o200 if writable else 0)
        entry.st_nlink = 1
        return entry

    async def lookup(self, parent: int, name: bytes) -> EntryAttributes:
        """A name in the control directory, or the directory itself in the root. Raises OSError(ENOENT)."""
        if parent == ROOT:
            return self.attributes(CONTROL_NODE)
        if name == b".":
            return self.attributes(parent)
        if parent == CONTROL_NODE:
            if name == b"snapshots":
                return self.attributes(_SNAPSHOTS)
            if name in self._files:
                return self.attributes(self._files[name])
        elif parent == _SNAPSHOTS and (found := await self._served.open_snapshot(os.fsdecode(name))):
            number, filesystem = found
            inode = filesystem.get(ROOT)
            entry = EntryAttributes()
            entry.st_ino = Node(0, number, ROOT).number(ROOT)
            # A snapshot can go, and another can get its name.
            entry.entry_timeout = entry.attr_timeout = 0
            entry.st_mode = inode.mode
            entry.st_nlink = inode.nlink
            entry.st_uid, entry.st_gid = inode.uid, inode.gid
            entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = inode.atime, inode.mtime, inode.ctime
            return entry
        raise OSError(errno.ENOENT, "no such control file")

    async def readdir(self, node: int, after: int, token: pyfuse3.ReaddirToken) -> None:
        """List the control directory, or the snapshots."""
        if node == CONTROL_NODE:
            names = [(name, self.attributes(number)) for name, number in sorted(self._files.items())]
            names.append((b"snapshots", self.attributes(_SNAPSHOTS)))
        else:
            names = []
            for snapshot in self._served.volume.snapshots():
                name = os.fsencode(snapshot.name)
                names.append((name, await self.lookup(_SNAPSHOTS, name)))
        for position, (name, entry) in enumerate(names[after:], after + 1):
            if not pyfuse3.readdir_reply(token, name, entry, position):
                return

    # -- files ------------------------------------------------------------------------------------

    def open(self, node: int, flags: int) -> FileInfo:
        """Open a control file: not cached, so that every read asks anew. Raises OSError(EACCES, EROFS)."""
        read, write = self._calls[node]
        access = flags & os.O_ACCMODE
        if access != os.O_RDONLY and write is None:
            raise OSError(errno.EACCES, "only to be read")
        if access != os.O_RDONLY and self._mode != "rw":
            raise OSError(errno.EROFS, "control files are read-only here")
        if access != os.O_WRONLY and read is None:
            raise OSError(errno.EACCES, "only to be written")
        self._contents.pop(node, None)
        return FileInfo(fh=node, direct_io=True, keep_cache=False, nonseekable=True)

    async def read(self, node: int, offset: int, size: int) -> bytes:
        """Part of the content, which is made anew at the beginning of each reading."""
        read = self._calls[node][0]
        if read is None:
            raise OSError(errno.EACCES, "only to be written")
        if not offset or node not in self._contents:
            self._contents[node] = _text(await read())
        return self._contents[node][offset : offset + size]

    async def write(self, node: int, data: bytes) -> None:
        """Run a command. Raises OSError(EINVAL) for what is none, and what the command raises."""
        write = self._calls[node][1]
        if write is None:
            raise OSError(errno.EACCES, "only to be read")
        if len(data) > _MAX_COMMAND:
            raise OSError(errno.EINVAL, "too long")
        try:
            await write(data.decode().strip())
        except UnicodeDecodeError:
            raise OSError(errno.EINVAL, "not text") from None

    # -- extended attributes ----------------------------------------------------------------------

    async def getxattr(self, name: bytes) -> bytes | None:
        """Value of one of the root's own attributes, or None where it is an ordinary one."""
        reads: dict[bytes, Read] = {
            b"volume_id": self._volume_id,
            b"name": self._name,
            b"size": self._size,
            b"used_size": self._served.used_size,
            b"active_requests": self._active_count,
            b"stats": self._served.stats,
            b"state": self._state,
            b"snapshots": self._snapshots,
        }
        read = reads.get(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
        if read is None:
            return None
        with self._served.requests.asking():
            return _text(await read()).rstrip(b"\n")

    async def setxattr(self, name: bytes, value: bytes, uid: int) -> bool:
        """Run a command given as an attribute by user `uid`; whether it was one.

        Raises OSError(EPERM) for those to read, and for users who may not write to the control files either: the
        kernel only asks for the right to write to the root, which anybody may have.
        """
        if not name.startswith(_PREFIX):
            return False
        command = name.removeprefix(_PREFIX)
        if command not in (b"snapshot", b"restore"):
            raise OSError(errno.EPERM, "only to be read")
        if uid not in (0, self._owner[0]):
            raise OSError(errno.EPERM, "only for who owns the control files")
        if self._mode != "rw":
            raise OSError(errno.EROFS, "control is read-only here")
        await self.write(self._files[command], value.rstrip(b"\0"))
        return True

    # -- what they do -----------------------------------------------------------------------------

    async def _snapshot(self, text: str) -> None:
        name, *pairs = text.split() or [""]
        labels = {}
        for pair in pairs:
            key, sign, value = pair.partition("=")
            if not sign or not key:
                raise OSError(errno.EINVAL, "labels are k=v")
            labels[key] = value
        await self._served.snapshot(name, labels)

    async def _restore(self, text: str) -> None:
        await self._served.restore(text)

    async def _flush(self, _: str) -> None:
        await self._served.flush()

    async def _reclaim(self, _: str) -> None:
        await self._served.reclaim()

    async def _reclaimable(self) -> object:
        return (await self._served.volume.usage()).reclaimable

    async def _quiesce(self, text: str) -> None:
        await self._served.hold(parse_seconds(text))

    async def _unquiesce(self, _: str) -> None:
        self._served.quiesce.end("unquiesced")

    async def _quiesced(self) -> object:
        return self._served.quiesce.state()

    async def _resize(self, text: str) -> None:
        if not text.isascii() or not text.isdigit():
            raise OSError(errno.EINVAL, "not a number of bytes")
        await self._served.resize(int(text))

    async def _settings(self) -> object:
        return self._steering.state()

    async def _reload(self, _: str) -> None:
        await self._steering.reload()

    async def _last_snapshot(self) -> object:
        last = self._served.last_snapshot
        return snapshot_record(last) if last else None

    async def _last_restore(self) -> object:
        return self._served.last_restore

    async def _durability(self) -> object:
        return self._served.volume.durability._asdict()

    async def _active_count(self) -> int:
        return len(self._served.requests)

    async def _active(self) -> object:
        return self._served.active()

    async def _status(self) -> object:
        return self._served.status() | {"schedule": self._steering.scheduler.state()}

    async def _volume(self) -> object:
        return {
            "id": self._served.volume.volume_id,
            "name": self._served.name,
            "snapshots": self._served.snapshot_list(),
        }

    async def _volume_id(self) -> object:
        return self._served.volume.volume_id

    async def _name(self) -> object:
        return self._served.name

    async def _size(self) -> object:
        return self._served.nodes.filesystem.size

    async def _state(self) -> object:
        return self._served.status()["state"]

    async def _snapshots(self) -> object:
        return [snapshot["name"] for snapshot in self._served.snapshot_list()]


class NoControl(Control):
    """What a mount has that is to have no control files and no attributes of its own either."""

    def __init__(self) -> None:
        self.enabled = False

    def owns(self, node: int) -> bool:
        """No node is one of these."""
        return False

    async def getxattr(self, name: bytes) -> bytes | None:
        """None: all attributes are ordinary ones."""
        return None

    async def setxattr(self, name: bytes, value: bytes, uid: int) -> bool:
        """False: all attributes are ordinary ones."""
        return False


def _text(value: Any) -> bytes:
    """Numbers and names as they are, everything else as JSON; one line."""
    return (value.encode() if isinstance(value, str) else msgspec.json.encode(value)) + b"\n"
