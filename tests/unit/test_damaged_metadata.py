"""A block of the metadata that cannot be read: what meets with it fails, whole, and all else goes on.

Each change is made once with every block of the metadata damaged (with FUSEVOL_FULL=1; else with a sample of them). It
may succeed, or fail; then the tree is as if nobody had tried, and once the block can be read again, the same change can
be made in the same mount, as on a store that was away for a while.
"""

from __future__ import annotations

import os
import random
import stat
import struct
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest

from fusevol.backends.memory import MemoryBackend
from fusevol.errors import CorruptData, FusevolError
from fusevol.fs import Caller, Changes, Filesystem, load_filesystem, open_filesystem
from fusevol.fs.acl import ACCESS
from fusevol.fs.check import check_filesystem
from fusevol.fs.layout import BLOCK, DATA_BLOCK, DATABASE, ROOT
from fusevol.fs.names import RENAME_EXCHANGE, RENAME_WHITEOUT
from fusevol.log import LogVolume, create_volume, open_volume
from fusevol.log.format import ADDRESS_MASK
from tests.unit.volumes import QUIET

FULL = bool(os.environ.get("FUSEVOL_FULL"))
ME = Caller(0, 0)
FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
PUNCH_HOLE = 3
#: 600 for another user, 640 else.
AN_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in [(1, 6, 0xFFFFFFFF), (2, 6, 1000), (4, 4, 0xFFFFFFFF), (16, 6, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)]
)


class Damaged(MemoryBackend):
    """One block can be read, but not as it was written."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: int | None = None

    def read_nowait(self, volume_id: str, size: int, offset: int) -> bytes:
        data = bytearray(super().read_nowait(volume_id, size, offset))
        if self.bad is not None and offset <= self.bad < offset + len(data):
            data[self.bad - offset] ^= 1
        return bytes(data)

    def copy(self) -> Damaged:
        twin = Damaged()
        twin.spaces = {volume_id: space.copy() for volume_id, space in self.spaces.items()}
        return twin


def name(number: int) -> bytes:
    return b"%03d" % number + b"n" * 60


def directory(fs: Filesystem, number: int) -> int:
    return fs.lookup(ROOT, b"dir%d" % number).ino


def file(fs: Filesystem, parent: int, number: int) -> int:
    return fs.lookup(directory(fs, parent), name(number)).ino


async def metadata_blocks(volume: LogVolume) -> list[int]:
    """Where the blocks of the database are stored."""
    runs = [run async for run in volume.mapped(DATABASE // BLOCK, DATA_BLOCK, lambda *_: None)]
    blocks = [block for first, count in runs for block in range(first, first + count)]
    return [(await volume.path._word(block) & ADDRESS_MASK) * BLOCK for block in blocks]


async def some_files() -> tuple[Damaged, list[int], set[int]]:
    """Files of every kind, in directories of several pages; where their metadata is stored, and what of it all need."""
    backend = Damaged()
    await create_volume(backend, "v")
    async with open_volume(backend, "v", options=QUIET) as volume:
        fs = await load_filesystem(volume)
        parents = [fs.create(ROOT, b"dir%d" % number, DIRECTORY, ME).ino for number in range(4)]
        for parent in parents:
            for number in range(60):
                ino = fs.create(parent, name(number), FILE, ME).ino
                if number % 3 == 0:
                    for block in range(0, 24, 2):
                        await fs.write(ino, bytes([number + 1]) * BLOCK, block * BLOCK)
                elif number % 3 == 1:
                    await fs.write(ino, bytes([number + 1]) * 1500, 0)
                if number % 4 == 0:
                    fs.setxattr(ino, b"user.small", b"v" * 200)
                if number % 20 == 0:
                    fs.setxattr(ino, b"user.large", b"w" * 9000)
        below = parents[0]
        for _ in range(4):
            below = fs.create(below, b"deep", DIRECTORY, ME).ino
        fs.create(parents[1], b"empty", DIRECTORY, ME)
        fs.link(file(fs, 3, 5), parents[3], b"another")
        await fs.sync()
        blocks = await metadata_blocks(volume)
        page = fs._database.one("SELECT rootpage FROM sqlite_schema WHERE name = 'counter'")
        assert page
        fs.close()
    return backend, blocks, {0, int(page[0] or 0) - 1}


# -- the changes ----------------------------------------------------------------------------------


def unlink(number: int) -> Callable[[Filesystem], Awaitable[None]]:
    async def change(fs: Filesystem) -> None:
        ino = file(fs, 1, number)
        fs.unlink(directory(fs, 1), name(number))
        fs.forget(ino)

    return change


def rename(old: tuple[int, bytes], new: tuple[int, bytes], flags: int = 0) -> Callable[[Filesystem], Awaitable[None]]:
    async def change(fs: Filesystem) -> None:
        target = fs.find(directory(fs, new[0]), new[1])
        fs.rename(directory(fs, old[0]), old[1], directory(fs, new[0]), new[1], flags)
        if target is not None:
            fs.forget(target.ino)

    return change


def create(number: int, wanted: bytes, mode: int) -> Callable[[Filesystem], Awaitable[None]]:
    async def change(fs: Filesystem) -> None:
        fs.create(directory(fs, number), wanted, mode, ME)

    return change


async def unlink_while_open(fs: Filesystem) -> None:
    parent, ino = directory(fs, 1), file(fs, 1, 33)
    fs.unlink(parent, name(33))
    fs.opened(ino)
    fs.released(ino)
    fs.forget(ino)


async def unlink_one_of_two(fs: Filesystem) -> None:
    fs.unlink(directory(fs, 3), name(5))


async def rmdir(fs: Filesystem) -> None:
    ino = fs.lookup(directory(fs, 1), b"empty").ino
    fs.rmdir(directory(fs, 1), b"empty")
    fs.forget(ino)


async def symlink(fs: Filesystem) -> None:
    fs.symlink(directory(fs, 2), b"016", b"target" * 20, ME)


async def link(fs: Filesystem) -> None:
    fs.link(file(fs, 2, 30), directory(fs, 3), b"new")


def write(number: int, size: int, offset: int) -> Callable[[Filesystem], Awaitable[None]]:
    async def change(fs: Filesystem) -> None:
        await fs.write(file(fs, 2, number), b"X" * size, offset)

    return change


async def truncate(fs: Filesystem) -> None:
    await fs.setattr(file(fs, 2, 33), Changes(size=3 * BLOCK))


async def punch(fs: Filesystem) -> None:
    await fs.fallocate(file(fs, 2, 33), PUNCH_HOLE, BLOCK, 10 * BLOCK)


async def chmod(fs: Filesystem) -> None:
    await fs.setattr(file(fs, 2, 33), Changes(mode=0o600))


def set_attribute(number: int, attribute: bytes, value: bytes) -> Callable[[Filesystem], Awaitable[None]]:
    async def change(fs: Filesystem) -> None:
        fs.setxattr(file(fs, 2, number), attribute, value)

    return change


async def remove_attribute(fs: Filesystem) -> None:
    fs.removexattr(file(fs, 2, 40), b"user.large")


CHANGES: dict[str, Callable[[Filesystem], Awaitable[None]]] = {
    "unlink in extents": unlink(30),
    "unlink inline": unlink(31),
    "unlink with attributes": unlink(40),
    "unlink while open": unlink_while_open,
    "unlink one of two": unlink_one_of_two,
    "rmdir": rmdir,
    "rename": rename((1, name(30)), (2, b"moved")),
    "rename over a file": rename((1, name(30)), (2, name(36))),
    "rename a directory": rename((0, b"deep"), (3, b"moved")),
    "rename over a directory": rename((0, b"deep"), (1, b"empty")),
    "exchange": rename((1, name(30)), (2, name(31)), RENAME_EXCHANGE),
    "leave a whiteout": rename((1, name(30)), (2, name(36)), RENAME_WHITEOUT),
    "create": create(2, b"new", FILE),
    "mkdir": create(2, b"015", DIRECTORY),
    "symlink": symlink,
    "link": link,
    "write": write(30, 3 * BLOCK, 5 * BLOCK),
    "outgrow the inode": write(31, 5000, 100),
    "append": write(33, 5000, 24 * BLOCK),
    "truncate": truncate,
    "punch": punch,
    "chmod": chmod,
    "set an attribute": set_attribute(32, b"user.new", b"v" * 100),
    "set a large attribute": set_attribute(32, b"user.new", b"v" * 10_000),
    "set an ACL": set_attribute(33, ACCESS, AN_ACL),
    "remove an attribute": remove_attribute,
}

# -- what there is --------------------------------------------------------------------------------

State = dict[bytes, tuple[object, ...]]


async def state(fs: Filesystem) -> State:
    """All that a program could see, but for times."""
    found: State = {}

    async def walk(path: bytes, ino: int) -> None:
        inode = fs.get(ino)
        content: object = None
        if stat.S_ISREG(inode.mode):
            content = bytes(await fs.read(ino, inode.size, 0))
        elif stat.S_ISLNK(inode.mode):
            content = fs.readlink(ino)
        attributes = sorted((attribute, fs.getxattr(ino, attribute)) for attribute in fs.listxattr(ino))
        found[path] = inode.mode, inode.nlink, inode.uid, inode.size, inode.blocks, attributes, content
        if inode.is_dir:
            for entry, _, child in list(fs.listing(ino)):
                await walk(path + b"/" + entry, child.ino)

    await walk(b"", ROOT)
    return found


async def mounted_again(backend: MemoryBackend) -> State:
    """What the next mount finds, which must be sound."""
    async with open_volume(backend, "v", options=QUIET) as volume:
        fs = await load_filesystem(volume)
        found = await state(fs)
        await fs.sync()
        fs.close()
        report = await check_filesystem(volume, deep=True)
        assert (report.findings, report.orphans) == ([], 0)
    return found


class Start(NamedTuple):
    """A volume, where its metadata is, which blocks of it a mount cannot do without, and what is in it."""

    backend: Damaged
    blocks: list[int]
    needed: set[int]
    before: State


_start: list[Start] = []


@pytest.fixture
async def start() -> Start:
    if not _start:
        backend, blocks, needed = await some_files()
        _start.append(Start(backend, blocks, needed, await mounted_again(backend.copy())))
    return _start[0]


def sampled(seed: str, start: Start) -> list[int]:
    """Which blocks are damaged, one at a time: the roots of the tables, and others."""
    roots, count = max(start.needed) + 1, len(start.blocks)
    others = range(roots, count)
    return [*range(roots), *(others if FULL else random.Random(seed).sample(others, 8))]


@pytest.mark.parametrize("what", CHANGES)
async def test_a_change_that_meets_with_damage_is_made_as_a_whole_or_not_at_all(what: str, start: Start) -> None:
    change, failures = CHANGES[what], 0
    backend = start.backend.copy()
    async with open_volume(backend, "v", options=QUIET) as volume:
        fs = await load_filesystem(volume)
        await change(fs)
        await fs.sync()
        fs.close()
    after = await mounted_again(backend)
    assert after != start.before
    for number in sampled(what, start):
        print(f"block {number} is damaged")
        backend = start.backend.copy()
        backend.bad = start.blocks[number]
        try:
            async with open_volume(backend, "v", options=QUIET) as volume:
                fs = await load_filesystem(volume)
                try:
                    await change(fs)
                    await fs.sync()
                except FusevolError:
                    failures += 1
                    backend.bad = None
                    if fs._inodes.dirty:
                        # The change was made, its commit failed; another one will do.
                        await fs.sync()
                        assert await state(fs) == after
                    else:
                        assert await state(fs) == start.before
                        await change(fs)
                        await fs.sync()
                fs.close()
        except CorruptData:
            assert number in start.needed, "it could not be mounted"
            backend.bad = None
            assert await mounted_again(backend) == start.before
        else:
            # The damage may be where nobody looked. It does not keep the volume from being mounted.
            async with open_volume(backend, "v", options=QUIET) as volume:
                (await load_filesystem(volume)).close()
            backend.bad = None
            assert await mounted_again(backend) == after
    assert failures


async def test_a_file_is_not_created_where_its_row_could_not_be_written_and_all_else_goes_on(start: Start) -> None:
    backend = start.backend.copy()
    async with open_volume(backend, "v", options=QUIET) as volume:
        fs = await load_filesystem(volume)
        last = [block for block in start.blocks if await needed_for_the_last_file(fs, backend, block)]
        assert last
        fs.close()
    for backend.bad in last:
        async with open_volume(backend, "v", options=QUIET) as volume, open_filesystem(volume) as fs:
            with pytest.raises(CorruptData):
                fs.create(ROOT, b"new", FILE, ME)
            with pytest.raises(CorruptData):
                fs.symlink(ROOT, b"new", b"target", ME)
            await fs.write(file(fs, 2, 31), b"other", 0)
            await fs.sync()
    backend.bad = None
    async with open_volume(backend, "v", options=QUIET) as volume, open_filesystem(volume) as fs:
        assert bytes(await fs.read(file(fs, 2, 31), 5, 0)) == b"other"


async def needed_for_the_last_file(fs: Filesystem, backend: Damaged, block: int) -> bool:
    """Whether it is where the rows of the newest inodes are, and of none that is older."""
    backend.bad = block
    found = []
    for order in ("max", "min"):
        fs._database.run("PRAGMA cache_size=0")  # nothing is kept from before
        try:
            fs._database.one(f"SELECT {order}(ino) FROM inode")
        except CorruptData:
            found.append(order)
    backend.bad = None
    return found == ["max"]


async def test_which_files_damage_hides_does_not_depend_on_which_were_looked_at_before(start: Start) -> None:
    inos = range(ROOT, 4 * 60)
    hiding = 0
    for number in sampled("which files", start):
        print(f"block {number} is damaged")
        hidden = []
        for order in (inos, random.Random(number).sample(inos, len(inos))):
            backend = start.backend.copy()
            async with open_volume(backend, "v", options=QUIET) as volume:
                fs = await load_filesystem(volume)
                backend.bad = start.blocks[number]
                fs._database.run("PRAGMA cache_size=0")  # nothing is kept from before
                hidden.append({ino for ino in order if is_hidden(fs, ino)})
                backend.bad = None
                fs.close()
        assert hidden[0] == hidden[1]
        hiding += bool(hidden[0])
    assert hiding


def is_hidden(fs: Filesystem, ino: int) -> bool:
    try:
        assert fs.get(ino).ino == ino
    except CorruptData:
        return True
    return False


async def test_a_refused_change_leaves_the_volume_as_it_is(start: Start) -> None:
    async with (
        open_volume(start.backend.copy(), "v", options=QUIET) as volume,
        open_filesystem(volume) as fs,
    ):
        await fs.sync()
        taken = await fs.snapshot("here")
        with pytest.raises(OSError, match="ENOTEMPTY"):
            fs.rmdir(ROOT, b"dir1")
        with pytest.raises(OSError, match="EEXIST"):
            fs.link(file(fs, 1, 30), ROOT, b"dir1")
        await fs.sync()
        assert volume.unchanged_since(taken)


async def test_what_the_last_sync_failed_with_is_what_leaving_the_volume_fails_with(start: Start) -> None:
    async def use() -> None:
        async with open_volume(start.backend.copy(), "v", options=QUIET) as volume, open_filesystem(volume) as fs:
            fs.create(ROOT, b"new", FILE, ME)
            volume.write_all_nowait = lambda parts: False

    with pytest.raises(CorruptData, match="the map is damaged"):
        await use()
