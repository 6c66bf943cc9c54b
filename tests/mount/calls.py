"""Calls to compare: every one that takes a path, every one on an open file, and what has to be there for them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from functools import partial

from tests.mount.worlds import EXCHANGE, NOREPLACE, NOW, OMIT, WHITEOUT, User, World, utimensat

__all__ = [
    "ACCESS_ACL",
    "DEFAULT_ACL",
    "KINDS",
    "MEMBER",
    "OTHER",
    "OWNER",
    "Call",
    "make_in",
    "on_file",
    "on_path",
    "one_of_each",
    "opened",
    "own",
    "spares",
]

OWNER = User(1000, 1000, (3000,))
MEMBER = User(1002, 1002, (1000,))
OTHER = User(1001, 1001)
KINDS = ("file", "dir", "fifo", "sock", "char", "block", "link")
ACCESS_ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
Call = Callable[[World], object]


def own(world: World, path: bytes, user: User, mode: int | None = None) -> None:
    """Give it to a user; the mode last, because a change of owner takes bits away."""
    os.chown(world.at(path), user.uid, user.gid, follow_symlinks=False)
    if mode is not None:
        os.chmod(world.at(path), mode)


def opened(world: World, path: bytes, flags: int, mode: int = 0o640) -> None:
    os.close(os.open(world.at(path), flags | os.O_NONBLOCK, mode))


def through(world: World, path: bytes, call: Callable[[int], object], flags: int = os.O_RDWR) -> object:
    """A call on an open file."""
    fd = os.open(world.at(path), flags | os.O_NONBLOCK)
    try:
        return call(fd)
    finally:
        os.close(fd)


def set_times(world: World, path: bytes) -> object:
    utimensat(world.at(path), (1, 2), (3, 4))
    found = os.stat(world.at(path))
    return found.st_atime_ns, found.st_mtime_ns


def set_attribute(world: World, path: bytes, name: str) -> None:
    os.setxattr(world.at(path), name, b"v")


def get_attribute(world: World, path: bytes, name: str) -> bytes:
    return os.getxattr(world.at(path), name)


def make_in(world: World, kind: str, mode: int) -> None:
    world.make(kind, b"d/x", mode)


def on_path(path: bytes) -> Iterator[tuple[str, Call]]:
    """Every call that takes one path."""
    yield "stat", lambda w: w.status(path, follow=True)
    yield "lstat", lambda w: w.status(path)
    yield "access", lambda w: [os.access(w.at(path), mode, effective_ids=True) for mode in range(8)]
    yield "open to read", lambda w: opened(w, path, os.O_RDONLY)
    yield "open to write", lambda w: opened(w, path, os.O_WRONLY)
    yield "open for both", lambda w: opened(w, path, os.O_RDWR)
    yield "open and truncate", lambda w: opened(w, path, os.O_WRONLY | os.O_TRUNC)
    yield "open or create", lambda w: opened(w, path, os.O_RDWR | os.O_CREAT)
    yield "create", lambda w: opened(w, path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    yield "open a directory", lambda w: opened(w, path, os.O_RDONLY | os.O_DIRECTORY)
    yield "open no symbolic link", lambda w: opened(w, path, os.O_RDONLY | os.O_NOFOLLOW)
    yield "open as a path", lambda w: opened(w, path, os.O_PATH)
    yield "list", lambda w: sorted(os.listdir(w.at(path)))
    yield "mkdir", lambda w: os.mkdir(w.at(path), 0o750)
    yield "mkfifo", lambda w: os.mkfifo(w.at(path), 0o640)
    yield "mknod socket", lambda w: os.mknod(w.at(path), stat.S_IFSOCK | 0o600)
    yield "mknod file", lambda w: os.mknod(w.at(path), stat.S_IFREG | 0o604)
    yield "mknod char", lambda w: os.mknod(w.at(path), stat.S_IFCHR | 0o600, os.makedev(300, 70000))
    yield "mknod block", lambda w: os.mknod(w.at(path), stat.S_IFBLK | 0o600, os.makedev(7, 1))
    yield "symlink", lambda w: os.symlink(b"to", w.at(path))
    yield "readlink", lambda w: os.readlink(w.at(path))
    yield "unlink", lambda w: os.unlink(w.at(path))
    yield "rmdir", lambda w: os.rmdir(w.at(path))
    yield "truncate", lambda w: os.truncate(w.at(path), 7)
    yield "truncate to the same size", lambda w: os.truncate(w.at(path), 4)
    yield "truncate below zero", lambda w: os.truncate(w.at(path), -1)
    yield "chmod", lambda w: os.chmod(w.at(path), 0o640)
    yield "chmod to special bits", lambda w: os.chmod(w.at(path), 0o7755)
    yield "chown to oneself", lambda w: os.chown(w.at(path), os.geteuid(), -1)
    yield "chown to another", lambda w: os.chown(w.at(path), 1001, -1)
    yield "chgrp to one's group", lambda w: os.chown(w.at(path), -1, 3000)
    yield "chgrp to another group", lambda w: os.chown(w.at(path), -1, 4000)
    yield "lchown", lambda w: os.lchown(w.at(path), 1001, 1001)
    yield "chown of nothing", lambda w: os.chown(w.at(path), -1, -1)
    yield "utime now", lambda w: utimensat(w.at(path), (0, NOW), (0, NOW))
    yield "utime of access now", lambda w: utimensat(w.at(path), (0, NOW), (0, OMIT))
    yield "utime explicit", partial(set_times, path=path)
    yield "utime of change of content", lambda w: utimensat(w.at(path), (0, OMIT), (5, 999_999_999))
    yield "utime of nothing", lambda w: utimensat(w.at(path), (0, OMIT), (0, OMIT))
    yield "utime of a symbolic link", lambda w: utimensat(w.at(path), (7, 8), (9, 10), follow=False)
    yield "utime with wrong nanoseconds", lambda w: utimensat(w.at(path), (0, 1_000_000_000), (0, 0))
    for name in ("user.a", "trusted.a", "security.a", "system.a", "other.a", "user.", "noprefix", "user." + "n" * 251):
        yield f"setxattr {name}", partial(set_attribute, path=path, name=name)
        yield f"getxattr {name}", partial(get_attribute, path=path, name=name)
    yield "setxattr create", lambda w: os.setxattr(w.at(path), "user.there", b"v", os.XATTR_CREATE)
    yield "setxattr replace", lambda w: os.setxattr(w.at(path), "user.there", b"v", os.XATTR_REPLACE)
    yield "setxattr replace what is not there", lambda w: os.setxattr(w.at(path), "user.x", b"v", os.XATTR_REPLACE)
    yield "setxattr of a link", lambda w: os.setxattr(w.at(path), "user.a", b"v", follow_symlinks=False)
    yield "setxattr trusted of a link", lambda w: os.setxattr(w.at(path), "trusted.a", b"v", follow_symlinks=False)
    yield "removexattr", lambda w: os.removexattr(w.at(path), "user.there")
    yield "removexattr of none", lambda w: os.removexattr(w.at(path), "user.none")
    yield "remove access ACL", lambda w: os.removexattr(w.at(path), "system.posix_acl_access")
    yield "remove default ACL", lambda w: os.removexattr(w.at(path), "system.posix_acl_default")
    yield "no ACL", lambda w: os.getxattr(w.at(path), "system.posix_acl_access")
    yield "listxattr", lambda w: sorted(os.listxattr(w.at(path)))
    yield "statvfs", lambda w: os.statvfs(w.at(path)).f_namemax
    yield "rename away", lambda w: w.rename(path, b"away")
    yield "rename onto it", lambda w: w.rename(b"spare", path)
    yield "rename a directory onto it", lambda w: w.rename(b"sparedir", path)
    yield "rename, not replacing", lambda w: w.rename(b"spare", path, NOREPLACE)
    yield "exchange", lambda w: w.rename(b"spare", path, EXCHANGE)
    yield "exchange with a directory", lambda w: w.rename(b"sparedir", path, EXCHANGE)
    yield "rename away, leaving a whiteout", lambda w: w.rename(path, b"away", WHITEOUT)
    yield "rename with two flags", lambda w: w.rename(path, b"spare", NOREPLACE | EXCHANGE)
    yield "rename with an unknown flag", lambda w: w.rename(path, b"away", 8)
    yield "rename to itself", lambda w: w.rename(path, path)
    yield "link it", lambda w: w.link(path, b"away")
    yield "link what it points to", lambda w: w.link(path, b"away", follow=True)
    yield "link onto it", lambda w: w.link(b"spare", path)


def on_file(path: bytes) -> Iterator[tuple[str, Call]]:
    """Calls that change an open file, or may."""
    yield "write", lambda w: through(w, path, lambda fd: os.write(fd, b"new"))
    yield "write nothing", lambda w: through(w, path, lambda fd: os.write(fd, b""))
    yield "append", lambda w: through(w, path, lambda fd: os.write(fd, b"new"), os.O_WRONLY | os.O_APPEND)
    yield "write behind the end", lambda w: through(w, path, lambda fd: os.pwrite(fd, b"x", 10_000))
    yield "write before the beginning", lambda w: through(w, path, lambda fd: os.pwrite(fd, b"x", -1))
    yield "write to what is open to read", lambda w: through(w, path, lambda fd: os.write(fd, b"x"), os.O_RDONLY)
    yield "read what is open to write", lambda w: through(w, path, lambda fd: os.read(fd, 1), os.O_WRONLY)
    yield "ftruncate", lambda w: through(w, path, lambda fd: os.ftruncate(fd, 2))
    yield "ftruncate to more", lambda w: through(w, path, lambda fd: os.ftruncate(fd, 5000))
    yield "ftruncate to the same", lambda w: through(w, path, lambda fd: os.ftruncate(fd, 4))
    yield "ftruncate what is open to read", lambda w: through(w, path, lambda fd: os.ftruncate(fd, 1), os.O_RDONLY)
    yield "posix_fallocate", lambda w: through(w, path, lambda fd: os.posix_fallocate(fd, 0, 3000))
    yield "posix_fallocate of nothing", lambda w: through(w, path, lambda fd: os.posix_fallocate(fd, 0, 0))
    yield "fchmod", lambda w: through(w, path, lambda fd: os.fchmod(fd, 0o600))
    yield "fchown", lambda w: through(w, path, lambda fd: os.fchown(fd, -1, 3000))
    yield "read", lambda w: through(w, path, lambda fd: os.read(fd, 0))


def one_of_each(world: World) -> None:
    """What the tables of paths take for granted, for everybody to use."""
    for kind in KINDS:
        world.make(kind, kind.encode())
    for name, target in ((b"loop", b"loop"), (b"dangling", b"nothing"), (b"tofile", b"file"), (b"todir", b"dir")):
        os.symlink(target, world.at(name))
    world.create(b"dir/in", 0o666, b"in")
    os.mkdir(world.at(b"empty"))
    world.write_at(b"file", b"four", 0)
    os.setxattr(world.at(b"file"), "user.there", b"1")
    spares(world)


def spares(world: World) -> None:
    world.create(b"spare")
    os.mkdir(world.at(b"sparedir"))
