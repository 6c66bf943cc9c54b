"""System calls in a directory: the same calls in two of them can be compared, results and all that is left behind.

Paths are bytes relative to the directory. A call's outcome is what it returns, or the name of its errno.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "EXCHANGE",
    "NOREPLACE",
    "NOW",
    "OMIT",
    "ROOT_USER",
    "WHITEOUT",
    "Case",
    "User",
    "World",
    "acting",
    "clock_tick",
    "compare",
    "fallocate",
    "outcome",
    "renameat2",
    "utimensat",
]

_libc = ctypes.CDLL(None, use_errno=True)

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
AT_FDCWD = -100
#: CLOCK_REALTIME_COARSE, the clock of file times, which Python does not name.
COARSE = 5


class User(NamedTuple):
    """Whose rights a call is made with."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT_USER = User(0, 0)


@contextlib.contextmanager
def acting(user: User) -> Iterator[None]:
    """Be another user for file accesses: effective ids and, with them, no capabilities."""
    if user == ROOT_USER:
        yield
        return
    os.setgroups(user.groups)
    os.setegid(user.gid)
    os.seteuid(user.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or its errno by name."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def clock_tick() -> None:
    """Wait until the clock that file times are taken from has moved on.

    Where somebody asked for a file's times, the kernel takes those that follow from the fine clock, on all filesystems
    until the coarse one has come as far; which may be more than a tick behind it.
    """
    before = time.time_ns()
    while time.clock_gettime_ns(COARSE) <= before:
        time.sleep(0.001)


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    if _libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2


def utimensat(path: bytes, atime: tuple[int, int], mtime: tuple[int, int], *, follow: bool = True) -> None:
    times = (Timespec * 2)(Timespec(*atime), Timespec(*mtime))
    if _libc.utimensat(AT_FDCWD, path, times, 0 if follow else 0x100):
        raise OSError(ctypes.get_errno(), "utimensat")


class World:
    """One of the directories. Open files are kept in numbered slots."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)
        self.files: dict[int, int] = {}
        #: As `compare` last saw it.
        self.seen: dict[bytes, Seen] = {}

    def at(self, path: bytes) -> bytes:
        return self.root + b"/" + path

    def close(self) -> None:
        for fd in self.files.values():
            os.close(fd)
        self.files.clear()

    # -- what is there ----------------------------------------------------------------------------

    def status(self, path: bytes, *, follow: bool = False) -> dict[str, Any]:
        """What stat says, without what has to differ between filesystems."""
        found = os.stat(self.at(path), follow_symlinks=follow)
        return self.facts(found)

    @staticmethod
    def facts(found: os.stat_result) -> dict[str, Any]:
        facts = {"mode": oct(found.st_mode), "uid": found.st_uid, "gid": found.st_gid, "nlink": found.st_nlink}
        if not stat.S_ISDIR(found.st_mode):
            facts |= {"size": found.st_size, "rdev": found.st_rdev}
        return facts

    def times(self, path: bytes) -> tuple[int, int, int]:
        found = os.lstat(self.at(path))
        return found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns

    def walk(self, path: bytes = b"") -> Iterator[bytes]:
        """All paths, a directory before what is in it; the directory itself is the empty path."""
        yield path
        if stat.S_ISDIR(os.lstat(self.at(path)).st_mode):
            for name in sorted(os.listdir(self.at(path))):
                yield from self.walk(path + b"/" + name if path else name)

    def tree(self) -> dict[bytes, dict[str, Any]]:
        """Everything that can be seen, but for times."""
        tree = {}
        for path in self.walk():
            facts = self.status(path)
            kind = stat.S_IFMT(int(facts["mode"], 8))
            full = self.at(path)
            facts["xattrs"] = {
                name: os.getxattr(full, name, follow_symlinks=False)
                for name in sorted(os.listxattr(full, follow_symlinks=False))
            }
            if kind == stat.S_IFREG:
                with open(full, "rb") as file:
                    facts["content"] = file.read()
            elif kind == stat.S_IFLNK:
                facts["target"] = os.readlink(full)
            tree[path] = facts
        return tree

    # -- calls ------------------------------------------------------------------------------------

    def open(self, slot: int, path: bytes, flags: int, mode: int = 0o666) -> None:
        fd = os.open(self.at(path), flags, mode)
        self.shut(slot)
        self.files[slot] = fd

    def shut(self, slot: int) -> None:
        if slot in self.files:
            os.close(self.files.pop(slot))

    def fd(self, slot: int) -> int:
        if slot not in self.files:
            raise OSError(errno.EBADF, "not open")
        return self.files[slot]

    def create(self, path: bytes, mode: int = 0o644, content: bytes = b"") -> None:
        fd = os.open(self.at(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        try:
            if content:
                os.write(fd, content)
        finally:
            os.close(fd)

    def make(self, kind: str, path: bytes, mode: int = 0o644) -> None:
        """A file of any kind, for tests that need one of each."""
        full = self.at(path)
        match kind:
            case "file":
                self.create(path, mode)
            case "dir":
                os.mkdir(full, mode)
            case "fifo":
                os.mkfifo(full, mode)
            case "sock":
                os.mknod(full, stat.S_IFSOCK | mode)
            case "char":
                os.mknod(full, stat.S_IFCHR | mode, os.makedev(1, 3))
            case "block":
                os.mknod(full, stat.S_IFBLK | mode, os.makedev(7, 9))
            case "link":
                os.symlink(b"target", full)

    def write_at(self, path: bytes, data: bytes, offset: int, flags: int = 0) -> int:
        fd = os.open(self.at(path), os.O_WRONLY | flags)
        try:
            return os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        if flags:
            renameat2(self.at(old), self.at(new), flags)
        else:
            os.rename(self.at(old), self.at(new))

    def link(self, old: bytes, new: bytes, *, follow: bool = False) -> None:
        # Python's os.link follows symbolic links unless told otherwise, where the system call does not.
        os.link(self.at(old), self.at(new), follow_symlinks=follow)


# -- comparing two of them ------------------------------------------------------------------------


class Case(NamedTuple):
    """A call with what has to be there before it, and who makes it."""

    title: str
    setup: Callable[[World], object]
    call: Callable[[World], object]
    user: User = ROOT_USER


class Seen(NamedTuple):
    """A path's facts and times at one moment."""

    inode: int
    facts: dict[str, Any]
    times: tuple[int, int, int]


def look(world: World) -> dict[bytes, Seen]:
    """Everything in the directory, itself included."""
    seen: dict[bytes, Seen] = {}

    def add(path: bytes, found: os.stat_result) -> None:
        times = (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
        seen[path] = Seen(found.st_ino, world.facts(found), times)
        if stat.S_ISDIR(found.st_mode):
            with os.scandir(world.at(path)) as entries:
                for entry in entries:
                    add(path + b"/" + entry.name if path else entry.name, entry.stat(follow_symlinks=False))

    add(b"", os.lstat(world.root))
    return seen


def difference(before: dict[bytes, Seen], after: dict[bytes, Seen]) -> dict[bytes, Any]:
    """What a call did: facts of all there is, and which times of a file, whatever its name, moved; names that went."""
    files = {seen.inode: seen for seen in before.values()}
    changes: dict[bytes, Any] = {path: {"moved": "gone"} for path in before.keys() - after.keys()}
    for path, now in after.items():
        old = files.get(now.inode)
        moved = "new"
        if old is not None:
            # Looking at a directory or a symbolic link is a use of it, so its time of access says nothing.
            used = stat.S_IFMT(int(now.facts["mode"], 8)) not in (stat.S_IFDIR, stat.S_IFLNK)
            moved = "".join(
                letter
                for letter, was, time_now in zip("amc", old.times, now.times, strict=True)
                if was != time_now and (letter != "a" or used)
            )
        changes[path] = now.facts | {"moved": moved}
    return changes


class Pool:
    """Pairs of directories with the same in them, made some at a time so that one tick of the clock does for all."""

    def __init__(self, parents: list[Path]) -> None:
        self.parents = parents
        self.setup: Callable[[World], object] | None = None
        self.ready: list[list[World]] = []
        self.made = 0

    def take(self, setup: Callable[[World], object]) -> list[World]:
        """A pair as `setup` leaves it, and a tick later."""
        if setup is not self.setup:
            self.setup, self.ready = setup, []
        if not self.ready:
            for _ in range(8):
                pair = []
                for parent in self.parents:
                    directory = parent / str(self.made)
                    directory.mkdir()
                    directory.chmod(0o777)
                    pair.append(World(directory))
                    setup(pair[-1])
                self.ready.append(pair)
                self.made += 1
            clock_tick()
        return self.ready.pop()

    def give_back(self, pair: list[World]) -> None:
        """Nothing was changed, so the next case may use it."""
        self.ready.append(pair)


def compare(
    mount: Path, reference: Path, cases: Iterable[Case], lenient: Callable[[str], bool]
) -> tuple[int, list[str]]:
    """Do all cases in both directories; how many, and what differed. lenient: for which the times do not count."""
    pool = Pool([mount, reference])
    number = 0
    wrong: list[str] = []
    for case in cases:
        number += 1
        pair = pool.take(case.setup)
        seen = []
        for world in pair:
            before = world.seen or look(world)
            with acting(case.user):
                result = outcome(lambda: case.call(world))  # noqa: B023 -- called at once
            world.seen = look(world)
            changes = difference(before, world.seen)
            if lenient(case.title):
                changes = {path: changed | {"moved": "-"} for path, changed in changes.items()}
            seen.append((result, changes))
        (ours, our_changes), (theirs, their_changes) = seen
        if ours == theirs and not any(change["moved"] for change in our_changes.values()):
            pool.give_back(pair)
        if ours != theirs:
            wrong.append(f"{case.title}: {ours!r}, on ext4 {theirs!r}")
        wrong += [
            f"{case.title}: {path!r} is {our_changes.get(path)}, on ext4 {their_changes.get(path)}"
            for path in sorted(our_changes.keys() | their_changes.keys())
            if our_changes.get(path) != their_changes.get(path)
        ]
    return number, wrong
