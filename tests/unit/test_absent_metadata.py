"""Metadata that is still in a distant store: who can wait on a loop is told what to fetch, and nobody else waits."""

import random
import shutil
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import apsw
import pytest
import trio

from fusevol.api.io import Buffer
from fusevol.backends.cache import LocalCache
from fusevol.backends.object import ObjectBackend
from fusevol.backends.wrappers.faults import FaultyBackend, fail
from fusevol.errors import BackendError, CorruptData
from fusevol.fs import Absent, Caller, Changes, Fetches, Filesystem, load_filesystem, open_filesystem
from fusevol.fs.check import check_filesystem
from fusevol.fs.layout import BLOCK, DATABASE, ROOT
from fusevol.log import create_volume, open_volume

ME = Caller(0, 0)
FILES = 1000
PIECES = 1000
LARGE = random.Random(3).randbytes(40_000)


class Cache(LocalCache):
    """Notes what is read while the thread waits. emptied: has lost all but what is read from now on."""

    def __init__(self, store: Path, size: int = 1 << 26) -> None:
        super().__init__(lambda: FaultyBackend(ObjectBackend(f"file://{store}")), None, size)
        self.waited: list[tuple[int, int]] = []
        self.emptied = False
        self.since: set[int] = set()

    def read_nowait(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        gone = self.emptied and offset not in self.since
        return None if gone else super().read_nowait(volume_id, size, offset)

    def read_kept(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        gone = self.emptied and offset not in self.since
        return None if gone else super().read_kept(volume_id, size, offset)

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        self.since.update(range(offset, offset + size, BLOCK))
        return await super().read(volume_id, size, offset)

    def read_blocking(self, volume_id: str, size: int, offset: int) -> Buffer:
        if self.read_nowait(volume_id, size, offset) is None:
            self.waited.append((size, offset))
        return super().read_blocking(volume_id, size, offset)


def content(number: int) -> bytes:
    return b"%05d" % number * 200


def name(number: int) -> bytes:
    return b"file%05d" % number


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a volume: files in a directory, some of them in pieces, and with attributes."""
    directory = tmp_path_factory.mktemp("filled")
    trio.run(_fill, directory)
    return directory


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Path:
    """A copy of it, for one test."""
    return Path(shutil.copytree(filled, tmp_path / "store"))


async def _fill(store: Path) -> None:
    cache = Cache(store)
    await create_volume(cache, "v")
    async with open_volume(cache, "v") as volume, open_filesystem(volume) as fs:
        directory = fs.create(ROOT, b"d", stat.S_IFDIR | 0o755, ME).ino
        for number in range(FILES):
            ino = fs.create(directory, name(number), stat.S_IFREG | 0o644, ME).ino
            for piece in range(0, 40 if number % 10 == 0 else 2, 2):
                await fs.write(ino, content(number), piece * BLOCK)
            fs.setxattr(ino, b"user.number", b"%d" % number)
        scattered = fs.create(ROOT, b"scattered", stat.S_IFREG | 0o644, ME).ino
        for piece in range(PIECES):
            await fs.write(scattered, b"%08d" % piece, 2 * piece * BLOCK)
        fs.setxattr(scattered, b"user.large", LARGE)
    await cache.aclose()


@asynccontextmanager
async def opened(store: Path, size: int = 1 << 26) -> AsyncIterator[tuple[Filesystem, Cache]]:
    """The filesystem, as on a machine that has nothing of it; sound when it is left."""
    cache = Cache(store, size)
    async with open_volume(cache, "v") as volume:
        fs = await load_filesystem(volume)
        cache.waited.clear()
        yield fs, cache
        await fs.sync()
        fs.close()
        assert [str(finding) for finding in (await check_filesystem(volume)).findings] == []
    await cache.aclose()


async def found(fs: Filesystem, path: bytes) -> int:
    ino = ROOT
    for part in path.split(b"/"):
        inode = await fs.asked(fs.find, ino, part)
        assert inode is not None
        ino = inode.ino
    return ino


async def test_what_is_absent_is_said_and_fetched_and_nothing_is_waited_for(store: Path) -> None:
    rng = random.Random(1)
    async with opened(store) as (fs, cache):
        with pytest.raises(Absent, match="not at hand"):
            fs.hurried(fs.find, ROOT, b"d")
        for number in rng.sample(range(FILES), 50):
            ino = await found(fs, b"d/" + name(number))
            assert await fs.asked(fs.getxattr, ino, b"user.number") == b"%d" % number
            await fs.asked(fs.located, ino)
            assert bytes(await fs.read(ino, 1000, 0)) == content(number)
        assert cache.waited == []
        assert not fs._database._vfs.fetched


async def test_whoever_is_not_in_a_hurry_has_it_at_once(store: Path) -> None:
    async with opened(store) as (fs, cache):
        directory = fs.lookup(ROOT, b"d").ino
        assert fs.getxattr(fs.lookup(directory, name(7)).ino, b"user.number") == b"7"
        assert cache.waited


async def test_a_listing_that_is_in_the_store_comes_in_pieces(store: Path) -> None:
    async with opened(store) as (fs, cache):
        directory = await found(fs, b"d")
        listed: list[bytes] = []
        after = 0

        def listing() -> None:
            nonlocal after
            for entry, cookie, _ in fs.listing(directory, after):
                listed.append(entry)
                after = cookie

        await fs.asked(listing)
        assert listed == [name(number) for number in range(FILES)]
        assert cache.waited == []


async def test_a_file_in_very_many_pieces_is_looked_through_once(store: Path) -> None:
    async with opened(store) as (fs, cache):
        ino = await found(fs, b"scattered")
        known = [0]

        def located() -> None:
            known.append(len(fs.get(ino).loading or []))
            fs.located(ino)

        await fs.asked(located)
        assert len(known) > 4
        assert known == sorted(known)
        assert max(after - before for before, after in pairwise(known)) < PIECES / 2, "it began anew"
        for piece in range(PIECES):
            assert bytes(await fs.read(ino, 8, 2 * piece * BLOCK)) == b"%08d" % piece
        assert cache.waited == []


@pytest.mark.parametrize("change", ["write", "truncate"])
async def test_what_is_changed_while_somebody_looks_through_it_is_changed_for_them_too(
    store: Path, change: str
) -> None:
    async with opened(store) as (fs, _):
        ino = await found(fs, b"scattered")
        for _ in range(3):
            with pytest.raises(Absent) as caught:
                fs.hurried(fs.located, ino)
            await Fetches().fetch(caught.value)
        assert fs.get(ino).loading
        if change == "write":
            await fs.write(ino, b"changed!", 100 * BLOCK)
            await fs.write(ino, b"changed!", (2 * PIECES - 99) * BLOCK)
        else:
            await fs.setattr(ino, Changes(size=50 * BLOCK))
        await fs.sync()
        await fs.asked(fs.located, ino)
        if change == "write":
            assert bytes(await fs.read(ino, 8, 100 * BLOCK)) == b"changed!"
            assert bytes(await fs.read(ino, 8, (2 * PIECES - 99) * BLOCK)) == b"changed!"
            assert bytes(await fs.read(ino, 8, 102 * BLOCK)) == b"%08d" % 51
        else:
            assert [extent[0] for extent in fs.get(ino).extents or []] == list(range(0, 50, 2))


async def test_what_an_error_of_the_store_keeps_away_is_an_error_and_can_be_asked_for_again(store: Path) -> None:
    async with opened(store) as (fs, cache):
        assert isinstance(cache.inner, FaultyBackend)
        cache.inner.add(fail("read", error=BackendError("the store is away")))
        with pytest.raises(BackendError, match="the store is away"):
            await found(fs, b"d/" + name(1))
        cache.inner.clear()
        assert await found(fs, b"d/" + name(1))


async def test_what_is_gone_as_soon_as_it_was_fetched_is_fetched_once_and_then_waited_for(store: Path) -> None:
    class Forgetful(Cache):
        def __init__(self, store: Path) -> None:
            super().__init__(store)
            self.fetched: list[tuple[int, int]] = []

        def read_nowait(self, volume_id: str, size: int, offset: int) -> None:
            return None

        read_kept = read_nowait

        async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
            self.fetched.append((size, offset))
            return await super().read(volume_id, size, offset)

    cache = Forgetful(store)
    async with open_volume(cache, "v") as volume, open_filesystem(volume) as fs:
        fs._database.run("PRAGMA cache_size=0")  # nor does SQLite keep any
        ino = await found(fs, b"scattered")
        cache.waited.clear()
        cache.fetched.clear()
        assert await fs.asked(fs.getxattr, ino, b"user.large") == LARGE
        assert len(cache.waited) > 0
        assert 10 <= len(cache.fetched) == len(set(cache.fetched))
        assert not fs._database._vfs.fetched
    await cache.aclose()


async def test_what_is_damaged_fails_for_those_who_need_it_only(store: Path) -> None:
    async with opened(store) as (fs, _):
        # Of all pages but those where the tables begin.
        addresses = [address for address in (await fs.volume.path.live.leaf(0)).w[DATABASE // BLOCK + 16 :] if address]
    for path in (store / "v/data").iterdir():
        first, blocks = (int(part, 16) // BLOCK for part in path.name.split("-"))
        with path.open("r+b") as file:
            for at in addresses:
                if first <= at < first + blocks:
                    file.seek((at - first) * BLOCK + 100)
                    file.write(b"damaged")
    cache = Cache(store)
    async with open_volume(cache, "v") as volume:
        fs = await load_filesystem(volume)
        assert fs.statfs().files > FILES
        with pytest.raises(CorruptData):
            await found(fs, b"d/" + name(FILES // 2))
        fs.close()
        volume.abandon()
    await cache.aclose()


async def test_changes_wait_for_nothing(store: Path) -> None:
    rng = random.Random(2)
    async with opened(store) as (fs, cache):
        directory = await found(fs, b"d")
        deep = [directory]
        for number in range(3):
            deep.append((await fs.asked(fs.create, deep[-1], b"deep%d" % number, stat.S_IFDIR | 0o755, ME)).ino)
        numbers = iter(rng.sample(range(FILES), 60))

        async def file(number: int, **what: bool) -> int:
            ino = await found(fs, b"d/" + name(number))
            await fs.asked(lambda: fs.survey(ino, **what))
            return ino

        for turn in range(4):
            one, other, third, fourth, *rest = (next(numbers) for _ in range(9))
            await fs.asked(fs.unlink, directory, name(one))
            await fs.asked(fs.rename, directory, name(other), directory, name(third))
            await fs.asked(fs.create, directory, b"new%d" % turn, stat.S_IFREG | 0o644, ME)
            ino = await file(fourth)
            await fs.asked(fs.link, ino, directory, b"link%d" % turn)
            await fs.asked(fs.setxattr, await file(rest[0]), b"user.more", b"more")
            await fs.asked(fs.removexattr, await file(rest[1]), b"user.number")
            await fs.setattr(await file(rest[2], content=True, attributes=True), Changes(size=100))
            await fs.setattr(await file(rest[3], attributes=True), Changes(mode=0o600))
            await fs.write(await file(rest[4], content=True, attributes=True), b"written", 10 * BLOCK + 10)
            await fs.sync()
        await fs.asked(fs.rename, deep[2], b"deep2", ROOT, b"moved")
        assert cache.waited == []


async def test_files_in_the_order_they_were_made_are_loaded_together(store: Path) -> None:
    async with opened(store) as (fs, cache):
        statements: list[str] = []
        fs._database.connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: statements.append(event["sql"]))
        inos = range(ROOT, ROOT + FILES)
        for ino in inos:
            await fs.asked(fs.get, ino)
        assert cache.waited == []
        # One that finds out that a page is absent, and one that goes on there; a page has three rows.
        assert len(statements) < FILES * 2 / 3
        fs._inodes._cache.clear()
        statements.clear()
        for ino in inos:
            assert fs.get(ino).ino == ino
        assert len(statements) < FILES / 20


async def test_a_commit_waits_for_nothing_either(store: Path) -> None:
    async with opened(store) as (fs, cache):
        inos = [await found(fs, b"d/" + name(number)) for number in range(0, FILES, 25)]
        for ino in inos:
            await fs.setattr(ino, Changes(mode=0o600))
        fs._database.run("PRAGMA cache_size=0")  # nor does SQLite keep any
        cache.emptied = True
        cache.waited.clear()
        cache.since.clear()
        fs.resize(1 << 40)
        await fs.sync()
        assert len(cache.since) > 4
        assert cache.waited == []
        assert all(fs.get(ino).mode == stat.S_IFREG | 0o600 for ino in inos)


async def test_deleting_nearly_all_there_is_waits_for_no_neighbours_and_leaves_the_rest(store: Path) -> None:
    async with opened(store) as (fs, cache):
        directory = await found(fs, b"d")
        # Pages run empty, and are joined with what is beside them.
        gone = [number for number in range(FILES) if number % 20 > 1]
        for number in random.Random(5).sample(gone, len(gone)):
            ino = await found(fs, b"d/" + name(number))
            await fs.asked(fs.unlink, directory, name(number))
            await fs.asked(fs.forget, ino)
        assert cache.waited == []
        entries = await fs.asked(fs.entries, directory)
        assert [entry.name for entry in entries] == [name(n) for n in range(FILES) if n % 20 <= 1]
