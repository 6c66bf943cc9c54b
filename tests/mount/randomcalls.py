"""Random system calls on a few names and a few open files, from a seed: the same ones in every world.

Only for processes that are confined (confined.py): the calls follow whatever links they have made, as root.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import stat
from collections.abc import Callable
from typing import Any

from tests.mount.calls import ACCESS_ACL, DEFAULT_ACL
from tests.mount.rules import acl
from tests.mount.worlds import (
    EXCHANGE,
    NOREPLACE,
    NOW,
    OMIT,
    ROOT_USER,
    WHITEOUT,
    User,
    World,
    acting,
    fallocate,
    outcome,
)
from tests.mount.worlds import utimensat as set_times

__all__ = ["DEEP", "LONG", "RandomCalls", "Step"]

LONG = b"long" + b"x" * 251
NAMES = (b"a", b"b", b"c", b"d", b"\xff\xfe\n", LONG)
#: A directory far down, which is there from the start.
DEEP = b"/".join([b"deep " + b"y" * 40] * 30)
USERS = (ROOT_USER, ROOT_USER, ROOT_USER, User(1000, 1000, (3000,)), User(1001, 1001, (1000,)))
MODES = (0o644, 0o600, 0o755, 0o777, 0o1777, 0o2777, 0o4755, 0o2755, 0o666, 0o000)
ACCESS = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR, os.O_RDWR)
FLAGS = (
    os.O_EXCL,
    os.O_TRUNC,
    os.O_APPEND,
    os.O_DIRECTORY,
    os.O_NOFOLLOW,
    os.O_DIRECT,
    os.O_SYNC,
    os.O_PATH,
)
SIZES = (0, 1, 100, 1999, 2000, 2001, 4095, 4096, 4097, 10_000, 65_536, 200_000)
XATTRS = ("user.a", "user.b", "trusted.c", "security.d", "system.e", ACCESS_ACL, DEFAULT_ACL)
ACLS = (acl(6, 4, 0), acl(7, 5, 0, mask=7, users={1001: 6}), acl(7, 0, 5, mask=5, groups={3000: 7, 1000: 0}), b"none")
#: No driver has it, so that opening it does nothing.
DEVICE = os.makedev(300, 70000)
Call = Callable[[World], Any]
Made = tuple[str, Call]


class Step:
    """One call: its words, and how to do it."""

    def __init__(self, text: str, user: User, call: Call) -> None:
        self.text = f"{text} as {user.uid}"
        self._user = user
        self._call = call

    def do(self, world: World) -> Any:
        """Its result, errors by name."""
        with acting(self._user):
            return outcome(lambda: self._call(world))


class RandomCalls:
    """A sequence of steps; what comes next depends on the seed only, never on results."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        weights = {
            "open": 20, "close": 2, "read": 8, "write": 14, "append": 3, "ftruncate": 3, "sync": 3, "fstat": 4,
            "map": 3, "copy": 2, "seek": 3, "fallocate": 4, "mkdir": 6, "rmdir": 2, "unlink": 3, "rename": 9, "link": 4,
            "symlink": 2, "readlink": 2, "status": 5, "chmod": 4, "chown": 4, "utime": 4, "truncate": 4, "setxattr": 5,
            "umask": 1, "getxattr": 2, "removexattr": 2, "listxattr": 1, "list": 3, "mknod": 2, "access": 3,
            "through": 4,
        }  # fmt: skip
        self._makers: list[Callable[[], Made]] = [getattr(self, "_" + name) for name in weights]
        self._weights = list(weights.values())

    def step(self) -> Step:
        """The next call."""
        (make,) = self.random.choices(self._makers, self._weights)
        user = self.random.choice(USERS)
        text, call = make()
        return Step(text, user, call)

    def path(self) -> bytes:
        depth = self.random.choice((1, 1, 1, 1, 2, 2, 3))
        path = b"/".join(self.random.choice(NAMES[: 6 if depth == 1 else 4]) for _ in range(depth))
        path += self.random.choice((b"",) * 30 + (b"/", b"/.", b"/..", b"/a" * 2))
        return DEEP + b"/" + path if self.random.random() < 0.06 else path

    def slot(self) -> int:
        return self.random.randrange(3)

    def size(self) -> int:
        return self.random.choice((*SIZES, self.random.randrange(20_000)))

    def data(self) -> bytes:
        size = self.size()
        return self.random.randbytes(64) * (size // 64) + self.random.randbytes(size % 64)

    def heads(self) -> bool:
        return self.random.random() < 0.5

    # -- open files -------------------------------------------------------------------------------

    def _open(self) -> Made:
        # Mostly so that it works: what comes of the calls on open files hangs on it.
        flags = self.random.choice(ACCESS) | os.O_NONBLOCK | (os.O_CREAT if self.random.random() < 0.6 else 0)
        for flag in self.random.sample(FLAGS, self.random.choice((0, 1, 1, 2, 3))):
            flags |= flag
        slot, path, mode = self.slot(), self.path(), self.random.choice(MODES)
        return f"open {slot} {path!r} {flags:#o} {mode:o}", lambda w: w.open(slot, path, flags, mode)

    def _close(self) -> Made:
        slot = self.slot()
        return f"close {slot}", lambda w: w.shut(slot)

    def _read(self) -> Made:
        slot, size, offset = self.slot(), self.size(), self.random.choice((0, 0, *SIZES))
        return f"read {slot} {size} at {offset}", lambda w: os.pread(buffered(w.fd(slot)), size, offset)

    def _write(self) -> Made:
        slot, data, offset = self.slot(), self.data(), self.random.choice((0, 0, *SIZES, 1_000_000))
        return f"write {slot} {len(data)} at {offset}", lambda w: os.pwrite(buffered(w.fd(slot)), data, offset)

    def _append(self) -> Made:
        slot, data = self.slot(), self.data()

        def append(world: World) -> tuple[int, int]:
            fd = buffered(world.fd(slot))
            os.lseek(fd, 0, os.SEEK_END)
            return os.write(fd, data), os.lseek(fd, 0, os.SEEK_CUR)

        return f"append {slot} {len(data)}", append

    def _ftruncate(self) -> Made:
        slot, size = self.slot(), self.size()
        return f"ftruncate {slot} {size}", lambda w: os.ftruncate(w.fd(slot), size)

    def _sync(self) -> Made:
        slot, data_only, drop = self.slot(), self.heads(), self.heads()

        def sync(world: World) -> None:
            fd = world.fd(slot)
            os.fdatasync(fd) if data_only else os.fsync(fd)
            if drop:  # the kernel's copy, so that the next read asks the filesystem
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

        return f"fsync {slot} {data_only} {drop}", sync

    def _fstat(self) -> Made:
        slot = self.slot()
        return f"fstat {slot}", lambda w: w.facts(os.fstat(w.fd(slot)))

    def _map(self) -> Made:
        slot, data, offset, flush = self.slot(), self.random.randbytes(50), self.size(), self.heads()

        def write_mapped(world: World) -> object:
            fd = world.fd(slot)
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or offset + len(data) > found.st_size:
                return None
            with mmap.mmap(fd, found.st_size) as mapped:
                mapped[offset : offset + len(data)] = data
                if flush:
                    mapped.flush()
            return found.st_size

        return f"write mapped {slot} at {offset} {flush}", write_mapped

    def _copy(self) -> Made:
        source, target, size, at, to = self.slot(), self.slot(), self.size(), self.size(), self.size()

        def copy(world: World) -> object:
            return os.copy_file_range(buffered(world.fd(source)), buffered(world.fd(target)), size, at, to)

        return f"copy {source} to {target} {size} from {at} to {to}", copy

    def _seek(self) -> Made:
        slot, offset, whence = self.slot(), self.size(), self.random.choice((os.SEEK_DATA, os.SEEK_HOLE))
        return f"seek {slot} {offset} {whence}", lambda w: seek(w.fd(slot), offset, whence)

    def _fallocate(self) -> Made:
        # Plain and KEEP_SIZE; PUNCH_HOLE and ZERO_RANGE, each without and with KEEP_SIZE.
        slot, mode = self.slot(), self.random.choice((0, 0, 1, 2, 3, 3, 16, 17))
        offset, length = self.random.choice((0, *SIZES)), self.size()
        return f"fallocate {slot} {mode} at {offset} for {length}", lambda w: fallocate(
            w.fd(slot), mode, offset, length
        )

    def _through(self) -> Made:
        """Calls on paths, made on an open file instead, which may have no path any more."""
        slot, mode, name = self.slot(), self.random.choice(MODES), self.random.choice(XATTRS)
        at, uid = self.random.randrange(10**18), self.random.choice((-1, 0, 1000))
        text, call = self.random.choice(
            (
                (f"fchmod {mode:o}", lambda fd: os.fchmod(fd, mode)),
                (f"fchown {uid}", lambda fd: os.fchown(fd, uid, -1)),
                (f"futimens {at}", lambda fd: os.utime(fd, ns=(at, at))),
                (f"fsetxattr {name}", lambda fd: os.setxattr(fd, name, b"value")),
                (f"fgetxattr {name}", lambda fd: os.getxattr(fd, name)),
                ("flistxattr", lambda fd: sorted(os.listxattr(fd))),
            )
        )
        return f"{text} of {slot}", lambda w: call(w.fd(slot))

    # -- names ------------------------------------------------------------------------------------

    def _mkdir(self) -> Made:
        path, mode = self.path(), self.random.choice(MODES)
        return f"mkdir {path!r} {mode:o}", lambda w: os.mkdir(w.at(path), mode)

    def _rmdir(self) -> Made:
        path = self.path()
        return f"rmdir {path!r}", lambda w: os.rmdir(w.at(path))

    def _unlink(self) -> Made:
        path = self.path()
        return f"unlink {path!r}", lambda w: os.unlink(w.at(path))

    def _rename(self) -> Made:
        old, new = self.path(), self.path()
        flags = self.random.choice((0, 0, 0, NOREPLACE, EXCHANGE, EXCHANGE, WHITEOUT, WHITEOUT | NOREPLACE, 3, 6, 8))
        return f"rename {old!r} {new!r} {flags}", lambda w: rename(w, old, new, flags)

    def _link(self) -> Made:
        old, new, follow = self.path(), self.path(), self.random.random() < 0.3
        return f"link {old!r} {new!r} {follow}", lambda w: w.link(old, new, follow=follow)

    def _symlink(self) -> Made:
        path = self.path()
        target = self.random.choice((self.path(), b"t" * 4095, b"u" * 300, b"..", b"../../a", b"/", b"/a/b", b""))
        return f"symlink {path!r} to {target[:20]!r}", lambda w: os.symlink(target, w.at(path))

    def _readlink(self) -> Made:
        path = self.path()
        return f"readlink {path!r}", lambda w: os.readlink(w.at(path))

    def _list(self) -> Made:
        path = self.random.choice((b"", self.path()))
        return f"list {path!r}", lambda w: sorted(os.listdir(w.at(path)))

    def _mknod(self) -> Made:
        path, kind = self.path(), self.random.choice((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFREG))
        mode = kind | self.random.choice(MODES)
        return f"mknod {path!r} {mode:o}", lambda w: os.mknod(w.at(path), mode, DEVICE)

    # -- attributes -------------------------------------------------------------------------------

    def _status(self) -> Made:
        path, follow = self.path(), self.heads()
        return f"stat {path!r} {follow}", lambda w: w.status(path, follow=follow)

    def _access(self) -> Made:
        path = self.path()
        return f"access {path!r}", lambda w: [os.access(w.at(path), bits, effective_ids=True) for bits in (1, 2, 4)]

    def _umask(self) -> Made:
        mask = self.random.choice((0, 0, 0o22, 0o77))
        return f"umask {mask:o}", lambda w: os.umask(mask)

    def _chmod(self) -> Made:
        path, mode = self.path(), self.random.choice(MODES)
        return f"chmod {path!r} {mode:o}", lambda w: os.chmod(w.at(path), mode)

    def _chown(self) -> Made:
        path, uid, gid = self.path(), self.random.choice((-1, 0, 1000, 1001)), self.random.choice((-1, 0, 1000, 3000))
        follow = self.heads()
        return f"chown {path!r} {uid} {gid}", lambda w: os.chown(w.at(path), uid, gid, follow_symlinks=follow)

    def _utime(self) -> Made:
        path, follow = self.path(), self.heads()
        at = (self.random.randrange(10**8), self.random.choice((0, 1, 999_999_999)))
        atime, mtime = self.random.choice(((at, at), (at, (0, OMIT)), ((0, OMIT), at), ((0, NOW), (0, NOW))))
        return f"utimensat {path!r} {atime} {mtime}", lambda w: set_times(w.at(path), atime, mtime, follow=follow)

    def _truncate(self) -> Made:
        path, size = self.path(), self.random.choice((*SIZES, 5_000_000))

        def truncate(world: World) -> None:
            # FUSE takes truncate(2) to the same size for no change, so that the times stay as they were.
            found = outcome(lambda: os.stat(world.at(path)))
            if isinstance(found, str) or not stat.S_ISREG(found.st_mode) or found.st_size != size:
                os.truncate(world.at(path), size)

        return f"truncate {path!r} {size}", truncate

    def _setxattr(self) -> Made:
        path, name = self.path(), self.random.choice(XATTRS)
        value = self.random.randbytes(self.random.choice((0, 9, 99)))
        if name in (ACCESS_ACL, DEFAULT_ACL):
            value = self.random.choice(ACLS)
        flags, follow = self.random.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)), self.heads()

        def give(world: World) -> None:
            os.setxattr(world.at(path), name, value, flags, follow_symlinks=follow)

        return f"setxattr {path!r} {name} {flags} {follow}", give

    def _getxattr(self) -> Made:
        path, name = self.path(), self.random.choice(XATTRS)
        return f"getxattr {path!r} {name}", lambda w: os.getxattr(w.at(path), name)

    def _removexattr(self) -> Made:
        path, name = self.path(), self.random.choice(XATTRS)
        return f"removexattr {path!r} {name}", lambda w: os.removexattr(w.at(path), name)

    def _listxattr(self) -> Made:
        path = self.path()
        return f"listxattr {path!r}", lambda w: sorted(os.listxattr(w.at(path)))


def buffered(fd: int) -> int:
    """Turn O_DIRECT off: what it wants aligned depends on the disk. It has tests of its own."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
    return fd


def rename(world: World, old: bytes, new: bytes, flags: int) -> None:
    """Rename. Ext4 has made the whiteout by the time it finds a directory not empty, and so touched the one above."""
    try:
        world.rename(old, new, flags)
    except OSError as error:
        if flags & WHITEOUT and error.errno == errno.ENOTEMPTY:
            os.utime(os.path.dirname(world.at(old).rstrip(b"/")))
        raise


def seek(fd: int, offset: int, whence: int) -> object:
    """Seek for data or a hole: where it leads may differ, but never over data, nor to a hole that is none."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return "no file"
    size = os.fstat(fd).st_size
    found = outcome(lambda: os.lseek(fd, offset, whence))
    if isinstance(found, str) and not (found == "ENXIO" and whence == os.SEEK_DATA and offset < size):
        return found
    return "sound" if sound(fd, offset, size, whence, found) else f"{found} of {size}"


def sound(fd: int, offset: int, size: int, whence: int, found: int | str) -> bool:
    """Whether what was found agrees with the content; nothing is known of a file that cannot be read."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
        return True
    buffered(fd)
    if whence == os.SEEK_DATA:
        end = size if isinstance(found, str) else found
        return offset <= end <= size and not any(os.pread(fd, end - offset, offset))
    assert isinstance(found, int)
    return offset <= found <= size and not any(os.pread(fd, 1, found))
