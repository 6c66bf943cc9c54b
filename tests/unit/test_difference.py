"""Comparing two states of a volume: nothing that differs is missed, and what is the same is not looked at."""

import os
import random
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fusevol.backends.memory import MemoryBackend
from fusevol.driver.contents import path_text
from fusevol.errors import CorruptData
from fusevol.fs import Caller, Changes, Filesystem, load_filesystem, open_filesystem, open_snapshot
from fusevol.fs.btree import differing_ranges, pages_of
from fusevol.fs.clock import now
from fusevol.fs.difference import Change, compare_filesystems
from fusevol.fs.findings import MetadataReader
from fusevol.fs.layout import BLOCK, DATABASE, ROOT
from fusevol.log import LogVolume, SnapshotView, create_volume, open_volume
from fusevol.log.difference import changed_runs
from fusevol.log.format import LOGICAL_BLOCKS

ROOT_USER = Caller(0, 0)


@pytest.fixture
async def volume() -> AsyncIterator[LogVolume]:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    async with open_volume(backend, "v") as volume:
        yield volume


async def make(filesystem: Filesystem, name: bytes, content: bytes = b"", parent: int = ROOT) -> int:
    ino = filesystem.create(parent, name, stat.S_IFREG | 0o644, ROOT_USER).ino
    await filesystem.write(ino, content, 0)
    return ino


async def compared(volume: LogVolume, old: str, new: str) -> list[Change]:
    async with volume.view(old) as one, volume.view(new) as other:
        return await compare_filesystems(one, other)


@asynccontextmanager
async def between(volume: LogVolume) -> AsyncIterator[Filesystem]:
    """Changes that are made between the snapshots `a` and `b`, inside."""
    async with open_filesystem(volume) as filesystem:
        await filesystem.snapshot("a")
        yield filesystem
        await filesystem.snapshot("b")


# -- files ----------------------------------------------------------------------------------------------


async def test_a_file_that_got_the_number_of_another_after_a_restore_is_another_file(volume: LogVolume) -> None:
    filesystem = await load_filesystem(volume)
    await filesystem.snapshot("empty")
    first = await make(filesystem, b"same name", b"same content")
    await filesystem.snapshot("a")
    born = filesystem.get(first).btime
    await filesystem.restore("empty")
    async with open_filesystem(volume) as filesystem:
        while now() == born:
            pass
        assert await make(filesystem, b"same name", b"same content") == first
        await filesystem.snapshot("b")
    assert await compared(volume, "a", "b") == [
        Change("removed", stat.S_IFREG, b"/same name"), Change("added", stat.S_IFREG, b"/same name"),
    ]  # fmt: skip


async def test_content_that_changed_without_a_trace_in_the_inode_is_found(volume: LogVolume) -> None:
    """As after a crash between the kernel's writing data and its telling of the time."""
    async with between(volume) as filesystem:
        ino = await make(filesystem, b"file", os.urandom(3 * BLOCK))
        await make(filesystem, b"other", os.urandom(3 * BLOCK))
        await filesystem.sync()
        await filesystem.snapshot("before")
        ((_, address, _),) = filesystem._data.extents(filesystem.get(ino))
        await volume.write(os.urandom(BLOCK), (address + 1) * BLOCK)
    assert await compared(volume, "before", "b") == [Change("changed", stat.S_IFREG, b"/file", content=True)]


async def test_the_same_content_in_another_place_is_no_other_content(volume: LogVolume) -> None:
    content = os.urandom(5 * BLOCK)
    async with open_filesystem(volume) as filesystem:
        for name in (b"file", b"small"):
            await make(filesystem, name, content if name == b"file" else content[:100])
    async with between(volume) as filesystem:
        for name in (b"file", b"small"):
            ino = filesystem.lookup(ROOT, name).ino
            before = filesystem.get(ino)
            times = Changes(mtime=before.mtime, size=0)
            await filesystem.setattr(ino, times)
            # Out of the inode, and to new blocks.
            await filesystem.write(ino, bytes(2 * BLOCK), 0)
            await filesystem.write(ino, content if name == b"file" else content[:100], 0)
            await filesystem.setattr(ino, Changes(size=len(content) if name == b"file" else 100))
            await filesystem.setattr(ino, Changes(mtime=times.mtime))
        hole = await make(filesystem, b"hole")
        await filesystem.setattr(hole, Changes(size=10 * BLOCK))
    assert await compared(volume, "a", "b") == [Change("added", stat.S_IFREG, b"/hole")]


async def test_a_hole_that_was_filled_with_zeros_is_no_other_content_and_one_with_data_is(volume: LogVolume) -> None:
    async with open_filesystem(volume) as filesystem:
        for name in (b"data", b"zeros"):
            await filesystem.setattr(await make(filesystem, name), Changes(size=1 << 30, mtime=1))
    async with between(volume) as filesystem:
        for name, content in ((b"data", b"x"), (b"zeros", b"\0")):
            ino = filesystem.lookup(ROOT, name).ino
            await filesystem.write(ino, content * BLOCK, 1 << 20)
            await filesystem.setattr(ino, Changes(mtime=1))
    assert await compared(volume, "a", "b") == [Change("changed", stat.S_IFREG, b"/data", content=True)]


async def test_between_no_filesystem_and_one_everything_is_new(volume: LogVolume) -> None:
    await volume.snapshot("a")
    async with open_filesystem(volume) as filesystem:
        await make(filesystem, b"file")
        await filesystem.snapshot("b")
    changes = [Change("added", stat.S_IFDIR, b"/"), Change("added", stat.S_IFREG, b"/file")]
    assert await compared(volume, "a", "b") == changes
    assert await compared(volume, "b", "a") == [change._replace(what="removed") for change in changes]
    assert await compared(volume, "a", "a") == []


async def test_a_file_that_is_deleted_and_still_open_is_gone(volume: LogVolume) -> None:
    async with open_filesystem(volume) as filesystem:
        ino = await make(filesystem, b"file", b"x")
        filesystem.opened(ino)
        await filesystem.snapshot("a")
        filesystem.unlink(ROOT, b"file")
        await filesystem.snapshot("b")
        filesystem.released(ino)
    assert await compared(volume, "a", "b") == [Change("removed", stat.S_IFREG, b"/file")]


async def test_an_attribute_that_is_longer_than_a_page_is_compared_to_its_end(volume: LogVolume) -> None:
    async with open_filesystem(volume) as filesystem:
        ino = await make(filesystem, b"file")
        value = bytearray(os.urandom(20_000))
        filesystem.setxattr(ino, b"user.a", bytes(value))
        await filesystem.snapshot("a")
        value[-1] ^= 1
        filesystem.setxattr(ino, b"user.a", bytes(value))
        await filesystem.snapshot("b")
    assert await compared(volume, "a", "b") == [Change("changed", stat.S_IFREG, b"/file", attributes=("xattrs",))]


async def test_damaged_metadata_is_an_error_and_no_difference(volume: LogVolume) -> None:
    async with between(volume) as filesystem:
        for number in range(2000):
            await make(filesystem, b"%d" % number)
    async with volume.view("a") as one, volume.view("b") as other:
        metadata = MetadataReader(other)
        ((root,),) = metadata.rows("SELECT rootpage FROM fs.sqlite_schema WHERE name = 'entry'")
        metadata.close()
        damaged, read = DATABASE + (root - 1) * BLOCK, other.path.read_nowait
        other.read_nowait = lambda size, offset: None if offset == damaged else read(size, offset)  # type: ignore[method-assign]
        with pytest.raises(CorruptData):
            await compare_filesystems(one, other)


SIZES = (0, 1, 100, 1999, 2001, 4096, 4097, 9000, 40_000)
PUNCH, ZERO, KEEP_SIZE = 3, 16, 1


async def random_change(filesystem: Filesystem, chosen: random.Random) -> None:
    """One change of one of a few files: its content, where that is, or its name."""
    name = b"%d" % chosen.randrange(6)
    here = next((inode.ino for other, _, inode in filesystem.listing(ROOT) if other == name), None)
    if here is None:
        await make(filesystem, name, chosen.randbytes(chosen.choice(SIZES)))
        return
    size, at = filesystem.get(here).size, chosen.choice((0, 0, 10, 4096, 8192, 20_000))
    match chosen.randrange(7):
        case 0:
            filesystem.unlink(ROOT, name)
            filesystem.forget(here)
        case 1:
            await filesystem.setattr(here, Changes(size=chosen.choice(SIZES)))
        case 2:
            await filesystem.fallocate(here, chosen.choice((PUNCH, ZERO, KEEP_SIZE, 0)), at, chosen.choice(SIZES[1:]))
        case 3:
            content = bytes(await filesystem.read(here, size, 0))
            await filesystem.setattr(here, Changes(size=0))
            await filesystem.write(here, content, 0)
        case 4:
            await filesystem.write(here, bytes(chosen.choice(SIZES)), at)
        case _:
            await filesystem.write(here, chosen.choice((b"a", b"b")) * chosen.choice(SIZES), at)


async def contents_of(volume: LogVolume, name: str) -> dict[tuple[int, int], tuple[bytes, bytes]]:
    """Name and content of each file in a snapshot, by number and birth."""
    async with volume.view(name) as view:
        filesystem = await open_snapshot(view)
        found = {}
        for path, _, inode in list(filesystem.listing(ROOT)):
            content = bytes(await filesystem.read(inode.ino, inode.size, 0))
            assert len(content) == inode.size
            found[inode.ino, inode.btime] = b"/" + path, content
        filesystem.close()
        return found


@pytest.mark.parametrize("seed", range(12))
async def test_content_differs_exactly_where_reading_says_so(volume: LogVolume, seed: int) -> None:
    """With holes, space that was only reserved, files that grow out of their inodes, and restores in between."""
    chosen, names = random.Random(seed), [f"s{number}" for number in range(6)]
    filesystem = await load_filesystem(volume)
    for name in names:
        for _ in range(chosen.choice((1, 4, 20))):
            await random_change(filesystem, chosen)
        if chosen.random() < 0.3 and name != "s0":
            await filesystem.restore(chosen.choice(names[: names.index(name)]))
            filesystem = await load_filesystem(volume)
            # Else what is born now could not be told from what was born before.
            born = now()
            while now() == born:
                pass
            await random_change(filesystem, chosen)
        await filesystem.snapshot(name)
    filesystem.close()
    read = {name: await contents_of(volume, name) for name in names}
    for old in names:
        for new in names:
            found = await compared(volume, old, new)
            one, other = read[old], read[new]
            differ = {other[file][0] for file in one.keys() & other.keys() if one[file][1] != other[file][1]}
            assert {change.path for change in found if change.content} == differ
            assert {change.path for change in found if change.what == "added"} == {
                other[file][0] for file in other.keys() - one.keys()
            }
            assert {change.path for change in found if change.what == "removed"} == {
                one[file][0] for file in one.keys() - other.keys()
            }


# -- pages and blocks -----------------------------------------------------------------------------------


async def pages_between(one: SnapshotView, other: SnapshotView) -> set[int]:
    """The pages of the database that differ, numbered from 1."""
    first, found = DATABASE // BLOCK, set()
    async for block, count in changed_runs(one, other, first, 1 << 38):
        found |= set(range(block - first + 1, block - first + 1 + count))
    return found


QUERIES = {
    "inode": "SELECT ino, ino, mtime, size, data FROM {} ORDER BY ino",
    "entry": "SELECT parent, name, ino FROM {} ORDER BY parent, name",
    "extent": "SELECT ino, block, address, count FROM {} ORDER BY ino, block",
}


@pytest.mark.parametrize("seed", range(4))
async def test_rows_that_differ_are_within_the_ranges_that_pages_tell(volume: LogVolume, seed: int) -> None:
    chosen = random.Random(seed)
    async with open_filesystem(volume) as filesystem:
        directories = [
            filesystem.create(ROOT, b"d%d" % number, stat.S_IFDIR | 0o755, ROOT_USER).ino for number in range(30)
        ]
        for number in range(6000):
            await make(filesystem, b"%x" % chosen.randrange(1 << 60), b"x" * chosen.choice((10, 3000)),
                       directories[number % 30])  # fmt: skip
    async with between(volume) as filesystem:
        for number in range(chosen.choice((0, 1, 5, 3000))):
            directory = chosen.choice(directories)
            names = [name for name, _, _ in filesystem.listing(directory)]
            match chosen.randrange(3):
                case 0:
                    await make(filesystem, b"new%d" % number, b"y" * chosen.choice((10, 3000)), directory)
                case 1 if names:
                    filesystem.unlink(directory, chosen.choice(names))
                case _ if names:
                    ino = filesystem.lookup(directory, chosen.choice(names)).ino
                    await filesystem.write(ino, b"z" * 5000, 0)
    async with volume.view("a") as one, volume.view("b") as other:
        changed = await pages_between(one, other)
        sources = {"old": one, "new": other}
        metadata = MetadataReader(**sources)
        try:
            for table, query in QUERIES.items():
                keys = 1 if table == "inode" else 2
                trees, rows = [], []
                for side, source in sources.items():

                    def read(page: int, source: SnapshotView = source) -> bytes:
                        with source.blocking():
                            return bytes(source.read_nowait(BLOCK, DATABASE + (page - 1) * BLOCK) or b"")

                    ((root,),) = metadata.rows(f"SELECT rootpage FROM {side}.sqlite_schema WHERE name = ?", table)
                    trees.append(pages_of(read, root))
                    rows.append({row[:keys]: row for row in metadata.rows(query.format(f"{side}.{table}"))})
                ranges = differing_ranges(trees[0], trees[1], changed.__contains__)
                differ = {key for key in rows[0].keys() | rows[1].keys() if rows[0].get(key) != rows[1].get(key)}
                within = {
                    key for key in rows[0].keys() | rows[1].keys() if any(low <= key <= high for low, high in ranges)
                }
                assert differ <= within
                # And not many more than those: what a page holds.
                assert len(within) <= 100 * (len(differ) + 5)
        finally:
            metadata.close()


@pytest.mark.parametrize("seed", range(10))
async def test_runs_that_changed_are_the_blocks_that_read_differently(volume: LogVolume, seed: int) -> None:
    chosen = random.Random(seed)
    places = [0, 1, 1023, 1024, 5000, 1 << 20, (1 << 20) + 1, LOGICAL_BLOCKS - 1]
    content: dict[str, dict[int, bytes]] = {}

    async def change() -> None:
        for _ in range(chosen.randrange(12)):
            block = chosen.choice(places)
            if chosen.random() < 0.3:
                await volume.discard(BLOCK, block * BLOCK)
            else:
                await volume.write(chosen.choice((bytes(BLOCK), b"a" * BLOCK, b"b" * BLOCK)), block * BLOCK)

    for name in ("a", "b"):
        await change()
        await volume.snapshot(name)
    await change()
    async with volume.view("a") as one, volume.view("b") as other:
        sources: dict[str, LogVolume | SnapshotView] = {"a": one, "b": other, "now": volume}
        for name, source in sources.items():
            content[name] = {block: bytes(await source.read(BLOCK, block * BLOCK)) for block in places}
        for old, new in (("a", "b"), ("b", "a"), ("b", "now"), ("now", "a"), ("now", "now")):
            found = {
                block + at
                async for block, count in changed_runs(sources[old], sources[new], 0, LOGICAL_BLOCKS)
                for at in range(count)
            }
            assert found == {block for block in places if content[old][block] != content[new][block]}
            within = [run async for run in changed_runs(sources[old], sources[new], 1024, 5001)]
            assert {block for block, _ in within} == found & {1024, 5000}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"/a b/\xc3\xa9", "/a b/é"),
        (b"/\xff", "/\\xff"),
        (b"/\n\t", "/\\x0a\\x09"),
        (b"/\\x41", "/\\\\x41"),
        ("/\u202e".encode(), "/\\xe2\\x80\\xae"),
    ],
)
def test_a_path_is_text_of_one_line(path: bytes, text: str) -> None:
    assert path_text(path) == text


async def test_a_volume_is_compared_with_what_was_written_since_its_last_checkpoint(volume: LogVolume) -> None:
    filesystem = await load_filesystem(volume)
    await make(filesystem, b"file", b"x" * 5000)
    await filesystem.snapshot("a")
    filesystem.rename(ROOT, b"file", ROOT, b"other")
    await filesystem.sync()
    async with volume.view("a") as one:
        found = await compare_filesystems(one, volume)
    assert found == [Change("renamed", stat.S_IFREG, b"/other", b"/file")]
    filesystem.close()
