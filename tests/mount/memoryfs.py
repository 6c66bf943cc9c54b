"""A filesystem in memory, enough to see what a mount sends; run as a program, it serves one mount.

    memoryfs.py MOUNTPOINT RESULT [--option NAME=JSON ...] [--attribute NAME=JSON ...]

It counts requests by operation and notes the size of each read and write. A file `.requests` in its root reads
as these notes in JSON, `.ticks` as what a background task counted. What `serve` raised goes to the
file RESULT as JSON, as does the fact that it is ready.
"""

from __future__ import annotations

import argparse
import collections
import errno
import json
import logging
import os
import signal
import socket
import stat
import sys
import time
from pathlib import Path

import pyfuse3
import trio

from fusevol.errors import FusevolError, NotSupported
from fusevol.mount import handshake
from fusevol.mount.kernel import invalidate_entry, invalidate_inode, sync_filesystem
from fusevol.mount.options import MountOptions
from fusevol.mount.protocol import InitReply, InitRequest
from fusevol.mount.session import serve

REQUESTS, TICKS = b".requests", b".ticks"


class Node:
    def __init__(self, inode: int, mode: int, uid: int, gid: int) -> None:
        self.inode, self.mode, self.uid, self.gid = inode, mode, uid, gid
        self.data = bytearray()
        self.names: dict[bytes, int] = {}
        self.mtime = time.time_ns()


class MemoryFs(pyfuse3.Operations):
    enable_writeback_cache = True
    #: Seconds every read waits, in a way that lets others run.
    slow_read = 0.0
    mountpoint = Path()

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.reads: collections.Counter[int] = collections.Counter()
        self.writes: collections.Counter[int] = collections.Counter()
        self.reading = self.most_reading = 0
        self.ticks = 0
        self.longest_gap = 0.0
        self.nodes = {1: Node(1, stat.S_IFDIR | 0o777, os.getuid(), os.getgid())}
        self.special: dict[bytes, int] = {}
        self.next = 2
        for name in (REQUESTS, TICKS):
            self.special[name] = self.make(1, name, stat.S_IFREG | 0o444, os.getuid(), os.getgid()).inode

    def make(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Node:
        node = self.nodes[self.next] = Node(self.next, mode, uid, gid)
        self.nodes[parent].names[name] = self.next
        self.next += 1
        return node

    def attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(node.inode)
        entry.st_mode = pyfuse3.ModeT(node.mode)
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = node.uid, node.gid
        entry.st_size = 1 << 20 if node.inode in self.special.values() else len(node.data)
        entry.st_blksize = 4096
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = node.mtime
        entry.entry_timeout = entry.attr_timeout = 3600
        return entry

    async def lookup(self, parent_inode, name, ctx=None):  # type: ignore[no-untyped-def]
        self.counts["lookup"] += 1
        found = self.nodes[parent_inode].names.get(name)
        if found is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self.attributes(self.nodes[found])

    async def getattr(self, inode, ctx=None):  # type: ignore[no-untyped-def]
        self.counts["getattr"] += 1
        return self.attributes(self.nodes[inode])

    async def setattr(self, inode, attr, fields, fh, ctx):  # type: ignore[no-untyped-def]
        self.counts["setattr"] += 1
        node = self.nodes[inode]
        if not any(getattr(fields, name) for name in dir(fields) if name.startswith("update_")):
            self.counts["setattr of nothing"] += 1
            node.mode &= ~(stat.S_ISUID | stat.S_ISGID)
        if fields.update_size:
            del node.data[attr.st_size :]
            node.data.extend(bytes(attr.st_size - len(node.data)))
        if fields.update_mode:
            node.mode = attr.st_mode
        if fields.update_mtime:
            node.mtime = attr.st_mtime_ns
        return self.attributes(node)

    async def create(self, parent_inode, name, mode, flags, ctx):  # type: ignore[no-untyped-def]
        self.counts["create"] += 1
        node = self.make(parent_inode, name, mode, ctx.uid, ctx.gid)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(node.inode)), self.attributes(node)

    async def unlink(self, parent_inode, name, ctx):  # type: ignore[no-untyped-def]
        self.counts["unlink"] += 1
        del self.nodes[parent_inode].names[name]

    async def open(self, inode, flags, ctx):  # type: ignore[no-untyped-def]
        self.counts["open"] += 1
        node = self.nodes[inode]
        if flags & os.O_TRUNC:
            node.data.clear()
        return pyfuse3.FileInfo(fh=inode, direct_io=inode in self.special.values())

    async def read(self, fh, off, size):  # type: ignore[no-untyped-def]
        if fh == self.special[REQUESTS]:
            return self.notes()[off : off + size]
        if fh == self.special[TICKS]:
            return json.dumps([self.ticks, self.longest_gap]).encode()[off : off + size]
        self.counts["read"] += 1
        self.reads[size] += 1
        data = bytes(memoryview(self.nodes[fh].data)[off : off + size])
        if self.slow_read:
            self.reading += 1
            self.most_reading = max(self.reading, self.most_reading)
            await trio.sleep(self.slow_read)
            self.reading -= 1
        if data == b"raise":
            raise ZeroDivisionError("asked to")
        return data

    async def write(self, fh, off, buf):  # type: ignore[no-untyped-def]
        self.counts["write"] += 1
        self.writes[len(buf)] += 1
        data = self.nodes[fh].data
        if len(data) < off:
            data.extend(bytes(off - len(data)))
        data[off : off + len(buf)] = buf
        return len(buf)

    async def flush(self, fh):  # type: ignore[no-untyped-def]
        self.counts["flush"] += 1
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def fsync(self, fh, datasync):  # type: ignore[no-untyped-def]
        self.counts["fsync"] += 1

    async def release(self, fh):  # type: ignore[no-untyped-def]
        self.counts["release"] += 1

    async def forget(self, inode_list):  # type: ignore[no-untyped-def]
        self.counts["forget"] += 1

    async def opendir(self, inode, ctx):  # type: ignore[no-untyped-def]
        self.counts["opendir"] += 1
        return inode

    async def releasedir(self, fh):  # type: ignore[no-untyped-def]
        self.counts["releasedir"] += 1

    async def readdir(self, fh, start_id, token):  # type: ignore[no-untyped-def]
        self.counts["readdir"] += 1
        for number, (name, inode) in enumerate(list(self.nodes[fh].names.items()), 1):
            if number > start_id and not pyfuse3.readdir_reply(token, name, self.attributes(self.nodes[inode]), number):
                break

    async def getxattr(self, inode, name, ctx):  # type: ignore[no-untyped-def]
        self.counts["getxattr " + name.decode()] += 1
        raise pyfuse3.FUSEError(pyfuse3.ENOATTR)

    async def setxattr(self, inode, name, value, ctx):  # type: ignore[no-untyped-def]
        """Things to do behind the kernel's back; asked of `.requests`, so that nothing else is locked meanwhile."""
        before, _, after = value.partition(b"=")
        names = self.nodes[1].names
        if name == b"user.sync":
            await sync_filesystem(self.mountpoint)
        elif name == b"user.replace":
            self.nodes[names[before]].data[:] = after
            await invalidate_inode(names[before])
            await invalidate_inode(12345)
        elif name == b"user.rename":
            names[after] = names.pop(before)
            await invalidate_entry(1, before)
            await invalidate_entry(1, b"unknown")
        else:
            raise pyfuse3.FUSEError(errno.ENOTSUP)

    async def statfs(self, ctx):  # type: ignore[no-untyped-def]
        self.counts["statfs"] += 1
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = 1 << 20
        data.f_files = data.f_ffree = data.f_favail = 1 << 20
        data.f_namemax = 255
        return data

    def notes(self) -> bytes:
        notes = {"counts": self.counts, "reads": self.reads, "writes": self.writes, "most_reading": self.most_reading}
        return json.dumps(notes).encode()

    async def tick(self) -> None:
        last = trio.current_time()
        while True:
            await trio.sleep(0.005)
            now = trio.current_time()
            self.ticks += 1
            self.longest_gap = max(self.longest_gap, now - last)
            last = now


def note(path: Path, **fields: object) -> None:
    """Write the notes whole or not at all, so that who waits for them never reads half of them."""
    path.with_suffix(".new").write_text(json.dumps(fields))
    path.with_suffix(".new").rename(path)


async def strange_reply(ours: socket.socket, number: int, request: InitRequest) -> InitReply:
    await trio.lowlevel.checkpoint()
    raise NotSupported("this libfuse is strange")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint", type=os.fsencode)
    parser.add_argument("result", type=Path)
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--attribute", action="append", default=[])
    parser.add_argument("--tick", action="store_true")
    parser.add_argument("--strange-libfuse", action="store_true", help="as if libfuse did not take our INIT")
    arguments = parser.parse_args()
    if arguments.strange_libfuse:
        handshake._library_reply = strange_reply
    options = dict(word.split("=", 1) for word in arguments.option)
    attributes = dict(word.split("=", 1) for word in arguments.attribute)
    operations = MemoryFs()
    for name, value in attributes.items():
        setattr(operations, name, json.loads(value))
    operations.mountpoint = Path(os.fsdecode(arguments.mountpoint))
    ended: dict[str, object] = {"ended": "unmounted"}
    async with trio.open_nursery() as nursery:
        if arguments.tick:
            nursery.start_soon(operations.tick)

        async def terminate(task_status: trio.TaskStatus[None]) -> None:
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                task_status.started()
                async for _ in signals:
                    nursery.cancel_scope.cancel()

        await nursery.start(terminate)
        try:
            await serve(
                operations,
                operations.mountpoint,
                MountOptions(**{name: json.loads(value) for name, value in options.items()}),
                ready=lambda: note(arguments.result.with_suffix(".ready"), pid=os.getpid()),
            )
        except FusevolError as error:
            ended = {"ended": "error", "type": type(error).__name__, "message": str(error), "hint": error.hint}
        except ArithmeticError as error:
            ended = {"ended": "error", "type": type(error).__name__, "message": str(error)}
        except trio.Cancelled:
            ended = {"ended": "cancelled"}
            raise
        finally:
            files = {
                os.fsdecode(name): len(operations.nodes[inode].data)
                for name, inode in operations.nodes[1].names.items()
            }
            note(arguments.result, **ended, **json.loads(operations.notes()), files=files)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.DEBUG if os.environ.get("DEBUG") else logging.INFO)
    trio.run(main)
