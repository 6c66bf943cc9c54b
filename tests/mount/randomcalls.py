"""Random system calls on a few names and a few open files, from a seed; each can be done in any number of worlds."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import random
import stat
from collections.abc import Callable
from typing import Any

from tests.mount.worlds import EXCHANGE, NOREPLACE, NOW, OMIT, ROOT_USER, WHITEOUT, User, World, acting, utimensat

__all__ = ["LONG_AGO", "RandomCalls", "Step"]

#: Times that are set explicitly are before this one, all others behind it (2001, in nanoseconds).
LONG_AGO = 1_000_000_000 * 10**9
NAMES = (b"a", b"b", b"c", b"d", b"\xff\xfe\n", b"long" + b"x" * 251)
USERS = (ROOT_USER, ROOT_USER, ROOT_USER, User(1000, 1000, (3000,)), User(1001, 1001, (1000,)))
MODES = (0o644, 0o600, 0o755, 0o777, 0o1777, 0o2777, 0o4755, 0o2755, 0o666, 0o000)
ACCESS = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR)
FLAGS = (
    os.O_CREAT,
    os.O_CREAT,
    os.O_EXCL,
    os.O_TRUNC,
    os.O_APPEND,
    os.O_DIRECTORY,
    os.O_NOFOLLOW,
    os.O_DIRECT,
    os.O_SYNC,
)
SIZES = (0, 1, 100, 1999, 2000, 2001, 4095, 4096, 4097, 10_000, 65_536, 200_000)
XATTRS = ("user.a", "user.b", "trusted.c", "security.d", "system.e")
Call = Callable[[World], Any]


class Step:
    """One call: its words, and how to do it."""

    def __init__(self, text: str, user: User, call: Call) -> None:
        self.text = f"{text} as {user.uid}"
        self.user = user
        self._call = call

    def do(self, world: World) -> Any:
        """Its result, errors by name."""
        with acting(self.user):
            try:
                return self._call(world)
            except OSError as error:
                return errno.errorcode[error.errno or 0]


class RandomCalls:
    """A sequence of steps; what comes next depends on the seed only, never on results."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.calls = [
            (weight, getattr(self, "_" + name))
            for name, weight in {
                "open": 14, "close": 5, "read": 8, "write": 14, "append": 3, "ftruncate": 3, "sync": 1, "fstat": 4,
                "map": 3, "copy": 2, "mkdir": 5, "rmdir": 3, "unlink": 5, "rename": 8, "link": 4, "symlink": 3,
                "readlink": 2, "status": 5, "chmod": 4, "chown": 4, "utime": 3, "truncate": 4, "setxattr": 3,
                "getxattr": 2, "removexattr": 1, "listxattr": 1, "list": 3, "mknod": 2, "fchmod": 1, "allocate": 1,
                "access": 3,
            }.items()
        ]  # fmt: skip

    def step(self) -> Step:
        """The next call."""
        weights = [weight for weight, _ in self.calls]
        (make,) = self.random.choices([call for _, call in self.calls], weights)
        user = self.random.choice(USERS)
        text, call = make()
        return Step(text, user, call)

    def path(self) -> bytes:
        depth = self.random.choice((1, 1, 1, 2, 2, 3))
        path = b"/".join(self.random.choice(NAMES[: 6 if depth == 1 else 4]) for _ in range(depth))
        return path + self.random.choice((b"",) * 30 + (b"/", b"/.", b"/..", b"/a" * 2))

    def slot(self) -> int:
        return self.random.randrange(5)

    def data(self) -> bytes:
        size = self.random.choice(SIZES)
        return self.random.randbytes(64) * (size // 64) + self.random.randbytes(size % 64)

    def _open(self) -> tuple[str, Call]:
        flags = self.random.choice(ACCESS) | os.O_NONBLOCK
        for flag in self.random.sample(FLAGS, self.random.choice((0, 1, 1, 2, 3))):
            flags |= flag
        slot, path, mode = self.slot(), self.path(), self.random.choice(MODES)
        return f"open {slot} {path!r} {flags:#o} {mode:o}", lambda w: w.open(slot, path, flags, mode)

    def _close(self) -> tuple[str, Call]:
        slot = self.slot()
        return f"close {slot}", lambda w: w.shut(slot)

    def _read(self) -> tuple[str, Call]:
        slot, size, offset = self.slot(), self.random.choice(SIZES), self.random.choice((0, 0, *SIZES))

        def read(world: World) -> bytes:
            self._buffered(world.fd(slot))
            return os.pread(world.fd(slot), size, offset)

        return f"read {slot} {size} at {offset}", read

    @staticmethod
    def _buffered(fd: int) -> None:
        """Turn O_DIRECT off: what it wants aligned depends on the disk. It has a test of its own."""
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)

    def _write(self) -> tuple[str, Call]:
        slot, data, offset = self.slot(), self.data(), self.random.choice((0, 0, *SIZES, 1_000_000))

        def write(world: World) -> int:
            self._buffered(world.fd(slot))
            return os.pwrite(world.fd(slot), data, offset)

        return f"write {slot} {len(data)} at {offset}", write

    def _append(self) -> tuple[str, Call]:
        slot, data = self.slot(), self.data()

        def append(world: World) -> tuple[int, int]:
            self._buffered(world.fd(slot))
            os.lseek(world.fd(slot), 0, os.SEEK_END)
            return os.write(world.fd(slot), data), os.lseek(world.fd(slot), 0, os.SEEK_CUR)

        return f"append {slot} {len(data)}", append

    def _ftruncate(self) -> tuple[str, Call]:
        slot, size = self.slot(), self.random.choice(SIZES)
        return f"ftruncate {slot} {size}", lambda w: os.ftruncate(w.fd(slot), size)

    def _sync(self) -> tuple[str, Call]:
        slot, data_only = self.slot(), self.random.random() < 0.5
        return f"fsync {slot}", lambda w: os.fdatasync(w.fd(slot)) if data_only else os.fsync(w.fd(slot))

    def _fstat(self) -> tuple[str, Call]:
        slot = self.slot()
        return f"fstat {slot}", lambda w: w.facts(os.fstat(w.fd(slot)))

    def _map(self) -> tuple[str, Call]:
        slot, data, offset = self.slot(), self.random.randbytes(50), self.random.choice(SIZES)

        def write_mapped(world: World) -> object:
            fd = world.fd(slot)
            size = os.fstat(fd).st_size
            if not stat.S_ISREG(os.fstat(fd).st_mode) or offset + len(data) > size:
                return None
            with mmap.mmap(fd, size) as mapped:
                mapped[offset : offset + len(data)] = data
            return size

        return f"write mapped {slot} at {offset}", write_mapped

    def _copy(self) -> tuple[str, Call]:
        source, target, size, at, to = self.slot(), self.slot(), *self.random.choices(SIZES, k=3)

        def copy(world: World) -> object:
            self._buffered(world.fd(source))
            self._buffered(world.fd(target))
            with contextlib.suppress(OSError):  # which files can be copied so differs
                return os.copy_file_range(world.fd(source), world.fd(target), size, at, to)
            return None

        return f"copy {source} to {target} {size} from {at} to {to}", copy

    def _mkdir(self) -> tuple[str, Call]:
        path, mode = self.path(), self.random.choice(MODES)
        return f"mkdir {path!r} {mode:o}", lambda w: os.mkdir(w.at(path), mode)

    def _rmdir(self) -> tuple[str, Call]:
        path = self.path()
        return f"rmdir {path!r}", lambda w: os.rmdir(w.at(path))

    def _unlink(self) -> tuple[str, Call]:
        path = self.path()
        return f"unlink {path!r}", lambda w: os.unlink(w.at(path))

    def _rename(self) -> tuple[str, Call]:
        old, new = self.path(), self.path()
        flags = self.random.choice((0, 0, 0, NOREPLACE, EXCHANGE, EXCHANGE, WHITEOUT, WHITEOUT | NOREPLACE, 3, 6, 8))
        return f"rename {old!r} {new!r} {flags}", lambda w: w.rename(old, new, flags)

    def _link(self) -> tuple[str, Call]:
        old, new, follow = self.path(), self.path(), self.random.random() < 0.3
        return f"link {old!r} {new!r} {follow}", lambda w: w.link(old, new, follow=follow)

    def _symlink(self) -> tuple[str, Call]:
        path, target = self.path(), self.random.choice((self.path(), b"t" * 4095, b"u" * 300, b"..", b"/dev/null", b""))
        return f"symlink {path!r} to {target[:20]!r}", lambda w: os.symlink(target, w.at(path))

    def _readlink(self) -> tuple[str, Call]:
        path = self.path()
        return f"readlink {path!r}", lambda w: os.readlink(w.at(path))

    def _status(self) -> tuple[str, Call]:
        path, follow = self.path(), self.random.random() < 0.5
        return f"stat {path!r} {follow}", lambda w: w.status(path, follow=follow)

    def _access(self) -> tuple[str, Call]:
        path = self.path()
        return f"access {path!r}", lambda w: [os.access(w.at(path), bits, effective_ids=True) for bits in (1, 2, 4)]

    def _chmod(self) -> tuple[str, Call]:
        path, mode = self.path(), self.random.choice(MODES)
        return f"chmod {path!r} {mode:o}", lambda w: os.chmod(w.at(path), mode)

    def _fchmod(self) -> tuple[str, Call]:
        slot, mode = self.slot(), self.random.choice(MODES)
        return f"fchmod {slot} {mode:o}", lambda w: os.fchmod(w.fd(slot), mode)

    def _chown(self) -> tuple[str, Call]:
        path, uid, gid = self.path(), self.random.choice((-1, 0, 1000, 1001)), self.random.choice((-1, 0, 1000, 3000))
        follow = self.random.random() < 0.5
        return f"chown {path!r} {uid} {gid}", lambda w: os.chown(w.at(path), uid, gid, follow_symlinks=follow)

    def _utime(self) -> tuple[str, Call]:
        path, follow = self.path(), self.random.random() < 0.5
        at = (self.random.randrange(10**8), self.random.choice((0, 1, 999_999_999)))
        atime, mtime = self.random.choice(((at, at), (at, (0, OMIT)), ((0, OMIT), at), ((0, NOW), (0, NOW))))
        return f"utimensat {path!r} {atime} {mtime}", lambda w: utimensat(w.at(path), atime, mtime, follow=follow)

    def _truncate(self) -> tuple[str, Call]:
        path, size = self.path(), self.random.choice((*SIZES, 5_000_000))
        return f"truncate {path!r} {size}", lambda w: os.truncate(w.at(path), size)

    def _allocate(self) -> tuple[str, Call]:
        slot, offset, size = self.slot(), self.random.choice(SIZES), self.random.choice((0, 1, 5000, 100_000))

        def allocate(world: World) -> None:
            # Without FUSE_FALLOCATE the C library writes zeros, which takes a file open for both, and not to append.
            flags = fcntl.fcntl(world.fd(slot), fcntl.F_GETFL)
            if flags & os.O_ACCMODE == os.O_RDWR and not flags & os.O_APPEND:
                self._buffered(world.fd(slot))
                os.posix_fallocate(world.fd(slot), offset, size)

        return f"posix_fallocate {slot} {offset} {size}", allocate

    def _setxattr(self) -> tuple[str, Call]:
        path, name, value = (
            self.path(),
            self.random.choice(XATTRS),
            self.random.randbytes(self.random.choice((0, 9, 99))),
        )
        flags, follow = self.random.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)), self.random.random() < 0.5
        return f"setxattr {path!r} {name} {flags}", lambda w: os.setxattr(
            w.at(path), name, value, flags, follow_symlinks=follow
        )

    def _getxattr(self) -> tuple[str, Call]:
        path, name = self.path(), self.random.choice(XATTRS)
        return f"getxattr {path!r} {name}", lambda w: os.getxattr(w.at(path), name)

    def _removexattr(self) -> tuple[str, Call]:
        path, name = self.path(), self.random.choice(XATTRS)
        return f"removexattr {path!r} {name}", lambda w: os.removexattr(w.at(path), name)

    def _listxattr(self) -> tuple[str, Call]:
        path = self.path()
        return f"listxattr {path!r}", lambda w: sorted(os.listxattr(w.at(path)))

    def _list(self) -> tuple[str, Call]:
        path = self.random.choice((b"", self.path()))
        return f"list {path!r}", lambda w: sorted(os.listdir(w.at(path)))

    def _mknod(self) -> tuple[str, Call]:
        path, kind = self.path(), self.random.choice((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFREG))
        mode, device = kind | self.random.choice(MODES), os.makedev(1, 3)
        return f"mknod {path!r} {mode:o}", lambda w: os.mknod(w.at(path), mode, device)
