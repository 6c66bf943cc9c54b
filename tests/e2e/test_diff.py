"""`fusevol diff` and `fusevol du` against walks of the mounted trees that know nothing of how they are stored."""

from __future__ import annotations

import contextlib
import json
import os
import random
import stat
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fusevol.driver.contents import path_text
from tests.e2e.harness import Bench, Volume, seed, until
from tests.mount.worlds import EXCHANGE, fallocate, renameat2

#: Of a snapshot's inode numbers, the part that a file has in all of them.
INO = (1 << 40) - 1
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}
SIZES = (0, 1, 1500, 2000, 2001, 4096, 5000, 70_000)
PUNCH, KEEP_SIZE, ZERO = 2, 1, 16


#: Makes and deletes files for ever, each synced.
WRITER = """
import itertools, os, shutil, sys
for turn in itertools.count():
    os.makedirs(sys.argv[1], exist_ok=True)
    for number in range(50):
        with open(f"{sys.argv[1]}/{number}", "wb") as file:
            file.write(os.urandom(200_000))
            file.flush()
            os.fsync(file.fileno())
    shutil.rmtree(sys.argv[1])
"""


# -- changing something ---------------------------------------------------------------------------------


class Changer:
    """Makes random changes in a tree; those that cannot be made are not."""

    def __init__(self, root: Path, chosen: int) -> None:
        self.root = os.fsencode(root)
        self.random = random.Random(chosen)
        self._names = [b"a", b"b", b"c", b"\xff\n", b"x" * 200, *(b"f%d" % number for number in range(40))]
        self._calls = [
            self.write, self.write, self.write, self.create, self.create, self.mkdir, self.unlink, self.rename,
            self.rename, self.link, self.symlink, self.attributes, self.xattr, self.hole, self.truncate, self.rewrite,
            self.exchange, self.fifo, self.remove_tree,
        ]  # fmt: skip

    def change(self, count: int) -> None:
        for _ in range(count):
            with contextlib.suppress(OSError):
                self.random.choice(self._calls)()

    def directory(self) -> bytes:
        found = [path for path, _, _ in os.walk(self.root)]
        return self.random.choice(found)

    def path(self) -> bytes:
        """One that is there mostly."""
        directory = self.directory()
        there = os.listdir(directory)
        return os.path.join(
            directory, self.random.choice(there if there and self.random.random() < 0.9 else self._names)
        )

    def fresh(self) -> bytes:
        return os.path.join(self.directory(), self.random.choice(self._names))

    def data(self) -> bytes:
        return self.random.randbytes(self.random.choice(SIZES))

    def create(self) -> None:
        with open(self.fresh(), "xb") as file:
            file.write(self.data())

    def write(self) -> None:
        fd = os.open(self.path(), os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            os.pwrite(fd, self.data(), self.random.choice((0, 100, 4096, 10_000, 1 << 20)))
        finally:
            os.close(fd)

    def rewrite(self) -> None:
        """The same content again, in another place of the volume."""
        path = self.path()
        if os.path.islink(path) or not os.path.isfile(path):
            return
        with open(path, "r+b") as file:
            content = file.read()
            file.truncate(0)
            file.seek(0)
            file.write(content)

    def truncate(self) -> None:
        path = self.path()
        if os.path.isfile(path) and not os.path.islink(path):
            os.truncate(path, self.random.choice((*SIZES, 1 << 20)))

    def hole(self) -> None:
        fd = os.open(self.path(), os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fallocate(fd, self.random.choice((PUNCH | KEEP_SIZE, ZERO)), self.random.choice((0, 4096)), 4096)
        finally:
            os.close(fd)

    def mkdir(self) -> None:
        os.mkdir(self.fresh())

    def fifo(self) -> None:
        os.mkfifo(self.fresh())

    def symlink(self) -> None:
        os.symlink(b"target", self.fresh())

    def link(self) -> None:
        os.link(self.path(), self.fresh(), follow_symlinks=False)

    def unlink(self) -> None:
        os.unlink(self.path())

    def rename(self) -> None:
        os.rename(self.path(), self.fresh())

    def exchange(self) -> None:
        renameat2(self.path(), self.path(), EXCHANGE)

    def remove_tree(self) -> None:
        path = self.path()
        for directory, names, files in os.walk(path, topdown=False):
            for name in files:
                os.unlink(os.path.join(directory, name))
            for name in names:
                os.rmdir(os.path.join(directory, name))
        os.rmdir(path)

    def attributes(self) -> None:
        path = self.path()
        match self.random.randrange(3):
            case 0:
                os.chmod(path, self.random.choice((0o600, 0o644, 0o755)))
            case 1:
                os.lchown(path, self.random.randrange(3), self.random.randrange(3))
            case _:
                os.utime(path, (1, self.random.randrange(5)), follow_symlinks=False)

    def xattr(self) -> None:
        path, name = self.path(), self.random.choice(("trusted.a", "trusted.b"))
        if self.random.random() < 0.3:
            os.removexattr(path, name, follow_symlinks=False)
        else:
            value = self.random.randbytes(self.random.choice((1, 1, 8000)))
            os.setxattr(path, name, value, follow_symlinks=False)


# -- what is there, and what differs --------------------------------------------------------------------


class Seen(NamedTuple):
    """A file, and all of its names as (inode of the directory, name)."""

    mode: int
    attributes: dict[str, Any]
    mtime: int
    content: bytes
    names: set[tuple[int, bytes]]
    paths: dict[tuple[int, bytes], bytes]


def walk(root: Path) -> dict[int, Seen]:
    """Everything in a tree, by inode."""
    found: dict[int, Seen] = {}

    def look(path: bytes, shown: bytes, name: tuple[int, bytes]) -> None:
        status = os.lstat(path)
        ino = status.st_ino & INO
        if ino not in found:
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            attributes = {
                "mode": status.st_mode, "owner": status.st_uid, "group": status.st_gid, "device": status.st_rdev,
                "xattrs": xattrs,
            }  # fmt: skip
            content = b""
            if stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            found[ino] = Seen(stat.S_IFMT(status.st_mode), attributes, status.st_mtime_ns, content, set(), {})
        found[ino].names.add(name)
        found[ino].paths[name] = shown
        if stat.S_ISDIR(status.st_mode):
            for below in os.listdir(path):
                look(os.path.join(path, below), shown.rstrip(b"/") + b"/" + below, (ino, below))

    look(os.fsencode(root), b"/", (0, b""))
    return found


def expected(old: dict[int, Seen], new: dict[int, Seen]) -> list[dict[str, Any]]:
    """What a diff is to say of two walks."""
    found: list[dict[str, Any]] = []

    def say(
        change: str, kind: int, path: bytes, old_path: bytes | None = None, told: tuple[bool, list[str]] = (False, [])
    ) -> None:
        found.append({
            "change": change, "kind": KINDS[kind], "path": path_text(path),
            "old_path": None if old_path is None else path_text(old_path), "content": told[0], "attributes": told[1],
        })  # fmt: skip

    touched = set()
    for ino in old.keys() | new.keys():
        before, after = (side[ino].names if ino in side else set() for side in (old, new))
        touched |= {parent for parent, _ in before ^ after}
    for ino in old.keys() | new.keys():
        if ino not in new:
            for path in old[ino].paths.values():
                say("removed", old[ino].mode, path)
        elif ino not in old:
            for path in new[ino].paths.values():
                say("added", new[ino].mode, path)
        else:
            one, other = old[ino], new[ino]
            content = one.content != other.content
            differ = {key for key in one.attributes if one.attributes[key] != other.attributes[key]}
            if one.mtime != other.mtime and not content and not (stat.S_ISDIR(one.mode) and ino in touched):
                differ.add("mtime")
            order = ("mode", "owner", "group", "device", "mtime", "xattrs")
            told = content, [name for name in order if name in differ]
            for lost, got in zip_longest(sorted(one.names - other.names), sorted(other.names - one.names)):
                if lost is None:
                    say("added", one.mode, other.paths[got])
                elif got is None:
                    say("removed", one.mode, one.paths[lost])
                else:
                    say("renamed", one.mode, other.paths[got], one.paths[lost], told)
                    told = False, []
            if told != (False, []):
                say("changed", one.mode, min(other.paths.values()), None, told)
    return found


def in_order(changes: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(change, sort_keys=True) for change in changes)


@pytest.mark.parametrize("many", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_a_diff_says_what_two_walks_of_the_mounted_trees_differ_in(volume: Volume, many: int) -> None:
    changer = Changer(volume.path, seed())
    changer.change(400)
    names = ["s0", "s1", "s2", "s3"]
    for name in names:
        volume.command("snapshot", name)
        changer.change(many)
    trees = {name: walk(volume.path / ".fusevol" / "snapshots" / name) for name in names}
    trees["now"] = walk(volume.path)
    for old, new in (
        ("s0", "s1"),
        ("s1", "s2"),
        ("s0", "s3"),
        ("s3", "s0"),
        ("s1", "s1"),
        ("s2", "now"),
        ("now", "s0"),
    ):
        refs = ["web" if name == "now" else f"web@{name}" for name in (old, new)]
        found = json.loads(volume.fusevol("diff", *refs, "--json"))
        assert in_order(found) == in_order(expected(trees[old], trees[new])), (old, new)
        assert [change["path"] for change in found] == sorted(
            (change["path"] for change in found), key=lambda path: bytes_of(path)
        )
    assert len(expected(trees["s0"], trees["s3"])) > many / 10


@pytest.mark.slow
def test_a_volume_is_compared_while_it_is_written_to(volume: Volume, bench: Bench) -> None:
    (volume.path / "kept").write_bytes(b"x" * 100_000)
    volume.command("snapshot", "before")
    (volume.path / "new").write_text("")
    process = bench.start(sys.executable, "-c", WRITER, volume.path / "load")
    until((volume.path / "load" / "20").exists, "the writer")
    for _ in range(4):
        found = {
            change["path"]: change["change"] for change in json.loads(volume.fusevol("diff", "web@before", "--json"))
        }
        assert found.pop("/new") == "added"
        assert set(found.values()) <= {"added"}
        assert all(path == "/load" or path.startswith("/load/") for path in found)
        assert json.loads(volume.fusevol("du", "web", "--json"))[0]["size"] >= 100_000
    assert process.poll() is None, bench.finish(process)
    process.terminate()
    bench.finish(process)


def test_volumes_in_an_object_store_are_looked_into_as_well(bench: Bench, place: Path) -> None:
    (place / "home").mkdir()
    (place / "objects").mkdir()
    (place / "home" / "config.toml").write_text(f'[pools.s]\nbackend = "object"\nurl = "file://{place}/objects"\n')
    volume = Volume(bench, place / "home").create("--pool", "s").mount()
    for number in range(300):
        (volume.path / f"{number}").write_bytes(b"%d" % number * 1000)
    volume.command("snapshot", "one")
    (volume.path / "7").write_bytes(b"x" * 5000)
    (volume.path / "8").rename(volume.path / "eight")
    for refs in (("web@one",), ("web@one", "web@two")):
        found = json.loads(volume.fusevol("diff", *refs, "--json"))
        assert [(change["change"], change["path"], change["old_path"]) for change in found] == [
            ("changed", "/7", None), ("renamed", "/eight", "/8"),
        ]  # fmt: skip
        if len(refs) == 1:
            volume.command("snapshot", "two")
    shares = [json.loads(volume.fusevol("du", ref, "--json")) for ref in ("web", "web@two")]
    assert shares[0] == shares[1]
    assert shares[0][0]["inodes"] == 301


def bytes_of(text: str) -> bytes:
    """The path that `path_text` made this of."""
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape").encode("latin-1")


def test_shares_of_directories_are_those_that_a_walk_adds_up(volume: Volume) -> None:
    Changer(volume.path, seed()).change(400)
    volume.command("snapshot", "one")
    Changer(volume.path, seed()).change(100)
    for ref, root in (("web", volume.path), ("web@one", volume.path / ".fusevol" / "snapshots" / "one")):
        wanted: dict[str, tuple[int, int, int]] = {}
        for directory, _, _ in os.walk(os.fsencode(root)):
            path = path_text(b"/" + os.path.relpath(directory, os.fsencode(root)).removeprefix(b"."))
            wanted[path] = total(directory)
        found = json.loads(volume.fusevol("du", ref, "--depth", "1000", "--json"))
        by_path = {share["path"]: (share["size"], share["used"], share["inodes"]) for share in found}
        assert by_path["/"] == wanted["/"]
        # Where a file has names in several directories, it counts in one of them.
        assert by_path.keys() == wanted.keys()
        assert all(by_path[path] <= wanted[path] for path in wanted)
        assert [share["depth"] for share in found] == [
            len([part for part in share["path"].split("/") if part]) for share in found
        ]


def total(directory: bytes) -> tuple[int, int, int]:
    """Bytes, bytes of blocks and files below a directory, itself included."""
    seen = {os.lstat(directory).st_ino: (0, 0)}
    for parent, names, files in os.walk(directory):
        for name in (*names, *files):
            status = os.lstat(os.path.join(parent, name))
            sizes = (0, 0) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_blocks * 512)
            seen[status.st_ino] = sizes
    return sum(size for size, _ in seen.values()), sum(used for _, used in seen.values()), len(seen)
