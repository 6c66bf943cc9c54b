"""What the metadata does not need any more, the store gets back; never a page that is in use."""

import random

import pytest

from fusevol.errors import BackendError, NoSpace
from fusevol.fs import Filesystem, open_filesystem, vfs
from fusevol.fs.check import check_filesystem
from fusevol.fs.freepages import free_leaves
from fusevol.fs.layout import BLOCK, DATABASE, ROOT
from fusevol.log import LogVolume, open_volume
from tests.unit.test_fs_edges import fresh, make, new_volume

MANY = 12_000


async def mapped(volume: LogVolume) -> int:
    """Bytes that the volume holds."""
    return (await volume.usage()).live


async def fill(fs: Filesystem, count: int, *, first: int = 0) -> None:
    """Files that are rows of the metadata, about two of them to a page."""
    for number in range(first, first + count):
        await fs.write(make(fs, b"file%d" % number), random.Random(number).randbytes(1500), 0)


async def filled(fs: Filesystem, volume: LogVolume, count: int) -> int:
    """Fill a filesystem with so many files, durably; what the volume holds then."""
    await fill(fs, count)
    await fs.sync()
    return await mapped(volume)


def remove(fs: Filesystem, count: int, *, first: int = 0, step: int = 1) -> None:
    for number in range(first, first + count, step):
        ino = fs.lookup(ROOT, b"file%d" % number).ino
        fs.unlink(ROOT, b"file%d" % number)
        fs.forget(ino)


async def content(fs: Filesystem, number: int) -> bytes:
    return bytes(await fs.read(fs.lookup(ROOT, b"file%d" % number).ino, 4096, 0))


async def test_the_space_of_many_deleted_small_files_comes_back() -> None:
    async with fresh() as (fs, volume):
        await fs.sync()
        empty = await mapped(volume)
        full = await filled(fs, volume, MANY)
        assert full > MANY * 1500
        remove(fs, MANY)
        await fs.sync()
        left = await mapped(volume) - empty
        # Trunk pages of the list, and what is kept for use.
        assert left <= vfs._KEPT * BLOCK + full // 500, left
        await fill(fs, MANY)
        await fs.sync()
        assert await mapped(volume) <= full + (1 << 20)
        for number in random.Random(1).sample(range(MANY), 100):
            assert await content(fs, number) == random.Random(number).randbytes(1500)


async def test_a_little_is_kept_for_use_until_all_of_it_is_asked_for() -> None:
    async with fresh() as (fs, volume):
        full = await filled(fs, volume, 1000)
        remove(fs, 1000)
        await fs.sync()
        assert await mapped(volume) >= full - (64 << 10)
        await fs.reclaim()
        assert await mapped(volume) < full // 4


async def test_what_an_earlier_mount_kept_comes_back_as_well() -> None:
    backend = await new_volume()
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as fs:
        await fill(fs, 1000)
        await fs.sync()
        remove(fs, 1000)
        await fs.sync()
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as fs:
        full = await mapped(volume)
        await fs.reclaim()
        assert await mapped(volume) < full // 4


async def test_where_the_store_is_full_all_of_it_comes_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fresh() as (fs, volume):
        full = await filled(fs, volume, 1000)
        remove(fs, 1000)
        with monkeypatch.context() as full_store:
            full_store.setattr(volume.room, "shortage", lambda: NoSpace("the store is full"))
            await fs.sync()
        assert await mapped(volume) < full // 4


async def test_scattered_pages_come_back_with_one_commit_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vfs, "_RUNS", 50)
    monkeypatch.setattr(vfs, "_KEPT", 0)
    monkeypatch.setattr(vfs, "_KEPT_SHIFT", 60)
    async with fresh() as (fs, volume):
        full = await filled(fs, volume, 4000)
        for first in range(0, 4000, 8):
            remove(fs, 4, first=first)
        await fs.sync()
        sizes = [await mapped(volume)]
        while fs._database.changed:
            await fs.sync()
            sizes.append(await mapped(volume))
        assert len(sizes) > 3
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] < full - 600 * BLOCK
        for number in range(4, 4000, 8):
            assert await content(fs, number) == random.Random(number).randbytes(1500)


async def test_what_was_given_back_is_used_again_and_a_crash_finds_either_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A random life with every free page given back at each commit, and left in the middle again and again."""
    monkeypatch.setattr(vfs, "_KEPT", 0)
    monkeypatch.setattr(vfs, "_KEPT_SHIFT", 60)
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng, backend, synced = random.Random(seed), await new_volume(), set[int]()
    for _ in range(12):
        async with open_volume(backend, "v") as volume, open_filesystem(volume) as fs:
            there = set(synced)
            assert {int(name[4:]) for name, *_ in fs.listing(ROOT)} == there
            for number in rng.sample(sorted(there), min(30, len(there))):
                assert await content(fs, number) == random.Random(number).randbytes(1500)
            for _ in range(rng.randrange(1, 8)):
                first = rng.randrange(100_000) * 1000
                count = rng.randrange(400)
                await fill(fs, count, first=first)
                there |= set(range(first, first + count))
                for number in rng.sample(sorted(there), rng.randrange(len(there) + 1) if there else 0):
                    remove(fs, 1, first=number)
                    there.discard(number)
                if rng.random() < 0.8:
                    await fs.sync()
                    synced = set(there)
            volume.abandon()
        async with open_volume(backend, "v") as volume:
            assert (await check_filesystem(volume, deep=True)).findings == []


async def test_the_list_is_what_sqlite_says_and_its_pages_hold_nothing() -> None:
    async with fresh() as (fs, volume):
        await fill(fs, 4000)
        await fs.sync()
        remove(fs, 4000)
        await fs.reclaim()
        leaves = free_leaves(fs._database._vfs._page)
        assert leaves is not None
        (count,) = fs._database.one("PRAGMA freelist_count") or (0,)
        assert isinstance(count, int)
        assert count - len(leaves) == -(-count // 1022) > 0
        for page in leaves.tolist():
            assert not any(await volume.read(BLOCK, DATABASE + (page - 1) * BLOCK))


def database(pages: int, free: int, *trunks: tuple[int, int, list[int]]) -> dict[int, bytes]:
    """The pages of a database that its free list is in: (trunk, the next, its leaves)."""
    head = bytearray(BLOCK)
    head[28:40] = b"".join(value.to_bytes(4, "big") for value in (pages, trunks[0][0] if trunks else 0, free))
    found = {1: bytes(head)}
    for trunk, after, leaves in trunks:
        words = [after, len(leaves), *leaves]
        found[trunk] = b"".join(word.to_bytes(4, "big") for word in words).ljust(BLOCK, b"\xff")
    return found


def test_the_leaves_of_a_sound_list_are_found() -> None:
    pages = database(20, 6, (5, 9, [8, 3]), (9, 0, [20, 2]))
    leaves = free_leaves(pages.get)
    assert leaves is not None
    assert leaves.tolist() == [2, 3, 8, 20]
    assert free_leaves(database(20, 0).get) is not None


@pytest.mark.parametrize(
    "pages",
    [
        {},
        database(20, 3, (5, 0, [8])),  # too few
        database(20, 1, (5, 0, [8])),  # too many
        database(20, 3, (5, 5, [8])),  # in a circle
        database(20, 3, (5, 0, [8, 8])),  # twice
        database(20, 3, (5, 0, [5, 8])),  # itself
        database(20, 3, (5, 0, [1, 8])),  # the first
        database(20, 3, (5, 0, [0, 8])),  # none
        database(20, 3, (5, 0, [8, 21])),  # behind the end
        database(20, 3, (21, 0, [8, 9])),
        database(20, 4, (5, 7, [8, 9])),  # not at hand
    ],
)
def test_of_a_list_that_makes_no_sense_no_page_is_free(pages: dict[int, bytes]) -> None:
    assert free_leaves(pages.get) is None


def test_a_count_larger_than_a_page_makes_no_sense() -> None:
    pages = database(5000, 2001, (5, 0, []))
    pages[5] = (0).to_bytes(4, "big") + (2000).to_bytes(4, "big") + bytes(BLOCK - 8)
    assert free_leaves(pages.get) is None


async def test_what_a_busy_log_does_not_take_is_given_back_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fresh() as (fs, volume):
        full = await filled(fs, volume, 4000)
        remove(fs, 4000)
        with monkeypatch.context() as busy:
            busy.setattr(volume._log, "full", lambda: True)
            fs._commit()
        await fs.reclaim()
        assert await mapped(volume) < full // 4


async def test_a_part_of_the_list_that_cannot_be_read_keeps_no_commit_from_going_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fresh() as (fs, volume):
        full = await filled(fs, volume, 4000)
        with monkeypatch.context() as disk:

            def fail(page: int) -> bytes:
                raise BackendError(f"page {page} could not be read: Input/output error")

            disk.setattr(fs._database._vfs, "_page", fail)
            remove(fs, 4000)
            await fs.reclaim()
            assert await mapped(volume) >= full - (64 << 10)
        await fs.reclaim()
        assert await mapped(volume) < full // 4
